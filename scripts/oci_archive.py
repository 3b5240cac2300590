"""Packs folders into the layers of an OCI image, and the image into one archive. The same folders give the same bytes.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.1/spec.md
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.folder_archive import Owner, compress, pack_folder

# Time stamps of all files, so that a layer changes only if its content changes. Some tools treat 0 as missing.
MTIME = 1
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an image.

    Attributes:
        diff_id: SHA-256 of the uncompressed tar, lower-case hex.
        blob: the tar, compressed with gzip.
        unpacked: size of the uncompressed tar in bytes.
        created_by: a phrase for the history of the image.
    """

    diff_id: str
    blob: bytes
    unpacked: int
    created_by: str


def pack_layer(folder: Path, created_by: str, owners: Mapping[str, Owner] | None = None) -> Layer:
    """Create a layer from everything below `folder`. Raises ValueError for a pipe, a socket or a device."""
    content = pack_folder(folder, MTIME, owners=owners)
    return Layer(hashlib.sha256(content).hexdigest(), compress(content), len(content), created_by)


def write_archive(
    path: Path,
    tag: str,
    layers: Sequence[Layer],
    config: Mapping[str, Any],
    *,
    architecture: str,
    created: str,
) -> str:
    """Write an image as a tar of an OCI layout. Returns the digest of the manifest, `sha256:…`.

    Args:
        tag: name of the image inside the archive.
        config: user, entry point, environment and labels, as the image specification names them.
        created: RFC 3339.
    """
    blobs: dict[str, bytes] = {}

    def add(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    image_config = {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
        "history": [{"created": created, "created_by": layer.created_by} for layer in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": add(_json(image_config), _CONFIG),
        "layers": [add(layer.blob, _LAYER) for layer in layers],
    }
    described = add(_json(manifest), _MANIFEST)
    index = {
        "schemaVersion": 2,
        "mediaType": _INDEX,
        "manifests": [
            described
            | {
                "platform": {"architecture": architecture, "os": "linux"},
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }
        ],
    }
    files = {f"blobs/sha256/{digest}": content for digest, content in blobs.items()}
    files |= {"index.json": _json(index), "oci-layout": _json({"imageLayoutVersion": "1.0.0"})}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), MTIME
            archive.addfile(member, io.BytesIO(content))
    return str(described["digest"])


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

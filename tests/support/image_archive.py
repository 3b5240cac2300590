"""What is in an archive of a container image."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ImageArchive:
    """An image with one manifest.

    Attributes:
        digest: digest of the manifest, `sha256:…`.
        config: the image's configuration.
        compressed: size of all layers in bytes.
        members: everything in the layers, by path without a leading slash.
        content: content of the files in the layers.
    """

    path: Path
    digest: str
    config: Mapping[str, Any]
    compressed: int
    members: Mapping[str, tarfile.TarInfo]
    content: Mapping[str, bytes]

    def text(self, path: str) -> str:
        return self.content[path].decode()


def read_archive(path: Path) -> ImageArchive:
    """Read an image, and check the digest of each blob."""
    with tarfile.open(path) as archive:
        blobs = {member.name: _content(archive, member) for member in archive}

    def blob(digest: str) -> bytes:
        found = blobs[f"blobs/sha256/{digest.removeprefix('sha256:')}"]
        assert f"sha256:{hashlib.sha256(found).hexdigest()}" == digest
        return found

    (described,) = json.loads(blobs["index.json"])["manifests"]
    manifest = json.loads(blob(described["digest"]))
    members, content = dict[str, tarfile.TarInfo](), dict[str, bytes]()
    for layer in manifest["layers"]:
        with tarfile.open(fileobj=io.BytesIO(blob(layer["digest"])), mode="r:gz") as archive:
            for member in archive:
                assert member.name not in members or member.isdir()
                members[member.name] = member
                if member.isfile():
                    content[member.name] = _content(archive, member)
    return ImageArchive(
        path,
        described["digest"],
        json.loads(blob(manifest["config"]["digest"])),
        sum(layer["size"] for layer in manifest["layers"]),
        members,
        content,
    )


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file is not None else b""

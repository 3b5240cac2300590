"""Reads the address and the CA of a cluster from a kubeconfig.

Unlike kubectl, this module ignores `exec` and `auth-provider`, so it never runs a program that a kubeconfig names.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clustercert.cli.options import CommandError
from clustercert.cli.yaml_io import in_messages, parse, read_input, read_regular

# The maximum size of a kubeconfig: enough for several hundred clusters.
MAX_BYTES = 1024 * 1024
MAX_CA_BYTES = 64 * 1024
# Fields that change how kubectl reaches the API server. These fields are not imported, because issued kubeconfigs don't
# have them.
_SKIPPED = ("tls-server-name", "proxy-url")


@dataclass(frozen=True, slots=True)
class ImportedCluster:
    """A cluster from a kubeconfig.

    Attributes:
        ca_pem: the CA of the API server's certificate; `None` if the caller did not need the CA.
        skipped_fields: fields that change how kubectl reaches the cluster, and that were not imported.
    """

    context: str
    server: str
    ca_pem: bytes | None
    skipped_fields: tuple[str, ...]


def read(path: Path, context: str | None, *, need_ca: bool, follow_files: bool) -> ImportedCluster:
    """Read the cluster of a context, by default the current context. The path `-` is standard input.

    Raises CommandError.

    Args:
        follow_files: whether to read the file that `certificate-authority` names.
    """
    content = read_input(path, MAX_BYTES)
    path = in_messages(path)
    documents = parse(content, f"{path}")
    config = _mapping(documents[0] if len(documents) == 1 else None, f"{path}")
    chosen = context if context is not None else config.get("current-context")
    if not isinstance(chosen, str) or not chosen:
        raise CommandError(f"{path} has no current context. Choose one with --context: {_names(config)}.")
    name = _entry(config, "contexts", chosen, "context").get("cluster")
    cluster = _entry(config, "clusters", str(name), "cluster")
    server = cluster.get("server")
    if not isinstance(server, str):
        raise CommandError(f"The cluster of the context {chosen} in {path} has no server address.")
    return ImportedCluster(
        context=chosen,
        server=server.removesuffix("/"),
        ca_pem=_ca(cluster, path, follow_files=follow_files) if need_ca else None,
        skipped_fields=tuple(field for field in _SKIPPED if cluster.get(field)),
    )


def _ca(cluster: Mapping[str, object], path: Path, *, follow_files: bool) -> bytes:
    data, file = cluster.get("certificate-authority-data"), cluster.get("certificate-authority")
    if isinstance(data, str) and data:
        try:
            return base64.b64decode("".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            raise CommandError(f"certificate-authority-data in {path} is not base64.") from None
    if isinstance(file, str) and file:
        if not follow_files:
            raise CommandError(
                f"{path} has no CA but names the file {file}. Allow reading that file with --follow-files, or "
                "name the CA with --server-ca."
            )
        # As in kubectl, a path is relative to the kubeconfig's folder.
        return read_regular(path.parent / file, MAX_CA_BYTES)
    if cluster.get("insecure-skip-tls-verify"):
        raise CommandError(
            f"{path} disables verification of the API server's certificate. Specify the CA with --server-ca."
        )
    raise CommandError(f"{path} has no CA for the API server. Name the CA with --server-ca.")


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise CommandError(f"{where} is not a YAML mapping. Check the kubeconfig.")
    return value


def _entry(config: Mapping[str, object], field: str, name: str, noun: str) -> Mapping[str, object]:
    """Find the entry with the given name in a list of `{name, context}` or `{name, cluster}` mappings."""
    for entry in _entries(config, field):
        if entry.get("name") == name:
            return _mapping(entry.get(noun), f"The {noun} {name}")
    raise CommandError(f"There is no {noun} named {name} in the file. The file's contexts: {_names(config)}.")


def _entries(config: Mapping[str, object], field: str) -> list[Mapping[str, object]]:
    entries = config.get(field)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _names(config: Mapping[str, object]) -> str:
    return ", ".join(str(entry.get("name")) for entry in _entries(config, "contexts")[:20]) or "none"

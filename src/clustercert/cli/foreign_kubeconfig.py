"""Reads the address and the CA of a cluster out of somebody's kubeconfig, and nothing else.

Nothing in it is run: kubectl would start the programs that `exec` and `auth-provider` name, this doesn't look at them.
"""

import base64
import binascii
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clustercert.errors import ClustercertError

# Room for some hundred clusters.
MAX_BYTES = 1024 * 1024
MAX_CA_BYTES = 64 * 1024
# A kubeconfig has about six levels.
_MAX_DEPTH = 32
# Fields with which kubectl reaches the API server in a way that is not passed on to those who get a kubeconfig here.
_NOT_TAKEN = ("tls-server-name", "proxy-url")


class ForeignKubeconfigError(ClustercertError):
    """The file can't be used; the message says what is wrong with it and what to do."""


@dataclass(frozen=True, slots=True)
class ForeignCluster:
    """What is taken from the file.

    Attributes:
        context: the context that was read.
        ca_pem: None where it wasn't needed.
        left_out: fields of the cluster that say how kubectl reaches it and are not taken over.
    """

    context: str
    server: str
    ca_pem: bytes | None
    left_out: tuple[str, ...]


def read(path: Path, context: str | None, *, need_ca: bool, follow_files: bool) -> ForeignCluster:
    """The cluster of a context, or of the current one. Raises ForeignKubeconfigError.

    Attributes:
        need_ca: False where the CA is known from elsewhere.
        follow_files: read the file that `certificate-authority` names.
    """
    config = _mapping(_parsed(_bounded(path, MAX_BYTES), path), f"{path}")
    wanted = context if context is not None else config.get("current-context")
    if not isinstance(wanted, str) or not wanted:
        raise ForeignKubeconfigError(
            f"{path} has no current context. Choose one with --context: {_names(config)}."
        )
    name = _entry(config, "contexts", wanted, "context").get("cluster")
    cluster = _entry(config, "clusters", str(name), "cluster")
    server = cluster.get("server")
    if not isinstance(server, str):
        raise ForeignKubeconfigError(f"The cluster of the context {wanted} in {path} has no server.")
    return ForeignCluster(
        context=wanted,
        server=server.removesuffix("/"),
        ca_pem=_ca(cluster, path, follow_files=follow_files) if need_ca else None,
        left_out=tuple(field for field in _NOT_TAKEN if cluster.get(field)),
    )


def _ca(cluster: Mapping[str, object], path: Path, *, follow_files: bool) -> bytes:
    data, file = cluster.get("certificate-authority-data"), cluster.get("certificate-authority")
    if isinstance(data, str) and data:
        try:
            return base64.b64decode("".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            raise ForeignKubeconfigError(f"certificate-authority-data in {path} is not base64.") from None
    if isinstance(file, str) and file:
        if not follow_files:
            raise ForeignKubeconfigError(
                f"{path} has no CA in it but names the file {file}. Allow reading that with --follow-files, or name "
                "the CA with --server-ca."
            )
        # As kubectl does: relative to the kubeconfig's own folder.
        return _bounded(path.parent / file, MAX_CA_BYTES)
    if cluster.get("insecure-skip-tls-verify"):
        raise ForeignKubeconfigError(
            f"{path} skips the check of the API server's certificate and has no CA. Nobody should get a kubeconfig "
            "like that: name the CA with --server-ca."
        )
    raise ForeignKubeconfigError(f"{path} has no CA for the API server. Name it with --server-ca.")


def _bounded(path: Path, limit: int) -> bytes:
    try:
        if not path.is_file():
            raise ForeignKubeconfigError(f"{path} is no file.")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ForeignKubeconfigError(f"The file {path} can't be read: {error.strerror}.") from error
    if len(content) > limit:
        raise ForeignKubeconfigError(f"The file {path} is larger than {limit // 1024} KiB.")
    return content


def _parsed(content: bytes, path: Path) -> object:
    try:
        text = content.decode()
        _check_events(text, path)
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        # Only where it is: the text around it may be a secret.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ForeignKubeconfigError(f"{path} is not a kubeconfig in YAML{where}.") from None


def _check_events(text: str, path: Path) -> None:
    """Refuse what makes a small file large: aliases, and nesting beyond reason."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ForeignKubeconfigError(f"{path} has YAML aliases, which no kubeconfig needs.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise ForeignKubeconfigError(f"{path} is nested deeper than any kubeconfig.")


class _Loader(yaml.SafeLoader):
    """Safe, and refuses a key that stands twice, of which readers take one or the other."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if len({str(key) for key in keys}) != len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ForeignKubeconfigError(f"{where} is not what a kubeconfig has there.")
    return value


def _entry(config: Mapping[str, object], field: str, name: str, noun: str) -> Mapping[str, object]:
    """The named entry of a list of `{name, context}` or `{name, cluster}`."""
    for entry in _entries(config, field):
        if entry.get("name") == name:
            return _mapping(entry.get(noun), f"The {noun} {name}")
    raise ForeignKubeconfigError(
        f"There is no {noun} named {name} in the file. Its contexts: {_names(config)}."
    )


def _entries(config: Mapping[str, object], field: str) -> list[Mapping[str, object]]:
    entries = config.get(field)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _names(config: Mapping[str, object]) -> str:
    return ", ".join(str(entry.get("name")) for entry in _entries(config, "contexts")[:20]) or "none"

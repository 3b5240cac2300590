"""Reads the address and the CA of a cluster from a kubeconfig.

Unlike kubectl, this module ignores `exec` and `auth-provider`, so it never runs a program that a kubeconfig names.
"""

import base64
import binascii
import re
import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clustercert.cli.options import CommandError, UsageError
from clustercert.secure_file import read_regular_file

# The maximum size. A kubeconfig of this size has several hundred clusters.
MAX_BYTES = 1024 * 1024
MAX_CA_BYTES = 64 * 1024
STANDARD_INPUT = Path("-")
# The maximum nesting. A kubeconfig has about six levels.
_MAX_DEPTH = 32
# Fields that change how kubectl reaches the API server. They are not imported: issued kubeconfigs don't have them.
_SKIPPED = ("tls-server-name", "proxy-url")
# YAML's tags of numbers, and their forms in JSON.
_NUMBERS: Mapping[str, tuple[re.Pattern[str], type[int] | type[float]]] = {
    "tag:yaml.org,2002:int": (re.compile(r"-?(0|[1-9][0-9]*)\Z", re.ASCII), int),
    "tag:yaml.org,2002:float": (
        re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?\Z", re.ASCII),
        float,
    ),
}


@dataclass(frozen=True, slots=True)
class ImportedCluster:
    """A cluster from a kubeconfig.

    Attributes:
        ca_pem: the CA of the API server's certificate; `None` if it was not requested.
        skipped_fields: fields that change how kubectl reaches the cluster, and that were not imported.
    """

    context: str
    server: str
    ca_pem: bytes | None
    skipped_fields: tuple[str, ...]


def read(path: Path, context: str | None, *, need_ca: bool, follow_files: bool) -> ImportedCluster:
    """Read the cluster of a context, by default the current one. The path `-` is standard input. Raises CommandError.

    Args:
        follow_files: whether to read the file that `certificate-authority` names.
    """
    content = bounded(path, MAX_BYTES)
    path = in_messages(path)
    config = _mapping(_parsed(content, path), f"{path}")
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
        return bounded(path.parent / file, MAX_CA_BYTES)
    if cluster.get("insecure-skip-tls-verify"):
        raise CommandError(
            f"{path} disables verification of the API server's certificate. Specify the CA with --server-ca."
        )
    raise CommandError(f"{path} has no CA for the API server. Name it with --server-ca.")


def in_messages(path: Path) -> Path:
    """Return the path for messages: `standard input` for `-`. The path keeps its folder, as relative names need."""
    return Path("standard input") if path == STANDARD_INPUT else path


def bounded(path: Path, limit: int) -> bytes:
    """Read a file, or standard input for `-`, of at most `limit` bytes. Raises CommandError."""
    if path == STANDARD_INPUT:
        content = sys.stdin.buffer.read(limit + 1)
        if len(content) > limit:
            raise CommandError(f"Standard input is larger than {limit // 1024} KiB.")
        return content
    try:
        content = read_regular_file(path, limit + 1)
    except FileNotFoundError as error:
        raise UsageError(f"The file {path} does not exist.") from error
    except OSError as error:
        raise CommandError(f"The file {path} can't be read: {error.strerror}.") from error
    if len(content) > limit:
        raise CommandError(f"The file {path} is larger than {limit // 1024} KiB.")
    return content


def _parsed(content: bytes, path: Path) -> object:
    documents = checked_yaml(content, path, "a kubeconfig")
    return documents[0] if len(documents) == 1 else None


def checked_yaml(content: bytes, path: Path, what: str) -> list[object]:
    """Parse YAML documents without aliases, duplicate keys or deep nesting. Raises CommandError.

    Args:
        what: what the file should be, for messages.
    """
    try:
        text = content.decode()
        _check_events(text, path)
        return list(yaml.load_all(text, _Loader))
    except (yaml.YAMLError, ValueError) as error:
        # Report only the line number, since the parser's message may quote a secret.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise CommandError(f"{path} is not {what} in YAML{where}.") from None


def _check_events(text: str, path: Path) -> None:
    """Reject aliases and deep nesting, which could make a small file expensive to parse."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise CommandError(f"{path} has YAML aliases, which are not accepted.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise CommandError(f"{path} is nested too deeply.")


class _Loader(yaml.SafeLoader):
    """A safe loader that rejects duplicate keys, since parsers disagree about their meaning.

    Its numbers are those of JSON. In YAML 1.1, `1:30` is a number to base 60, and a long one takes quadratic time.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if len({str(key) for key in keys}) != len(keys):
            raise yaml.constructor.ConstructorError(None, None, "duplicate key", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Construct a number, also one with an explicit tag."""
        pattern, number_type = _NUMBERS[node.tag]
        text = self.construct_scalar(node)
        if not pattern.fullmatch(text):
            raise yaml.constructor.ConstructorError(None, None, "not a number of JSON", node.start_mark)
        return number_type(text)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _) in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, list("-0123456789"))
    _Loader.add_constructor(_tag, _Loader.construct_number)


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise CommandError(f"{where} is not a mapping, as a kubeconfig requires.")
    return value


def _entry(config: Mapping[str, object], field: str, name: str, noun: str) -> Mapping[str, object]:
    """Find the entry with the given name in a list of `{name, context}` or `{name, cluster}` mappings."""
    for entry in _entries(config, field):
        if entry.get("name") == name:
            return _mapping(entry.get(noun), f"The {noun} {name}")
    raise CommandError(f"There is no {noun} named {name} in the file. Its contexts: {_names(config)}.")


def _entries(config: Mapping[str, object], field: str) -> list[Mapping[str, object]]:
    entries = config.get(field)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _names(config: Mapping[str, object]) -> str:
    return ", ".join(str(entry.get("name")) for entry in _entries(config, "contexts")[:20]) or "none"

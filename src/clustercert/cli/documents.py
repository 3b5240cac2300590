"""Reads the YAML documents of `clustercert apply`, and checks them without the service."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clustercert.cli.document_kinds import API_VERSION, KINDS, DocumentKind, Schema, json_schema
from clustercert.cli.kubeconfig_import import STANDARD_INPUT, bounded, checked_yaml, in_messages
from clustercert.cli.options import CommandError

MAX_BYTES = 16 * 1024 * 1024
_SUFFIXES = {".yaml", ".yml"}
_TYPES = {"string": str, "boolean": bool, "array": list, "object": dict}


@dataclass(frozen=True, slots=True)
class Document:
    """A document that fits its kind's schema.

    Attributes:
        domain: the domain of names; `None` for the caller's.
        project: the project of a cluster or role binding, by name or id.
        source: the file, for messages and relative paths.
    """

    kind: DocumentKind
    name: str
    domain: str | None
    project: str | None
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    source: Path

    @property
    def title(self) -> str:
        where = f"{self.project}/" if self.project is not None else ""
        return f"{self.kind.name} {where}{self.name}"


def read_documents(paths: Sequence[Path]) -> list[Document]:
    """Read the documents of files, of all YAML files in folders, and of standard input (-). Raises CommandError."""
    found: list[Document] = []
    for path in paths:
        in_path = [document for file in _files(path) for document in _documents(file)]
        if not in_path:
            raise CommandError(f"{in_messages(path)} has no documents.")
        found += in_path
    seen: dict[tuple[object, ...], Document] = {}
    for each in found:
        key = (each.kind.name, each.domain, each.project, each.name)
        if key in seen:
            raise CommandError(f"{each.source}: {each.title} is also in {seen[key].source}.")
        seen[key] = each
    return found


def _files(path: Path) -> list[Path]:
    if path == STANDARD_INPUT or not path.is_dir():
        return [path]
    return sorted(each for each in path.rglob("*") if each.suffix in _SUFFIXES)


def _documents(file: Path) -> Iterator[Document]:
    content = bounded(file, MAX_BYTES)
    file = in_messages(file)
    for number, value in enumerate(checked_yaml(content, file, "a file of documents"), 1):
        if value is not None:
            yield _document(value, file, f"{file}, document {number}")


def _document(value: object, file: Path, where: str) -> Document:
    if not isinstance(value, dict):
        raise CommandError(f"{where}: it must be a mapping with apiVersion, kind, metadata and spec.")
    if value.get("apiVersion") != API_VERSION:
        raise CommandError(f"{where}: apiVersion must be {API_VERSION}.")
    kind = KINDS.get(str(value.get("kind")))
    if kind is None:
        raise CommandError(f"{where}: kind must be {', '.join(KINDS)}.")
    schema = next(each for each in json_schema()["oneOf"] if each["title"] == kind.name)
    _check(value, schema, where, "")
    metadata, spec = value["metadata"], value.get("spec") or {}
    _check_spec(kind, spec, where)
    for name in (metadata["name"], metadata.get("domain"), metadata.get("project"), spec.get("project")):
        if name is not None and "/" in name:
            raise CommandError(f"{where}: the name {name} has a slash. Use the id of this object instead.")
    return Document(
        kind=kind,
        name=metadata["name"],
        domain=metadata.get("domain"),
        project=metadata.get("project") or spec.get("project"),
        labels=metadata.get("labels") or {},
        spec=spec,
        source=file,
    )


def _check_spec(kind: DocumentKind, spec: Mapping[str, Any], where: str) -> None:
    """Check rules that the schema does not contain. Raises CommandError."""
    if kind.name == "RoleBinding" and ("project" in spec) == ("service" in spec):
        raise CommandError(f"{where}: spec: give either project or service: true.")
    if (
        kind.name == "Cluster"
        and "kubeconfig" not in spec
        and not {"internal_url", "server_ca"} <= spec.keys()
    ):
        raise CommandError(f"{where}: spec: give internal_url and server_ca, or kubeconfig.")


def _check(value: object, schema: Schema, where: str, path: str) -> None:
    """Check a value against the part of JSON Schema that `document_kinds` uses. Raises CommandError."""
    field = path.removeprefix(".") or "document"
    if "const" in schema and value != schema["const"]:
        raise CommandError(f"{where}: {field}: it must be {str(schema['const']).lower()}.")
    if "enum" in schema and value not in schema["enum"]:
        raise CommandError(f"{where}: {field}: it must be {' or '.join(schema['enum'])}.")
    wanted = _TYPES.get(schema.get("type", ""))
    if wanted is not None and not isinstance(value, wanted):
        raise CommandError(
            f'{where}: {field}: it must be of type {schema["type"]}. Quote text such as "1.30".'
        )
    if isinstance(value, str) and len(value) < schema.get("minLength", 0):
        raise CommandError(f"{where}: {field}: it must not be empty.")
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check(item, schema.get("items", {}), where, f"{path}[{number}]")
    if isinstance(value, dict):
        _check_mapping(value, schema, where, path)


def _check_mapping(value: dict[Any, Any], schema: Schema, where: str, path: str) -> None:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", False)
    for name in schema.get("required", ()):
        if name not in value:
            raise CommandError(f"{where}: {path.removeprefix('.')}{'.' if path else ''}{name} is missing.")
    for name, item in value.items():
        inner = known.get(name, others)
        if inner is False or not isinstance(name, str):
            names = ", ".join(known)
            raise CommandError(
                f"{where}: {path.removeprefix('.')}: there is no field {name}. Known: {names}."
            )
        if item is None and path == "" and name == "spec":
            continue
        _check(item, inner, where, f"{path}.{name}")


def write_documents(values: list[dict[str, object]]) -> str:
    """Write documents as YAML."""
    return yaml.dump_all(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines, such as certificates, as a block."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)

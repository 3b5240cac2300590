"""The documents that `clustercert apply` reads: their kinds, schema and checks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clustercert.cli.administration.resources import NAME, RESOURCES, Field, Resource, Schema
from clustercert.cli.kubeconfig import cluster_import
from clustercert.cli.options import CommandError
from clustercert.cli.yaml_io import STANDARD_INPUT, in_messages, parse, read_input
from clustercert.model.errors import InvalidRequest
from clustercert.yaml_text import Dumper

API_VERSION = "clustercert/v1"

# The kinds of documents, in the order in which `apply` creates the objects that they describe.
KINDS = {resource.kind: resource for resource in RESOURCES.values() if resource.kind}


def json_schema() -> Schema:
    """Return the JSON Schema of a document, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Documents of clustercert apply",
        "oneOf": [_schema_of(each) for each in KINDS.values()],
    }


def _schema_of(resource: Resource) -> Schema:
    metadata = (Field("name", NAME, is_required=True), *resource.metadata)
    return {
        "title": resource.kind,
        "type": "object",
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": resource.kind},
            "metadata": _object(metadata),
            "spec": _object(resource.fields),
        },
        "required": ["apiVersion", "kind", "metadata"],
        "additionalProperties": False,
    }


def _object(fields: Sequence[Field]) -> Schema:
    return {
        "type": "object",
        "properties": {each.name: each.schema for each in fields if each.schema is not None},
        "required": [each.name for each in fields if each.is_required],
        "additionalProperties": False,
    }


MAX_BYTES = 16 * 1024 * 1024
_SUFFIXES = {".yaml", ".yml"}
_TYPES = {"string": str, "boolean": bool, "array": list, "object": dict}


@dataclass(frozen=True, slots=True)
class Document:
    """A document that conforms to the schema of its kind.

    Attributes:
        domain: the domain in which the document's names are looked up; `None` for the caller's domain.
        project: the project of a cluster or role binding, by name or id.
        source: the file that contains the document, for messages and relative paths.
    """

    resource: Resource
    name: str
    domain: str | None
    project: str | None
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    source: Path

    @property
    def place(self) -> str:
        """The project that the document names, as DOMAIN/PROJECT if it also names a domain.

        Empty if the document names no project.
        """
        return "/".join(each for each in (self.domain, self.project) if each) if self.project else ""

    @property
    def title(self) -> str:
        place = self.place or self.domain
        return f"{self.resource.kind} {place}/{self.name}" if place else f"{self.resource.kind} {self.name}"


def read_documents(paths: Sequence[Path]) -> list[Document]:
    """Read the documents in files, in all YAML files of folders, and in standard input (-). Raises CommandError."""
    found: list[Document] = []
    for path in paths:
        in_path = [document for file in _files(path) for document in _documents(file)]
        if not in_path:
            raise CommandError(f"{in_messages(path)} has no documents.")
        found += in_path
    seen: dict[tuple[object, ...], Document] = {}
    for each in found:
        key = (each.resource.kind, each.domain, each.project, each.name)
        if key in seen:
            raise CommandError(f"{each.source}: {each.title} is also in {seen[key].source}.")
        seen[key] = each
    return found


def _files(path: Path) -> list[Path]:
    if path == STANDARD_INPUT or not path.is_dir():
        return [path]
    return sorted(each for each in path.rglob("*") if each.suffix in _SUFFIXES)


def _documents(file: Path) -> Iterator[Document]:
    content = read_input(file, MAX_BYTES)
    file = in_messages(file)
    for number, value in enumerate(parse(content, f"{file}"), 1):
        if value is not None:
            yield _document(value, file, f"{file}, document {number}")


def _document(value: object, file: Path, where: str) -> Document:
    if not isinstance(value, dict):
        raise CommandError(f"{where} must be a mapping with apiVersion, kind, metadata and spec.")
    if value.get("apiVersion") != API_VERSION:
        raise CommandError(f"{where}: apiVersion must be {API_VERSION}{_but_is(value.get('apiVersion'))}.")
    resource = KINDS.get(str(value.get("kind")))
    if resource is None:
        raise CommandError(f"{where}: kind must be {', '.join(KINDS)}{_but_is(value.get('kind'))}.")
    _check(value, _schema_of(resource), where, "")
    metadata, spec = value["metadata"], value.get("spec") or {}
    _check_spec(resource, spec, where)
    for name in (metadata["name"], metadata.get("domain"), metadata.get("project"), spec.get("project")):
        if name is not None and "/" in name:
            domain, _, rest = name.partition("/")
            raise CommandError(
                f"{where}: the name {name} has a slash. Write {rest}, and metadata.domain: {domain}."
            )
    return Document(
        resource=resource,
        name=metadata["name"],
        domain=metadata.get("domain"),
        project=metadata.get("project") or spec.get("project"),
        labels=metadata.get("labels") or {},
        spec=spec,
        source=file,
    )


def _check_spec(resource: Resource, spec: Mapping[str, Any], where: str) -> None:
    """Check the rules for `spec` that the JSON Schema does not contain. Raises CommandError."""
    if resource.kind == "RoleBinding" and ("project" in spec) == ("service" in spec):
        raise CommandError(f"{where}: spec: give either project or service: true.")
    if (
        resource.kind == "Cluster"
        and "kubeconfig" not in spec
        and not {"internal_url", "server_ca"} <= spec.keys()
    ):
        raise CommandError(f"{where}: spec: give internal_url and server_ca, or kubeconfig.")


def _but_is(value: object) -> str:
    """Return the end of a message that says what a field must be. Shows at most 40 characters of the value."""
    return "" if value is None else f", not {str(value)[:40]}"


def _check(value: object, schema: Schema, where: str, path: str) -> None:
    """Check a value against a JSON Schema. Raises CommandError.

    Supports only the JSON Schema keywords that the module `resources` uses.
    """
    field = path.removeprefix(".") or "document"
    if "const" in schema and value != schema["const"]:
        raise CommandError(f"{where}: {field} must be {str(schema['const']).lower()}.")
    if "enum" in schema and value not in schema["enum"]:
        raise CommandError(f"{where}: {field} must be {' or '.join(schema['enum'])}{_but_is(value)}.")
    expected = _TYPES.get(schema.get("type", ""))
    if expected is not None and not isinstance(value, expected):
        raise CommandError(f'{where}: {field} must be of type {schema["type"]}. Quote text such as "1.30".')
    if isinstance(value, str) and len(value) < schema.get("minLength", 0):
        raise CommandError(f"{where}: {field} must not be empty.")
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
    """Return the documents as YAML."""
    return yaml.dump_all(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)


class _Dumper(Dumper):
    """Writes multi-line strings, such as certificates, as YAML literal blocks."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


_KUBECONFIG = ("kubeconfig", "context")


def cluster_fields(document: Document) -> dict[str, Any]:
    """Return the body of the request that creates or changes a cluster. Raises CommandError."""
    fields = {**document.resource.defaults, "labels": dict(document.labels)}
    fields |= {name: value for name, value in document.spec.items() if name not in _KUBECONFIG}
    if "kubeconfig" in document.spec:
        path = document.source.parent / document.spec["kubeconfig"]
        found = cluster_import.read(
            path, document.spec.get("context"), need_ca="server_ca" not in fields, follow_files=False
        )
        fields.setdefault("internal_url", found.server)
        if found.ca_pem is not None:
            fields["server_ca"] = found.ca_pem.decode("ascii", "replace")
    try:
        fields["server_ca"] = _checked_ca(document, fields)
    except InvalidRequest as error:
        raise CommandError(f"{document.source}: {document.title}: {error.message}") from error
    return fields


def _checked_ca(document: Document, fields: dict[str, Any]) -> str:
    """Check a cluster's fields as the service does. Returns the server CA as PEM only. Raises InvalidRequest."""
    from clustercert.clusters.registration import ClusterLimits, checked, new_registration

    registration = new_registration({"name": document.name, **fields})
    # Allow many CAs here: the service checks its own limit, which this command does not know.
    return checked(registration, ClusterLimits(cas=1000)).server_ca_pem.decode("ascii")

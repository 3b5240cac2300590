"""The kinds of documents that `clustercert apply` reads, and their JSON Schema."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clustercert.model.choices import MAX_TTL_SECONDS

API_VERSION = "clustercert/v1"

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
ENABLED = FLAG | {"description": "Without it, a new object is enabled, and an existing one stays as it is."}
TEXTS: Schema = {"type": "array", "items": {"type": "string"}}
MAPPING: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """A kind of documents.

    Attributes:
        plural: the kind's name in paths of the API; empty if it has no such path.
        metadata, spec: the schemas of the fields. Each kind also has the metadata `name` and `labels`.
        required: the fields of `spec` and `metadata` that must be given.
        defaults: the values of fields of the API that are not given.
    """

    name: str
    plural: str
    metadata: Mapping[str, Schema]
    spec: Mapping[str, Schema]
    required: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)


_DOMAIN = {"domain": NAME | {"description": "The domain of names. By default, the caller's domain."}}
_IN_PROJECT = _DOMAIN | {"project": NAME | {"description": "The project that owns the cluster."}}

# The kinds, in the order in which their objects are created.
KINDS = {
    kind.name: kind
    for kind in (
        DocumentKind(
            "Project",
            "projects",
            _DOMAIN,
            {"description": TEXT, "enabled": ENABLED},
            defaults={"description": "", "enabled": True},
        ),
        DocumentKind("User", "users", _DOMAIN, {"enabled": ENABLED}, defaults={"enabled": True}),
        DocumentKind(
            "Group",
            "groups",
            _DOMAIN,
            {
                "members": TEXTS
                | {"description": "All members, by name. Without it, members stay as they are."}
            },
        ),
        DocumentKind(
            "RoleBinding",
            "",
            _DOMAIN,
            {
                "role": NAME,
                "project": NAME | {"description": "The project. Give this or `service`."},
                "service": {"const": True, "description": "The role is valid in the whole service."},
                "users": TEXTS,
                "groups": TEXTS,
            },
            required=("role",),
        ),
        DocumentKind(
            "Cluster",
            "clusters",
            _IN_PROJECT,
            {
                "kubeconfig": NAME
                | {
                    "description": "A kubeconfig file, of which address and CA are taken. Relative to this file."
                },
                "context": NAME | {"description": "The context in that file. By default, its current one."},
                "internal_url": NAME,
                "server_ca": NAME,
                "external_url": NAME,
                "san_urls": TEXTS,
                "version": TEXT,
                "signer": NAME,
                "webhook_mode": {"enum": ["default", "known-only"]},
                "exemptions": TEXTS,
                "pins": TEXTS,
                "pin_components": FLAG,
                "listed_masters": TEXTS,
                "credential_roles": MAPPING,
                "admission": FLAG,
                "unauthorized_ttl_seconds": {"type": "integer", "minimum": 1, "maximum": MAX_TTL_SECONDS},
            },
            required=("project",),
            defaults={
                "external_url": None,
                "san_urls": [],
                "version": "",
                "signer": "local",
                "webhook_mode": "default",
                "exemptions": ["system:nodes"],
                "pins": [],
                "pin_components": False,
                "listed_masters": [],
                "credential_roles": {},
                "admission": False,
                "unauthorized_ttl_seconds": 2,
            },
        ),
    )
}


def json_schema() -> Schema:
    """Return the JSON Schema of a document, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Documents of clustercert apply",
        "oneOf": [_schema_of(kind) for kind in KINDS.values()],
    }


def _schema_of(kind: DocumentKind) -> Schema:
    metadata = {"name": NAME, "labels": MAPPING, **kind.metadata}
    return {
        "title": kind.name,
        "type": "object",
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": kind.name},
            "metadata": _object(
                metadata, ("name", *(name for name in kind.required if name in kind.metadata))
            ),
            "spec": _object(kind.spec, tuple(name for name in kind.required if name in kind.spec)),
        },
        "required": ["apiVersion", "kind", "metadata"],
        "additionalProperties": False,
    }


def _object(properties: Mapping[str, Schema], required: tuple[str, ...]) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }

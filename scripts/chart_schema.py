"""The JSON Schema of the Helm chart's values, whose key `config` has the fields of the service's settings.

`make docs` writes it to deploy/chart/values.schema.json, so that Helm refuses a misspelt value.
"""

import inspect
import tomllib
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from clustercert.policy.setting_types import Section
from clustercert.settings import Settings

Schema = dict[str, Any]


def _signers() -> Iterator[tuple[str, type[Section] | None]]:
    """Yield the name of each built-in signer, and the settings in the module of its entry point if it has settings."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    for name, value in project["entry-points"][group := "clustercert.signers"].items():
        module = import_module(EntryPoint(name, value, group).module)
        models = (
            each for _, each in inspect.getmembers(module, inspect.isclass) if issubclass(each, Section)
        )
        yield name, next((each for each in models if each.__module__ == module.__name__), None)


SIGNERS = dict(_signers())
MODELS: tuple[type[BaseModel], ...] = (Settings, *filter(None, SIGNERS.values()))
# In files/signer-access.yaml, the chart replaces this by the namespace of the release.
NAMESPACE = "NAMESPACE-OF-THE-RELEASE"
# The chart sets these fields itself, or takes them from a Secret or a ConfigMap that the values name.
_NOT_IN_VALUES = {
    "Settings": ("data_dir", "database_url", "kek", "kek_file"),
    "ServerSettings": ("port", "tls_certificate", "tls_key"),
    "WebhookSettings": ("port", "tls_certificate", "tls_key"),
    "MetricsSettings": ("token",),
    "LogSettings": ("file",),
    "PolicySettings": ("file",),
    "ServiceCredential": ("password", "application_credential_secret"),
}
_PATTERNS = {
    # A URL with a user would contain a password.
    ("OidcIssuer", "proxy"): "^https?://[^@]+$",
    ("AuditSettings", "publish"): "^[^@]+$",
    # The service would refuse other URLs only when its pods start.
    ("ServerSettings", "public_url"): "^https?://.*[^/]$",
    ("WebhookSettings", "public_url"): "^https?://.*[^/]$",
}
_LIFETIME = "^([0-9]{1,9}[smhdw])+$"
# Helm checks no formats, and a schema without texts and defaults is small.
_DROPPED = {"default", "description", "format", "ge", "le", "title"}


class _WithoutDefaults(GenerateJsonSchema):
    """Leaves out the defaults of fields, some of which are not JSON."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def values_schema() -> Schema:
    """Return the schema of all values."""
    definitions = dict(_settings_definitions())
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart clustercert",
        **_object(_CHART_VALUES),
        "definitions": definitions,
    }


def _settings_definitions() -> Iterator[tuple[str, Schema]]:
    """Yield the schema of each table of settings, without the fields that are not in the values."""
    for model in MODELS:
        whole = model.model_json_schema(
            ref_template="#/definitions/{model}", schema_generator=_WithoutDefaults
        )
        for name, schema in {**whole.pop("$defs", {}), model.__name__: whole}.items():
            yield name, _table(name, schema)


def _table(name: str, schema: Schema) -> Schema:
    table = _kept(schema)
    if "properties" not in table:
        return table
    for field in _NOT_IN_VALUES.get(name, ()):
        del table["properties"][field]
    for (model, field), pattern in _PATTERNS.items():
        if model == name:
            found = table["properties"][field]
            (found.get("items", found))["pattern"] = pattern
    if name == Settings.__name__:
        tables = {
            signer: {"$ref": f"#/definitions/{each.__name__}"} if each else _object({})
            for signer, each in SIGNERS.items()
        }
        # A signer of another package checks its settings when the service starts.
        table["properties"]["signers"] = {**_object(tables), "additionalProperties": _ANY_OBJECT}
    return table


def _kept(schema: Schema) -> Schema:
    """Return a schema without keywords that Helm does not need, and without null: Helm removes a value that is null."""
    kept = {key: value for key, value in schema.items() if key not in _DROPPED}
    if schema.get("format") == "duration":
        kept["pattern"] = _LIFETIME
    for key in ("properties", "patternProperties"):
        if key in kept:
            kept[key] = {name: _kept(each) for name, each in kept[key].items()}
    for key in ("items", "additionalProperties", "propertyNames"):
        if isinstance(kept.get(key), dict):
            kept[key] = _kept(kept[key])
    if "anyOf" in kept:
        options: list[Schema] = []
        for option in kept.pop("anyOf"):
            found = _kept(option)
            if option.get("type") != "null" and found not in options:
                options.append(found)
        kept |= options[0] if len(options) == 1 else {"anyOf": options}
    return kept


def _object(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties)}


_TEXT: Schema = {"type": "string"}
_YES_OR_NO: Schema = {"type": "boolean"}


def _if_enabled(properties: Mapping[str, Schema], *needed: str) -> Schema:
    """Return the schema of a part that needs some fields once it is enabled."""
    not_empty = {name: {"minItems": 1, "minProperties": 1} for name in needed}
    return {
        **_object({"enabled": _YES_OR_NO, **properties}),
        "if": {"properties": {"enabled": {"const": True}}},
        "then": {"properties": not_empty},
    }


# Kubernetes checks the content.
_ANY_OBJECT: Schema = {"type": "object"}


def _part_of_object(properties: Mapping[str, Schema]) -> Schema:
    """Return the schema of an object of Kubernetes, of which only some fields are checked before it is sent."""
    return {**_ANY_OBJECT, "properties": dict(properties)}


def _list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_OBJECTS: Schema = {"type": "array", "items": _ANY_OBJECT}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_TEXT_BY_NAME: Schema = {"type": "object", "additionalProperties": _TEXT}
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
# A quantity of Kubernetes, such as 256Mi or 0.5.
_UNIT = "([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?"
_QUANTITY: Schema = {
    "type": ["string", "number"],
    "pattern": f"^([0-9]+(\\.[0-9]*)?|\\.[0-9]+){_UNIT}$",
    "minimum": 0,
}
# Not zero.
_SIZE: Schema = {
    "type": "string",
    "pattern": f"^([0-9]*[1-9][0-9]*(\\.[0-9]*)?|[0-9]*\\.[0-9]*[1-9][0-9]*){_UNIT}$",
}
_QUANTITIES: Schema = {"type": "object", "additionalProperties": _QUANTITY}
_RESOURCES = _object({"requests": _QUANTITIES, "limits": _QUANTITIES, "claims": _OBJECTS})
_SUBDOMAIN: Schema = {
    "type": "string",
    "pattern": "^([a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*)?$",
}
_ACCESS_MODES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {"enum": ["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]},
}
_CIDR: Schema = {
    "type": "string",
    "pattern": "^([0-9.]+/([12]?[0-9]|3[0-2])|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*/([1-9]?[0-9]|1[01][0-9]|12[0-8]))$",
}
# NetworkPolicyPeer and NetworkPolicyEgressRule of Kubernetes. A port can also have a name.
_IP_BLOCK = _part_of_object({"cidr": _CIDR, "except": _list_of(_CIDR)})
_PEERS = _list_of(_part_of_object({"ipBlock": _IP_BLOCK}))
_ALLOWED_PORT = _part_of_object({"port": {**_PORT, "type": ["integer", "string"]}, "endPort": _PORT})
_EGRESS = _list_of(_part_of_object({"to": _PEERS, "ports": _list_of(_ALLOWED_PORT)}))
_TOLERATIONS = _list_of(
    _part_of_object(
        {
            "operator": {"enum": ["", "Exists", "Equal", "Lt", "Gt"]},
            "effect": {"enum": ["", "NoSchedule", "PreferNoSchedule", "NoExecute"]},
        }
    )
)
# The kubelet would not start the containers as root, because `runAsNonRoot` is set.
_POD_SECURITY = _part_of_object(
    {
        "runAsUser": {"type": "integer", "minimum": 1},
        "seccompProfile": _part_of_object({"type": {"enum": ["RuntimeDefault", "Localhost"]}}),
    }
)
# Kubernetes refuses `externalTrafficPolicy` in a Service that has no external address.
_SERVICE_SPEC: Schema = {
    "if": {"properties": {"type": {"const": "ClusterIP"}, "spec": {"not": {"required": ["externalIPs"]}}}},
    "then": {"properties": {"spec": {"properties": {"externalTrafficPolicy": False}}}},
}
_NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 50}
_FILES: Schema = {"type": "object", "propertyNames": _NAME, "additionalProperties": _ANY_OBJECT}
_WORKLOAD = _object(
    {
        "replicas": {"type": "integer", "minimum": 1},
        "resources": _RESOURCES,
        "service": _object(
            {
                "type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                "port": _PORT,
                "annotations": _TEXT_BY_NAME,
                "spec": _ANY_OBJECT,
            }
        )
        | _SERVICE_SPEC,
    }
)
# An environment variable. Secrets are only named.
_FROM_ELSEWHERE = _object({"name": _TEXT, "valueFrom": _ANY_OBJECT})
_NO_SECRET = _object({"name": {"not": {"pattern": "^(CLUSTERCERT_|PGPASSWORD$)"}}, "value": _TEXT})
_CHART_VALUES: dict[str, Schema] = {
    # Helm adds this key if the chart is a dependency of another chart.
    "global": _ANY_OBJECT,
    "nameOverride": _TEXT,
    "fullnameOverride": _TEXT,
    "image": _object(
        {
            "repository": {"type": "string", "minLength": 1},
            "tag": _TEXT,
            "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        }
    ),
    "imagePullSecrets": _OBJECTS,
    "config": {"$ref": "#/definitions/Settings"},
    "policyConfigMap": _TEXT,
    "kek": _object({"existingSecret": _TEXT, "key": _TEXT, "csi": _ANY_OBJECT}),
    "database": _object({"existingSecret": _TEXT, "key": _TEXT}),
    "tls": _object(
        {
            "existingSecret": _TEXT,
            "certManager": _object(
                {
                    "issuerRef": _object({"name": _TEXT, "kind": _TEXT, "group": _TEXT}),
                    "dnsNames": _TEXTS,
                    "duration": _TEXT,
                    "renewBefore": _TEXT,
                }
            ),
        }
    ),
    "metrics": _object(
        {
            "existingSecret": _TEXT,
            "key": _TEXT,
            "serviceMonitor": _object(
                {
                    "enabled": _YES_OR_NO,
                    "interval": _TEXT,
                    "labels": _TEXT_BY_NAME,
                    "tlsConfig": _ANY_OBJECT,
                }
            ),
            "alerts": _object({"enabled": _YES_OR_NO, "docsUrl": _TEXT, "labels": _TEXT_BY_NAME}),
        }
    ),
    "files": _FILES,
    "privateFiles": _FILES,
    "env": {"type": "array", "items": {"anyOf": [_FROM_ELSEWHERE, _NO_SECRET]}},
    "api": _WORKLOAD,
    "webhook": _WORKLOAD,
    "persistence": _object(
        {
            "size": _SIZE,
            "storageClassName": _SUBDOMAIN,
            "accessModes": _ACCESS_MODES,
            "annotations": _TEXT_BY_NAME,
        }
    ),
    "gateway": _if_enabled(
        {"apiVersion": _TEXT, "parentRefs": _OBJECTS, "hostnames": _TEXTS}, "parentRefs", "hostnames"
    ),
    "ingress": _if_enabled(
        {"className": _TEXT, "annotations": _TEXT_BY_NAME, "hostnames": _TEXTS}, "hostnames"
    ),
    "networkPolicy": _object(
        {
            "enabled": _YES_OR_NO,
            "clients": _PEERS,
            "apiServers": _PEERS,
            "prometheus": _PEERS,
            "egress": _EGRESS,
        }
    ),
    "csrApi": _object({"enabled": _YES_OR_NO}),
    "serviceAccount": _object({"annotations": _TEXT_BY_NAME, "automountToken": _YES_OR_NO}),
    "podAnnotations": _TEXT_BY_NAME,
    "podLabels": _TEXT_BY_NAME,
    "podSecurityContext": _POD_SECURITY,
    "nodeSelector": _TEXT_BY_NAME,
    "tolerations": _TOLERATIONS,
    "affinity": _ANY_OBJECT,
    "priorityClassName": _TEXT,
}

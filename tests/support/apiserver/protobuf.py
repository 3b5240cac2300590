"""A reader of Kubernetes protobuf documents of a few kinds, which kubectl's typed commands send.

Field numbers are those of the generated.proto files in k8s.io/api.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAGIC = b"k8s\x00"


@dataclass(frozen=True, slots=True)
class Field:
    """A field's name in JSON; `of` is the message in it, or None for a text."""

    name: str
    of: "Schema | None" = None
    many: bool = False
    is_map: bool = False


Schema = Mapping[int, Field]

_TEXTS_OF_UNKNOWN = {1: Field("apiVersion"), 2: Field("kind")}
_METADATA: Schema = {
    1: Field("name"),
    3: Field("namespace"),
    11: Field("labels", is_map=True),
    12: Field("annotations", is_map=True),
}
_RESOURCE: Schema = {
    number: Field(name)
    for number, name in enumerate(
        ("namespace", "verb", "group", "version", "resource", "subresource", "name"), start=1
    )
}
_REVIEW: Schema = {
    1: Field("resourceAttributes", _RESOURCE),
    2: Field("nonResourceAttributes", {1: Field("path"), 2: Field("verb")}),
}
_SUBJECT: Schema = {1: Field("kind"), 2: Field("apiGroup"), 3: Field("name"), 4: Field("namespace")}
_REFERENCE: Schema = {1: Field("apiGroup"), 2: Field("kind"), 3: Field("name")}
_CONDITION: Schema = {1: Field("type"), 2: Field("reason"), 3: Field("message"), 6: Field("status")}
_DELETION: Schema = {4: Field("propagationPolicy")}
_KINDS: Mapping[str, Schema] = {
    # The rest of a request can't be changed.
    "CertificateSigningRequest": {
        1: Field("metadata", _METADATA),
        3: Field("status", {1: Field("conditions", _CONDITION, many=True)}),
    },
    "ConfigMap": {1: Field("metadata", _METADATA), 2: Field("data", is_map=True)},
    "Namespace": {1: Field("metadata", _METADATA)},
    "ServiceAccount": {1: Field("metadata", _METADATA)},
    "TokenRequest": {2: Field("spec", {1: Field("audiences", many=True)})},
    "ClusterRoleBinding": {
        1: Field("metadata", _METADATA),
        2: Field("subjects", _SUBJECT, many=True),
        3: Field("roleRef", _REFERENCE),
    },
    "SelfSubjectReview": {},
    "SelfSubjectAccessReview": {2: Field("spec", _REVIEW)},
    "DeleteOptions": _DELETION,
}


def document(body: bytes) -> dict[str, Any]:
    """The JSON form of a body. Raises ValueError for an unknown kind."""
    envelope = dict(_fields(body.removeprefix(MAGIC)))
    names = _message(_as_bytes(envelope[1]), _TEXTS_OF_UNKNOWN)
    schema = _KINDS.get(names["kind"])
    if schema is None:
        raise ValueError(f"the double can't read {names['kind']} in protobuf")
    return {**names, **_message(_as_bytes(envelope[2]), schema)}


def _message(encoded: bytes, schema: Schema) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for number, raw in _fields(encoded):
        field = schema.get(number)
        if field is None:
            continue
        data = _as_bytes(raw)
        if field.is_map:
            pair = _message(data, {1: Field("key"), 2: Field("value")})
            result.setdefault(field.name, {})[pair.get("key", "")] = pair.get("value", "")
            continue
        value = data.decode() if field.of is None else _message(data, field.of)
        if field.many:
            result.setdefault(field.name, []).append(value)
        elif value:
            result[field.name] = value
    return result


def _as_bytes(raw: bytes | int) -> bytes:
    if isinstance(raw, int):
        raise ValueError(f"a number where a text or a message was expected: {raw}")  # noqa: TRY004 - the input's
    return raw


def _fields(encoded: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field; numbers and length-delimited values are all that these kinds have."""
    at = 0
    while at < len(encoded):
        key, at = _varint(encoded, at)
        value, at = _varint(encoded, at)
        match key & 7:
            case 0:
                yield key >> 3, value
            case 2:
                yield key >> 3, encoded[at : at + value]
                at += value
            case other:
                raise ValueError(f"wire type {other}")


def _varint(encoded: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = encoded[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at

"""A SubjectAccessReview of authorization.k8s.io/v1 in, another one out. No opinion of its own, no I/O.

Source: kubernetes.io, "Webhook Mode"; staging/src/k8s.io/api/authorization/v1/types.go. The bytes that real API servers
send are in the tests.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

from clustercert.errors import InvalidRequest

API_VERSION = "authorization.k8s.io/v1"
KIND = "SubjectAccessReview"

CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
# kube-apiserver writes it in this one form. Source: staging/src/k8s.io/apiserver/pkg/authentication/request/x509.
_X509 = "X509SHA256="
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

# An API server says one credential id. Several come only from whoever may impersonate, and each costs a look-up.
MAX_CREDENTIAL_IDS = 16


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an API server took a request's sender for.

    Attributes:
        fingerprints: of the X.509 credential ids, 32 bytes each, at most 16.
        malformed: whether there is an X.509 credential id that is no fingerprint, or more than 16 of them.
        has_other_ids: whether there is a credential id of another kind, such as a token's.
    """

    username: str
    groups: tuple[str, ...]
    fingerprints: tuple[bytes, ...]
    malformed: bool = False
    has_other_ids: bool = False

    @property
    def has_certificate(self) -> bool:
        """Whether it has an X.509 credential id, well-formed or not."""
        return bool(self.fingerprints) or self.malformed


def parse(raw: bytes) -> Identity:
    """Who is asked about; for what, is not looked at. Raises InvalidRequest."""
    document = json_object(raw)
    if document.get("apiVersion") != API_VERSION or document.get("kind") != KIND:
        raise InvalidRequest(
            f"Send a {KIND} of {API_VERSION}: set subjectAccessReviewVersion: v1 in the AuthorizationConfiguration."
        )
    spec = document.get("spec")
    if not isinstance(spec, dict):
        raise InvalidRequest("spec: must be an object.")
    return identity(spec.get("user"), spec.get("groups"), spec.get("extra"))


def json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises InvalidRequest.

    Whoever sends it has a token: an API server, whose encoder writes each name once, which is not looked for here.
    """
    try:
        document = orjson.loads(raw)
    except ValueError as error:
        raise InvalidRequest("The body is not valid JSON in UTF-8.") from error
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return document


def identity(username: object, groups: object, extra: object) -> Identity:
    """The same of the three fields that reviews and audit events have alike. Raises InvalidRequest."""
    username = "" if username is None else username
    if not isinstance(username, str):
        raise InvalidRequest("user: must be a string.")
    credential_ids = _texts(_member(extra, CREDENTIAL_ID), CREDENTIAL_ID)
    claimed = [each.removeprefix(_X509) for each in credential_ids if each.startswith(_X509)]
    found = [bytes.fromhex(each) for each in claimed[:MAX_CREDENTIAL_IDS] if _FINGERPRINT.fullmatch(each)]
    return Identity(
        username=username,
        groups=_texts(groups, "groups"),
        fingerprints=tuple(dict.fromkeys(found)),
        malformed=len(found) < len(claimed),
        has_other_ids=len(claimed) < len(credential_ids),
    )


def _member(extra: Any, name: str) -> object:
    if extra is None:
        return None
    if not isinstance(extra, dict):
        raise InvalidRequest("extra: must be an object.")
    return extra.get(name)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidRequest(f"{name}: must be an array of strings.")
    return tuple(value)


def answered(status: dict[str, object]) -> bytes:
    """The answer's bytes."""
    return json.dumps({"apiVersion": API_VERSION, "kind": KIND, "status": status}).encode()


NO_OPINION = answered({"allowed": False})
"""The next authorizer decides."""


def denied(reason: str) -> bytes:
    """No authorizer is asked any more. Never with `allowed`: both is an error to an API server."""
    return answered({"allowed": False, "denied": True, "reason": reason})

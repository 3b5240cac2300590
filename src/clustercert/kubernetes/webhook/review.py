"""Parses a SubjectAccessReview of authorization.k8s.io/v1 or v1beta1 and serializes the response.

This module makes no decisions and does no I/O. Source: kubernetes.io, "Webhook Mode";
staging/src/k8s.io/api/authorization/v1/types.go. The tests use requests recorded from real API servers.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from clustercert.model import credential_groups
from clustercert.model.errors import InvalidRequest
from clustercert.model.kubernetes import CREDENTIAL_ID, TOKEN_ID, USERS_PREFIX, X509_ID

V1, V1BETA1 = "authorization.k8s.io/v1", "authorization.k8s.io/v1beta1"
# The name of the field for groups in the spec, by API version.
_GROUPS = {V1: "groups", V1BETA1: "group"}
KIND = "SubjectAccessReview"

# kube-apiserver writes fingerprints only as 64 lower-case hex digits. Source:
# staging/src/k8s.io/apiserver/pkg/authentication/request/x509.
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

# An API server sends one credential id for a user. Only callers with the right to impersonate can send more ids, so
# limit the number of look-ups.
MAX_CREDENTIAL_IDS = 16


@dataclass(frozen=True, slots=True)
class RequestSender:
    """The authenticated sender of a request to an API server.

    Attributes:
        fingerprints: the fingerprints in the X.509 credential ids, 32 bytes each, at most 16.
        malformed: whether an X.509 credential id is not a fingerprint, or there are more than 16 such ids.
        has_other_ids: whether the identity also has credential ids that are not X.509 ids, such as token ids.
        token_ids: the ids (`jti`) of the tokens, at most 16; only for accounts of the namespace clustercert-users.
    """

    username: str
    groups: tuple[str, ...]
    fingerprints: tuple[bytes, ...]
    malformed: bool = False
    has_other_ids: bool = False
    token_ids: tuple[str, ...] = ()

    @property
    def account(self) -> str | None:
        """The name of the sender's service account in the namespace clustercert-users; None for other senders."""
        if self.has_certificate or not self.username.startswith(USERS_PREFIX):
            return None
        return self.username.removeprefix(USERS_PREFIX)

    @property
    def has_certificate(self) -> bool:
        """Whether the identity has an X.509 credential id, well-formed or not."""
        return bool(self.fingerprints) or self.malformed

    @property
    def may_be_denied(self) -> bool:
        """Whether the identity has a client certificate. Otherwise the response is "no opinion" in every mode."""
        return self.has_certificate or bool(credential_groups(self.groups))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


@dataclass(frozen=True, slots=True)
class Review:
    """A SubjectAccessReview without the requested action.

    Attributes:
        api_version: the version of the request and of the response, because an API server accepts no other version.
    """

    api_version: str
    identity: RequestSender


def parse(raw: bytes) -> Review:
    """Parse a review, and ignore the requested action. Raises InvalidRequest if the review is malformed.

    Accepts duplicate field names: the sender is an authenticated API server, whose encoder never writes duplicates.
    """
    try:
        document = _JSON.decode(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not valid JSON in UTF-8.") from error
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object.")
    version = document.get("apiVersion")
    if version not in (V1, V1BETA1) or document.get("kind") != KIND:
        raise InvalidRequest(
            f"Send a {KIND} of {V1} or v1beta1: set subjectAccessReviewVersion: v1 in the AuthorizationConfiguration."
        )
    spec = document.get("spec")
    if not isinstance(spec, dict):
        raise InvalidRequest("spec: must be an object.")
    # Reject groups in the wrong field: without its groups, a revoked certificate would not be recognized.
    if _GROUPS[V1BETA1 if version == V1 else V1] in spec:
        raise InvalidRequest(f"spec: the groups of {version} are in the field {_GROUPS[version]}.")
    return Review(version, parse_identity(spec.get("user"), spec.get(_GROUPS[version]), spec.get("extra")))


def version_in(beginning: bytes) -> str:
    """Return the API version of a partly received review. An API server writes the version before the spec."""
    head, _, _ = beginning.partition(b'"spec"')
    return V1BETA1 if V1BETA1.encode() in head else V1


def parse_identity(username: object, groups: object, extra: object) -> RequestSender:
    """Parse the identity from the three fields that reviews and audit events share. Raises InvalidRequest."""
    username = "" if username is None else username
    if not isinstance(username, str):
        raise InvalidRequest("user: must be a string.")
    extra = {} if extra is None else extra
    if not isinstance(extra, dict):
        raise InvalidRequest("extra: must be an object.")
    credential_ids = _strings(extra.get(CREDENTIAL_ID), CREDENTIAL_ID)
    x509_ids = [each.removeprefix(X509_ID) for each in credential_ids if each.startswith(X509_ID)]
    found = [bytes.fromhex(each) for each in x509_ids[:MAX_CREDENTIAL_IDS] if _FINGERPRINT.fullmatch(each)]
    return RequestSender(
        username=username,
        groups=_strings(groups, "groups"),
        fingerprints=tuple(dict.fromkeys(found)),
        malformed=len(found) < len(x509_ids),
        has_other_ids=len(x509_ids) < len(credential_ids),
        token_ids=_token_ids(credential_ids) if username.startswith(USERS_PREFIX) else (),
    )


def _token_ids(credential_ids: Sequence[str]) -> tuple[str, ...]:
    found = [each.removeprefix(TOKEN_ID) for each in credential_ids if each.startswith(TOKEN_ID)]
    return tuple(dict.fromkeys(found))[:MAX_CREDENTIAL_IDS]


def _strings(value: Any, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidRequest(f"{name}: must be an array of strings.")
    return tuple(value)


def _response(status: dict[str, object], api_version: str) -> bytes:
    return json.dumps({"apiVersion": api_version, "kind": KIND, "status": status}).encode()


NO_OPINION = {version: _response({"allowed": False}, version) for version in _GROUPS}
"""The response "no opinion" by API version. After this response, the next authorizer decides."""


def denied(reason: str, api_version: str) -> bytes:
    """Return the response for a denial, after which the API server asks no other authorizer."""
    return _response({"allowed": False, "denied": True, "reason": reason}, api_version)

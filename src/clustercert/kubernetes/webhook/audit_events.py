"""Parses events of audit.k8s.io/v1 while they arrive: who used which credential, when, and for what. No I/O.

API servers never call the authorization webhook for members of `system:masters`, so only audit events show their
requests. The parser stores only the fields that it needs, so that its memory does not depend on the size of other
fields. Source: kubernetes.io, "Auditing"; staging/src/k8s.io/apiserver/pkg/apis/audit/v1/types.go.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, TypeAlias

import ijson

from clustercert.kubernetes.webhook.json_tokens import JsonToken, JsonTokens
from clustercert.kubernetes.webhook.review import RequestSender, parse_identity
from clustercert.model import credential_groups, parse_rfc3339
from clustercert.model.errors import InvalidRequest

API_VERSION = "audit.k8s.io/v1"
LIST_KIND = "EventList"
FIRST_KUBERNETES = datetime(2014, 6, 6, tzinfo=UTC)
# Limit for the `user` object of an event: its characters, plus CHARACTERS_A_TOKEN for each of its JSON tokens.
MAX_USER = 4 * 1024 * 1024
CHARACTERS_A_TOKEN = 64
# Servers that delegate authorization to a kube-apiserver cache the kube-apiserver's answers for ten seconds. Source:
# staging/src/k8s.io/apiserver/pkg/server/options/authorization.go, and measurements in docs/kubernetes.md.
DELEGATED_CACHE = timedelta(seconds=10)
# API groups that only kube-apiservers serve. Groups without a dot in the name, such as the core group, are not listed,
# but are also served only by kube-apiservers. The group metrics.k8s.io is missing, because other servers serve it.
# Source: staging/src/k8s.io/api, apiextensions-apiserver and kube-aggregator.
OWN_GROUPS = frozenset(
    f"{name}.k8s.io"
    for name in (
        *("admissionregistration", "apiextensions", "apiregistration", "authentication", "authorization"),
        *(
            "certificates",
            "coordination",
            "discovery",
            "events",
            "flowcontrol.apiserver",
            "internal.apiserver",
        ),
        *(
            "networking",
            "node",
            "rbac.authorization",
            "resource",
            "scheduling",
            "storage",
            "storagemigration",
        ),
    )
)
DECISION = "authorization.k8s.io/decision"
# The prefix of the names of signers whose certificates authenticate clients (or kubelets) at the API server.
CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client"
# The maximum length of an object's name in Kubernetes.
MAX_REQUEST_NAME = 253
# Go limits JSON from clients to 10,000 nested levels, so a valid event has fewer levels than MAX_DEPTH.
MAX_DEPTH = 20_000

_STARTS, _ENDS = frozenset({"start_map", "start_array"}), frozenset({"end_map", "end_array"})

Reading: TypeAlias = Generator[None, JsonToken, Any]
"""A generator that receives the tokens of one JSON value, and returns the needed part of the value."""
Reader: TypeAlias = Callable[[JsonToken], Reading]
"""A function that reads a value, given the value's first token."""


@dataclass(frozen=True, slots=True, order=True)
class Allowed:
    """A request that was allowed.

    Attributes:
        decided_at: the earliest time at which the kube-apiserver may have decided about the request.
        at: when the server received the request.
    """

    decided_at: datetime
    at: datetime


@dataclass(frozen=True, slots=True)
class AllowedRequests:
    """Requests that were allowed: their number, the first one and the last one."""

    count: int
    first: Allowed
    last: Allowed

    def joined(self, other: "AllowedRequests") -> "AllowedRequests":
        """Add other requests."""
        return AllowedRequests(
            self.count + other.count, min(self.first, other.first), max(self.last, other.last)
        )


@dataclass(frozen=True, slots=True)
class Approval:
    """The approval of a CertificateSigningRequest for a client certificate.

    Attributes:
        name: the name of the CertificateSigningRequest.
        signer: the name of the request's signer; None if the audit event does not include the request.
    """

    name: str
    signer: str | None


@dataclass(frozen=True, slots=True)
class AuditedRequest:
    """A request to an API server.

    Attributes:
        at: when the server received the request.
        allowed: None if the event does not say that the request was allowed.
    """

    identity: RequestSender
    at: datetime
    allowed: Allowed | None = None
    approval: Approval | None = None


class _Parser:
    """Parses a JSON object, and keeps only the fields that are needed."""

    def __init__(self, readers: Mapping[str, "Reader"]) -> None:
        self._members: dict[str, Any] = {}
        readers = {"apiVersion": _scalar, "kind": _scalar, **readers}
        self._tokens = JsonTokens(_token_receiver(_members(readers, self._members)))

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes. Raises InvalidRequest; the requests before the error stay available."""
        self._tokens.feed(chunk)

    def _close(self, kind: str) -> bool:
        """Finish parsing. Returns whether the object has this `kind`. Raises InvalidRequest for invalid JSON."""
        self._tokens.close()
        return (self._members.get("apiVersion"), self._members.get("kind")) == (API_VERSION, kind)


class EventListParser(_Parser):
    """Parses an EventList and collects the requests that used a client certificate or may have used a token of ours.

    Attributes:
        readable: number of events so far with a valid user and time.
        unreadable: number of events so far without a valid user or time.
    """

    def __init__(self) -> None:
        super().__init__({"items": self._items})
        self.readable = self.unreadable = 0
        self._requests: list[AuditedRequest] = []

    def close(self) -> None:
        """Finish parsing. Raises InvalidRequest if the document is not an EventList."""
        if not self._close(LIST_KIND):
            raise _not_an_event_list()

    def take_requests(self) -> list[AuditedRequest]:
        """Return the requests parsed since the last call."""
        requests, self._requests = self._requests, []
        return requests

    def _items(self, token: JsonToken) -> Reading:
        # A document may have `apiVersion` and `kind` after the items, so `close` checks both fields again.
        head = self._members.get("apiVersion", API_VERSION), self._members.get("kind", LIST_KIND)
        if head != (API_VERSION, LIST_KIND):
            raise _not_an_event_list()
        if token[0] == "null":
            return
        if token[0] != "start_array":
            raise InvalidRequest("items: must be an array of events.")
        event = _members(_EVENT)
        while (token := (yield))[0] != "end_array":
            self._take((yield from event(token)))

    def _take(self, event: Any) -> None:
        try:
            request = _audited_request(event)
        except InvalidRequest:
            self.unreadable += 1
            return
        self.readable += 1
        if _may_be_ours(request):
            self._requests.append(request)


class EventParser(_Parser):
    """Parses one Event: a line of an audit log."""

    def __init__(self) -> None:
        super().__init__(_EVENT)

    def close(self) -> AuditedRequest | None:
        """Return the request, or `None` if it used no client certificate and no token of clustercert-users.

        Raises InvalidRequest if the document is not an Event.
        """
        if not self._close("Event"):
            raise InvalidRequest(f"The line is not an Event of {API_VERSION}.")
        request = _audited_request(self._members)
        return request if _may_be_ours(request) else None


def _token_receiver(read: Reader) -> Callable[[JsonToken], object]:
    """Return a function that takes one token of a document per call, and passes the token to the reader."""

    def reading() -> Reading:
        yield from read((yield))
        while True:
            yield

    receiver = reading()
    next(receiver)
    return receiver.send


def _skipped(token: JsonToken, depth: int = 0) -> Reading:
    while True:
        if token[0] in _STARTS:
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"The JSON has more than {MAX_DEPTH} levels. Send an {LIST_KIND}.")
        elif token[0] in _ENDS:
            depth -= 1
        if not depth:
            return
        token = yield


def _scalar(token: JsonToken) -> Reading:
    """Read a string, number, boolean or null. Returns `None` for an object or array."""
    yield from _skipped(token)
    return token[1]


def _members(readers: Mapping[str, Reader], kept: dict[str, Any] | None = None) -> Reader:
    """Return a reader for objects. The reader returns the members named in `readers`, or `None` for a non-object.

    If `kept` is given, the reader stores each member in `kept` as soon as the member is read.
    """

    def read(token: JsonToken) -> Reading:
        if token[0] != "start_map":
            yield from _skipped(token)
            return None
        members = {} if kept is None else kept
        while (member := (yield))[0] != "end_map":
            name = member[1]
            if name in readers:
                members[name] = yield from readers[name]((yield))
            else:
                yield from _skipped((yield))
        return members

    return read


def _user(token: JsonToken) -> Reading:
    """Read the `user` object of an event. Returns `None` if the object is larger than MAX_USER."""
    built, size, depth = ijson.ObjectBuilder(), 0, 0
    while size <= MAX_USER:
        kind, value = token
        built.event(kind, value)
        size += CHARACTERS_A_TOKEN + (len(value) if isinstance(value, str) else 0)
        depth += (kind in _STARTS) - (kind in _ENDS)
        if not depth:
            return built.value
        token = yield
    yield from _skipped(token, depth)
    return None


_CONDITION = _members({"type": _scalar})


def _has_approval(token: JsonToken) -> Reading:
    """Read an array of conditions, of any length. Returns whether one of the conditions is an approval."""
    if token[0] != "start_array":
        yield from _skipped(token)
        return False
    found = False
    while (token := (yield))[0] != "end_array":
        condition = yield from _CONDITION(token)
        found |= condition == {"type": "Approved"}
    return found


_SIGNING_REQUEST = _members(
    {"spec": _members({"signerName": _scalar}), "status": _members({"conditions": _has_approval})}
)
# Read `user`, not `impersonatedUser`, because the certificate belongs to the real user.
_EVENT: Mapping[str, Reader] = {
    "user": _user,
    "requestReceivedTimestamp": _scalar,
    "objectRef": _members(dict.fromkeys(("apiGroup", "resource", "subresource", "name"), _scalar)),
    "annotations": _members({DECISION: _scalar}),
    "responseStatus": _members({"code": _scalar}),
    "responseObject": _SIGNING_REQUEST,
}


def _not_an_event_list() -> InvalidRequest:
    return InvalidRequest(f"Send an {LIST_KIND} of {API_VERSION}.")


def _audited_request(event: Any) -> AuditedRequest:
    if not isinstance(event, dict):
        raise InvalidRequest("items: must be an array of events.")
    user = event.get("user", {})
    if not isinstance(user, dict):
        raise InvalidRequest("user: must be an object.")
    identity = parse_identity(user.get("username"), user.get("groups"), user.get("extra"))
    at = _time(event.get("requestReceivedTimestamp"))
    allowed = _allowed(event, at)
    return AuditedRequest(identity, at, allowed, _approval(event) if allowed is not None else None)


def _allowed(event: Mapping[str, Any], at: datetime) -> Allowed | None:
    if (event.get("annotations") or {}).get(DECISION) != "allow":
        return None
    # An audit event does not say which server handled the request, so deduce it from the API group.
    reference = event.get("objectRef")
    group = str(reference.get("apiGroup") or "") if reference is not None else "."
    is_delegated = "." in group and group not in OWN_GROUPS
    return Allowed(at - DELEGATED_CACHE if is_delegated else at, at)


def _approval(event: Mapping[str, Any]) -> Approval | None:
    reference = event.get("objectRef") or {}
    named = (reference.get("apiGroup"), reference.get("resource"), reference.get("subresource"))
    if named != ("certificates.k8s.io", "certificatesigningrequests", "approval"):
        return None
    if (event.get("responseStatus") or {}).get("code") != HTTPStatus.OK:
        return None
    name, request = str(reference.get("name"))[:MAX_REQUEST_NAME], event.get("responseObject")
    if request is None:
        return Approval(name, None)
    is_approved = (request.get("status") or {}).get("conditions")
    signer = str((request.get("spec") or {}).get("signerName"))[:MAX_REQUEST_NAME]
    return Approval(name, signer) if is_approved and signer.startswith(CLIENT_SIGNER) else None


def _time(text: Any) -> datetime:
    try:
        time = parse_rfc3339(text)
    except (TypeError, ValueError) as error:
        raise InvalidRequest("requestReceivedTimestamp: must be an RFC 3339 time with an offset.") from error
    if time < FIRST_KUBERNETES:
        raise InvalidRequest(f"requestReceivedTimestamp: must be after {FIRST_KUBERNETES:%Y-%m-%d}.")
    return time


def _may_be_ours(request: AuditedRequest) -> bool:
    """Whether the request used a client certificate, or a token of an account in the namespace clustercert-users."""
    identity = request.identity
    return (
        identity.has_certificate or identity.account is not None or bool(credential_groups(identity.groups))
    )

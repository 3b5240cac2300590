"""Events of audit.k8s.io/v1, read as they arrive: who used which credential, and when. No I/O.

An API server's audit log is the one place where `system:masters` shows: its members are never asked about. Only the
fields that are needed are built, whatever the size of the others.
Source: kubernetes.io, "Auditing"; staging/src/k8s.io/apiserver/pkg/apis/audit/v1/types.go.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import ijson

from clustercert.errors import InvalidRequest
from clustercert.model import credential_groups
from clustercert.webhook.json_tokens import JsonTokens, Token
from clustercert.webhook.review import Identity, identity

API_VERSION = "audit.k8s.io/v1"
LIST_KIND = "EventList"
KUBERNETES_BEGAN = datetime(2014, 6, 6, tzinfo=UTC)
# Characters of one event's user, its extra included, and as many again for each value.
MAX_USER = 4 * 1024 * 1024
CHARACTERS_A_TOKEN = 64
# Go's encoder writes 10,000 at most of what a client sent.
MAX_DEPTH = 20_000

_STARTS, _ENDS = frozenset({"start_map", "start_array"}), frozenset({"end_map", "end_array"})

Reading: TypeAlias = Generator[None, Token, Any]
"""Reads one JSON value, a token at a time, and returns what is kept of it."""
Reader: TypeAlias = Callable[[Token], Reading]
"""Begins to read a value, by its first token."""


@dataclass(frozen=True, slots=True)
class Observed:
    """That somebody made a request."""

    who: Identity
    at: datetime


class EventListParser:
    """Reads an EventList for the events that tell of client certificates.

    Attributes:
        taken: events so far whose user and time were read.
        unreadable: the others.
    """

    def __init__(self) -> None:
        self.taken = self.unreadable = 0
        self._observed: list[Observed] = []
        self._head: dict[str, Any] = {}
        readers = {"apiVersion": _scalar, "kind": _scalar, "items": self._items}
        self._tokens = JsonTokens(_receiver(_members(readers, self._head)))

    def feed(self, piece: bytes) -> None:
        """Read on. Raises InvalidRequest; what was observed before it, stays."""
        self._tokens.feed(piece)

    def close(self) -> None:
        """End the document. Raises InvalidRequest where it is no EventList."""
        self._tokens.close()
        if self._head.get("apiVersion") != API_VERSION or self._head.get("kind") != LIST_KIND:
            raise _no_event_list()

    def observed(self) -> list[Observed]:
        """What was read since the last call."""
        observed, self._observed = self._observed, []
        return observed

    def _items(self, token: Token) -> Reading:
        # Where these come after the items, they are judged at the end.
        if self._head.get("apiVersion", API_VERSION) != API_VERSION:
            raise _no_event_list()
        if self._head.get("kind", LIST_KIND) != LIST_KIND:
            raise _no_event_list()
        if token[0] == "null":
            return
        if token[0] != "start_array":
            raise InvalidRequest("items: must be an array of events.")
        event = _members(_EVENT)
        while (token := (yield))[0] != "end_array":
            self._take((yield from event(token)))

    def _take(self, event: Any) -> None:
        try:
            observed = _observed(event)
        except InvalidRequest:
            self.unreadable += 1
            return
        self.taken += 1
        if _has_certificate(observed):
            self._observed.append(observed)


class EventParser:
    """Reads one Event, as an audit log has it in a line."""

    def __init__(self) -> None:
        self._event: dict[str, Any] = {}
        readers = {**_EVENT, "apiVersion": _scalar, "kind": _scalar}
        self._tokens = JsonTokens(_receiver(_members(readers, self._event)))

    def feed(self, piece: bytes) -> None:
        """Read on. Raises InvalidRequest."""
        self._tokens.feed(piece)

    def close(self) -> Observed | None:
        """The event; None where it tells of no client certificate. Raises InvalidRequest where it is no event."""
        self._tokens.close()
        if self._event.get("apiVersion") != API_VERSION or self._event.get("kind") != "Event":
            raise InvalidRequest(f"An audit log has an Event of {API_VERSION} in each line.")
        observed = _observed(self._event)
        return observed if _has_certificate(observed) else None


def _receiver(read: Reader) -> Callable[[Token], object]:
    """What takes the tokens of a document of one value."""

    def reading() -> Reading:
        yield from read((yield))
        while True:
            yield

    receiver = reading()
    next(receiver)
    return receiver.send


def _skipped(token: Token, depth: int = 0) -> Reading:
    while True:
        if token[0] in _STARTS:
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"The JSON is nested more than {MAX_DEPTH} deep. Send an {LIST_KIND}.")
        elif token[0] in _ENDS:
            depth -= 1
        if not depth:
            return
        token = yield


def _scalar(token: Token) -> Reading:
    """A string, number or the like; None for an object or array."""
    yield from _skipped(token)
    return token[1]


def _members(readers: Mapping[str, Reader], kept: dict[str, Any] | None = None) -> Reader:
    """Reads those members of an object that have a reader, into `kept` where it is given; None for any other value."""

    def read(token: Token) -> Reading:
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


def _user(token: Token) -> Reading:
    """The whole value; None where it is too large."""
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


# Not `impersonatedUser`: the certificate is the real user's.
_EVENT: Mapping[str, Reader] = {"user": _user, "requestReceivedTimestamp": _scalar}


def _no_event_list() -> InvalidRequest:
    return InvalidRequest(f"Send an {LIST_KIND} of {API_VERSION}.")


def _observed(event: Any) -> Observed:
    if not isinstance(event, dict):
        raise InvalidRequest("items: must be an array of events.")
    user = event.get("user", {})
    if not isinstance(user, dict):
        raise InvalidRequest("user: must be an object.")
    who = identity(user.get("username"), user.get("groups"), user.get("extra"))
    return Observed(who, _time(event.get("requestReceivedTimestamp")))


def _time(text: Any) -> datetime:
    try:
        given = datetime.fromisoformat(text)
        # Near the end of the calendar a time may have none in UTC.
        time = given.astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest("requestReceivedTimestamp: must be a time as RFC 3339 has it.") from error
    if given.tzinfo is None or time < KUBERNETES_BEGAN:
        raise InvalidRequest("requestReceivedTimestamp: must have a zone, and be no time before Kubernetes.")
    return time


def _has_certificate(event: Observed) -> bool:
    return event.who.has_certificate or bool(credential_groups(event.who.groups))

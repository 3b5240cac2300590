"""Describes audit events in sentences."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from clustercert.http.console import cluster_address
from clustercert.http.console.rendering import absolute, duration, grouped
from clustercert.model import JsonObject
from clustercert.model.events.names import CLUSTER_ACTOR, shown_name, subject_name
from clustercert.model.identity import qualified_name

_ROTATION = "rotation of the client CA of {cluster}"
_ACCESS = "{access_groups} in {cluster}"

# In a sentence, `{name}` stands for a fact of the event: a method of `_Facts`, or a field of the event's detail. A part
# in brackets is left out if a fact in it is missing or null.
_SENTENCES = {
    "certificate.issued": "{actor} got a certificate for {cluster}[ with {groups}], valid until {not_after}",
    "certificate.refused": "{actor} was refused a certificate[ for {cluster}]: {message}",
    "certificate.failed": "{actor} got no certificate[ for {cluster}], because of a fault: {message}",
    "certificate.revoked": "{actor} revoked a certificate of {user} for {cluster}[ ({revocation_reason})]",
    "user.revoked": "{actor} revoked all certificates of {user} for {cluster}[ ({revocation_reason})]",
    "cluster.added": "{actor} added the cluster {cluster}",
    "cluster.updated": "{actor} updated the cluster {cluster}",
    "cluster.revoked": "{actor} revoked all certificates for {cluster}[ ({revocation_reason})]",
    "revocation.undone": "{actor} undid a revocation of certificates of {user} for {cluster}",
    "user.password_changed": "{actor} changed the password of {subject}",
    "user.logged_out": "{actor} ended all logins of {subject}",
    "group.member_added": "{actor} added {user} to the group {subject}",
    "group.member_removed": "{actor} removed {user} from the group {subject}",
    "role.assigned": "{actor} gave the role {role} to the {assignee} {name}[ in the project {project}]",
    "role.unassigned": "{actor} took the role {role} from the {assignee} {name}[ in the project {project}]",
    "token.revoked": "{actor} revoked a token of {user}",
    "session.started": "{user} logged in to the console",
    "session.ended": "A session of {user} in the console ended",
    "ca_rotation.started": f"{{actor}} started the {_ROTATION}",
    "ca_rotation.distributed": "Every API server of {cluster} accepts its new client CA",
    "ca_rotation.proof_lost": "It is no longer proved that {cluster} accepts its new client CA[: {problem}]",
    "ca_rotation.issuing_begun": "New certificates for {cluster} come from its new client CA",
    "ca_rotation.draining_begun": "No worker issues certificates of the old client CA of {cluster} any more",
    "ca_rotation.completion_requested": f"{{actor}} asked to complete the {_ROTATION}",
    "ca_rotation.completed": f"The {_ROTATION} is complete",
    "ca_rotation.reversed": f"{{actor}} reversed the {_ROTATION}",
    "ca_rotation.aborted": f"{{actor}} aborted the {_ROTATION}",
    "ca_rotation.proof_reported": "{actor} reported how the API servers of {cluster} treat its client CAs",
    "client_ca.key_deleted": "The key of an old client CA of {cluster} was deleted: {result}",
    "keys.created": "{actor} created the keys that encrypt stored secrets",
    "keys.rotated": "{actor} rotated the keys that encrypt stored secrets",
    "keys.retired": "{actor} retired keys that encrypted stored secrets",
    "certificates.pruned": "{actor} deleted {count} expired certificates from the ledger",
    "revocations.pruned": "{actor} deleted {count} old revocations of users and clusters",
    "events.deleted": "{actor} deleted {count} audit events: {why}",
    "access_request.created": f"{{actor}} asked for {_ACCESS} for {{period}}[: {{reason}}]",
    "access_request.approval_given": f"{{actor}} approved the access of {{user}} to {_ACCESS}, as one of several",
    "access_request.approved": f"{{actor}} approved the access of {{user}} to {_ACCESS}[: {{reason}}]",
    "access_request.denied": f"{{actor}} denied the access of {{user}} to {_ACCESS}[: {{reason}}]",
    "access_request.started": f"The access of {{user}} to {_ACCESS} started",
    "access_request.extension_requested": f"{{actor}} asked for {_ACCESS} for {{period}} longer[: {{reason}}]",
    "access_request.extension_approval_given": "{actor} approved more time for the access of {user} to"
    f" {_ACCESS}, as one of several",
    "access_request.extension_approved": f"{{actor}} approved more time for the access of {{user}} to {_ACCESS}",
    "access_request.extension_denied": f"{{actor}} denied more time for the access of {{user}} to {_ACCESS}",
    "access_request.ended": f"{{actor}} ended the access of {{user}} to {_ACCESS}[: {{reason}}]",
    "access_request.expired": f"Nobody decided in time about the access of {{user}} to {_ACCESS}",
    "access_request.finished": f"The time of the access of {{user}} to {_ACCESS} is over",
    "access_requests.pruned": "{actor} deleted {count} closed access requests",
    "request.refused": "{actor} was refused {method} {subject}: {message}",
    "refusals.repeated": "{count} more requests of {subject} were refused",
    "authentication.failed": "{count} requests failed to authenticate",
    "policy.loaded": "The service loaded a changed policy",
    "issuers.loaded": "The service loaded changed OIDC issuers",
    "credential.unknown": "{cluster} was used with a certificate of {username} that is not in the ledger",
    "credential.masters": "{cluster} was used with a certificate of {username} in the group system:masters",
    "credential.exempt": "{cluster} was used with a new certificate of {username}, a name that is exempt from checks",
    "credential.altered": "{cluster} was used with an altered copy of a certificate of {username}",
    "credential.counted": "API servers of {cluster} reported {count} more suspicious certificates since {since}:"
    " {alert}",
    "credential.revoked_used": "{cluster} allowed {count} requests with a revoked certificate of {username}",
    "cluster_certificates.approved": "{username} approved client certificates in the API of {cluster}",
    "audit_batch.refused": "A batch of audit events of {cluster} was not read completely: {reason}",
    "enforcement.overflowed": "{left_out} revoked certificates are too many for the ConfigMap of {cluster}",
    "cluster_tokens.stopped": "{cluster} gets no tokens: {problem}",
    "cluster_tokens.resumed": "{cluster} gets tokens again",
    "cluster_tokens.foreign": "{cluster} has objects of others that affect the accounts of credentials: {objects}",
    "cluster_tokens.unknown": "{unknown} credentials in {cluster} are not in the ledger, and {known} are",
    "cluster_tokens.deletion_confirmed": "{actor} confirmed the deletion of {unknown} credentials in {cluster} that"
    " are not in the ledger",
    "certificate.mismatch": "A stored certificate for {cluster} is not as it was issued: {problems}",
    "audit_log.begun": "The audit log {subject} began",
}
# Instead of the sentences above, for events with the count 1.
_SENTENCES_FOR_ONE = {
    "authentication.failed": "{count} request failed to authenticate",
    "refusals.repeated": "{count} more request of {subject} was refused",
    "certificates.pruned": "{actor} deleted {count} expired certificate from the ledger",
    "revocations.pruned": "{actor} deleted {count} old revocation of a user or cluster",
    "events.deleted": "{actor} deleted {count} audit event: {why}",
    "access_requests.pruned": "{actor} deleted {count} closed access request",
    "credential.counted": "API servers of {cluster} reported {count} more suspicious certificate since {since}:"
    " {alert}",
    "credential.revoked_used": "{cluster} allowed {count} request with a revoked certificate of {username}",
}
# For all other kinds, such as `user.created`.
_OF_USER = "{actor} {verb} the {noun} {subject} of {user}"
_OF_CLUSTER = "{actor} {verb} a {noun} of {cluster}"
_GENERAL = "{actor} {verb} the {noun} {subject}"
_GENERAL_SENTENCES = {
    "access_key": _OF_USER,
    "webhook_token": _OF_CLUSTER,
}
_OPTIONAL = re.compile(r"\[([^]]*)\]")
_FACT = re.compile(r"\{(\w+)\}")
_ACTORS = {
    "clustercert": "The service",
    "holder": "The holder of a certificate",
    "unknown": "An unknown caller",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a sentence.

    Attributes:
        is_value: whether the text comes from the event, so that somebody else may have chosen it.
        is_person: whether the text names a person.
        href: the page about the object that the text names; None if there is no such page.
    """

    text: str
    is_value: bool = False
    is_person: bool = False
    href: str | None = None


def describe(event: JsonObject, names: Mapping[str, str]) -> list[Part]:
    """Return a sentence about an event, without a final period.

    Args:
        event: an event from the API.
        names: the names of users, clusters and projects by id.
    """
    kind, detail = str(event["kind"]), cast("JsonObject", event["detail"])
    facts = _Facts(event, names)
    known = _SENTENCES | (_SENTENCES_FOR_ONE if detail.get("count") == 1 else {})
    for sentence in (known.get(kind), _GENERAL_SENTENCES.get(kind.partition(".")[0]), _GENERAL):
        if sentence is not None and (parts := _filled(sentence, facts)) is not None:
            return parts
    return [Part(kind, is_value=True)]


def _filled(sentence: str, facts: "_Facts") -> list[Part] | None:
    """Return the parts of a sentence, or None if the event lacks a fact, as an event of another version may."""
    parts: list[Part] = []
    for index, text in enumerate(_OPTIONAL.split(sentence)):
        try:
            parts += list(_fill(text, facts))
        except (LookupError, TypeError, ValueError, AttributeError):
            # The texts in brackets are at odd indexes.
            if index % 2 == 0:
                return None
    return parts


def _fill(text: str, facts: "_Facts") -> Iterator[Part]:
    for index, piece in enumerate(_FACT.split(text)):
        if index % 2:
            yield facts.part(piece)
        elif piece:
            yield Part(piece)


class _Facts:
    """The facts of an event that sentences mention. Raises LookupError, TypeError or ValueError for missing facts."""

    def __init__(self, event: JsonObject, names: Mapping[str, str]) -> None:
        self._event = event
        self._names = names
        self._detail: Any = event["detail"]

    def part(self, name: str) -> Part:
        known: Mapping[str, Callable[[], Part]] = {
            "actor": self._actor,
            "subject": self._subject,
            "user": self._user,
            "cluster": self._cluster,
            "groups": self._groups,
            "noun": lambda: Part(str(self._event["kind"]).partition(".")[0].replace("_", " ")),
            "verb": lambda: Part(str(self._event["kind"]).partition(".")[2].replace("_", " ")),
            "not_after": lambda: Part(_to_the_minute(self._detail["not_after"]), is_value=True),
            "since": lambda: Part(_to_the_minute(self._detail["first"]), is_value=True),
            "period": lambda: Part(duration(self._detail["duration"]), is_value=True),
            "count": lambda: Part(grouped(self._detail["count"]), is_value=True),
            "revocation_reason": self._revocation_reason,
            "access_groups": lambda: Part(", ".join(self._detail["groups"]), is_value=True),
        }
        return known[name]() if name in known else self._field(name)

    def _field(self, name: str) -> Part:
        value = self._detail[name]
        if value is None:
            raise LookupError(name)
        return Part(", ".join(map(str, value)) if isinstance(value, list) else str(value), is_value=True)

    def _revocation_reason(self) -> Part:
        if self._detail["reason"] == "unspecified":
            raise LookupError("reason")
        return self._field("reason")

    def _actor(self) -> Part:
        actor = str(self._event["actor"])
        if actor in _ACTORS:
            return Part(_ACTORS[actor])
        if actor not in self._names:
            if isinstance(caller := self._detail.get("caller"), dict):
                return _person(qualified_name(caller["name"], caller["domain_name"]))
            if name := self._detail.get("actor_name"):
                return _person(str(name))
        if actor.startswith(CLUSTER_ACTOR):
            cluster = shown_name(actor.removeprefix(CLUSTER_ACTOR), self._names)
            return Part(f"The cluster {cluster}", is_value=True)
        return _person(shown_name(actor, self._names))

    def _subject(self) -> Part:
        return Part(subject_name(str(self._event["subject"]), self._detail, self._names), is_value=True)

    def _user(self) -> Part:
        user_id = self._detail["user_id"]
        if user_id is None:
            return Part("everybody")
        name = self._names.get(user_id) or self._detail.get("user_name")
        return _person(str(name) if name else shown_name(str(user_id), self._names))

    def _cluster(self) -> Part:
        cluster = cluster_of(self._event)
        if cluster is None:
            return Part("all clusters")
        cluster_id, name = cluster
        shown = self._names.get(cluster_id) or name or shown_name(cluster_id, self._names)
        return Part(shown, is_value=True, href=cluster_page(self._event, cluster_id))

    def _groups(self) -> Part:
        groups = self._detail["trace"]["groups"]
        if not groups:
            return Part("no groups")
        return Part(f"the group{'s' if len(groups) > 1 else ''} {', '.join(groups)}", is_value=True)


def names_in(events: Iterable[JsonObject]) -> dict[str, str]:
    """Return the names of users by id, as far as the events themselves contain the names."""
    found: dict[str, str] = {}
    for event in events:
        detail: Any = event["detail"]
        if isinstance(caller := detail.get("caller"), dict):
            found[str(event["actor"])] = qualified_name(str(caller["name"]), str(caller["domain_name"]))
        for user_id, name in ((event["actor"], "actor_name"), (detail.get("user_id"), "user_name")):
            if user_id is not None and detail.get(name):
                found[str(user_id)] = str(detail[name])
    return found


def _person(name: str) -> Part:
    return Part(name, is_value=True, is_person=True)


def _to_the_minute(time: str) -> str:
    return f"{absolute(time)[:16]} UTC"


def cluster_page(event: JsonObject, cluster_id: str) -> str | None:
    """Return the page about a cluster that an event mentions; None for an event without a project."""
    project_id = event["project_id"]
    if project_id is None:
        return None
    return cluster_address.cluster_page(str(project_id), cluster_id)


# Kinds of events whose subject is a cluster.
_ABOUT_CLUSTERS = ("cluster.", "ca_rotation.", "enforcement.", "audit_batch.")


def cluster_of(event: JsonObject) -> tuple[str, str | None] | None:
    """Return the id of the cluster that an event is about, and the name in the event; None without a cluster.

    Raises LookupError for an event that has no field for a cluster.
    """
    detail: Any = event["detail"]
    if isinstance(cluster := detail.get("cluster"), dict):
        project = cluster.get("project") or {}
        path = (project.get("domain_name"), project.get("name"), cluster["name"])
        return str(cluster["id"]), "/".join(str(each) for each in path if each)
    if "cluster_id" in detail:
        return (
            None if detail["cluster_id"] is None else (str(detail["cluster_id"]), detail.get("cluster_name"))
        )
    if str(event["kind"]).startswith(_ABOUT_CLUSTERS):
        return str(event["subject"]), detail.get("name")
    raise LookupError("cluster")

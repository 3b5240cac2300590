"""Reads back what `folder.files` wrote before, with the changes that an operator made by hand. Pure: no I/O."""

import base64
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import PurePosixPath
from typing import TypeVar

import yaml

from clustercert.certificate import certificates
from clustercert.errors import ClustercertError
from clustercert.manifests import MANAGED_BY, OUR_PREFIX
from clustercert.manifests.authorization import (
    Asking,
    FailurePolicy,
    Mode,
    is_ours,
    match_conditions,
)
from clustercert.manifests.cel import string
from clustercert.manifests.folder import AUDIT_WEBHOOK, AUTHORIZATION, RBAC, WEBHOOK
from clustercert.model import JsonObject

T = TypeVar("T")
Read = Callable[[str], str | None]
"""Returns a file's text by its name, or None where there is no such file."""

_ENDPOINT = re.compile(r"(https?://\S+)/clustercert/v1/kubernetes/clusters/([^/\s]+)/authorize")


class UnreadableFile(ClustercertError):
    """A file of an earlier folder can't be parsed.

    Attributes:
        name: of the file.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


@dataclass(frozen=True, slots=True)
class PreviousWebhook:
    """The webhook's kubeconfig.

    Attributes:
        service_url: no slash at the end.
        ca_pem: None leaves it to the CAs of the control plane's operating system.
    """

    service_url: str
    cluster_id: str
    ca_pem: bytes | None
    token: str | None


@dataclass(frozen=True, slots=True)
class PreviousAuthorization:
    """The AuthorizationConfiguration.

    Attributes:
        document: all of it.
        mode: None where the match conditions are not those that a setup writes.
        groups: those that the match conditions name.
        authorized_ttl, unauthorized_ttl, timeout: None where the file leaves them to Kubernetes.
        kubeconfig: the path of the webhook's kubeconfig on the control plane.
    """

    document: JsonObject
    mode: Mode | None
    groups: tuple[str, ...]
    failure_policy: FailurePolicy
    authorized_ttl: str | None
    unauthorized_ttl: str | None
    timeout: str | None
    kubeconfig: PurePosixPath


@dataclass(frozen=True, slots=True)
class PreviousBindings:
    """The file of RBAC bindings.

    Attributes:
        bound: the ClusterRole of each group.
        others: documents that an operator added.
    """

    bound: Mapping[str, str]
    others: tuple[JsonObject, ...]


@dataclass(frozen=True, slots=True)
class PreviousSetup:
    """What an earlier folder says; None for what it doesn't say."""

    webhook: PreviousWebhook | None = None
    authorization: PreviousAuthorization | None = None
    bindings: PreviousBindings | None = None
    audit: bool | None = None


def read_back(read: Read) -> PreviousSetup:
    """What the files say. Raises UnreadableFile."""
    authorization = _parsed(read, AUTHORIZATION, _authorization)
    # While a token is exchanged, the kubeconfig in use has another name.
    in_use = authorization.kubeconfig.name if authorization is not None else WEBHOOK
    webhook = _parsed(read, in_use or WEBHOOK, _webhook) or _parsed(read, WEBHOOK, _webhook)
    written = authorization is not None or webhook is not None
    return PreviousSetup(
        webhook=webhook,
        authorization=authorization,
        bindings=_parsed(read, RBAC, _bindings),
        audit=read(AUDIT_WEBHOOK) is not None if written else None,
    )


def _parsed(read: Read, name: str, parse: Callable[[str], T]) -> T | None:
    text = read(name)
    if text is None:
        return None
    try:
        return parse(text)
    except yaml.YAMLError as error:
        raise UnreadableFile(name, "it is not YAML") from error
    except ClustercertError as error:
        raise UnreadableFile(name, error.message) from error
    except ValueError as error:
        raise UnreadableFile(name, str(error)) from error


def _webhook(text: str) -> PreviousWebhook:
    document = _object(yaml.safe_load(text), "the document")
    cluster = _object(_first(document, "clusters").get("cluster"), "clusters[0].cluster")
    user = _object(_first(document, "users").get("user"), "users[0].user")
    endpoint = _ENDPOINT.fullmatch(_text(cluster.get("server"), "server"))
    if endpoint is None:
        raise ValueError(f"server is {cluster.get('server')}, which is not the webhook of a cluster")
    if "certificate-authority" in cluster:
        raise ValueError(
            "certificate-authority names a file: put its content into certificate-authority-data"
        )
    data = cluster.get("certificate-authority-data")
    ca_pem = base64.b64decode(_text(data, "certificate-authority-data")) if data is not None else None
    if ca_pem is not None:
        certificates(ca_pem)
    token = user.get("token")
    return PreviousWebhook(endpoint[1], endpoint[2], ca_pem, str(token) if token is not None else None)


def _authorization(text: str) -> PreviousAuthorization:
    document = _object(yaml.safe_load(text), "the document")
    listed = [_object(each, "an authorizer") for each in _list(document.get("authorizers"), "authorizers")]
    webhooks = [_object(each.get("webhook"), "webhook") for each in listed if is_ours(each)]
    if len(webhooks) != 1:
        raise ValueError(
            f"it has {len(webhooks)} webhook authorizers with the name clustercert instead of one"
        )
    (webhook,) = webhooks
    failure_policy = webhook.get("failurePolicy")
    if failure_policy not in ("NoOpinion", "Deny"):
        raise ValueError(f"failurePolicy is {failure_policy}, neither NoOpinion nor Deny")
    connection = _object(webhook.get("connectionInfo"), "connectionInfo")
    kubeconfig = PurePosixPath(_text(connection.get("kubeConfigFile"), "kubeConfigFile"))
    if not kubeconfig.is_absolute():
        raise ValueError(f"kubeConfigFile is {kubeconfig}, not an absolute path")
    conditions = _conditions(webhook)
    return PreviousAuthorization(
        document=document,
        mode=_modes_by_form().get(_form(conditions)),
        groups=_groups(conditions),
        failure_policy=failure_policy,
        authorized_ttl=_duration(webhook, "authorizedTTL"),
        unauthorized_ttl=_duration(webhook, "unauthorizedTTL"),
        timeout=_duration(webhook, "timeout"),
        kubeconfig=kubeconfig,
    )


def _bindings(text: str) -> PreviousBindings:
    documents = [_object(each, "a document") for each in yaml.safe_load_all(text) if each is not None]
    bound: dict[str, str] = {}
    others = []
    for document in documents:
        pair = _group_and_role(document)
        if pair is None or pair[0] in bound:
            others.append(document)
        else:
            bound[pair[0]] = pair[1]
    return PreviousBindings(bound, tuple(others))


def _group_and_role(document: JsonObject) -> tuple[str, str] | None:
    """The group and ClusterRole of a binding that a setup wrote; None for a document of an operator's own."""
    metadata, role, subjects = (document.get(each) for each in ("metadata", "roleRef", "subjects"))
    if document.get("kind") != "ClusterRoleBinding" or not isinstance(metadata, dict):
        return None
    if metadata.get("labels") != MANAGED_BY or not isinstance(role, dict) or not isinstance(subjects, list):
        return None
    if len(subjects) != 1 or not isinstance(subjects[0], dict) or subjects[0].get("kind") != "Group":
        return None
    return _text(subjects[0].get("name"), "a subject's name"), _text(role.get("name"), "roleRef.name")


# Match conditions. Their form is the text with each literal, and each run of tests of one name, replaced by a letter.

_STRING = r'"(?:[^"\\]|\\.)*"'
_LIST = rf"\[{_STRING}(?:, {_STRING})*\]"
_LITERAL = re.compile(f"{_LIST}|{_STRING}")
_TEST = r"(?:(?:request\.user|\bg) in L|(?:request\.user|\bg)\.startsWith\(S\))"
_TESTS = re.compile(rf"{_TEST}(?: \|\| {_TEST})*")
_OUR_GROUPS = re.compile(
    rf"request\.groups\.exists\(g, g in ({_LIST}) \|\| " + re.escape(f"g.startsWith({string(OUR_PREFIX)})")
)

_OLD_X509 = "has(request.extra) && S in request.extra && request.extraL.exists(c, c.startsWith(S))"
_OLD_OURS = "request.groups.exists(g, T)"
# Before certificates had credential groups.
_OLD_FORMS: Mapping[str, Mode] = {
    f"{_OLD_X509}\n{_OLD_OURS}": "default",
    f"{_OLD_X509}\n{_OLD_OURS} || !false": "known-only",
    f"{_OLD_X509}\n{_OLD_OURS} || !(T || request.groups.exists(g, !(T) && (T)))": "known-only",
}


def _form(conditions: Sequence[str]) -> str:
    text = "\n".join(conditions)
    return _TESTS.sub("T", _LITERAL.sub(lambda match: "L" if match[0].startswith("[") else "S", text))


@cache
def _modes_by_form() -> Mapping[str, Mode]:
    """Every form that a setup writes or wrote."""
    forms = dict(_OLD_FORMS)
    modes: tuple[Mode, ...] = ("default", "known-only")
    ends = (None, datetime(2000, 1, 1, tzinfo=UTC))
    for mode, until, exemptions in itertools.product(modes, ends, ((), ("system:*",))):
        asking = Asking(
            mode=mode,
            groups=(),
            unnumbered_until=until,
            exemptions=exemptions,
            failure_policy="NoOpinion",
            authorized_ttl="",
            unauthorized_ttl="",
            timeout="",
            kubeconfig="",
        )
        forms[_form(match_conditions(asking))] = mode
    return forms


def _groups(conditions: Sequence[str]) -> tuple[str, ...]:
    found = [match[1] for condition in conditions for match in _OUR_GROUPS.finditer(condition)]
    return tuple(dict.fromkeys(group for names in found for group in json.loads(names)))


def _conditions(webhook: JsonObject) -> tuple[str, ...]:
    listed = _list(webhook.get("matchConditions", []), "matchConditions")
    return tuple(
        _text(_object(each, "a match condition").get("expression"), "an expression") for each in listed
    )


def _duration(webhook: JsonObject, field: str) -> str | None:
    value = webhook.get(field)
    return None if value is None else _text(value, field)


def _first(document: JsonObject, field: str) -> JsonObject:
    listed = _list(document.get(field), field)
    if not listed:
        raise ValueError(f"{field} is empty")
    return _object(listed[0], f"{field}[0]")


def _object(value: object, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a mapping")  # noqa: TRY004 - of a file's content, not of this program's types
    return value


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is not a list")  # noqa: TRY004 - as above
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} is not a text")
    return value

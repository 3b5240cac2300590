"""Parses the files of an earlier setup, including an operator's changes. No I/O."""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

import yaml

from clustercert.kubernetes.setup import MANAGED_BY
from clustercert.kubernetes.setup.authorization import (
    AUTHORIZED_TTL,
    KUBECONFIG,
    UNAUTHORIZED_TTL,
    WebhookClient,
    is_ours,
)
from clustercert.kubernetes.setup.match_condition_modes import mode_of
from clustercert.kubernetes.setup.values import (
    AUDIT_WEBHOOK,
    AUTHORIZATION,
    CERTIFICATE_REQUESTS,
    FOR_CLUSTER,
    KUBEADM,
    RBAC,
    SERVICE_ACCOUNTS,
    WEBHOOK,
    removed,
)
from clustercert.model import JsonObject
from clustercert.model.choices import FailurePolicy, ServiceAccountAccess, WebhookMode
from clustercert.model.errors import ClustercertError
from clustercert.pki.certificates import parse_certificates

T = TypeVar("T")
Field = TypeVar("Field", dict[str, Any], list[Any], str)
Read = Callable[[str], str | None]
"""Takes a file name and returns the file's content, or `None` if the file does not exist."""

_NAMES: dict[type, str] = {dict: "mapping", list: "list", str: "non-empty string"}
_ENDPOINT = re.compile(r"(https?://\S+)/clustercert/v1/kubernetes/clusters/([^/\s]+)/authorize")


class UnreadableFile(ClustercertError):
    """The file `name` can't be parsed."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


@dataclass(frozen=True, slots=True)
class PreviousWebhook:
    """The values in the webhook's kubeconfig. `Setup` describes them."""

    service_url: str
    cluster_id: str
    ca_pem: bytes | None
    token: str | None
    client: WebhookClient | None = None


@dataclass(frozen=True, slots=True)
class PreviousAuthorization:
    """The content of the AuthorizationConfiguration, or of the flags of an API server before 1.30.

    Attributes:
        document: the whole file; `None` for flags.
        mode: the webhook's mode; `None` if `kubernetes setup` did not write the match conditions.
        authorized_ttl, unauthorized_ttl, timeout: durations as Go writes them; `None` for Kubernetes's defaults.
    """

    document: JsonObject | None
    mode: WebhookMode | None
    failure_policy: FailurePolicy
    authorized_ttl: str | None
    unauthorized_ttl: str | None
    timeout: str | None
    kubeconfig: PurePosixPath

    @property
    def is_beta(self) -> bool:
        """Whether the file is for Kubernetes 1.30 or 1.31, which read no newer `apiVersion`."""
        version = self.document.get("apiVersion") if self.document is not None else None
        return version not in (None, "apiserver.config.k8s.io/v1")


@dataclass(frozen=True, slots=True)
class PreviousSetup:
    """The content of a folder that an earlier setup wrote. Values from missing files are `None`.

    Attributes:
        bound: the ClusterRole of each group in the RBAC file.
        other_rbac: documents that an operator added to the RBAC file.
        audit: whether the API server sends audit events.
        service_accounts: what this service asks the API server about tokens of service accounts.
        certificate_requests: whether there is a policy about certificate requests; `None` for flags, which are for
            API servers without admission policies.
        files: the names of the files for the cluster, also of those that an earlier setup renamed.
    """

    webhook: PreviousWebhook | None = None
    authorization: PreviousAuthorization | None = None
    bound: Mapping[str, str] | None = None
    other_rbac: tuple[JsonObject, ...] = ()
    audit: bool | None = None
    service_accounts: ServiceAccountAccess | None = None
    certificate_requests: bool | None = None
    files: tuple[str, ...] = ()


def read_back(read: Read) -> PreviousSetup:
    """Parse the files of an earlier setup. Raises UnreadableFile if one is malformed."""
    authorization = _parse(read, AUTHORIZATION, _authorization) or _parse(read, KUBEADM, _flags)
    # After a token was replaced, the kubeconfig in use has another name.
    in_use = authorization.kubeconfig.name if authorization is not None else WEBHOOK
    webhook = _parse(read, in_use or WEBHOOK, _webhook) or _parse(read, WEBHOOK, _webhook)
    exists = authorization is not None or webhook is not None
    bound, other_rbac = _parse(read, RBAC, _bindings) or (None, ())
    return PreviousSetup(
        webhook=webhook,
        authorization=authorization,
        bound=bound,
        other_rbac=other_rbac,
        audit=read(AUDIT_WEBHOOK) is not None if exists else None,
        service_accounts=_parse(read, SERVICE_ACCOUNTS, _service_accounts),
        certificate_requests=read(CERTIFICATE_REQUESTS) is not None
        if authorization is not None and authorization.document is not None
        else None,
        files=tuple(
            name for name in FOR_CLUSTER if read(name) is not None or read(removed(name)) is not None
        ),
    )


def _parse(read: Read, name: str, parse: Callable[[str], T]) -> T | None:
    content = read(name)
    if content is None:
        return None
    try:
        return parse(content)
    except yaml.YAMLError as error:
        raise UnreadableFile(name, "it is not YAML") from error
    except ClustercertError as error:
        raise UnreadableFile(name, error.message) from error
    except ValueError as error:
        raise UnreadableFile(name, str(error)) from error


def _webhook(content: str) -> PreviousWebhook:
    document = yaml.safe_load(content)
    cluster = _field(document, "clusters.0.cluster", dict)
    endpoint = _ENDPOINT.fullmatch(_field(cluster, "server", str))
    if endpoint is None:
        raise ValueError(f"server is {cluster['server']}, not the address of a cluster's webhook")
    if "certificate-authority" in cluster:
        raise ValueError(
            "certificate-authority names a file: put its content into certificate-authority-data"
        )
    ca_pem = None
    if cluster.get("certificate-authority-data") is not None:
        ca_pem = base64.b64decode(_field(cluster, "certificate-authority-data", str))
        parse_certificates(ca_pem)
    user = _field(document, "users.0.user", dict)
    token = user.get("token")
    return PreviousWebhook(
        endpoint[1], endpoint[2], ca_pem, str(token) if token is not None else None, _client(user)
    )


def _client(user: JsonObject) -> WebhookClient | None:
    for name in ("client-certificate", "client-key"):
        if name in user:
            raise ValueError(f"{name} names a file: put its content into {name}-data")
    if "client-certificate-data" not in user:
        return None
    return WebhookClient(
        base64.b64decode(_field(user, "client-certificate-data", str)),
        base64.b64decode(_field(user, "client-key-data", str)),
    )


def _authorization(content: str) -> PreviousAuthorization:
    document = _field(yaml.safe_load(content), "", dict)
    authorizers = [_field(each, "", dict) for each in _field(document, "authorizers", list)]
    ours = [each for each in authorizers if is_ours(each)]
    if len(ours) != 1:
        raise ValueError(f"it has {len(ours)} webhook authorizers with the name clustercert instead of one")
    webhook = _field(ours[0], "webhook", dict)
    failure_policy = webhook.get("failurePolicy")
    if failure_policy not in ("NoOpinion", "Deny"):
        raise ValueError(f"failurePolicy is {failure_policy}, not NoOpinion or Deny")
    kubeconfig = PurePosixPath(_field(webhook, "connectionInfo.kubeConfigFile", str))
    if not kubeconfig.is_absolute():
        raise ValueError(f"kubeConfigFile is {kubeconfig}, not an absolute path")
    listed = _field({"matchConditions": [], **webhook}, "matchConditions", list)
    conditions = [_field(each, "expression", str) for each in listed]
    return PreviousAuthorization(
        document=document,
        mode=mode_of(conditions),
        failure_policy=failure_policy,
        authorized_ttl=_duration(webhook, "authorizedTTL"),
        unauthorized_ttl=_duration(webhook, "unauthorizedTTL"),
        timeout=_duration(webhook, "timeout"),
        kubeconfig=kubeconfig,
    )


def _flags(content: str) -> PreviousAuthorization | None:
    """Parse the flags in a kubeadm configuration of v1beta3, where they are a mapping."""
    arguments = _field(yaml.safe_load(content), "apiServer", dict).get("extraArgs")
    if not isinstance(arguments, dict) or KUBECONFIG not in arguments:
        return None
    return PreviousAuthorization(
        document=None,
        mode=None,
        failure_policy="NoOpinion",
        authorized_ttl=_duration(arguments, AUTHORIZED_TTL),
        unauthorized_ttl=_duration(arguments, UNAUTHORIZED_TTL),
        timeout=None,
        kubeconfig=PurePosixPath(_field(arguments, KUBECONFIG, str)),
    )


def _duration(webhook: JsonObject, name: str) -> str | None:
    return None if webhook.get(name) is None else _field(webhook, name, str)


def _bindings(content: str) -> tuple[Mapping[str, str], tuple[JsonObject, ...]]:
    bound: dict[str, str] = {}
    others = []
    for each in yaml.safe_load_all(content):
        if each is None:
            continue
        document = _field(each, "", dict)
        pair = _group_and_role(document)
        if pair is None or pair[0] in bound:
            others.append(document)
        else:
            bound[pair[0]] = pair[1]
    return bound, tuple(others)


def _service_accounts(content: str) -> ServiceAccountAccess:
    kinds = [_field(each, "kind", str) for each in yaml.safe_load_all(content) if each is not None]
    return "review" if "ClusterRole" in kinds else "keys"


def _group_and_role(document: JsonObject) -> tuple[str, str] | None:
    """Return the group and ClusterRole of a binding that an earlier setup wrote; `None` for other documents."""
    if document.get("kind") != "ClusterRoleBinding":
        return None
    try:
        (subject,) = _field(document, "subjects", list)
        if _field(document, "metadata.labels", dict) != MANAGED_BY or _field(subject, "kind", str) != "Group":
            return None
        role = _field(document, "roleRef", dict)
    except ValueError:
        return None
    return _field(subject, "name", str), _field(role, "name", str)


def _field(document: object, path: str, kind: type[Field]) -> Field:
    """Return the field at a path such as `clusters.0.cluster`; an empty path is the whole document.

    Raises ValueError if the field is missing, of another type, or an empty string.
    """
    value = document
    for name in path.split(".") if path else ():
        if isinstance(value, list):
            value = {str(index): each for index, each in enumerate(value)}
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, kind) or value == "":
        raise ValueError(f"{path or 'the document'} is not a {_NAMES[kind]}")
    return value

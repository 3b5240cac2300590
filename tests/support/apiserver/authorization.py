"""The chain of authorizers: system:masters, then what the AuthorizationConfiguration file lists."""

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from support.apiserver.attributes import Attributes
from support.apiserver.expressions import ExpressionError, check
from support.apiserver.identity import MASTERS, Identity
from support.apiserver.rbac import Rbac


class Decision(enum.Enum):
    """The decision of one authorizer."""

    ALLOW = "allow"
    DENY = "forbid"
    NO_OPINION = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision of the chain. With `error`, any decision but ALLOW is an internal error."""

    decision: Decision
    reason: str = ""
    error: str | None = None


class Authorizer(Protocol):
    """One link of the chain."""

    def __call__(self, who: Identity, wanted: Attributes, /) -> Verdict: ...


class ConfigurationError(Exception):
    """kube-apiserver would not load this AuthorizationConfiguration."""


class RbacAuthorizer:
    """Allows, or has no opinion."""

    def __init__(self, rbac: Rbac) -> None:
        self._rbac = rbac

    def __call__(self, who: Identity, wanted: Attributes) -> Verdict:
        allowed = self._rbac.allows(who, wanted)
        return Verdict(Decision.ALLOW if allowed else Decision.NO_OPINION)


def node(who: Identity, wanted: Attributes) -> Verdict:
    """There are no nodes here."""
    return Verdict(Decision.NO_OPINION)


def decide(chain: Sequence[Authorizer], who: Identity, wanted: Attributes) -> Verdict:
    """The first decision of the chain. Members of system:masters bypass it."""
    if MASTERS in who.groups:
        return Verdict(Decision.ALLOW)
    reasons, errors = [], []
    for authorizer in chain:
        verdict = authorizer(who, wanted)
        if verdict.error is not None:
            errors.append(verdict.error)
        if verdict.decision is not Decision.NO_OPINION:
            return verdict
        reasons.append(verdict.reason)
    return Verdict(
        Decision.NO_OPINION,
        "; ".join(filter(None, reasons)),
        "; ".join(errors) if errors else None,
    )


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """The `webhook` of one authorizer, checked; times in seconds."""

    name: str
    authorized_ttl_s: float
    unauthorized_ttl_s: float
    timeout_s: float
    denies_on_failure: bool
    kubeconfig: Path
    conditions: tuple[str, ...]
    version: str = "v1"


_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_FIELDS = {
    *("authorizedTTL", "unauthorizedTTL", "timeout", "subjectAccessReviewVersion", "failurePolicy"),
    *("matchConditionSubjectAccessReviewVersion", "connectionInfo", "matchConditions"),
}
_VERSIONS = {f"apiserver.config.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1")}
LONGEST_TIMEOUT_S = 30
DEFAULT_TTLS_S = (300.0, 30.0)


def load(path: Path, rbac: Rbac, webhook: Callable[[WebhookSettings], Authorizer]) -> Sequence[Authorizer]:
    """Load the chain from a file, as strictly as kube-apiserver 1.32. Raises ConfigurationError."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(str(error)) from error
    if document.get("kind") != "AuthorizationConfiguration" or document.get("apiVersion") not in _VERSIONS:
        raise ConfigurationError("no AuthorizationConfiguration of a known version")
    _known(document, {"apiVersion", "kind", "authorizers"})
    chain: list[Authorizer] = []
    names = set()
    for entry in document.get("authorizers") or ():
        _known(entry, {"type", "name", "webhook"})
        if entry["name"] in names:
            raise ConfigurationError(f"duplicate name {entry['name']}")
        names.add(entry["name"])
        chain.append(_authorizer(entry, rbac, webhook))
    if "rbac" not in names:
        raise ConfigurationError("missing required types: [RBAC]")
    return chain


def _authorizer(
    entry: dict[str, Any], rbac: Rbac, webhook: Callable[[WebhookSettings], Authorizer]
) -> Authorizer:
    kind, name = entry.get("type"), entry["name"]
    if kind == "Webhook":
        return webhook(_settings(name, entry["webhook"]))
    if kind not in {"Node", "RBAC"} or name != kind.lower() or "webhook" in entry:
        raise ConfigurationError(f"authorizer {name} of type {kind}")
    return RbacAuthorizer(rbac) if kind == "RBAC" else node


def _settings(name: str, fields: dict[str, Any]) -> WebhookSettings:
    _known(fields, _FIELDS)
    if fields.get("subjectAccessReviewVersion") != "v1" or fields.get("failurePolicy") not in {
        "NoOpinion",
        "Deny",
    }:
        raise ConfigurationError("subjectAccessReviewVersion and failurePolicy are required")
    conditions = tuple(_condition(each) for each in fields.get("matchConditions") or ())
    if conditions and fields.get("matchConditionSubjectAccessReviewVersion") != "v1":
        raise ConfigurationError("matchConditionSubjectAccessReviewVersion is required")
    connection = fields.get("connectionInfo") or {}
    _known(connection, {"type", "kubeConfigFile"})
    kubeconfig = Path(connection.get("kubeConfigFile") or "")
    if connection.get("type") != "KubeConfigFile" or not kubeconfig.is_absolute():
        raise ConfigurationError("kubeConfigFile: must be an absolute path")
    if not kubeconfig.is_file():
        raise ConfigurationError(f"kubeConfigFile: {kubeconfig} does not exist")
    timeout_s = seconds("timeout", fields.get("timeout", "0s"), None)
    if timeout_s > LONGEST_TIMEOUT_S:
        raise ConfigurationError("timeout: must be <= 30s")
    return WebhookSettings(
        name=name,
        authorized_ttl_s=seconds("authorizedTTL", fields.get("authorizedTTL", "0s"), DEFAULT_TTLS_S[0]),
        unauthorized_ttl_s=seconds("unauthorizedTTL", fields.get("unauthorizedTTL", "0s"), DEFAULT_TTLS_S[1]),
        timeout_s=timeout_s,
        denies_on_failure=fields["failurePolicy"] == "Deny",
        kubeconfig=kubeconfig,
        conditions=conditions,
    )


def _condition(entry: dict[str, Any]) -> str:
    _known(entry, {"expression"})
    try:
        check(entry["expression"])
    except ExpressionError as error:
        raise ConfigurationError(f"matchConditions: {error}") from error
    return str(entry["expression"])


def _known(fields: dict[str, Any], names: set[str]) -> None:
    if unknown := fields.keys() - names:
        raise ConfigurationError(f"unknown field {min(unknown)}")


def seconds(field: str, text: str, default: float | None) -> float:
    """Go's duration; zero is the default, where there is one."""
    parts = re.findall(r"([0-9.]+)(ns|us|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigurationError(f"{field}: must be a duration > 0s, not {text!r}")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds:
        return seconds
    if default is None:
        raise ConfigurationError(f"{field}: must be > 0s")
    return default

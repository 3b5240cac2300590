"""The chain of authorizers from flags, as kube-apiserver 1.24 to 1.29 has it.

Source: pkg/kubeapiserver/options/authorization.go, and plugin/pkg/authorizer/webhook of k8s.io/apiserver.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from support.apiserver.authorization import (
    DEFAULT_TTLS_S,
    Authorizer,
    ConfigurationError,
    RbacAuthorizer,
    WebhookSettings,
    node,
    seconds,
)
from support.apiserver.rbac import Rbac

# defaultRequestTimeout in pkg/util/webhook of k8s.io/apiserver; there is no flag for it.
TIMEOUT_S = 30.0
_FILE = "authorization-webhook-config-file"
_FLAGS = {
    *("authorization-mode", _FILE, "authorization-webhook-version"),
    *("authorization-webhook-cache-authorized-ttl", "authorization-webhook-cache-unauthorized-ttl"),
}


def chain_of(
    flags: Mapping[str, str], rbac: Rbac, webhook: Callable[[WebhookSettings], Authorizer]
) -> Sequence[Authorizer]:
    """Build the chain. Ignores flags for other purposes. Raises ConfigurationError."""
    if unknown := {flag for flag in flags if flag.startswith("authorization-")} - _FLAGS:
        raise ConfigurationError(f"unknown flag: --{min(unknown)}")
    modes = flags.get("authorization-mode", "AlwaysAllow").split(",")
    if len(set(modes)) < len(modes) or not set(modes) <= {"Node", "Webhook", "RBAC"}:
        raise ConfigurationError(f"authorization-mode {','.join(modes)}")
    if ("Webhook" in modes) != (_FILE in flags):
        raise ConfigurationError("authorization-mode Webhook and its file come together")
    made: Mapping[str, Callable[[], Authorizer]] = {
        "Node": lambda: node,
        "Webhook": lambda: webhook(_settings(flags)),
        "RBAC": lambda: RbacAuthorizer(rbac),
    }
    return [made[mode]() for mode in modes]


def _settings(flags: Mapping[str, str]) -> WebhookSettings:
    version = flags.get("authorization-webhook-version", "v1beta1")
    if version not in ("v1", "v1beta1"):
        raise ConfigurationError(f"unsupported webhook authorizer version {version}")
    ttls = ("authorization-webhook-cache-authorized-ttl", "authorization-webhook-cache-unauthorized-ttl")
    authorized_ttl_s, unauthorized_ttl_s = (
        seconds(flag, flags[flag], None) if flag in flags else default
        for flag, default in zip(ttls, DEFAULT_TTLS_S, strict=True)
    )
    return WebhookSettings(
        name="webhook",
        authorized_ttl_s=authorized_ttl_s,
        unauthorized_ttl_s=unauthorized_ttl_s,
        timeout_s=TIMEOUT_S,
        denies_on_failure=False,
        kubeconfig=Path(flags[_FILE]),
        conditions=(),
        version=version,
    )

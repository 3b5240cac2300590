"""Flags for the authorization webhook of API servers before Kubernetes 1.30, without an AuthorizationConfiguration.

Source: kube-apiserver 1.24 to 1.29. Tried on 1.32.13, which still has the flags.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clustercert.kubernetes.manifests.authorization import WebhookConfig

OLDEST, FIRST_WITH_CONFIGURATION, FIRST_WITH_V1, FIRST_WITH_HASHES = 24, 30, 32, 32
"""Minor versions: the oldest supported one, and the first with a configuration file, its v1, and credential ids."""

KUBECONFIG = "authorization-webhook-config-file"
AUTHORIZED_TTL = "authorization-webhook-cache-authorized-ttl"
UNAUTHORIZED_TTL = "authorization-webhook-cache-unauthorized-ttl"
# Node is first, so that kubelets cause no webhook calls, and keep working while the webhook hangs.
MODES = "Node,Webhook,RBAC"

LIMITS = """\
Before Kubernetes 1.30 an API server has flags instead of an authorization configuration. They don't support failing \
closed, the mode known-only, or a second webhook. The API server asks about every request except those of kubelets \
and of system:masters, and waits up to 30 seconds for an answer."""


def authorization_flags(webhook: "WebhookConfig") -> Mapping[str, str]:
    """Return the flags for kube-apiserver, without the leading dashes."""
    return {
        "authorization-mode": MODES,
        KUBECONFIG: webhook.kubeconfig,
        # The default is v1beta1.
        "authorization-webhook-version": "v1",
        AUTHORIZED_TTL: webhook.authorized_ttl,
        UNAUTHORIZED_TTL: webhook.unauthorized_ttl,
    }

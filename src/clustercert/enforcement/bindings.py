"""Per-credential RBAC: a certificate's only group is its credential group, and a binding of that is all it may do.

Deleting the binding ends what the certificate can do, whatever the API server's flags; so the policy's own groups,
which other certificates have too, are not in it.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus

import structlog

from clustercert import metrics
from clustercert.enforcement.access import Access
from clustercert.errors import ClustercertError, Forbidden, RemoteFailed
from clustercert.kubeapi import KubeApi, Refused, segment
from clustercert.manifests import MANAGED_BY
from clustercert.model import (
    CREDENTIAL_PREFIX,
    CertificateRecord,
    Cluster,
    Grant,
    JsonObject,
    credential_group,
)

logger = structlog.get_logger()

FINGERPRINT_ANNOTATION = "clustercert/fingerprint"
NOT_AFTER_ANNOTATION = "clustercert/not-after"

BINDINGS_PATH = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
_RBAC = "rbac.authorization.k8s.io"
_SELECTOR = ",".join(f"{label}={value}" for label, value in MANAGED_BY.items())
_PAGE = "500"
# Two hundred thousand bindings are more than a cluster can have.
_MAX_PAGES = 400


@dataclass(frozen=True, slots=True)
class Binding:
    """What binds one certificate's group to a ClusterRole.

    Attributes:
        fingerprint: of the certificate, lower-case hex; empty where somebody took it away.
    """

    credential_number: str
    role: str
    fingerprint: str
    not_after: datetime

    @property
    def name(self) -> str:
        """Of the binding, and of the group that it binds."""
        return credential_group(self.credential_number)

    def document(self) -> JsonObject:
        """The ClusterRoleBinding."""
        return {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {
                "name": self.name,
                "labels": MANAGED_BY,
                "annotations": {
                    FINGERPRINT_ANNOTATION: self.fingerprint,
                    NOT_AFTER_ANNOTATION: time_text(self.not_after),
                },
            },
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": self.role},
            "subjects": [{"apiGroup": _RBAC, "kind": "Group", "name": self.name}],
        }


def time_text(time: datetime) -> str:
    """RFC 3339, UTC, whole seconds."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True, slots=True)
class Bindings:
    """Binds what is being issued."""

    access: Access

    def granted(self, cluster: Cluster, grant: Grant) -> Grant:
        """The grant without groups, so that the credential group stands alone; as it was where the cluster has no such.

        Raises Forbidden where the cluster has no ClusterRole for the grant's rule.
        """
        roles = cluster.options.credential_roles
        if not roles:
            return grant
        if grant.rule not in roles:
            refusal = Forbidden(
                f"This cluster binds each certificate by itself, and has no ClusterRole for the rule {grant.rule}."
                " Ask the operator (cluster update --credential-role)."
            )
            refusal.trace = grant.trace
            raise refusal
        return replace(grant, groups=())

    def bound(
        self, cluster: Cluster, record: CertificateRecord
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Bind the certificate's credential group, where it stands alone, before the block; unbind it if that fails.

        A crash in between leaves a binding that `reconcile` removes. Raises RemoteFailed or Unavailable.
        """
        role = (cluster.options.credential_roles or {}).get(record.rule or "")
        number = record.credential_number
        if role is None or number is None or record.groups:
            return contextlib.nullcontext()
        return self._bound(cluster, Binding(number, role, record.fingerprint.hex(), record.not_after))

    @contextlib.asynccontextmanager
    async def _bound(self, cluster: Cluster, binding: Binding) -> AsyncIterator[None]:
        with metrics.enforcing("bind"):
            await self.access.call(cluster, lambda api: bind(api, binding))
        try:
            yield
        except Exception:
            await self._unbind(cluster, binding.name)
            raise

    async def _unbind(self, cluster: Cluster, name: str) -> None:
        """Take a binding back for what failed already; whether this fails too changes nothing for its caller."""
        try:
            with metrics.enforcing("unbind"):
                await self.access.call(cluster, lambda api: unbind(api, name))
        except ClustercertError as failure:
            logger.warning(
                "a binding was not taken back; it will be", cluster=cluster.id, name=name, cause=repr(failure)
            )


async def bind(api: KubeApi, binding: Binding) -> None:
    """Create a binding; one that is there already is fine if it is the same. Raises RemoteFailed or Unavailable."""
    document = binding.document()
    try:
        await api.create(BINDINGS_PATH, document)
    except Refused as refused:
        if refused.http_status != HTTPStatus.CONFLICT:
            raise
        there = await api.get(f"{BINDINGS_PATH}/{segment(binding.name)}")
        if _essence(there) != _essence(document):
            raise RemoteFailed(
                "The cluster has another binding by the name of this certificate's. Try again, or tell the operator."
            ) from refused


async def unbind(api: KubeApi, name: str) -> None:
    """Delete a binding, if it is there. Raises RemoteFailed or Unavailable."""
    await api.delete(f"{BINDINGS_PATH}/{segment(name)}")


async def bound_names(api: KubeApi) -> dict[str, str]:
    """The fingerprint (lower-case hex, or empty) by the name of every binding of a certificate's group.

    Raises RemoteFailed or Unavailable.
    """
    found: dict[str, str] = {}
    parameters = {"labelSelector": _SELECTOR, "limit": _PAGE}
    for _ in range(_MAX_PAGES):
        page = await api.get(BINDINGS_PATH, parameters)
        found |= dict(_names(page))
        metadata = page.get("metadata")
        further = metadata.get("continue") if isinstance(metadata, dict) else None
        if not further:
            return found
        parameters = parameters | {"continue": str(further)}
    raise RemoteFailed("The cluster has more bindings than can be looked after.")


def _names(page: JsonObject) -> list[tuple[str, str]]:
    """Name and fingerprint of the bindings of certificates; the others with our label are the operator's."""
    try:
        named = [(item["metadata"]["name"], item["metadata"]) for item in page["items"]]  # type: ignore[attr-defined] # TypeError is caught
        return [
            (str(name), str((metadata.get("annotations") or {}).get(FINGERPRINT_ANNOTATION, "")))
            for name, metadata in named
            if str(name).startswith(CREDENTIAL_PREFIX)
        ]
    except (LookupError, TypeError, AttributeError) as error:
        raise RemoteFailed("The cluster's API server answered otherwise than Kubernetes does.") from error


def _essence(document: JsonObject) -> tuple[object, ...]:
    """What makes two bindings do the same for the same certificate."""
    metadata = document.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    fingerprint = annotations.get(FINGERPRINT_ANNOTATION) if isinstance(annotations, dict) else None
    return document.get("roleRef"), document.get("subjects"), fingerprint

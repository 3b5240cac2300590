"""Per-credential RBAC: each certificate has only its credential group, and one ClusterRoleBinding for that group.

Deleting the binding removes the certificate's rights, and the API server needs no flags for this. The certificate must
not have the policy's groups, because the bindings of these groups would still give rights to the certificate.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus

import structlog

from clustercert.kube_api import (
    PAGE,
    UNEXPECTED_RESPONSE,
    ApiServerRefused,
    KubeApi,
    TooManyPages,
    pages,
    segment,
)
from clustercert.kubernetes.cluster_connections import ClusterConnections
from clustercert.kubernetes.setup.rbac import cluster_role_binding
from clustercert.model import (
    CREDENTIAL_PREFIX,
    CertificateRecord,
    Cluster,
    JsonObject,
    credential_group,
    rfc3339,
)
from clustercert.model.errors import ClustercertError, RemoteFailed
from clustercert.model.kubernetes import MANAGED_BY
from clustercert.observability import metrics

logger = structlog.get_logger()

FINGERPRINT_ANNOTATION = "clustercert/fingerprint"
NOT_AFTER_ANNOTATION = "clustercert/not-after"

BINDINGS_PATH = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
_SELECTOR = ",".join(f"{label}={value}" for label, value in MANAGED_BY.items())
# The maximum number of bindings to read, more than any cluster has. Without a limit, a hostile API server could send
# pages forever.
_MAX_BINDINGS = 200_000
_MAX_PAGES = _MAX_BINDINGS // PAGE
# Maximum lengths of a name in Kubernetes, and of a fingerprint in hex.
_MAX_NAME = 253
_MAX_FINGERPRINT = 64


@dataclass(frozen=True, slots=True)
class Binding:
    """The ClusterRoleBinding of one certificate.

    Attributes:
        role: the name of the ClusterRole.
        fingerprint: the certificate's fingerprint, lower-case hex.
    """

    credential_number: str
    role: str
    fingerprint: str
    not_after: datetime

    @property
    def name(self) -> str:
        """The name of the binding, which is also the name of the bound group."""
        return credential_group(self.credential_number)

    def document(self) -> JsonObject:
        """Return the ClusterRoleBinding as a Kubernetes object."""
        annotations = {
            FINGERPRINT_ANNOTATION: self.fingerprint,
            NOT_AFTER_ANNOTATION: rfc3339(self.not_after),
        }
        return cluster_role_binding(self.name, self.name, self.role, annotations)


@dataclass(frozen=True, slots=True)
class Bindings:
    """Applies per-credential RBAC to certificates that are being issued."""

    connections: ClusterConnections

    def binding(
        self, cluster: Cluster, record: CertificateRecord
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Create the certificate's binding, if the certificate needs a binding, before the `with` block.

        If the block fails, deletes the binding. If the process crashes in the block, `sync` deletes the binding.
        Raises RemoteFailed or Unavailable.
        """
        role = (cluster.options.credential_roles or {}).get(record.rule or "")
        if role is None or record.groups:
            return contextlib.nullcontext()
        binding = Binding(record.credential_number, role, record.fingerprint.hex(), record.not_after)
        return self._bind_during(cluster, binding)

    @contextlib.asynccontextmanager
    async def _bind_during(self, cluster: Cluster, binding: Binding) -> AsyncIterator[None]:
        with metrics.enforcing("bind"):
            await self.connections.call(cluster, lambda api: bind(api, binding))
        try:
            yield
        except Exception:
            await self._unbind(cluster, binding.name)
            raise

    async def _unbind(self, cluster: Cluster, name: str) -> None:
        """Delete the binding of a certificate that was not recorded in the ledger.

        Only logs a failure, because `sync` deletes the binding later.
        """
        try:
            with metrics.enforcing("unbind"):
                await self.connections.call(cluster, lambda api: unbind(api, name))
        except ClustercertError as failure:
            logger.warning(
                "deleting a binding failed, will be retried",
                cluster=cluster.id,
                name=name,
                cause=repr(failure),
            )


async def bind(api: KubeApi, binding: Binding) -> None:
    """Create a binding. Also succeeds if the same binding already exists. Raises RemoteFailed or Unavailable."""
    document = binding.document()
    try:
        await api.create(BINDINGS_PATH, document)
    except ApiServerRefused as refused:
        if refused.http_status != HTTPStatus.CONFLICT:
            raise
        existing = await api.get(f"{BINDINGS_PATH}/{segment(binding.name)}")
        if _effect(existing) != _effect(document):
            raise RemoteFailed(
                f"The cluster has a different ClusterRoleBinding with the name {binding.name}. Tell the operator."
            ) from refused


async def unbind(api: KubeApi, name: str) -> None:
    """Delete a binding if it exists. Raises RemoteFailed or Unavailable."""
    await api.delete(f"{BINDINGS_PATH}/{segment(name)}")


async def list_fingerprints(api: KubeApi) -> dict[str, str]:
    """Map the name of each certificate's binding to the fingerprint in the binding (lower-case hex, or empty).

    Raises RemoteFailed or Unavailable.
    """
    found: dict[str, str] = {}
    too_many = RemoteFailed("The cluster has too many bindings for certificates. Tell the operator.")
    try:
        async for page in pages(api, BINDINGS_PATH, {"labelSelector": _SELECTOR}, _MAX_PAGES):
            found |= dict(_fingerprints(page))
            if len(found) > _MAX_BINDINGS:
                raise too_many
    except TooManyPages as error:
        raise too_many from error
    return found


def _fingerprints(page: JsonObject) -> list[tuple[str, str]]:
    """Return name and fingerprint of each certificate binding. Skips other bindings with this service's label."""
    try:
        named = [(item["metadata"]["name"], item["metadata"]) for item in page["items"]]  # type: ignore[attr-defined] # TypeError is caught
        return [
            (
                str(name),
                str((metadata.get("annotations") or {}).get(FINGERPRINT_ANNOTATION, ""))[:_MAX_FINGERPRINT],
            )
            for name, metadata in named
            if str(name).startswith(CREDENTIAL_PREFIX) and len(str(name)) <= _MAX_NAME
        ]
    except (LookupError, TypeError, AttributeError) as error:
        raise RemoteFailed(UNEXPECTED_RESPONSE) from error


def _effect(document: JsonObject) -> tuple[object, ...]:
    """Return the parts of a binding that must be equal in two bindings of the same certificate."""
    metadata = document.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    fingerprint = annotations.get(FINGERPRINT_ANNOTATION) if isinstance(annotations, dict) else None
    return document.get("roleRef"), document.get("subjects"), fingerprint

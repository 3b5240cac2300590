"""Synchronizes one cluster with the ledger: its certificate bindings and its list of revoked ids.

Each time, the whole cluster is compared with the ledger. This also repairs damage from crashes and manual changes.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

import structlog

from clustercert.kubernetes.api_client import KubeApi
from clustercert.kubernetes.bindings import Binding, bind, list_fingerprints, unbind
from clustercert.kubernetes.manifests.admission import MAX_REVOKED
from clustercert.kubernetes.revoked_ids import publish
from clustercert.model import Actor, AuditEvent, Cluster, Origin, credential_group, rfc3339
from clustercert.model.events.operation import EnforcementOverflowed
from clustercert.model.kubernetes import SERVICE
from clustercert.observability import metrics
from clustercert.store.enforcement import EnforcementQueries, RevokedCertificate

T = TypeVar("T")

logger = structlog.get_logger()

# Keep a binding without a certificate this long, because issuing creates the binding before it records the certificate.
ORPHAN_SECONDS = 60.0
# Maximum number of fingerprints per query.
_PAGE = 500


class Opener(Protocol):
    """Connects to clusters; implemented by `service_access.Access`."""

    async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T: ...


@dataclass(slots=True)
class Sync:
    """Synchronizes clusters.

    Attributes:
        now: returns the current time in UTC.
        clock: returns monotonic seconds.
        room: maximum number of ids in a cluster's ConfigMap.
    """

    queries: EnforcementQueries
    access: Opener
    record: Callable[[AuditEvent], Awaitable[None]]
    now: Callable[[], datetime]
    clock: Callable[[], float] = time.monotonic
    room: int = MAX_REVOKED
    _orphans: dict[str, dict[str, float]] = field(default_factory=dict)
    _left_out: dict[str, int] = field(default_factory=dict)

    async def sync_cluster(self, cluster: Cluster) -> None:
        """Synchronize a cluster's bindings, then its revoked ids, even if the bindings failed.

        Raises SignerError, RemoteFailed or Unavailable.
        """
        try:
            if cluster.options.credential_roles is not None:
                with metrics.enforcing("bindings"):
                    await self.access.call(cluster, lambda api: self._sync_bindings(api, cluster))
        finally:
            if cluster.options.admission:
                with metrics.enforcing("admission"):
                    await self._sync_revoked_ids(cluster)
            else:
                self._count_left_out(cluster.id, 0)

    def forget_others(self, cluster_ids: frozenset[str]) -> None:
        """Drop what is cached about clusters other than these."""
        for remembered in (self._left_out, self._orphans):
            for gone in remembered.keys() - cluster_ids:
                del remembered[gone]
        metrics.ENFORCEMENT_LEFT_OUT.set(sum(self._left_out.values()))

    async def _sync_bindings(self, api: KubeApi, cluster: Cluster) -> None:
        # Read the cluster before the ledger. Then a concurrent issuance can only cause a second, harmless creation.
        found = await list_fingerprints(api)
        for missing in await self._missing(cluster, found):
            await bind(api, missing)
        for name in await self._superfluous(cluster, found):
            await unbind(api, name)

    async def _missing(self, cluster: Cluster, found: dict[str, str]) -> list[Binding]:
        """Return the missing bindings of live certificates. Removes the existing bindings from `found`."""
        roles = cluster.options.credential_roles or {}
        missing: list[Binding] = []
        page = await self.queries.live(cluster.id, self.now(), None)
        while page:
            for credential in page:
                number, role = credential.credential_number, roles.get(credential.rule or "")
                if number is None or credential.groups:
                    continue
                if found.pop(credential_group(number), None) is None and role:
                    missing.append(Binding(number, role, credential.fingerprint.hex(), credential.not_after))
            page = await self.queries.live(cluster.id, self.now(), page[-1])
        return missing

    async def _superfluous(self, cluster: Cluster, found: dict[str, str]) -> list[str]:
        """Return the bindings to delete. Their certificates have expired, are revoked, or are not in the ledger."""
        ended = await self._ended(found)
        seen, now = self._orphans.get(cluster.id, {}), self.clock()
        orphans = {name: seen.get(name, now) for name in found if name not in ended}
        late = {name for name, since in orphans.items() if now - since >= ORPHAN_SECONDS}
        self._orphans[cluster.id] = {name: since for name, since in orphans.items() if name not in late}
        if not self._orphans[cluster.id]:
            del self._orphans[cluster.id]
        # Keep the binding of a certificate recorded after `_missing` read the ledger: `ended` maps it to False.
        return [name for name in found if ended.get(name, name in late)]

    async def _ended(self, found: dict[str, str]) -> dict[str, bool]:
        """Map each binding's name to whether its certificate has expired or is revoked. Omits unknown certificates."""
        names = {fingerprint: name for name, text in found.items() if (fingerprint := _fingerprint(text))}
        fingerprints = list(names)
        ended: dict[str, bool] = {}
        for start in range(0, len(fingerprints), _PAGE):
            page = await self.queries.ended(fingerprints[start : start + _PAGE], self.now())
            ended |= {names[fingerprint]: over for fingerprint, over in page.items()}
        return ended

    async def _sync_revoked_ids(self, cluster: Cluster) -> None:
        now = self.now()
        revoked = await self.queries.revoked(cluster.id, now, self.room + 1)
        data: dict[str, str] = {}
        kept = 0
        for each in revoked:
            keys = _keys(each, by_number=cluster.options.admission_by_number)
            if len(data) + len(keys) > self.room:
                break
            data |= dict.fromkeys(keys, rfc3339(each.not_after))
            kept += 1
        left_out = await self.queries.count_revoked(cluster.id, now) - kept if kept < len(revoked) else 0
        await self.access.call(cluster, lambda api: publish(api, data))
        await self._report_left_out(cluster, left_out, kept)

    async def _report_left_out(self, cluster: Cluster, count: int, kept: int) -> None:
        """Log and count the certificates that don't fit into the ConfigMap. The first time, record an audit event."""
        before = self._left_out.get(cluster.id, 0)
        self._count_left_out(cluster.id, count)
        if not count:
            return
        logger.error(
            "too many revoked ids for the cluster's ConfigMap: the admission policy does not deny some of them",
            cluster=cluster.id,
            left_out=count,
            kept=kept,
        )
        if not before:
            event = EnforcementOverflowed(
                at=self.now(),
                project_id=cluster.project_id,
                actor=Actor(SERVICE, Origin.local()),
                subject=cluster.id,
                left_out=count,
                kept=kept,
            )
            await self.record(event)

    def _count_left_out(self, cluster_id: str, count: int) -> None:
        self._left_out[cluster_id] = count
        if not count:
            del self._left_out[cluster_id]
        metrics.ENFORCEMENT_LEFT_OUT.set(sum(self._left_out.values()))


def _keys(revoked: RevokedCertificate, *, by_number: bool) -> list[str]:
    """Return the ConfigMap keys for a revoked certificate: its credential number, its fingerprint, or both."""
    fingerprint, number = revoked.fingerprint.hex(), revoked.credential_number
    if number is None:
        return [fingerprint]
    return [number] if by_number else [number, fingerprint]


def _fingerprint(text: str) -> bytes | None:
    """Parse a fingerprint of 32 bytes. Returns `None` if the annotation has another form."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        return None
    return value if len(value) == 32 else None  # noqa: PLR2004 - SHA-256

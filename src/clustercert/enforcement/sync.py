"""One cluster, brought up to date: its bindings, and its list of revoked ids, become what the ledger says.

It looks at what is there and at what should be, and at nothing that happened in between, so that it mends whatever was
left by a crash, by an API server that was away, or by somebody's hand.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

import structlog

from clustercert import metrics
from clustercert.enforcement.admission import publish
from clustercert.enforcement.bindings import Binding, bind, bound_names, time_text, unbind
from clustercert.kubeapi import KubeApi
from clustercert.manifests.access import SERVICE
from clustercert.manifests.admission import MAX_REVOKED
from clustercert.model import AuditEvent, Cluster, Origin, credential_group
from clustercert.store.enforcement import EnforcementRows, Revoked

T = TypeVar("T")

logger = structlog.get_logger()

# A binding is made before its certificate is recorded. One without a certificate may be in the middle of that.
ORPHAN_SECONDS = 60.0
# Of the fingerprints that are looked up at once.
_LOOKED_UP = 500


class Opener(Protocol):
    """A way into clusters; `access` is one."""

    async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T: ...


@dataclass(slots=True)
class Sync:
    """Brings clusters up to date.

    Attributes:
        access: opens a cluster's API server.
        now: the time, aware, UTC.
        clock: seconds that only go forward.
        room: how many keys a cluster's ConfigMap takes.
    """

    rows: EnforcementRows
    access: Opener
    now: Callable[[], datetime]
    clock: Callable[[], float] = time.monotonic
    room: int = MAX_REVOKED
    _orphans: dict[str, dict[str, float]] = field(default_factory=dict)
    _left_out: dict[str, int] = field(default_factory=dict)

    async def cluster(self, cluster: Cluster) -> None:
        """Raises SignerError, RemoteFailed or Unavailable; what one part came to doesn't depend on the other's."""
        try:
            if cluster.options.credential_roles is not None:
                with metrics.enforcing("bindings"):
                    await self.access.call(cluster, lambda api: self._bindings(api, cluster))
        finally:
            if cluster.options.admission:
                with metrics.enforcing("admission"):
                    await self._admission(cluster)

    async def _bindings(self, api: KubeApi, cluster: Cluster) -> None:
        # In this order: what is bound meanwhile is then found missing at worst, and bound once more.
        found = await bound_names(api)
        for missing in await self._missing(cluster, found):
            await bind(api, missing)
        for name in await self._superfluous(cluster, found):
            await unbind(api, name)

    async def _missing(self, cluster: Cluster, found: dict[str, str]) -> list[Binding]:
        """The bindings of live certificates that aren't there; takes those that are out of what was found."""
        roles = cluster.options.credential_roles or {}
        missing: list[Binding] = []
        page = await self.rows.live(cluster.id, self.now(), None)
        while page:
            for credential in page:
                number, role = credential.credential_number, roles.get(credential.rule or "")
                if number is None or credential.groups:
                    continue
                if found.pop(credential_group(number), None) is None and role:
                    missing.append(Binding(number, role, credential.fingerprint.hex(), credential.not_after))
            page = await self.rows.live(cluster.id, self.now(), page[-1])
        return missing

    async def _superfluous(self, cluster: Cluster, found: dict[str, str]) -> list[str]:
        """Of the bindings without a live certificate, those of one that ended, and those that stayed without one."""
        ended = await self._ended(found)
        seen, now = self._orphans.get(cluster.id, {}), self.clock()
        orphans = {name: seen.get(name, now) for name in found if name not in ended}
        late = {name for name, since in orphans.items() if now - since >= ORPHAN_SECONDS}
        self._orphans[cluster.id] = {name: since for name, since in orphans.items() if name not in late}
        if not self._orphans[cluster.id]:
            del self._orphans[cluster.id]
        # What was recorded since the live ones were read is in the ledger, and has not ended.
        return [name for name in found if ended.get(name, name in late)]

    async def _ended(self, found: dict[str, str]) -> dict[str, bool]:
        """Of the bindings whose certificate is in the ledger, by name, whether that has ended."""
        names = {fingerprint: name for name, text in found.items() if (fingerprint := _fingerprint(text))}
        fingerprints = list(names)
        ended: dict[str, bool] = {}
        for start in range(0, len(fingerprints), _LOOKED_UP):
            page = await self.rows.ended(fingerprints[start : start + _LOOKED_UP], self.now())
            ended |= {names[fingerprint]: over for fingerprint, over in page.items()}
        return ended

    async def _admission(self, cluster: Cluster) -> None:
        now = self.now()
        revoked = await self.rows.revoked(cluster.id, now, self.room + 1)
        data: dict[str, str] = {}
        kept = 0
        for each in revoked:
            keys = _keys(each, by_number=cluster.options.admission_by_number)
            if len(data) + len(keys) > self.room:
                break
            data |= dict.fromkeys(keys, time_text(each.not_after))
            kept += 1
        left_out = await self.rows.count_revoked(cluster.id, now) - kept if kept < len(revoked) else 0
        await self.access.call(cluster, lambda api: publish(api, data))
        await self._say_left_out(cluster, left_out, kept)

    async def _say_left_out(self, cluster: Cluster, count: int, kept: int) -> None:
        """Log and count what doesn't fit; the audit is told when it begins."""
        before = self._left_out.get(cluster.id, 0)
        self._left_out[cluster.id] = count
        if not count:
            del self._left_out[cluster.id]
        metrics.ENFORCEMENT_LEFT_OUT.set(sum(self._left_out.values()))
        if not count:
            return
        logger.error(
            "revoked ids don't fit into the cluster's ConfigMap: its admission policy lets them write",
            cluster=cluster.id,
            left_out=count,
            kept=kept,
        )
        if not before:
            await self.rows.note(_overflow(cluster, count, kept, self.now()))


def _keys(revoked: Revoked, *, by_number: bool) -> list[str]:
    """By what the cluster's policy finds a revoked certificate: its number, its hash, or both."""
    fingerprint, number = revoked.fingerprint.hex(), revoked.credential_number
    if number is None:
        return [fingerprint]
    return [number] if by_number else [number, fingerprint]


def _fingerprint(text: str) -> bytes | None:
    """32 bytes, or None where somebody wrote something else."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        return None
    return value if len(value) == 32 else None  # noqa: PLR2004 - SHA-256


def _overflow(cluster: Cluster, count: int, kept: int, now: datetime) -> AuditEvent:
    return AuditEvent(
        at=now,
        kind="enforcement.overflowed",
        project_id=cluster.project_id,
        actor=SERVICE,
        subject=cluster.id,
        origin=Origin.local(),
        detail={"left_out": count, "kept": kept},
    )

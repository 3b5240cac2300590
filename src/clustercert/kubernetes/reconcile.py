"""Brings clusters up to date with the ledger: at once if a revocation affects them, and otherwise periodically."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from http import HTTPStatus
from typing import Protocol, TypeVar

import structlog

from clustercert.kube_api import UNEXPECTED_RESPONSE, ApiServerRefused, KubeApi
from clustercert.kubernetes.bindings import Binding, bind, list_fingerprints, unbind
from clustercert.kubernetes.cluster_connections import Opener
from clustercert.kubernetes.setup.admission import CONFIG_MAP, MAX_REVOKED, NAMESPACE, config_map
from clustercert.model import (
    Actor,
    AuditEvent,
    Cluster,
    Origin,
    credential_group,
    is_credential_number,
    rfc3339,
)
from clustercert.model.errors import ClustercertError, RemoteFailed
from clustercert.model.events.operation import EnforcementOverflowed
from clustercert.model.kubernetes import SERVICE
from clustercert.observability import metrics
from clustercert.store.kubernetes.enforcement import AffectedClusters, EnforcementQueries

logger = structlog.get_logger()

INTERVAL = 0.25
SWEEP_SECONDS = 60.0
# How often to look for tokens whose validity has ended. A token may be valid in Kubernetes for longer.
EXPIRY_SECONDS = 1.0
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
MAX_AT_ONCE = 16
# The limit for retries is lower, so that slow retries of failed clusters leave capacity for new revocations.
MAX_RETRIED_AT_ONCE = 8
_PAGE = 200


class EnforcementFeed(Protocol):
    """Revocations in the store; implemented by `store.enforcement`."""

    async def newest(self) -> int: ...

    async def affected_clusters(self, since: int, now: datetime) -> AffectedClusters: ...

    async def expired_clusters(self, since: datetime, now: datetime) -> frozenset[str]: ...


class EnforcedClusters(Protocol):
    """Clusters in the store; implemented by `store.clusters`."""

    async def enforced(self, after: str, limit: int) -> tuple[Cluster, ...]: ...

    async def clusters_with_ids(self, ids: frozenset[str]) -> tuple[Cluster, ...]: ...


@dataclass(frozen=True, slots=True)
class _Due:
    """A cluster to synchronize. Times are from the reconciler's clock.

    Attributes:
        since: when the need to synchronize was first noticed.
        at: earliest time of the next attempt.
        failures: failed attempts in a row.
    """

    since: float
    at: float
    failures: int = 0

    def retry(self, now: float) -> "_Due":
        wait = min(FIRST_RETRY_SECONDS * 2 ** min(self.failures, 16), LONGEST_RETRY_SECONDS)
        return _Due(self.since, now + wait, self.failures + 1)


@dataclass(slots=True)
class Reconciler:
    """Starts the synchronization of clusters. Runs only in the elected leader.

    Attributes:
        sync: synchronizes one cluster.
        forget_others: drops the state that `sync` has cached about all clusters except the given clusters.
        generation: returns a number that is kept in memory and increases with every revocation.
        now: returns the current time in UTC.
        clock: returns monotonic seconds.
        patience: maximum seconds that `finish` waits for running work.
    """

    feed: EnforcementFeed
    clusters: EnforcedClusters
    sync: Callable[[Cluster], Awaitable[None]]
    forget_others: Callable[[frozenset[str]], None]
    generation: Callable[[], int]
    now: Callable[[], datetime]
    clock: Callable[[], float] = time.monotonic
    patience: float = 3.0
    _due: dict[str, _Due] = field(default_factory=dict)
    _running: dict[str, tuple[_Due, asyncio.Task[None]]] = field(default_factory=dict)
    _seen: int = -1
    _generation_read: int = -1
    _swept_at: float = float("-inf")
    _has_tokens: bool = False
    _expired_until: datetime | None = None
    _expiry_read_at: float = float("-inf")

    async def step(self) -> float:
        """Start to synchronize clusters that are due. Returns the seconds until the next step. Raises Unavailable."""
        generation = self.generation()
        if self.clock() - self._swept_at >= SWEEP_SECONDS:
            await self._sweep()
        elif generation != self._generation_read:
            touched = await self.feed.affected_clusters(self._seen, self.now())
            if touched.cluster_ids is None:
                await self._sweep()
            else:
                for cluster_id in touched.cluster_ids:
                    self._mark(cluster_id, urgent=True)
                self._seen = touched.newest
        # Set the generation only after all reads succeeded, so that the next step repeats a failed read.
        self._generation_read = generation
        await self._mark_expired()
        await self._start_due()
        return INTERVAL

    async def finish(self) -> None:
        """Wait for running synchronizations, and cancel them after `patience` seconds. Then clear the state."""
        if self._running:
            tasks = [task for _, task in self._running.values()]
            _, pending = await asyncio.wait(tasks, timeout=self.patience)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        self._running.clear()
        self._due.clear()
        self._swept_at = float("-inf")
        self._expired_until = None
        self._count_failing()
        self.forget_others(frozenset())

    async def _sweep(self) -> None:
        """Mark every cluster with enforcement options as due."""
        newest = await self.feed.newest()
        enforced: set[str] = set()
        has_tokens, after = False, ""
        while page := await self.clusters.enforced(after, _PAGE):
            for cluster in page:
                self._mark(cluster.id, urgent=False)
                enforced.add(cluster.id)
                has_tokens = has_tokens or cluster.credential_kind == "token"
            after = page[-1].id
        self.forget_others(frozenset(enforced))
        self._seen, self._swept_at, self._has_tokens = newest, self.clock(), has_tokens

    async def _mark_expired(self) -> None:
        """Mark the clusters with tokens whose validity has ended since the last time."""
        if not self._has_tokens or self.clock() - self._expiry_read_at < EXPIRY_SECONDS:
            return
        now = self.now()
        if self._expired_until is not None:
            for cluster_id in await self.feed.expired_clusters(self._expired_until, now):
                self._mark(cluster_id, urgent=True)
        self._expired_until, self._expiry_read_at = now, self.clock()

    def _mark(self, cluster_id: str, *, urgent: bool) -> None:
        now = self.clock()
        # Mark the cluster even while it is being synchronized: the running work may have read the store before this
        # change.
        if cluster_id not in self._due:
            self._due[cluster_id] = _Due(since=now, at=now)
        elif urgent:
            self._due[cluster_id] = replace(self._due[cluster_id], at=now)

    async def _start_due(self) -> None:
        chosen = self._chosen()
        if not chosen:
            return
        for cluster in await self.clusters.clusters_with_ids(chosen):
            due = self._due.pop(cluster.id)
            if _is_enforced_inside(cluster):
                task = asyncio.create_task(self._bring_up_to_date(cluster, due))
                self._running[cluster.id] = due, task
        for removed in chosen & self._due.keys():
            del self._due[removed]
        self._count_failing()

    def _chosen(self) -> frozenset[str]:
        """Choose as many due clusters as can be synchronized now. Clusters without failures come first."""
        now = self.clock()
        ready = sorted(
            (due.failures, due.since, cluster_id)
            for cluster_id, due in self._due.items()
            if due.at <= now and cluster_id not in self._running
        )
        first = [cluster_id for failures, _, cluster_id in ready if not failures]
        again = [cluster_id for failures, _, cluster_id in ready if failures]
        retried = sum(due.failures > 0 for due, _ in self._running.values())
        room = max(MAX_RETRIED_AT_ONCE - retried, 0)
        return frozenset([*first, *again[:room]][: MAX_AT_ONCE - len(self._running)])

    async def _bring_up_to_date(self, cluster: Cluster, due: _Due) -> None:
        """Synchronize one cluster. After a failure, log the error and mark the cluster as due again."""
        try:
            await self.sync(cluster)
            metrics.ENFORCEMENT_SECONDS.observe(self.clock() - due.since)
        except Exception as failure:  # noqa: BLE001 - nothing awaits this task's result
            again = due.retry(self.clock())
            if (marked := self._due.get(cluster.id)) is not None:
                # Do not delay a revocation that came meanwhile.
                again = replace(again, at=marked.at)
            self._due[cluster.id] = again
            _log(cluster, again, failure)
        del self._running[cluster.id]
        self._count_failing()

    def _count_failing(self) -> None:
        failing = {cluster_id for cluster_id, due in self._due.items() if due.failures}
        # Clusters that are being retried count as failing.
        failing |= {cluster_id for cluster_id, (due, _) in self._running.items() if due.failures}
        metrics.ENFORCEMENT_FAILING.set(len(failing))


def _is_enforced_inside(cluster: Cluster) -> bool:
    """Whether the service changes objects in the cluster. `store.clusters.registry` has the same condition."""
    options = cluster.options
    return options.admission or options.credential_roles is not None or cluster.credential_kind == "token"


def _log(cluster: Cluster, due: _Due, failure: Exception) -> None:
    """Log a failed synchronization, after which revoked certificates may still work in the cluster."""
    event, fields = "cluster enforcement failed", {"cluster": cluster.id, "failures": due.failures}
    if isinstance(failure, ClustercertError):
        cause = failure.server_message if isinstance(failure, ApiServerRefused) else repr(failure.__cause__)
        logger.warning(event, error=failure.message, cause=cause, **fields)
    else:
        logger.error(event, exc_info=failure, **fields)


T = TypeVar("T")


# How long to keep a binding whose certificate is not in the ledger. Issuing creates the binding before it records the
# certificate.
ORPHAN_SECONDS = 60.0
# Maximum number of fingerprints per query.
_ENDED_PAGE = 500


@dataclass(slots=True)
class Sync:
    """Updates the bindings and the lists of revoked certificates in clusters to match the ledger.

    Attributes:
        now: returns the current time in UTC.
        clock: returns monotonic seconds.
        room: maximum number of revoked certificates in a cluster's ConfigMap.
    """

    queries: EnforcementQueries
    connections: Opener
    record: Callable[[AuditEvent], Awaitable[None]]
    now: Callable[[], datetime]
    clock: Callable[[], float] = time.monotonic
    room: int = MAX_REVOKED
    _orphans: dict[str, dict[str, float]] = field(default_factory=dict)
    _left_out: dict[str, int] = field(default_factory=dict)

    async def sync_cluster(self, cluster: Cluster) -> None:
        """Synchronize a cluster's bindings, and then, even after a failure, the list of revoked certificates.

        Raises SignerError, RemoteFailed or Unavailable.
        """
        try:
            if cluster.options.credential_roles is not None:
                with metrics.enforcing("bindings"):
                    await self.connections.call(cluster, lambda api: self._sync_bindings(api, cluster))
        finally:
            if cluster.options.admission:
                with metrics.enforcing("admission"):
                    await self._sync_revoked_ids(cluster)
            else:
                self._count_left_out(cluster.id, 0)

    def forget_others(self, cluster_ids: frozenset[str]) -> None:
        """Drop the cached state of all clusters except the given clusters."""
        for remembered in (self._left_out, self._orphans):
            for gone in remembered.keys() - cluster_ids:
                del remembered[gone]
        metrics.ENFORCEMENT_LEFT_OUT.set(sum(self._left_out.values()))

    async def _sync_bindings(self, api: KubeApi, cluster: Cluster) -> None:
        # Read the cluster's bindings before the ledger. If a certificate is issued meanwhile, at worst the
        # certificate's binding is created a second time, which is harmless.
        found = await list_fingerprints(api)
        for missing in await self._missing(cluster, found):
            await bind(api, missing)
        for name in await self._superfluous(cluster, found):
            await unbind(api, name)

    async def _missing(self, cluster: Cluster, found: dict[str, str]) -> list[Binding]:
        """Return the missing bindings of valid certificates.

        Removes the bindings of valid certificates from `found`.
        """
        roles = cluster.options.credential_roles or {}
        missing: list[Binding] = []
        page = await self.queries.live(cluster.id, self.now(), None)
        while page:
            for credential in page:
                number, role = credential.credential_number, roles.get(credential.rule or "")
                if credential.groups:
                    continue
                if found.pop(credential_group(number), None) is None and role:
                    missing.append(Binding(number, role, credential.fingerprint.hex(), credential.not_after))
            page = await self.queries.live(cluster.id, self.now(), page[-1])
        return missing

    async def _superfluous(self, cluster: Cluster, found: dict[str, str]) -> list[str]:
        """Return the names of bindings whose certificate has expired, is revoked, or is not in the ledger."""
        ended = await self._ended(found)
        seen, now = self._orphans.get(cluster.id, {}), self.clock()
        orphans = {name: seen.get(name, now) for name in found if name not in ended}
        late = {name for name, since in orphans.items() if now - since >= ORPHAN_SECONDS}
        self._orphans[cluster.id] = {name: since for name, since in orphans.items() if name not in late}
        if not self._orphans[cluster.id]:
            del self._orphans[cluster.id]
        # `ended` is False for a certificate that was recorded after `_missing` read the ledger, so its binding is kept.
        return [name for name in found if ended.get(name, name in late)]

    async def _ended(self, found: dict[str, str]) -> dict[str, bool]:
        """Map each binding's name to whether its certificate has expired or is revoked. Omits unknown certificates."""
        names = {fingerprint: name for name, text in found.items() if (fingerprint := _fingerprint(text))}
        fingerprints = list(names)
        ended: dict[str, bool] = {}
        for start in range(0, len(fingerprints), _ENDED_PAGE):
            page = await self.queries.ended(fingerprints[start : start + _ENDED_PAGE], self.now())
            ended |= {names[fingerprint]: over for fingerprint, over in page.items()}
        return ended

    async def _sync_revoked_ids(self, cluster: Cluster) -> None:
        now = self.now()
        revoked = await self.queries.revoked(cluster.id, now, self.room + 1)
        data = {each.credential_number: rfc3339(each.not_after) for each in revoked[: self.room]}
        kept = len(data)
        left_out = await self.queries.count_revoked(cluster.id, now) - kept if kept < len(revoked) else 0
        await self.connections.call(cluster, lambda api: publish(api, data))
        await self._report_left_out(cluster, left_out, kept)

    async def _report_left_out(self, cluster: Cluster, count: int, kept: int) -> None:
        """Log and count the revoked certificates that don't fit into the ConfigMap.

        Records an audit event only if all revoked certificates fitted at the previous synchronization.
        """
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


def _fingerprint(text: str) -> bytes | None:
    """Parse a fingerprint of 32 bytes. Returns `None` if the annotation is malformed."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        return None
    return value if len(value) == 32 else None  # noqa: PLR2004 - SHA-256


_LIST_PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
_PATH = f"{_LIST_PATH}/{CONFIG_MAP}"


async def publish(api: KubeApi, revoked: Mapping[str, str]) -> bool:
    """Store the credential numbers and expiry of revoked certificates in the ConfigMap.

    Returns whether the ConfigMap changed. Keeps keys of the ConfigMap that are not credential numbers. Raises
    RemoteFailed or Unavailable, and ApiServerRefused with status 409 after a concurrent change.
    """
    try:
        current = await api.get(_PATH)
    except ApiServerRefused as refused:
        if refused.http_status != HTTPStatus.NOT_FOUND:
            raise
        await api.create(_LIST_PATH, {**config_map(), "data": dict(revoked)})
        return True
    found = current.get("data") or {}
    if not isinstance(found, dict):
        raise RemoteFailed(UNEXPECTED_RESPONSE)
    updated = {key: value for key, value in found.items() if not is_credential_number(key)} | dict(revoked)
    if updated == found:
        return False
    await api.replace(_PATH, {**current, "data": updated})
    return True

"""This service's own way into the clusters: a short-lived certificate that it issues to itself, and records like any.

There is no secret to keep: the key lives in this process's memory for minutes.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from cachetools import LRUCache

from clustercert.certificate import check_leaf, der_fingerprint, der_pem, new_signing_request, serial_text
from clustercert.errors import SignerError, Unavailable
from clustercert.keypair import key_pem, key_type_of, new_key
from clustercert.kubeapi import ClientIdentity, KubeApi, Refused
from clustercert.manifests.access import SERVICE
from clustercert.model import AuditEvent, CertificateRecord, Cluster, Grant, Origin
from clustercert.policy import BACKDATE
from clustercert.signers import Signer

T = TypeVar("T")

LIFETIME = timedelta(minutes=15)
RENEWED_BEFORE_END = timedelta(minutes=5)
# Where the certificate is not known to be revoked, a refusal has another cause, such as a role that is missing: another
# certificate may help, but must not be made for each request.
RENEWED_AT_MOST_EVERY = timedelta(seconds=60)
MAX_OPEN = 256

_NOT_WELCOME = frozenset({401, 403})


class Recorder(Protocol):
    """The store's ledger."""

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Return when both are durable. Raises Unavailable."""


class Revoked(Protocol):
    """The store's certificates; `store.enforcement` fills it."""

    async def is_revoked(self, fingerprint: bytes) -> bool:
        """Raises Unavailable."""


@dataclass(slots=True, eq=False)
class _Way:
    """An open connection, with the certificate that it shows.

    Attributes:
        users: how many work with it now; the last one closes it once it is retired.
    """

    cluster: Cluster
    api: KubeApi
    fingerprint: bytes
    made_at: datetime
    not_after: datetime
    users: int = 0
    retired: bool = False

    def leads_to(self, cluster: Cluster) -> bool:
        """Whether the cluster is still what it was when this was made."""
        mine = self.cluster
        return (mine.internal_url, mine.server_ca_pem, mine.client_ca.id) == (
            cluster.internal_url,
            cluster.server_ca_pem,
            cluster.client_ca.id,
        )

    async def retire(self) -> None:
        self.retired = True
        if not self.users:
            await self.api.close()


@dataclass(slots=True)
class Access:
    """Opens clusters, and keeps those open that were used last.

    Attributes:
        signers: by the name that a cluster says.
        now: the time, aware, UTC.
    """

    signers: Mapping[str, Signer]
    ledger: Recorder
    revoked: Revoked
    now: Callable[[], datetime]
    _ways: LRUCache[str, _Way] = field(default_factory=lambda: LRUCache(MAX_OPEN))
    _making: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        """What `work` makes of the cluster's API server; it is done once more where the certificate was not welcome.

        Raises what `work` raises, SignerError, RemoteFailed or Unavailable.
        """
        async with self._opened(cluster) as way:
            try:
                return await work(way.api)
            except Refused as refused:
                if refused.http_status not in _NOT_WELCOME or not await self._is_to_be_renewed(way):
                    raise
        async with self._opened(cluster, instead_of=way) as way:
            return await work(way.api)

    async def close(self) -> None:
        """Close every connection."""
        while self._ways:
            _, way = self._ways.popitem()
            await way.retire()

    @contextlib.asynccontextmanager
    async def _opened(self, cluster: Cluster, instead_of: _Way | None = None) -> AsyncIterator[_Way]:
        """A way that nobody closes before the block is left."""
        # One certificate for all that ask at once.
        lock, dropped = self._making.setdefault(cluster.id, asyncio.Lock()), None
        async with lock:
            way = self._ways.get(cluster.id)
            if way is None or way is instead_of or not self._good(way, cluster):
                way = await self._made(cluster)
                dropped = self._keep(cluster.id, way)
            # Before anything is awaited: others make ways at the same time, and may forget this one for theirs.
            way.users += 1
        try:
            if dropped is not None:
                await dropped.retire()
            yield way
        finally:
            way.users -= 1
            if way.retired and not way.users:
                await way.api.close()

    def _keep(self, cluster_id: str, way: _Way) -> _Way | None:
        """Keep a connection. Returns the one that it replaces, or the least recently used where it is one too many."""
        dropped = self._ways.pop(cluster_id, None)
        if dropped is None and len(self._ways) >= MAX_OPEN:
            oldest, dropped = self._ways.popitem()
            self._making.pop(oldest, None)
        self._ways[cluster_id] = way
        return dropped

    async def _is_to_be_renewed(self, way: _Way) -> bool:
        """Whether another certificate may be welcome: whoever revokes everything of a cluster revokes this one too."""
        if self.now() - way.made_at >= RENEWED_AT_MOST_EVERY:
            return True
        return await self.revoked.is_revoked(way.fingerprint)

    def _good(self, way: _Way, cluster: Cluster) -> bool:
        return way.leads_to(cluster) and self.now() < way.not_after - RENEWED_BEFORE_END

    async def _made(self, cluster: Cluster) -> _Way:
        """A certificate that is durable in the ledger, and the connection that shows it."""
        now = self.now()
        signer = self.signers.get(cluster.signer)
        if signer is None:
            raise SignerError(f"The signer {cluster.signer} of this cluster is not installed.")
        key = new_key("ec-p256")
        grant = _grant(cluster, now)
        request = new_signing_request(
            grant, key.public_key(), cluster.client_ca, takes_serial=signer.takes_serial
        )
        chain = await signer.sign(request)
        leaf = check_leaf(chain, request)
        record = CertificateRecord(
            fingerprint=der_fingerprint(leaf.der),
            serial=serial_text(leaf.serial),
            cluster_id=cluster.id,
            project_id=cluster.project_id,
            ca_id=cluster.client_ca.id,
            user_id=grant.username,
            user_name=grant.username,
            groups=grant.groups,
            not_before=grant.not_before,
            not_after=grant.not_after,
            key_type=key_type_of(request.public_key),
            key_origin="generated",
            auth_method="service",
            source_address="local",
            request_id=uuid.uuid4().hex,
            reason="enforcing revocations",
            issued_at=now,
            der=leaf.der,
            credential_number=request.credential_number,
        )
        await self.ledger.record(record, _event(record))
        identity = ClientIdentity(der_pem(leaf.der), key_pem(key))
        api = KubeApi(cluster.internal_url, cluster.server_ca_pem, identity)
        return _Way(cluster, api, record.fingerprint, made_at=now, not_after=grant.not_after)


def _grant(cluster: Cluster, now: datetime) -> Grant:
    issued_at = now.replace(microsecond=0)
    ca_not_after = cluster.client_ca.not_after
    if ca_not_after <= issued_at:
        raise Unavailable(
            "The cluster's client CA has expired. Ask the operator to rotate it.", retry_after=3600
        )
    return Grant(
        rule="service",
        username=SERVICE,
        groups=(SERVICE,),
        not_before=issued_at - BACKDATE,
        not_after=min(issued_at + LIFETIME, ca_not_after),
    )


def _event(record: CertificateRecord) -> AuditEvent:
    return AuditEvent(
        at=record.issued_at,
        kind="certificate.issued",
        project_id=record.project_id,
        actor=SERVICE,
        subject=record.fingerprint.hex(),
        origin=Origin(address=record.source_address, request_id=record.request_id),
        detail={
            "cluster_id": record.cluster_id,
            "ca_id": record.ca_id,
            "serial": record.serial,
            "credential_number": record.credential_number,
            "common_name": record.user_id,
            "organizations": list(record.organizations),
            "not_before": record.not_before.isoformat(),
            "not_after": record.not_after.isoformat(),
            "auth_method": record.auth_method,
            "reason": record.reason,
        },
    )

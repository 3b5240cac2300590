"""Connections of this service to API servers.

The service issues short-lived certificates to itself. The private keys exist only in this process's memory, for a few
minutes. In clusters whose credentials are tokens, the service has a service account, with which its signer connects.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeVar, runtime_checkable

from cachetools import LRUCache

from clustercert.kube_api import ApiServerRefused, ClientIdentity, KubeApi
from clustercert.model import Caller, ClientCA, Cluster, Domain, Grant, Issued, IssueRequest, Origin, User
from clustercert.model.errors import SignerError, Unavailable
from clustercert.model.kubernetes import SERVICE
from clustercert.pki.keys import key_pem
from clustercert.pki.leaf import der_pem
from clustercert.policy.lifetime import BACKDATE

T = TypeVar("T")

LIFETIME = timedelta(minutes=15)
RENEWED_BEFORE_END = timedelta(minutes=5)
# The API server may deny a certificate although it is not revoked, for example because a role is missing. So a denied
# certificate that is not revoked is replaced only after RENEWED_AT_MOST_EVERY.
RENEWED_AT_MOST_EVERY = timedelta(seconds=60)
MAX_OPEN = 256

_DENIED = frozenset({401, 403})
_REQUEST = IssueRequest(reason="connecting to the cluster")


class CertificateIssuer(Protocol):
    """Issues certificates; implemented by `issuance.service.Issuance`."""

    async def issue_granted(
        self, caller: Caller, cluster: Cluster, grant: Grant, request: IssueRequest, decided_at: datetime
    ) -> Issued:
        """Issue a certificate and record it durably. Raises SignerError, RemoteFailed or Unavailable."""


@runtime_checkable
class AccountSigner(Protocol):
    """Connects with the service's own service account; implemented by `issuance.signers.token`."""

    async def call(self, ca: ClientCA, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        """Run `work` with a client for a CA's cluster.

        Raises SignerError, RemoteFailed, Unavailable, or any error that `work` raises.
        """


class Opener(Protocol):
    """Connects to clusters; implemented by `ClusterConnections`."""

    async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T: ...


@dataclass(slots=True, eq=False)
class _Connection:
    """An open connection and its certificate.

    Attributes:
        target: the cluster's address and CAs when the connection was opened.
        refusals: how many certificates in a row the API server has denied before this connection's certificate.
        users: number of tasks that use the connection now. The last task closes a retired connection.
    """

    target: tuple[object, ...]
    api: KubeApi
    fingerprint: bytes
    opened_at: datetime
    not_after: datetime
    refusals: int = 0
    users: int = 0
    retired: bool = False

    async def retire(self) -> None:
        self.retired = True
        if not self.users:
            await self.api.close()


@dataclass(slots=True)
class ClusterConnections:
    """Connects to API servers. Keeps the most recently used connections open.

    Attributes:
        is_revoked: returns whether the certificate with this fingerprint is revoked. Raises Unavailable.
        now: returns the current time in UTC.
        signers: the signers by name, for clusters whose credentials are tokens.
    """

    issuer: CertificateIssuer
    is_revoked: Callable[[bytes], Awaitable[bool]]
    now: Callable[[], datetime]
    signers: Mapping[str, object] = field(default_factory=dict)
    _connections: LRUCache[str, _Connection] = field(default_factory=lambda: LRUCache(MAX_OPEN))
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        """Run `work` with a client for the cluster. If access is denied, try once more with a new certificate.

        Raises SignerError, RemoteFailed, Unavailable, or any error that `work` raises.
        """
        if cluster.credential_kind == "token":
            return await self._account_signer(cluster).call(cluster.client_ca, work)
        async with self._opened(cluster) as connection:
            try:
                return await _succeeded(connection, work)
            except ApiServerRefused as refused:
                if refused.http_status not in _DENIED or not await self._may_renew(connection):
                    raise
        async with self._opened(cluster, instead_of=connection) as connection:
            return await _succeeded(connection, work)

    async def close(self) -> None:
        while self._connections:
            _, connection = self._connections.popitem()
            await connection.retire()

    def _account_signer(self, cluster: Cluster) -> AccountSigner:
        if cluster.signer in self.signers:
            signer = self.signers[cluster.signer]
            if isinstance(signer, AccountSigner):
                return signer
        raise SignerError(
            f"This cluster's signer {cluster.signer} is not installed. The operator must install this signer."
        )

    @contextlib.asynccontextmanager
    async def _opened(
        self, cluster: Cluster, instead_of: _Connection | None = None
    ) -> AsyncIterator[_Connection]:
        """Open a connection, or reuse a stored connection. The connection stays open until the `with` block ends."""
        # Concurrent callers wait for the lock, and then share one certificate.
        lock, dropped = self._locks.setdefault(cluster.id, asyncio.Lock()), None
        async with lock:
            connection = self._connections.get(cluster.id)
            if connection is None or connection is instead_of or not self._usable(connection, cluster):
                refusals = connection.refusals + (connection is instead_of) if connection is not None else 0
                connection = await self._connect(cluster, refusals)
                dropped = self._keep(cluster.id, connection)
            # Count this task before the next await, during which another task may replace or evict the connection.
            connection.users += 1
        try:
            if dropped is not None:
                await dropped.retire()
            yield connection
        finally:
            connection.users -= 1
            if connection.retired and not connection.users:
                await connection.api.close()

    def _keep(self, cluster_id: str, connection: _Connection) -> _Connection | None:
        """Store a connection for reuse. Returns the connection that was replaced or evicted, or `None`."""
        dropped = self._connections.pop(cluster_id, None)
        if dropped is None and len(self._connections) >= MAX_OPEN:
            oldest, dropped = self._connections.popitem()
            self._locks.pop(oldest, None)
        self._connections[cluster_id] = connection
        return dropped

    async def _may_renew(self, connection: _Connection) -> bool:
        """Whether to try a new certificate, because the denied certificate is revoked or at least a minute old.

        The minimum age doubles with each denied certificate, so that new certificates don't fill the ledger.
        """
        if self.now() - connection.opened_at >= RENEWED_AT_MOST_EVERY * 2**connection.refusals:
            return True
        return await self.is_revoked(connection.fingerprint)

    def _usable(self, connection: _Connection, cluster: Cluster) -> bool:
        is_current = self.now() < connection.not_after - RENEWED_BEFORE_END
        return is_current and connection.target == _target(cluster)

    async def _connect(self, cluster: Cluster, refusals: int) -> _Connection:
        now = self.now()
        issued = await self.issuer.issue_granted(_caller(), cluster, _grant(cluster, now), _REQUEST, now)
        if issued.private_key is None:
            raise RuntimeError("a certificate was issued without its key")
        identity = ClientIdentity(der_pem(issued.leaf_der), key_pem(issued.private_key))
        return _Connection(
            target=_target(cluster),
            api=KubeApi(cluster.internal_url, cluster.server_ca_pem, identity),
            fingerprint=bytes.fromhex(issued.fingerprint),
            opened_at=now,
            not_after=issued.grant.not_after,
            refusals=refusals,
        )


async def _succeeded(connection: _Connection, work: Callable[[KubeApi], Awaitable[T]]) -> T:
    result = await work(connection.api)
    connection.refusals = 0
    return result


def _target(cluster: Cluster) -> tuple[object, ...]:
    """Return the values that a connection depends on: the cluster's address and CAs."""
    return cluster.internal_url, cluster.server_ca_pem, cluster.client_ca.id


def _caller() -> Caller:
    return Caller(
        user=User(id=SERVICE, name=SERVICE, domain=Domain(id="", name="")),
        roles={},
        method="service",
        origin=Origin.local(),
    )


def _grant(cluster: Cluster, now: datetime) -> Grant:
    issued_at = now.replace(microsecond=0)
    ca_not_after = cluster.client_ca.not_after
    if ca_not_after <= issued_at:
        raise Unavailable(
            "The cluster's client CA has expired. Ask the operator to rotate the CA.", retry_after=3600
        )
    return Grant(
        rule=None,
        username=SERVICE,
        groups=(SERVICE,),
        not_before=issued_at - BACKDATE,
        not_after=min(issued_at + LIFETIME, ca_not_after),
    )

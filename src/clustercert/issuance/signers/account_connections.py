"""Connections of a signer to API servers, with the token of this service's own service account in each cluster.

The database contains the sealed token. The connections renew the token, and read the database before each use, so that
all processes use the newest token.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

import structlog
from cachetools import LRUCache

from clustercert.issuance.signers.account_tokens import AccountToken, new_token, parse_token
from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.model import ClientCA, utc_now
from clustercert.model.errors import ClustercertError, RemoteFailed, SignerError
from clustercert.pki.envelope import SecretSealer
from clustercert.pki.signer import SigningCluster, SigningClusters

logger = structlog.get_logger()

MAX_OPEN = 256
RENEWAL_PAUSE_SECONDS = 60.0

_UNAUTHORIZED, _FORBIDDEN = 401, 403


class Tasks(Protocol):
    """The background tasks of a signer in a cluster, over one connection."""

    async def close(self) -> None:
        """Wait for the tasks that are under way, for at most a few seconds."""


T = TypeVar("T", bound=Tasks)


@dataclass(slots=True, eq=False)
class AccountConnection(Generic[T]):
    """An open connection to a cluster, and the token that it uses.

    Attributes:
        tasks: the background tasks, which end before the connection is closed.
        target: the cluster's address and CAs when the connection was opened.
        sealed: the sealed form of `token`, as read from the database.
        problem: the last value read of `problem` in `pki.signer.SigningCluster`.
        users: number of tasks that use the connection now. The last task closes a retired connection.
    """

    api: KubeApi
    tasks: T
    target: tuple[str, bytes]
    token: AccountToken
    sealed: bytes
    problem: str | None = None
    users: int = 0
    retired: bool = False

    async def close(self) -> None:
        await self.tasks.close()
        await self.api.close()


@dataclass(slots=True)
class AccountConnections(Generic[T]):
    """Opens connections, and renews the tokens. Keeps the most recently used connections open.

    Attributes:
        new_tasks: creates the tasks of a connection to the cluster with this id.
        token_lifetime: lifetime of renewed tokens. A token is renewed after half of this time.
        now: returns the current time in UTC.
    """

    clusters: SigningClusters
    custody_of_secrets: SecretSealer
    new_tasks: Callable[[str], T]
    token_lifetime: timedelta
    now: Callable[[], datetime] = utc_now
    _open: LRUCache[str, AccountConnection[T]] = field(default_factory=lambda: LRUCache(MAX_OPEN))
    _renew_after: LRUCache[str, float] = field(default_factory=lambda: LRUCache(4096))

    def __iter__(self) -> Iterator[AccountConnection[T]]:
        return iter(tuple(self._open.values()))

    @contextlib.asynccontextmanager
    async def opened(self, ca: ClientCA) -> AsyncIterator[AccountConnection[T]]:
        """Open or reuse a connection with the database's present token. Renews the token after half of its lifetime.

        Raises SignerError, RemoteFailed or Unavailable.
        """
        cluster = await self.clusters.of_ca(ca.id)
        if cluster is None or cluster.sealed_key is None or ca.sealed_key is None:
            raise SignerError(
                f"The database has no token for the cluster {ca.cluster_id}. The operator must give a new"
                " token with `clustercert cluster update CLUSTER --signer-token-file FILE`."
            )
        connection = self._open.get(ca.id)
        if connection is None or (*connection.target, connection.sealed) != (
            *_target(cluster),
            cluster.sealed_key,
        ):
            connection = await self._opened(cluster, cluster.sealed_key)
        else:
            connection.users += 1
        connection.problem = cluster.problem
        try:
            self._require_valid(connection.token)
            await self._renew(ca, connection)
            yield connection
        finally:
            connection.users -= 1
            if connection.retired and not connection.users:
                await connection.close()

    async def stored_token(self, cluster_id: str, signer: str) -> bytes | None:
        """Return the token for the cluster's newest CA of this signer that has a token, or None."""
        found = await self.clusters.signed_by(cluster_id, signer)
        if found is None or found.sealed_key is None:
            return None
        return await self.custody_of_secrets.unseal(found.sealed_key, _bound_to(found.ca_id))

    async def sealed(self, ca_id: str, token: AccountToken) -> bytes:
        """Return a token, sealed, for `ClientCA.sealed_key`."""
        return await self.custody_of_secrets.seal(token.text.encode(), _bound_to(ca_id))

    async def forget(self, ca_id: str) -> None:
        """Close the open connection of a CA, if any, as soon as no task uses the connection."""
        if (connection := self._open.pop(ca_id, None)) is not None:
            await _retire(connection)

    async def close(self) -> None:
        """Close all connections."""
        while self._open:
            _, connection = self._open.popitem()
            await connection.close()

    async def _opened(self, cluster: SigningCluster, sealed: bytes) -> AccountConnection[T]:
        """Open a connection, and count the calling task as its user, so that no other task closes it meanwhile."""
        token = parse_token(await self.custody_of_secrets.unseal(sealed, _bound_to(cluster.ca_id)))
        api = KubeApi(*_target(cluster), None)
        api.use_token(token.text)
        connection = AccountConnection(
            api, self.new_tasks(cluster.cluster_id), _target(cluster), token, sealed, users=1
        )
        replaced = self._open.pop(cluster.ca_id, None)
        if replaced is None and len(self._open) >= MAX_OPEN:
            _, replaced = self._open.popitem()
        self._open[cluster.ca_id] = connection
        if replaced is not None:
            await _retire(replaced)
        return connection

    def _require_valid(self, token: AccountToken) -> None:
        if token.expires_at <= self.now():
            raise RemoteFailed(
                f"The service's token for this cluster expired at {token.expires_at:%Y-%m-%d %H:%M} UTC. The operator"
                " must give a new token with `clustercert cluster update CLUSTER --signer-token-file FILE`."
            )

    async def _renew(self, ca: ClientCA, connection: AccountConnection[T]) -> None:
        """Replace the token if half of its lifetime is over. Logs a failure, because the old token is still valid."""
        before = connection.sealed
        if self.now() < connection.token.renew_at or time.monotonic() < self._renew_after.get(ca.id, 0):
            return
        self._renew_after[ca.id] = time.monotonic() + RENEWAL_PAUSE_SECONDS
        try:
            token = await new_token(connection.api, connection.token, self.token_lifetime, self.now())
            sealed = await self.sealed(ca.id, token)
            # If another worker was faster, the next request reads that worker's token.
            if await self.clusters.exchange_secret(ca.id, before, sealed):
                connection.api.use_token(token.text)
                connection.token, connection.sealed = token, sealed
        except ClustercertError as error:
            logger.warning(
                "token of signer not renewed",
                cluster=ca.cluster_id,
                expires_at=connection.token.expires_at,
                error=error.message,
            )


@contextlib.contextmanager
def explained(forbidden: str) -> Iterator[None]:
    """Explain the API server's refusals that the operator can correct.

    Args:
        forbidden: the message for the status 403.
    """
    try:
        yield
    except ApiServerRefused as refused:
        if refused.http_status == _UNAUTHORIZED:
            raise RemoteFailed(
                "The cluster does not accept the service's token. The operator must give a new token with"
                " `clustercert cluster update CLUSTER --signer-token-file FILE`."
            ) from refused
        if refused.http_status == _FORBIDDEN:
            raise RemoteFailed(forbidden) from refused
        raise


async def _retire(connection: AccountConnection[T]) -> None:
    connection.retired = True
    if not connection.users:
        await connection.close()


def _target(cluster: SigningCluster) -> tuple[str, bytes]:
    return cluster.url, cluster.server_ca_pem


def _bound_to(ca_id: str) -> str:
    return f"client_ca:{ca_id}"

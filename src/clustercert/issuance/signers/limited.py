"""Limits on the calls to a signer outside this process, so that a slow signer delays nothing else."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from cachetools import LRUCache
from pydantic import Field

from clustercert.model import ClientCA, SigningRequest
from clustercert.model.choices import LeafProfile
from clustercert.model.clusters import Registration
from clustercert.model.errors import Unavailable
from clustercert.pki.crl import CrlContent
from clustercert.pki.signer import CaRequest, KeyCustody, Signer, SignerAccess
from clustercert.policy.setting_types import Section

T = TypeVar("T")


class SignerLimits(Section):
    """Limits for a signer.

    Attributes:
        concurrency: number of simultaneous calls to the signer, per worker.
        queue: number of requests that may wait for the signer, per worker. Further requests get status 503.
        timeout: longest time in seconds for waiting and signing together. After this time, the request gets status 503.
    """

    concurrency: int = Field(default=8, ge=1, le=256)
    queue: int = Field(default=256, ge=1, le=100_000)
    timeout: float = Field(default=5, gt=0, le=60)


@dataclass(slots=True)
class _Queue:
    """The calls that wait, and the calls that are running.

    Attributes:
        pending: number of calls, waiting or not.
    """

    slots: asyncio.Semaphore
    pending: int = 0


class LimitedSigner:
    """Passes calls to a signer, within limits. Raises Unavailable if a limit is exceeded.

    Args:
        per_cluster: whether each cluster has its own queue and slots, because each cluster signs for itself.
    """

    MAX_QUEUES = 4096

    def __init__(self, name: str, signer: Signer, limits: SignerLimits, *, per_cluster: bool = False) -> None:
        self._name = name
        self._signer = signer
        self._limits = limits
        self._per_cluster = per_cluster
        self._queues: LRUCache[str, _Queue] = LRUCache(self.MAX_QUEUES)

    @property
    def takes_serial(self) -> bool:
        """Whether the signer uses the requested serial."""
        return self._signer.takes_serial

    @property
    def profile(self) -> LeafProfile:
        """How the signer encodes leaves."""
        return self._signer.profile

    @property
    def is_ca_of_cluster(self) -> bool:
        """Whether the client CA is the cluster's own CA."""
        return self._signer.is_ca_of_cluster

    async def create_ca(self, request: CaRequest) -> ClientCA:
        """Create a client CA."""
        return await self._limited(request.cluster_id, self._signer.create_ca(request))

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        """Sign a leaf."""
        return await self._limited(request.ca.cluster_id, self._signer.sign(request))

    async def sign_crl(self, ca: ClientCA, content: CrlContent) -> bytes:
        """Sign a CRL."""
        return await self._limited(ca.cluster_id, self._signer.sign_crl(ca, content))

    async def custody(self, ca: ClientCA) -> KeyCustody:
        """Return where the CA's key is."""
        return await self._limited(ca.cluster_id, self._signer.custody(ca))

    async def accept_secret(self, ca: ClientCA, registration: Registration, secret: bytes) -> bytes:
        """Check and seal a new credential for a CA."""
        return await self._limited(ca.cluster_id, self._signer.accept_secret(ca, registration, secret))

    async def maintain(self, ca: ClientCA) -> SignerAccess | None:
        """Renew the signer's access."""
        return await self._limited(ca.cluster_id, self._signer.maintain(ca))

    async def delete_key(self, ca: ClientCA) -> str:
        """Delete the CA's key."""
        return await self._limited(ca.cluster_id, self._signer.delete_key(ca))

    async def close(self) -> None:
        """Release the signer's connections and threads."""
        await self._signer.close()

    async def _limited(self, cluster_id: str, call: Coroutine[Any, Any, T]) -> T:
        limits, queue = self._limits, self._queue(cluster_id)
        if queue.pending >= limits.concurrency + limits.queue:
            call.close()
            raise Unavailable(f"Too many requests are waiting for the signer {self._name}. Try again later.")
        queue.pending += 1
        try:
            async with asyncio.timeout(limits.timeout):
                async with queue.slots:
                    return await call
        except TimeoutError as error:
            raise Unavailable(
                f"The signer {self._name} did not answer within {limits.timeout:g} seconds. Try again later.",
                retry_after=5,
            ) from error
        finally:
            queue.pending -= 1
            call.close()

    def _queue(self, cluster_id: str) -> _Queue:
        key = cluster_id if self._per_cluster else ""
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(asyncio.Semaphore(self._limits.concurrency))
        return queue

"""Limits on the calls to a signer outside this process, so that a slow signer delays nothing else."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from pydantic import Field

from clustercert.model import ClientCA, SigningRequest
from clustercert.model.choices import LeafProfile
from clustercert.model.errors import Unavailable
from clustercert.pki.crl import CrlContent
from clustercert.pki.signer import CaRequest, KeyCustody, Signer
from clustercert.policy.setting_types import Section

T = TypeVar("T")


class SignerLimits(Section):
    """Limits for a signer.

    Attributes:
        concurrency: number of simultaneous calls to the signer, per worker.
        queue: number of requests that may wait for the signer, per worker. Further requests get status 503.
        timeout: longest time in seconds for waiting and signing together. Then the request gets status 503.
    """

    concurrency: int = Field(default=8, ge=1, le=256)
    queue: int = Field(default=256, ge=1, le=100_000)
    timeout: float = Field(default=5, gt=0, le=60)


class LimitedSigner:
    """Passes calls to a signer, within limits. Raises Unavailable if a limit is exceeded."""

    def __init__(self, name: str, signer: Signer, limits: SignerLimits) -> None:
        self._name = name
        self._signer = signer
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._pending = 0

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
        return await self._limited(self._signer.create_ca(request))

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        """Sign a leaf."""
        return await self._limited(self._signer.sign(request))

    async def sign_crl(self, ca: ClientCA, content: CrlContent) -> bytes:
        """Sign a CRL."""
        return await self._limited(self._signer.sign_crl(ca, content))

    async def custody(self, ca: ClientCA) -> KeyCustody:
        """Return where the CA's key is."""
        return await self._limited(self._signer.custody(ca))

    async def delete_key(self, ca: ClientCA) -> str:
        """Delete the CA's key."""
        return await self._limited(self._signer.delete_key(ca))

    async def close(self) -> None:
        """Release the signer's connections and threads."""
        await self._signer.close()

    async def _limited(self, call: Coroutine[Any, Any, T]) -> T:
        limits = self._limits
        if self._pending >= limits.concurrency + limits.queue:
            call.close()
            raise Unavailable(f"Too many requests are waiting for the signer {self._name}. Try again later.")
        self._pending += 1
        try:
            async with asyncio.timeout(limits.timeout):
                async with self._slots:
                    return await call
        except TimeoutError as error:
            raise Unavailable(
                f"The signer {self._name} did not answer within {limits.timeout:g} seconds. Try again later.",
                retry_after=5,
            ) from error
        finally:
            self._pending -= 1
            call.close()

"""The limits on calls to a signer outside the process."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from clustercert.issuance.signers.limited import LimitedSigner, SignerLimits
from clustercert.model import SigningRequest
from clustercert.model.errors import Unavailable
from support.samples import CA_KEY, client_ca, grant

REQUEST = SigningRequest(grant(), CA_KEY.public_key(), client_ca())


@dataclass
class SlowSigner:
    """Signs when `released`. Counts the simultaneous calls."""

    released: asyncio.Event = field(default_factory=asyncio.Event)
    active: int = 0
    most: int = 0

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            await self.released.wait()
        finally:
            self.active -= 1
        return (b"signed",)


def limits_of(**limits: float) -> SignerLimits:
    return SignerLimits.model_validate(limits)


def limited(signer: Any, **limits: float) -> LimitedSigner:
    return LimitedSigner("slow", signer, limits_of(**limits))


async def test_waiting_requests_are_signed_a_few_at_a_time() -> None:
    slow = SlowSigner()
    signer = limited(slow, concurrency=2, queue=3, timeout=60)
    calls = [asyncio.create_task(signer.sign(REQUEST)) for _ in range(5)]
    await asyncio.sleep(0)
    slow.released.set()
    assert await asyncio.gather(*calls) == [(b"signed",)] * 5
    assert slow.most == 2


async def test_a_request_beyond_the_queue_is_refused_at_once() -> None:
    slow = SlowSigner()
    signer = limited(slow, concurrency=1, queue=1, timeout=60)
    calls = [asyncio.create_task(signer.sign(REQUEST)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="waiting for the signer slow") as refused:
        await signer.sign(REQUEST)
    assert refused.value.retry_after == 1
    slow.released.set()
    assert await asyncio.gather(*calls) == [(b"signed",)] * 2


async def test_a_signer_that_hangs_frees_its_places() -> None:
    slow = SlowSigner()
    signer = limited(slow, concurrency=1, queue=1, timeout=0.05)
    calls = [signer.sign(REQUEST) for _ in range(2)]
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(failure) for failure in failures] == [Unavailable] * 2
    assert slow.active == 0
    slow.released.set()
    assert await limited(slow).sign(REQUEST) == await signer.sign(REQUEST) == (b"signed",)


async def test_a_cluster_that_hangs_delays_no_other_cluster() -> None:
    slow = SlowSigner()
    signer = LimitedSigner("slow", slow, limits_of(concurrency=1, queue=1, timeout=60), per_cluster=True)  # type: ignore[arg-type] # signs only
    other = replace(REQUEST, ca=replace(REQUEST.ca, cluster_id="f" * 32))
    calls = [asyncio.create_task(signer.sign(each)) for each in (REQUEST, REQUEST, other)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await signer.sign(REQUEST)
    assert slow.active == 2
    slow.released.set()
    assert await asyncio.gather(*calls) == [(b"signed",)] * 3

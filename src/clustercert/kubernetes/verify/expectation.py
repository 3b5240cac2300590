"""The behavior that `clustercert kubernetes verify` expects from an API server, and the checks for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from clustercert.kubernetes.verify.probe import CheckFailed, Denied, NotAuthenticated, Permission, Probe
from clustercert.model.choices import RevocationControl

POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected behavior of a cluster.

    Attributes:
        role: the role of the policy rule to test; None for certificates without groups.
        permissions: the permissions that the rule's groups should have.
        control: the mechanism that should enforce a revocation.
        address: the API server's address.
        seconds: how long a revocation may take to become effective.
    """

    role: str | None
    permissions: tuple[Permission, ...]
    control: RevocationControl
    address: str
    seconds: float

    async def is_refused(self, probe: Probe) -> bool:
        """Whether the API server refuses a certificate. Raises CheckFailed."""
        try:
            match self.control:
                case "binding":
                    return not await probe.is_allowed(self.permissions[0])
                case "admission":
                    await probe.dry_run_write()
                case "webhook":
                    await probe.who_am_i()
        except Denied:
            return True
        return False

    async def seconds_until_refused(self, probe: Probe) -> float | None:
        """Measure the seconds until a revoked certificate is refused. Returns `None` after the time limit."""
        return await self._seconds_until(lambda: self.is_refused(probe))

    async def require_refused(self, probe: Probe, fault: str, advice: str) -> None:
        """Raise CheckFailed unless a certificate is refused within the time limit."""
        if await self._seconds_until(lambda: self._is_rejected(probe)) is None:
            raise CheckFailed(fault, advice)

    async def _is_rejected(self, probe: Probe) -> bool:
        try:
            return await self.is_refused(probe)
        except NotAuthenticated:
            # Some API servers reject the copy's signature, which also counts as refused.
            return True

    async def _seconds_until(self, holds: Callable[[], Awaitable[bool]]) -> float | None:
        """Measure the seconds until a condition holds. Returns `None` after the time limit."""
        start = time.monotonic()
        while time.monotonic() - start < self.seconds:
            if await holds():
                return round(time.monotonic() - start, 2)
            await asyncio.sleep(POLL_SECONDS)
        return None


ADVICE: dict[Literal["binding", "admission"], str] = {
    "binding": "Check that the service runs and reaches the API server. Its log names bindings that were not deleted.",
    "admission": "Check that the service runs and reaches the API server. Apply admission.yaml and service-access.yaml "
    "of `clustercert kubernetes setup`.",
}
COPY_ADVICE = (
    "The cluster recognizes certificates in another way than this service. Run `clustercert kubernetes setup` again, "
    "and follow its README.md."
)

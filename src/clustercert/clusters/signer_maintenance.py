"""Use case: keep the access of signers to clusters. A token that nobody uses would expire."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog

from clustercert.model import ClientCA, utc_now
from clustercert.model.errors import ClustercertError
from clustercert.observability import metrics
from clustercert.pki.signer import Signer, SignerAccess, signer_named

logger = structlog.get_logger()

_PAGE = 100


class SecretCas(Protocol):
    """Lists client CAs, and stores when tokens expire; implemented by `store.signing_clusters`."""

    async def cas_with_secrets(self, after: str, limit: int) -> tuple[ClientCA, ...]: ...

    async def note_access(self, ca_id: str, expires_at: datetime) -> None: ...


@dataclass(slots=True)
class SignerMaintenance:
    """Maintains the access of all signers that log in to clusters.

    Attributes:
        now: returns the current time in UTC.
    """

    cas: SecretCas
    signers: Mapping[str, Signer]
    now: Callable[[], datetime] = utc_now
    _access: dict[str, SignerAccess] = field(default_factory=dict)

    async def run(self) -> None:
        """Maintain the access to each cluster, one after the other. A failure is logged. Raises Unavailable."""
        after, found = "", tuple[ClientCA, ...]()
        access: dict[str, SignerAccess] = {}
        overdue = 0
        while not after or len(found) == _PAGE:
            found = await self.cas.cas_with_secrets(after, _PAGE)
            for ca in found:
                has_failed = not await self._maintain(ca)
                if (known := self._access.get(ca.id)) is not None:
                    access[ca.id] = known
                overdue += has_failed or (known is not None and known.renew_at <= self.now())
            if not found:
                break
            after = found[-1].id
        self._access = access
        first = min((each.expires_at.timestamp() for each in access.values()), default=0)
        metrics.SIGNER_ACCESS_NOT_AFTER.set(first)
        metrics.SIGNER_ACCESS_OVERDUE.set(overdue)

    async def _maintain(self, ca: ClientCA) -> bool:
        """Maintain the access for a CA. Returns whether this succeeded. Raises Unavailable."""
        try:
            access = await signer_named(self.signers, ca.signer).maintain(ca)
        except ClustercertError as error:
            logger.warning(
                "signer not maintained", signer=ca.signer, cluster=ca.cluster_id, error=error.message
            )
            return False
        except Exception:
            # One cluster must not end the access to the clusters after it.
            logger.exception("signer not maintained", signer=ca.signer, cluster=ca.cluster_id)
            return False
        if access is not None:
            self._access[ca.id] = access
            if access.expires_at != ca.access_expires_at:
                await self.cas.note_access(ca.id, access.expires_at)
        return True

"""Use case: keep the access of signers to clusters. A token that nobody uses would expire."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from clustercert.model import ClientCA
from clustercert.model.errors import ClustercertError
from clustercert.pki.signer import Signer, signer_named

logger = structlog.get_logger()

_PAGE = 100


class SecretCas(Protocol):
    """Lists client CAs; implemented by `store.signing_clusters`."""

    async def cas_with_secrets(self, after: str, limit: int) -> tuple[ClientCA, ...]: ...


@dataclass(frozen=True, slots=True)
class SignerMaintenance:
    """Maintains the access of all signers that log in to clusters."""

    cas: SecretCas
    signers: Mapping[str, Signer]

    async def run(self) -> None:
        """Maintain the access to each cluster, one after the other. A failure is logged. Raises Unavailable."""
        after, found = "", tuple[ClientCA, ...]()
        while not after or len(found) == _PAGE:
            found = await self.cas.cas_with_secrets(after, _PAGE)
            for ca in found:
                await self._maintain(ca)
            if not found:
                return
            after = found[-1].id

    async def _maintain(self, ca: ClientCA) -> None:
        try:
            await signer_named(self.signers, ca.signer).maintain(ca)
        except ClustercertError as error:
            logger.warning(
                "signer not maintained", signer=ca.signer, cluster=ca.cluster_id, error=error.message
            )
        except Exception:
            # One cluster must not end the access to the clusters after it.
            logger.exception("signer not maintained", signer=ca.signer, cluster=ca.cluster_id)

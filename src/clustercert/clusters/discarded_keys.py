"""Use case: delete the keys of client CAs that are not needed any more."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from clustercert.model import Actor, ClientCA
from clustercert.model.errors import ClustercertError, Unavailable
from clustercert.model.events.administration import CaKeyDeleted
from clustercert.pki.signer import CaRequest, Signer, signer_named
from clustercert.policy.lifetime import BACKDATE
from clustercert.store.clusters.client_cas import ClientCaQueries, DiscardedCa
from clustercert.store.engine.database import MAX_CLOCK_OFFSET

logger = structlog.get_logger()

# A new CA is added to its cluster within this time, or never.
ADDING = timedelta(minutes=10)


async def create_ca(signer: Signer, request: CaRequest, cas: ClientCaQueries) -> ClientCA:
    """Create a client CA whose key is deleted unless the CA is added to its cluster.

    Raises Unavailable, also if this machine's clock is wrong, or an error of the signer.
    """
    offset = await cas.clock_offset()
    if abs(offset) > MAX_CLOCK_OFFSET:
        raise Unavailable(
            f"No client CA was created: the clock of this replica is {round(abs(offset).total_seconds())} seconds"
            f" {'ahead of' if offset > timedelta() else 'behind'} the database's. The operator must synchronize both"
            " clocks.",
            retry_after=60,
        )
    ca = await signer.create_ca(request)
    if ca.certificate is None:
        # The signer `token` has no key that would have to be deleted.
        return ca
    try:
        await cas.note_created(ca)
    except BaseException:
        # Without the note, nothing else would delete the key.
        try:
            await signer.delete_key(ca)
        except ClustercertError as error:
            logger.warning(
                "key of a new client CA not deleted", signer=ca.signer, ca=ca.id, error=error.message
            )
        raise
    return ca


@dataclass(frozen=True, slots=True)
class KeyDeletion:
    """What happened to the key of a discarded CA.

    Attributes:
        is_done: false if the deletion failed. The service then tries again.
        result: one sentence.
    """

    ca_id: str
    signer: str
    is_done: bool
    result: str


@dataclass(frozen=True, slots=True)
class DiscardedKeys:
    """Deletes the keys of discarded client CAs at their signers.

    The transaction that discards a CA notes it in the store, and so does a transaction after the creation of each CA.
    So a key is deleted in the end, even if the process is killed in between.
    """

    queries: ClientCaQueries
    signers: Mapping[str, Signer]
    now: Callable[[], datetime]

    async def delete_keys_of(self, cluster_id: str, *, actor: Actor) -> tuple[KeyDeletion, ...]:
        """Delete the keys of a cluster's discarded CAs. The cluster may be removed. Raises Unavailable."""
        found = await self.queries.discarded(cluster_id)
        return tuple([await self._delete(each, actor) for each in found if await self._is_discarded(each)])

    async def delete_all(self) -> None:
        """Delete the keys of the discarded CAs of all clusters. Raises Unavailable."""
        after = ""
        while found := await self.queries.discarded(after=after):
            for each in found:
                if not await self._is_discarded(each):
                    continue
                context = {"signer": each.ca.signer, "cluster": each.ca.cluster_id}
                try:
                    deletion = await self._delete(each, Actor.service())
                except ClustercertError:
                    raise
                except Exception:
                    # One signer must not keep the keys of the others from being deleted.
                    logger.exception("key of a discarded client CA not deleted", **context)
                    continue
                if not deletion.is_done:
                    logger.warning(
                        "key of a discarded client CA not deleted", **context, error=deletion.result
                    )
            after = found[-1].ca.id

    async def _is_discarded(self, noted: DiscardedCa) -> bool:
        """Whether the CA can't be added to its cluster any more. Adding takes less than a request may take.

        Another replica may be adding the CA. If this machine's clock is wrong, it can't tell.
        """
        if noted.project_id is not None:
            return True
        created_at = noted.ca.ca_certificate.not_valid_before_utc + BACKDATE
        if self.now() - created_at <= ADDING:
            return False
        return abs(await self.queries.clock_offset()) <= MAX_CLOCK_OFFSET

    async def _delete(self, discarded: DiscardedCa, actor: Actor) -> KeyDeletion:
        ca = discarded.ca
        try:
            result = await signer_named(self.signers, ca.signer).delete_key(ca)
        except ClustercertError as error:
            text = f"The key of the client CA was not deleted yet: {error.message} The service tries again."
            return KeyDeletion(ca.id, ca.signer, is_done=False, result=text)
        event = CaKeyDeleted(
            at=self.now(),
            project_id=discarded.project_id,
            actor=actor,
            subject=ca.id,
            cluster_id=ca.cluster_id,
            signer=ca.signer,
            result=result,
        )
        await self.queries.forget(ca.id, event)
        return KeyDeletion(ca.id, ca.signer, is_done=True, result=result)

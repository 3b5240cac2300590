"""Use case: advance the rotations of client CAs. What the service does by itself."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from clustercert.clusters.ca_rotation import CaRotations, rotation_event
from clustercert.clusters.discarded_keys import DiscardedKeys
from clustercert.model import Actor, ClientCA, Cluster
from clustercert.model.ca_rotation import PROOF_AGE, CaRotation
from clustercert.model.errors import ClustercertError, ConcurrentChange, Conflict
from clustercert.model.events.administration import CaRotationChange
from clustercert.pki.signer import signer_named

logger = structlog.get_logger()

# An unchanged proof is written again only after this time. The time is shorter than `PROOF_AGE`.
PROOF_WRITTEN_EVERY = PROOF_AGE / 2
# The time limit for one step of one rotation.
STEP_SECONDS = 60.0
SHORTEST_WAIT = timedelta(seconds=2)
LONGEST_WAIT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class CaProgress:
    """Advances rotations. Every step reads the state from the store, so a killed step is repeated.

    Attributes:
        drain_after: the time after which no worker issues from the old CA any more: the propagation of the change, and
            the longest time between the decision about a certificate and its record.
        step_seconds: the time limit for one step of one rotation.
    """

    rotations: CaRotations
    discarded: DiscardedKeys
    drain_after: timedelta
    step_seconds: float = STEP_SECONDS

    @property
    def now(self) -> Callable[[], datetime]:
        return self.rotations.now

    async def advance(self, cluster_id: str) -> timedelta:
        """Advance a cluster's rotation by at most one state. Returns the time until the next attempt.

        Stores an error in the rotation, and raises only Unavailable, if the store fails.
        """
        rotation = await self.rotations.queries.rotation(cluster_id)
        if rotation is None or not rotation.is_running:
            return LONGEST_WAIT
        problem: str | None = None
        try:
            async with asyncio.timeout(self.step_seconds):
                problem = await self._step(rotation)
        except ConcurrentChange:
            # Somebody else changed the rotation or the cluster. The next step sees the change.
            return SHORTEST_WAIT
        except TimeoutError:
            problem = f"The step took longer than {self.step_seconds:g} seconds."
        except ClustercertError as error:
            problem = error.message
        except Exception:
            logger.exception("client CA rotation failed", cluster=cluster_id)
            problem = "Unexpected error. See the log."
        return await self._after(cluster_id, problem)

    async def _after(self, cluster_id: str, problem: str | None) -> timedelta:
        """Store the problem of a step, and return the time until the next step."""
        rotation = await self.rotations.queries.rotation(cluster_id)
        if rotation is None or not rotation.is_running:
            return LONGEST_WAIT
        if problem != rotation.problem:
            if problem is not None:
                logger.warning("client CA rotation has a problem", cluster=cluster_id, problem=problem)
            problem_at = None if problem is None else self.now()
            try:
                await self.rotations.queries.save(
                    rotation, replace(rotation, problem=problem, problem_at=problem_at)
                )
            except Conflict:
                return SHORTEST_WAIT
        if rotation.state == "issuing":
            return max(rotation.since + self.drain_after - self.now(), timedelta())
        # Wait longer for somebody who does not act for a long time. Proofs that come and go must not restart the wait,
        # because each of these changes is an audit event.
        is_first_proof = rotation.state == "planned" and not rotation.reverses
        waited_since = rotation.completion_asked_at or (
            rotation.started_at if is_first_proof else rotation.since
        )
        return min(max((self.now() - waited_since) / 10, SHORTEST_WAIT), LONGEST_WAIT)

    async def _step(self, rotation: CaRotation) -> str | None:
        """Advance a rotation. Returns why the rotation can't advance, or None."""
        clusters = await self.rotations.clusters.clusters_with_ids([rotation.cluster_id])
        cluster = next(iter(clusters), None)
        found = await self.rotations.cas.cas([rotation.old_ca_id, rotation.new_ca_id])
        if cluster is None or len(found) < 2:  # noqa: PLR2004 - the old and the new CA
            raise ConcurrentChange
        step = _Step(self, cluster, (found[rotation.old_ca_id], found[rotation.new_ca_id]))
        match rotation.state:
            case "planned" | "distributed":
                return await step.distribute(rotation)
            case "issuing":
                return await step.drain(rotation)
            case _:
                return await step.complete(rotation)


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of one rotation. `cas`: the old and the new CA."""

    progress: CaProgress
    cluster: Cluster
    cas: tuple[ClientCA, ClientCA]

    async def distribute(self, rotation: CaRotation) -> str | None:
        """Prove the new CA, and let it sign once it has been proved twice."""
        _, new_ca = self.cas
        proved = await self._prove(rotation, new_ca)
        missing = proved.unproved(self.now)
        if not missing and proved.state == "planned":
            await self._advance("ca_rotation.distributed", rotation, proved.advanced("distributed", self.now))
        elif not missing:
            await self._advance("ca_rotation.issuing_begun", rotation, proved.advanced("issuing", self.now))
        elif proved.state == "distributed":
            problem = _unproved(proved, new_ca, missing)
            after = replace(proved.advanced("planned", self.now), problem=problem, problem_at=self.now)
            await self._advance("ca_rotation.proof_lost", rotation, after, missing, problem)
            return problem
        else:
            await self._keep(rotation, proved)
            return _unreached(proved, new_ca, missing)
        return None

    async def drain(self, rotation: CaRotation) -> str | None:
        """Begin to drain once no worker issues from the old CA any more."""
        if self.now - rotation.since >= self.progress.drain_after:
            await self._advance(
                "ca_rotation.draining_begun", rotation, rotation.advanced("draining", self.now)
            )
        return None

    async def complete(self, rotation: CaRotation) -> str | None:
        """Prove the new CA again. If completion was asked for, prove that the old CA is refused."""
        _, new_ca = self.cas
        proved = await self._prove(rotation, new_ca)
        refusing = [
            address
            for address in proved.addresses
            if (proof := proved.proof(new_ca.id, address)) is not None and proof.outcome == "refused"
        ]
        if refusing:
            await self._keep(rotation, proved)
            return _unproved(proved, new_ca, tuple(refusing))
        if proved.is_completing:
            return await self._remove(rotation, proved)
        await self._keep(rotation, proved)
        if proved.auto_complete:
            await self._ask_for_completion()
        return None

    async def _remove(self, before: CaRotation, proved: CaRotation) -> str | None:
        """Prove that the old CA is refused, and end the rotation."""
        old_ca, _ = self.cas
        signers, stays = self.progress.rotations.signers, old_ca.not_after <= self.now
        try:
            stays = stays or signer_named(signers, old_ca.signer).is_ca_of_cluster
            if not stays:
                proved = await self._prove(proved, old_ca)
        except ClustercertError:
            # If the signer is lost, only an operator can prove that the API servers refuse the CA.
            if proved.trusting():
                raise
        if not stays and (trusting := proved.trusting()):
            await self._keep(before, proved)
            return _unreached(proved, old_ca, trusting)
        after = proved.advanced("complete", self.now, needs_proof=not stays)
        await self._advance("ca_rotation.completed", before, after)
        await self.progress.discarded.delete_keys_of(self.cluster.id, actor=Actor.service())
        return None

    async def _ask_for_completion(self) -> None:
        rotations = self.progress.rotations
        counted = await rotations.queries.holders([self.cas[0].id], [self.cluster.id], self.now)
        if not counted[self.cas[0].id].certificates:
            await rotations.complete(self.cluster, holders=None, deny_old=None, actor=Actor.service())

    @property
    def now(self) -> datetime:
        return self.progress.now()

    async def _prove(self, rotation: CaRotation, ca: ClientCA) -> CaRotation:
        """Return the rotation with the addresses of the API servers as of now, and new proofs for a CA."""
        rotations = self.progress.rotations
        addresses = await rotations.addresses(self.cluster, rotation)
        return rotation.with_proofs(await rotations.prover.prove(self.cluster, ca, addresses), addresses)

    async def _keep(self, before: CaRotation, proved: CaRotation) -> None:
        """Store new proofs, unless they say the same as the recent ones in the store."""
        if before.addresses == proved.addresses and all(
            (known := before.proof(each.ca_id, each.address)) is not None
            and each.at - known.at < PROOF_WRITTEN_EVERY
            and replace(each, at=known.at) == known
            for each in proved.proofs
        ):
            return
        await self.progress.rotations.queries.save(before, proved)

    async def _advance(
        self,
        kind: CaRotationChange,
        before: CaRotation,
        after: CaRotation,
        addresses: tuple[str, ...] | None = None,
        problem: str | None = None,
    ) -> None:
        event = rotation_event(
            kind,
            self.cluster,
            after,
            self.cas,
            self.now,
            Actor.service(),
            addresses=after.addresses if addresses is None else addresses,
            problem=problem,
        )
        await self.progress.rotations.queries.save(before, after, event)


def _unreached(rotation: CaRotation, ca: ClientCA, addresses: tuple[str, ...]) -> str | None:
    """Say which of the addresses were not reached. Other addresses wait for the operator, which is no problem."""
    silent = [address for address in addresses if not _has_answered(rotation, ca, address)]
    return _unproved(rotation, ca, tuple(silent)) if silent else None


def _has_answered(rotation: CaRotation, ca: ClientCA, address: str) -> bool:
    proof = rotation.proof(ca.id, address)
    return proof is not None and proof.outcome != "failed"


def _unproved(rotation: CaRotation, ca: ClientCA, addresses: tuple[str, ...]) -> str:
    """Say at which addresses a CA is not proved, and why."""
    reasons = []
    for address in addresses:
        proof = rotation.proof(ca.id, address)
        because = "not tried" if proof is None else proof.detail or f"the CA was {proof.outcome}"
        reasons.append(f"{address}: {because}")
    return f"The {'new' if ca.id == rotation.new_ca_id else 'old'} CA is not proved at {'; '.join(reasons)}"

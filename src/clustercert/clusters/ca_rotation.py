"""Use case: replace a cluster's client CA without interrupting the holders of certificates. What operators do.

`clusters.ca_progress` advances the rotations that operators have started.
"""

import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from clustercert.clusters.discarded_keys import create_ca
from clustercert.clusters.registry import CA_LIFETIME
from clustercert.model import Actor, ClientCA, Cluster, Issued, KeyType, Origin, PublicKey
from clustercert.model.ca_rotation import CaProof, CaRotation, RotationStatus
from clustercert.model.choices import ProofOutcome, RotationState
from clustercert.model.errors import ConcurrentChange, Conflict, InvalidRequest, NotFound, Unavailable
from clustercert.model.events.administration import (
    CaProofReported,
    CaRotationChange,
    CaRotationChanged,
    ReportedProof,
)
from clustercert.model.kubernetes import TOKEN_SIGNER
from clustercert.pki.certificates import certificate_der
from clustercert.pki.signer import LOCAL, CaRequest, Signer, signer_named
from clustercert.policy.lifetime import BACKDATE
from clustercert.policy.templates import is_plain_text
from clustercert.store.clusters.ca_rotations import CaRotationQueries
from clustercert.store.clusters.client_cas import ClientCaQueries
from clustercert.store.clusters.registry import ClusterQueries

# How often a change is tried if the leader changes the rotation at the same time.
ATTEMPTS = 5
# The number of holders that the status of one rotation names.
MAX_HOLDERS = 200


class Prover(Protocol):
    """Connects to API servers with temporary certificates. Implemented by `kubernetes.ca_proof`."""

    async def api_servers(self, cluster: Cluster) -> tuple[str, ...]:
        """Return the addresses of the cluster's API servers. Raises RemoteFailed or Unavailable."""

    async def prove(self, cluster: Cluster, ca: ClientCA, addresses: Sequence[str]) -> tuple[CaProof, ...]:
        """Try a certificate of the CA at each address. Raises SignerError, RemoteFailed or Unavailable."""

    async def issue(self, cluster: Cluster, ca: ClientCA, key: PublicKey | None, origin: Origin) -> Issued:
        """Issue a temporary certificate of a CA. Raises SignerError, RemoteFailed, Unavailable or Conflict."""


@dataclass(frozen=True, slots=True)
class RotationOptions:
    """How to rotate a CA.

    Attributes:
        signer: the signer that creates the new CA; None for the cluster's signer.
        secret: the credential that the signer needs for this cluster, if it needs one.
        auto_complete, deny_old: see `CaRotation`.
    """

    signer: str | None = None
    secret: bytes | None = field(default=None, repr=False)
    auto_complete: bool = False
    deny_old: bool = False


@dataclass(frozen=True, slots=True)
class ReportedResult:
    """How an API server treated a certificate of a client CA, as an operator reports it. See `CaProof`."""

    ca_id: str
    address: str
    outcome: ProofOutcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CaRotations:
    """Starts, shows, completes and aborts rotations of client CAs. Does not authorize."""

    queries: CaRotationQueries
    cas: ClientCaQueries
    clusters: ClusterQueries
    signers: Mapping[str, Signer]
    prover: Prover
    now: Callable[[], datetime]
    ca_key_type: KeyType = "ec-p256"

    async def start(
        self, cluster: Cluster, options: RotationOptions, *, actor: Actor, planned: bool = False
    ) -> RotationStatus:
        """Create a new client CA, and start the rotation to it.

        Raises InvalidRequest if the signer is not installed or creates no CA, Conflict if the cluster has no client CA,
        a rotation of the cluster is running or the key of the new CA was deleted, or an error of the signer.

        Args:
            planned: whether this is a dry run. In a dry run, the built-in signer creates the CA.
        """
        cluster.client_ca.require_certificate()
        signer = options.signer or cluster.signer
        if signer == TOKEN_SIGNER:
            raise InvalidRequest(
                "signer: the signer token creates no client CA. To change the kind of credential, remove the cluster"
                " and register it again."
            )
        if signer not in self.signers:
            installed = ", ".join(sorted(self.signers))
            raise InvalidRequest(f"signer: {signer} is not installed. Installed: {installed}.")
        running = await self.queries.rotation(cluster.id)
        if running is not None and running.is_running:
            # Check this before the signer creates a key. The store checks it again.
            raise Conflict(
                f"A rotation of the cluster's client CA is running: it is {running.state}. Wait until it is complete,"
                " or abort it."
            )
        now = self.now()
        request = CaRequest(
            cluster.id,
            cluster,
            self.ca_key_type,
            now.replace(microsecond=0) - BACKDATE,
            CA_LIFETIME,
            options.secret,
        )
        if planned:
            new_ca = await signer_named(self.signers, LOCAL).create_ca(request)
        else:
            new_ca = await create_ca(self.signers[signer], request, self.cas)
        new_ca = replace(new_ca, state="next")
        if certificate_der(new_ca.ca_certificate) == certificate_der(cluster.client_ca.ca_certificate):
            raise Conflict(f"The signer {signer} has no other CA for this cluster.")
        rotation = CaRotation(
            cluster_id=cluster.id,
            old_ca_id=cluster.client_ca.id,
            new_ca_id=new_ca.id,
            since=now,
            started_at=now,
            started_by=actor.id,
            auto_complete=options.auto_complete,
            deny_old=options.deny_old,
        )
        event = rotation_event(
            "ca_rotation.started", cluster, rotation, (cluster.client_ca, new_ca), now, actor
        )
        await self.queries.start(rotation, new_ca, event)
        return await self._status(cluster, rotation, cluster.client_ca, new_ca)

    async def status(self, cluster: Cluster) -> RotationStatus:
        """Return the running rotation, or the last one if none is running.

        Raises NotFound if the CA was never rotated, or Conflict if the cluster has no client CA.
        """
        return await self._current(cluster, await self._required(cluster))

    async def page(
        self,
        after: str,
        limit: int,
        *,
        project_id: str | None = None,
        states: Collection[RotationState] | None = None,
    ) -> tuple[RotationStatus, ...]:
        """Return at most `limit` rotations of clusters with ids above `after`, sorted by the cluster's id.

        The statuses name no holders.
        """
        rotations = await self.queries.page(after, limit, project_id=project_id, states=states)
        ids = [each.cluster_id for each in rotations]
        clusters = {each.id: each for each in await self.clusters.clusters_with_ids(ids)}
        cas = await self.cas.cas([ca_id for each in rotations for ca_id in (each.old_ca_id, each.new_ca_id)])
        now = self.now()
        holders = await self.queries.holders(list(cas), ids, now)
        return tuple(
            RotationStatus(
                at=now,
                cluster=clusters[each.cluster_id],
                rotation=each,
                old_ca=cas[each.old_ca_id],
                new_ca=cas[each.new_ca_id],
                old=holders[each.old_ca_id],
                new=holders[each.new_ca_id],
            )
            # A cluster may be removed at the same time.
            for each in rotations
            if each.cluster_id in clusters and {each.old_ca_id, each.new_ca_id} <= cas.keys()
        )

    async def complete(
        self, cluster: Cluster, *, holders: int | None, deny_old: bool | None, actor: Actor
    ) -> RotationStatus:
        """Remove the old CA from the bundle. The rotation is complete once every API server refuses the old CA.

        Does nothing if somebody has asked for completion before, or if the rotation is complete. Raises Conflict before
        `draining`, or if certificates of the old CA are valid.

        Args:
            holders: complete although this many certificates of the old CA are valid; their exact number. None: only
                if none is valid.
            deny_old: whether the webhook denies certificates of the old CA from now on; None keeps what was chosen.
        """
        return await _retried(lambda: self._complete(cluster, holders, deny_old, actor))

    async def _complete(
        self, cluster: Cluster, holders: int | None, deny_old: bool | None, actor: Actor
    ) -> RotationStatus:
        rotation = await self._required(cluster)
        is_same = deny_old is None or deny_old == rotation.deny_old
        if rotation.state == "complete" or (rotation.is_completing and is_same):
            return await self._current(cluster, rotation)
        now = self.now()
        after = rotation.completing(now, forced=holders is not None, deny_old=deny_old)
        # If completion was asked for before, only `deny_old` changes.
        expected = None if rotation.is_completing else holders or 0
        return await self._save(
            "ca_rotation.completion_requested",
            cluster,
            rotation,
            after,
            actor,
            expected=expected,
            holders=holders,
        )

    async def abort(self, cluster: Cluster, *, actor: Actor) -> RotationStatus:
        """Abort the running rotation; see `CaRotation.aborted`. Does nothing if it is aborted. Raises Conflict."""
        return await _retried(lambda: self._abort(cluster, actor))

    async def _abort(self, cluster: Cluster, actor: Actor) -> RotationStatus:
        rotation = await self._required(cluster)
        after = rotation.aborted(self.now())
        if after is rotation:
            return await self._current(cluster, rotation)
        counted = await self.queries.holders([rotation.new_ca_id], [cluster.id], self.now())
        kind: CaRotationChange = "ca_rotation.reversed" if after.is_running else "ca_rotation.aborted"
        return await self._save(
            kind, cluster, rotation, after, actor, holders=counted[rotation.new_ca_id].certificates
        )

    async def temporary_certificates(
        self, cluster: Cluster, key: PublicKey, *, actor: Actor
    ) -> tuple[tuple[ClientCA, Issued], ...]:
        """Issue a certificate of the new CA, and one of the old CA while its completion is proved.

        Somebody uses them to prove the CAs from a place that reaches the API servers. Raises Conflict if no rotation is
        running, or an error of the signer.
        """
        status = await self.status(cluster)
        if not status.rotation.is_running:
            raise Conflict("No rotation of the cluster's client CA is running, so there is nothing to prove.")
        cas = [status.new_ca, status.old_ca] if status.rotation.is_completing else [status.new_ca]
        return tuple([(ca, await self.prover.issue(cluster, ca, key, actor.origin)) for ca in cas])

    async def addresses(self, cluster: Cluster, rotation: CaRotation) -> tuple[str, ...]:
        """Return the addresses at which a rotation has to be proved.

        If the cluster does not answer, returns the addresses as last read. Raises RemoteFailed, or Unavailable if they
        were never read.
        """
        try:
            return await self.prover.api_servers(cluster)
        except Unavailable:
            if not rotation.addresses:
                raise
            return rotation.addresses

    async def report(
        self, cluster: Cluster, results: Sequence[ReportedResult], *, actor: Actor
    ) -> RotationStatus:
        """Store what an operator has found out about the API servers.

        Raises Conflict if no rotation is running, or InvalidRequest for an unknown CA or address.
        """
        return await _retried(lambda: self._report(cluster, results, actor))

    async def _report(
        self, cluster: Cluster, results: Sequence[ReportedResult], actor: Actor
    ) -> RotationStatus:
        status = await self.status(cluster)
        rotation, now = status.rotation, self.now()
        if not rotation.is_running:
            raise Conflict("No rotation of the cluster's client CA is running, so there is nothing to prove.")
        addresses = await self.addresses(cluster, rotation)
        for each in results:
            if each.ca_id not in (rotation.old_ca_id, rotation.new_ca_id):
                raise InvalidRequest(f"client_ca_id: {each.ca_id} is not a CA of this rotation.")
            if each.address not in addresses:
                raise InvalidRequest(
                    f"address: {each.address} is not an API server of this cluster. Its API servers:"
                    f" {', '.join(addresses)}. Change them with `clustercert cluster update --api-server`."
                )
            if not is_plain_text(each.detail):
                raise InvalidRequest("detail: write it in one line of printable characters.")
        proofs = [
            CaProof(each.ca_id, each.address, each.outcome, now, actor.id, each.detail) for each in results
        ]
        event = CaProofReported(
            at=now,
            project_id=cluster.project_id,
            actor=actor,
            subject=cluster.id,
            proofs=tuple(
                ReportedProof(
                    client_ca_id=each.ca_id, address=each.address, outcome=each.outcome, detail=each.detail
                )
                for each in proofs
            ),
        )
        saved = await self.queries.save(rotation, rotation.with_proofs(proofs, addresses), event)
        return replace(status, rotation=saved)

    async def _save(
        self,
        kind: CaRotationChange,
        cluster: Cluster,
        before: CaRotation,
        after: CaRotation,
        actor: Actor,
        *,
        expected: int | None = None,
        holders: int | None = None,
    ) -> RotationStatus:
        """Save a change by an operator. `expected` and `holders`: see `CaRotationQueries.save` and the event."""
        cas = await self._cas(after)
        now = self.now()
        event = rotation_event(kind, cluster, after, cas, now, actor, holders=holders)
        saved = await self.queries.save(before, after, event, holders=expected, now=now)
        return await self._current(cluster, saved)

    async def _required(self, cluster: Cluster) -> CaRotation:
        cluster.client_ca.require_certificate()
        rotation = await self.queries.rotation(cluster.id)
        if rotation is None:
            raise NotFound("The client CA of this cluster was never rotated.")
        return rotation

    async def _cas(self, rotation: CaRotation) -> tuple[ClientCA, ClientCA]:
        """Return the old and the new CA. Raises NotFound if the cluster was removed."""
        found = await self.cas.cas([rotation.old_ca_id, rotation.new_ca_id])
        if len(found) < 2:  # noqa: PLR2004 - the old and the new one
            raise NotFound("The cluster was removed.")
        return found[rotation.old_ca_id], found[rotation.new_ca_id]

    async def _current(self, cluster: Cluster, rotation: CaRotation) -> RotationStatus:
        return await self._status(cluster, rotation, *await self._cas(rotation))

    async def _status(
        self, cluster: Cluster, rotation: CaRotation, old_ca: ClientCA, new_ca: ClientCA
    ) -> RotationStatus:
        now = self.now()
        counted = await self.queries.holders([old_ca.id, new_ca.id], [cluster.id], now)
        return RotationStatus(
            at=now,
            cluster=cluster,
            rotation=rotation,
            old_ca=old_ca,
            new_ca=new_ca,
            old=counted[old_ca.id],
            new=counted[new_ca.id],
            holders=await self.queries.holders_of_ca(old_ca, now, MAX_HOLDERS),
        )


async def _retried(change: Callable[[], Awaitable[RotationStatus]]) -> RotationStatus:
    """Make a change again if somebody else has changed the rotation between its read and its write."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(ConcurrentChange):
            return await change()
    return await change()


def rotation_event(
    kind: CaRotationChange,
    cluster: Cluster,
    rotation: CaRotation,
    cas: tuple[ClientCA, ClientCA],
    at: datetime,
    actor: Actor,
    *,
    holders: int | None = None,
    addresses: tuple[str, ...] = (),
    problem: str | None = None,
) -> CaRotationChanged:
    """Return the audit event about a rotation after a change. `cas`: the old and the new CA."""
    old_ca, new_ca = cas
    return CaRotationChanged(
        at=at,
        kind=kind,
        project_id=cluster.project_id,
        actor=actor,
        subject=cluster.id,
        state=rotation.state,
        old_ca_id=old_ca.id,
        new_ca_id=new_ca.id,
        old_signer=old_ca.signer,
        new_signer=new_ca.signer,
        auto_complete=rotation.auto_complete,
        deny_old=rotation.deny_old,
        reverses=rotation.reverses,
        forced=rotation.forced,
        holders=holders,
        addresses=addresses,
        problem=problem,
    )

"""The rotation of a cluster's client CA, as a state machine without I/O.

A method that changes the state returns a new `CaRotation`, or raises Conflict if the state does not allow the step. The
store saves the result only if nobody has changed the rotation meanwhile.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from clustercert.model.choices import CaState, ProofOutcome, RotationState
from clustercert.model.errors import Conflict

if TYPE_CHECKING:
    from clustercert.model.clusters import ClientCA, Cluster

# How long a proof counts.
PROOF_AGE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class CaProof:
    """The result of connecting to one API server with a temporary certificate of a client CA.

    Attributes:
        address: the URL of the API server.
        by: the id of the user who reported the result, or the service's own name.
        detail: why the attempt failed; empty if the API server accepted or refused the certificate.
    """

    ca_id: str
    address: str
    outcome: ProofOutcome
    at: datetime
    by: str
    detail: str = ""

    def replaces(self, before: "CaProof | None") -> bool:
        """Whether to keep this proof instead of an earlier proof for the same CA and address.

        The service may have no route to an address that an operator reaches. So a failed attempt does not replace a
        recent result of somebody else.
        """
        return (
            before is None
            or self.outcome != "failed"
            or before.outcome == "failed"
            or before.by == self.by
            or self.at - before.at > PROOF_AGE
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CaRotation:
    """A rotation from a cluster's old client CA to a new one. A cluster has at most one rotation that is running.

    Attributes:
        state: `planned`: the new CA is in the bundle, but not proved. `distributed`: every API server accepts the new
            CA. `issuing`: new certificates come from the new CA. `draining`: no worker can issue from the old CA any
            more. `complete`: every API server refuses the old CA. `aborted`: the old CA signs as before.
        since: when the state began.
        auto_complete: whether to ask for completion as soon as no certificate of the old CA is valid.
        deny_old: whether the webhook denies certificates of the old CA after somebody asks for completion.
        reverses: whether this rotation goes back to the previous CA, because somebody aborted the rotation after
            `issuing` began.
        completion_asked_at: when somebody asked for completion, so that the old CA left the bundle; None if nobody has
            asked.
        forced: whether completion was asked for while certificates of the old CA were valid.
        addresses: the API servers that have to be proved, as last read.
        problem: why the last attempt to advance the rotation failed; None if it did not fail.
        version: increases with each change.
    """

    cluster_id: str
    old_ca_id: str
    new_ca_id: str
    state: RotationState = "planned"
    since: datetime
    started_at: datetime
    started_by: str
    auto_complete: bool = False
    deny_old: bool = False
    reverses: bool = False
    completion_asked_at: datetime | None = None
    forced: bool = False
    addresses: tuple[str, ...] = ()
    proofs: tuple[CaProof, ...] = ()
    problem: str | None = None
    problem_at: datetime | None = None
    version: int = 0

    @property
    def is_running(self) -> bool:
        return self.state not in ("complete", "aborted")

    @property
    def is_completing(self) -> bool:
        """Whether the old CA has left the bundle, but not all API servers are proved to refuse it."""
        return self.state == "draining" and self.completion_asked_at is not None

    @property
    def remaining_ca_id(self) -> str:
        """The CA that the cluster has when the rotation has ended."""
        return self.old_ca_id if self.state == "aborted" else self.new_ca_id

    @property
    def discarded_ca_id(self) -> str | None:
        """The CA that is not needed any more, so that its key has to be deleted; None while the rotation runs."""
        ended = {"complete": self.old_ca_id, "aborted": self.new_ca_id}
        return ended.get(self.state)

    @property
    def denied_ca_id(self) -> str | None:
        """The CA whose certificates the webhook denies, or None."""
        return self.old_ca_id if self.deny_old and self.completion_asked_at is not None else None

    def ca_states(self) -> Mapping[str, CaState]:
        """Return the states of the two CAs, by id."""
        states: dict[RotationState, tuple[CaState, CaState]] = {
            "planned": ("active", "next"),
            "distributed": ("active", "next"),
            "issuing": ("retiring", "active"),
            "draining": ("retiring", "active"),
            "complete": ("retired", "active"),
            "aborted": ("active", "retired"),
        }
        old, new = states[self.state]
        return {self.old_ca_id: old, self.new_ca_id: new}

    def proof(self, ca_id: str, address: str) -> CaProof | None:
        """Return the result of the last attempt with this CA at this address."""
        return next((each for each in self.proofs if (each.ca_id, each.address) == (ca_id, address)), None)

    def with_proofs(
        self, proofs: Iterable[CaProof], addresses: tuple[str, ...] | None = None
    ) -> "CaRotation":
        """Return the rotation with further results. Drops the results for addresses that are gone."""
        known = {(each.ca_id, each.address): each for each in self.proofs}
        for proof in proofs:
            if proof.replaces(known.get((proof.ca_id, proof.address))):
                known[proof.ca_id, proof.address] = proof
        addresses = self.addresses if addresses is None else addresses
        return replace(
            self,
            addresses=addresses,
            proofs=tuple(proof for (_, address), proof in known.items() if address in addresses),
        )

    def unproved(self, now: datetime) -> tuple[str, ...]:
        """Return the addresses that were not seen to accept the new CA within `PROOF_AGE`."""
        return tuple(
            address
            for address in self.addresses
            if (proof := self.proof(self.new_ca_id, address)) is None
            or proof.outcome != "accepted"
            or now - proof.at > PROOF_AGE
        )

    def not_accepting(self) -> tuple[str, ...]:
        """Return the addresses that did not accept the new CA at the last attempt, however long ago."""
        return tuple(
            address
            for address in self.addresses
            if (proof := self.proof(self.new_ca_id, address)) is None or proof.outcome != "accepted"
        )

    def trusting(self) -> tuple[str, ...]:
        """Return the addresses that were not seen to refuse the old CA since completion was asked for."""
        return tuple(
            address
            for address in self.addresses
            if (proof := self.proof(self.old_ca_id, address)) is None
            or proof.outcome != "refused"
            or self.completion_asked_at is None
            or proof.at < self.completion_asked_at
        )

    def advanced(self, state: RotationState, now: datetime, *, needs_proof: bool = True) -> "CaRotation":
        """Return the rotation in the next state, which began now, without the problem of the previous state.

        Raises Conflict if the state does not follow, or if a proof is missing.

        Args:
            needs_proof: whether the API servers must be proved to refuse the old CA. False only if the old CA has
                expired, or is the cluster's own CA, which stays trusted.
        """
        if (self.state, state) not in _STEPS:
            raise Conflict(f"The rotation is {self.state}, and can't become {state}.")
        if state in ("distributed", "issuing") and (not self.addresses or self.unproved(now)):
            raise Conflict("Not every API server is proved to accept the new client CA.")
        if state == "complete" and not self.is_completing:
            raise Conflict("Nobody has asked for completion.")
        if state == "complete" and needs_proof and (not self.addresses or self.trusting()):
            raise Conflict("Not every API server is proved to refuse the old client CA.")
        return replace(self, state=state, since=now, problem=None, problem_at=None)

    def completing(self, now: datetime, *, forced: bool, deny_old: bool | None) -> "CaRotation":
        """Return the rotation after somebody asked for completion. Raises Conflict before `draining`."""
        if self.state != "draining":
            raise Conflict(
                f"The rotation is {self.state}. You can complete the rotation once it is draining: then no certificate"
                " of the old CA can be issued any more."
            )
        return replace(
            self,
            completion_asked_at=self.completion_asked_at or now,
            forced=forced or self.forced,
            deny_old=self.deny_old if deny_old is None else deny_old,
            problem=None,
            problem_at=None,
        )

    def aborted(self, now: datetime) -> "CaRotation":
        """Return the rotation after an abort.

        Before `issuing`, nobody has a certificate of the new CA, so the rotation ends. Afterwards, the rotation changes
        its direction: the previous CA signs again as soon as every API server is proved to accept this CA. A rotation
        that was aborted before is returned unchanged, so that an abort can be repeated. Raises Conflict if the rotation
        is complete.
        """
        if self.state == "complete":
            raise Conflict(
                "The rotation is complete, and the key of the old CA is deleted. Start a new rotation instead."
            )
        if self.state == "aborted" or self.reverses:
            return self
        if self.state in ("planned", "distributed"):
            return replace(self, state="aborted", since=now, problem=None, problem_at=None)
        return replace(
            self,
            old_ca_id=self.new_ca_id,
            new_ca_id=self.old_ca_id,
            state="planned",
            since=now,
            reverses=True,
            completion_asked_at=None,
            forced=False,
            problem=None,
            problem_at=None,
        )


_STEPS: frozenset[tuple[RotationState, RotationState]] = frozenset(
    {
        ("planned", "distributed"),
        ("distributed", "planned"),
        ("distributed", "issuing"),
        ("issuing", "draining"),
        ("draining", "complete"),
    }
)


def _setup_command(cluster: str) -> str:
    return f"clustercert kubernetes setup {cluster} --out DIR --force"


def replace_cas(cluster: str, cas: str) -> str:
    """Return how an operator replaces this installation's client CAs at the API servers of a cluster.

    The cluster's own client CAs must stay: without these CAs, the cluster's nodes and control plane lose access.
    """
    return (
        "On every API server, in the file that --client-ca-file names: keep the cluster's own CAs, and replace"
        f" clustercert's CAs with {cas}. `{_setup_command(cluster)}` writes {cas}, and"
        " DIR/README.md has the steps for the distribution."
    )


@dataclass(frozen=True, slots=True)
class Holders:
    """The certificates of a client CA that are valid and not revoked, except this service's own certificates.

    Attributes:
        used_last_hour: the number of these certificates that an API server reported within the last hour.
        until: when the last of these certificates expires; None if there are none.
    """

    certificates: int = 0
    used_last_hour: int = 0
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class CaHolder:
    """A user with valid certificates of a client CA. See `Holders`."""

    user_id: str
    user_name: str
    certificates: int
    until: datetime
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True)
class RotationStatus:
    """A rotation, with what an operator needs to know about it.

    Attributes:
        at: when the status was read.
        old, new: the holders of certificates of the old and of the new CA.
        holders: users with certificates of the old CA, latest expiry first; empty in lists.
        started_by_name: the name of the user who started the rotation, or None if it is not known.
    """

    at: datetime
    cluster: "Cluster"
    rotation: CaRotation
    old_ca: "ClientCA"
    new_ca: "ClientCA"
    old: Holders = Holders()
    new: Holders = Holders()
    holders: tuple[CaHolder, ...] = ()
    started_by_name: str | None = None

    @property
    def safe_at(self) -> datetime | None:
        """From this time on, nobody loses access if the rotation is completed; None while the old CA may sign."""
        if self.rotation.state not in ("draining", "complete"):
            return None
        return max(self.rotation.since, self.old.until) if self.old.until is not None else self.rotation.since

    @property
    def next_step(self) -> str:
        """What the operator has to do, in one or two sentences."""
        return self._next_step()[0]

    @property
    def next_commands(self) -> tuple[str, ...]:
        """The commands in `next_step`, in the order in which the operator runs them."""
        return self._next_step()[1]

    def _next_step(self) -> tuple[str, tuple[str, ...]]:
        """Return `next_step` and `next_commands`."""
        rotation = self.rotation
        # A bare name is ambiguous if two projects have a cluster of this name.
        name = shlex.quote(self.cluster.shown_name)
        unproved = rotation.unproved(self.at) if rotation.addresses else (self.cluster.internal_url,)
        setup = (_setup_command(name),)
        if rotation.is_completing:
            missing = ", ".join(rotation.trusting())
            text = f"{replace_cas(name, 'the new CA')} The old CA is not proved to be refused at {missing}."
            return text, setup
        if rotation.state == "draining":
            return self._draining_step(name)
        if rotation.state == "aborted":
            return replace_cas(name, "the CA that signs as before"), setup
        if rotation.state == "planned" and unproved:
            missing = ", ".join(unproved)
            text = f"{replace_cas(name, 'the old and the new CA')} The new CA is not proved at {missing}."
            return text, setup
        waits = {
            "planned": "Nothing. Every API server accepts the new CA, so the rotation goes on by itself.",
            "distributed": "Nothing. The new CA signs as soon as every API server has been proved once more.",
            "issuing": "Nothing. The rotation waits until no worker can issue from the old CA any more.",
            "complete": "Nothing. The rotation is complete.",
        }
        return waits[rotation.state], ()

    def _draining_step(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Return what the operator has to do before anybody asks for completion, and the commands for it."""
        complete = f"clustercert cluster ca complete {name}"
        prove = f"clustercert cluster ca prove {name}"
        if self.old.until is not None:
            text = (
                f"Wait until {self.old.until:%Y-%m-%d %H:%M} UTC, when the last certificate of the old CA expires"
                f" (valid now: {self.old.certificates}). Then run `{complete}`."
            )
            return text, (complete,)
        if unproved := self.rotation.not_accepting():
            text = (
                f"The new CA is not proved at {', '.join(unproved)}. Let these API servers accept the new"
                " CA, and remove the addresses of machines that are gone. If the service does not reach"
                f" them, run `{prove}`. Then run `{complete}`. No certificate of the old CA is valid."
            )
            return text, (prove, complete)
        return f"Run `{complete}`. No certificate of the old CA is valid.", (complete,)

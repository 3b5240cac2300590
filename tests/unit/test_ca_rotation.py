"""The state machine of a client CA's rotation, without a store."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model.ca_rotation import PROOF_AGE, CaProof, CaRotation, Holders, RotationStatus
from clustercert.model.choices import ProofOutcome, RotationState
from clustercert.model.errors import Conflict
from clustercert.model.identity import Domain, ProjectName
from support.samples import CLUSTER_ID, NOW, client_ca, cluster

OLD, NEW = "a" * 32, "b" * 32
FIRST, SECOND = "https://10.0.0.1:6443", "https://10.0.0.2:6443"
BOTH = (FIRST, SECOND)
LATER = NOW + timedelta(minutes=1)


def rotation(state: RotationState = "planned", **more: object) -> CaRotation:
    made = CaRotation(
        cluster_id=CLUSTER_ID,
        old_ca_id=OLD,
        new_ca_id=NEW,
        state=state,
        since=NOW,
        started_at=NOW,
        started_by="cli:test",
        addresses=BOTH,
    )
    return replace(made, **more)  # type: ignore[arg-type] # fields of the dataclass


def proof(
    address: str, outcome: ProofOutcome = "accepted", ca_id: str = NEW, by: str = "service", **more: object
) -> CaProof:
    return replace(CaProof(ca_id, address, outcome, NOW, by), **more)  # type: ignore[arg-type]


NOBODY = Holders()
PROVED = (proof(FIRST), proof(SECOND))
REFUSED = (proof(FIRST, "refused", OLD), proof(SECOND, "refused", OLD))


@pytest.mark.parametrize(
    "proofs",
    [
        (),
        (proof(FIRST),),
        (proof(FIRST), proof(SECOND, "refused")),
        (proof(FIRST), proof(SECOND, "failed")),
        (proof(FIRST), proof(SECOND, at=NOW - PROOF_AGE)),
        (proof(FIRST), proof(SECOND, ca_id=OLD)),
    ],
    ids=["no proof", "one address", "refused", "silent", "too old", "another CA"],
)
def test_the_new_ca_is_used_only_after_a_recent_proof_at_each_address(proofs: tuple[CaProof, ...]) -> None:
    for state, following in (("planned", "distributed"), ("distributed", "issuing")):
        with pytest.raises(Conflict, match="Not every API server is proved to accept"):
            rotation(state, proofs=proofs).advanced(following, LATER)  # type: ignore[arg-type]
        assert rotation(state, proofs=PROVED).advanced(following, LATER).state == following  # type: ignore[arg-type]


def test_a_rotation_without_addresses_is_proved_nowhere() -> None:
    with pytest.raises(Conflict):
        rotation(addresses=()).advanced("distributed", NOW)


def test_an_address_that_was_added_has_to_be_proved_too() -> None:
    third = "https://10.0.0.3:6443"
    proved = rotation("distributed", proofs=PROVED).with_proofs((), (*BOTH, third))
    assert proved.unproved(LATER) == (third,)
    assert rotation("distributed", proofs=PROVED).with_proofs((), (FIRST,)).proofs == (PROVED[0],)


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (proof(FIRST), proof(FIRST, "failed"), "failed"),
        (proof(FIRST, by="operator"), proof(FIRST, "failed"), "accepted"),
        (proof(FIRST, by="operator"), proof(FIRST, "refused"), "refused"),
        (proof(FIRST, by="operator"), proof(FIRST, "failed", at=NOW + 2 * PROOF_AGE), "failed"),
        (proof(FIRST, "failed"), proof(FIRST, by="operator"), "accepted"),
    ],
    ids=["own", "operator's", "contradiction", "long ago", "after a failure"],
)
def test_only_a_silent_address_leaves_the_proof_of_somebody_else(
    before: CaProof, after: CaProof, kept: ProofOutcome
) -> None:
    found = rotation(proofs=(before,)).with_proofs((after,)).proof(NEW, FIRST)
    assert found is not None
    assert found.outcome == kept


def test_a_rotation_is_complete_only_after_every_address_refused_the_old_ca() -> None:
    asked = rotation("draining", proofs=PROVED).completing(NOW, forced=False, deny_old=None)
    for proofs in (PROVED, (*PROVED, REFUSED[0]), (*PROVED, REFUSED[0], proof(SECOND, "failed", OLD))):
        with pytest.raises(Conflict, match="Not every API server is proved to refuse"):
            replace(asked, proofs=proofs).advanced("complete", LATER)
    early = tuple(replace(each, at=NOW - timedelta(seconds=1)) for each in REFUSED)
    with pytest.raises(Conflict, match="Not every API server is proved to refuse"):
        replace(asked, proofs=(*PROVED, *early)).advanced("complete", LATER)
    done = replace(asked, proofs=(*PROVED, *REFUSED)).advanced("complete", LATER)
    assert (done.state, done.discarded_ca_id) == ("complete", OLD)
    with pytest.raises(Conflict, match="Nobody has asked"):
        rotation("draining", proofs=(*PROVED, *REFUSED)).advanced("complete", LATER)


@pytest.mark.parametrize("state", ["planned", "distributed", "issuing", "complete", "aborted"])
def test_nobody_completes_before_the_old_ca_is_drained(state: RotationState) -> None:
    with pytest.raises(Conflict):
        rotation(state).completing(NOW, forced=True, deny_old=None)


@pytest.mark.parametrize("state", ["planned", "distributed"])
def test_an_abort_before_issuing_discards_the_new_ca(state: RotationState) -> None:
    aborted = rotation(state).aborted(LATER)
    assert (aborted.state, aborted.discarded_ca_id) == ("aborted", NEW)
    assert aborted.ca_states() == {OLD: "active", NEW: "retired"}
    assert aborted.aborted(LATER) is aborted


@pytest.mark.parametrize("state", ["issuing", "draining"])
def test_an_abort_later_goes_back_and_can_be_repeated(state: RotationState) -> None:
    asked = rotation(state, completion_asked_at=NOW if state == "draining" else None, deny_old=True)
    back = asked.aborted(LATER)
    assert (back.state, back.reverses, back.new_ca_id, back.denied_ca_id) == ("planned", True, OLD, None)
    # The CA that signed stays until the former one is proved.
    assert back.ca_states() == {NEW: "active", OLD: "next"}
    for repeated in (back, replace(back, state="distributed"), replace(back, state="draining")):
        assert repeated.aborted(LATER) is repeated


def test_a_complete_rotation_is_not_aborted() -> None:
    with pytest.raises(Conflict, match="complete"):
        rotation("complete").aborted(LATER)


@given(
    st.lists(st.sampled_from(["distributed", "planned", "issuing", "draining", "complete", "abort", "ask"]))
)
def test_exactly_one_ca_signs_and_a_new_one_only_after_proof(steps: list[str]) -> None:
    """Whatever steps are tried, in any order, and with all proofs at hand."""
    proofs = tuple(proof(address, "accepted", ca_id) for address in BOTH for ca_id in (NEW, OLD))
    found = rotation(proofs=proofs)
    for step in steps:
        before = found
        try:
            if step == "abort":
                found = found.aborted(LATER)
            elif step == "ask":
                found = found.completing(NOW, forced=True, deny_old=True)
            else:
                found = found.advanced(step, LATER)  # type: ignore[arg-type]
        except Conflict:
            continue
        [active] = [ca_id for ca_id, state in found.ca_states().items() if state == "active"]
        if before.ca_states()[active] != "active":
            assert (before.state, found.state) == ("distributed", "issuing")
        assert found.state != "complete"


def test_the_status_says_what_to_do() -> None:
    old, new = replace(client_ca(), id=OLD), replace(client_ca(), id=NEW)

    def status(found: CaRotation, holders: Holders = NOBODY) -> RotationStatus:
        return RotationStatus(
            at=LATER, cluster=cluster(), rotation=found, old_ca=old, new_ca=new, old=holders
        )

    waiting = status(rotation(proofs=(proof(FIRST),)))
    assert waiting.next_step.endswith(f" The new CA is not proved at {SECOND}.")
    assert "replace clustercert's CAs with the old and the new CA." in waiting.next_step
    assert waiting.safe_at is None
    held = status(rotation("draining"), Holders(3, 1, NOW + timedelta(hours=8)))
    assert (
        "Wait until 2026-03-14 23:09 UTC, when the last certificate of the old CA expires (valid now: 3)"
        in held.next_step
    )
    assert held.safe_at == NOW + timedelta(hours=8)
    unreached = status(rotation("draining", proofs=(proof(FIRST), proof(SECOND, "failed"))))
    assert unreached.next_step.startswith(f"The new CA is not proved at {SECOND}. ")
    assert "Then run `clustercert cluster ca complete production`." in unreached.next_step
    prove, complete = (f"clustercert cluster ca {each} production" for each in ("prove", "complete"))
    assert (held.next_commands, unreached.next_commands) == ((complete,), (prove, complete))
    free = status(rotation("draining", proofs=PROVED))
    assert free.next_step.startswith("Run `clustercert cluster ca complete production`.")
    assert free.safe_at == NOW
    asked = status(rotation("draining", completion_asked_at=NOW, proofs=REFUSED[:1]))
    assert "replace clustercert's CAs with the new CA." in asked.next_step
    aborted = status(rotation("aborted"))
    assert "replace clustercert's CAs with the CA that signs as before." in aborted.next_step
    for each in (waiting, asked, aborted):
        assert "keep the cluster's own CAs" in each.next_step
        assert each.next_commands == ("clustercert kubernetes setup production --out DIR --force",)
        assert f"`{each.next_commands[0]}`" in each.next_step
    of_project = replace(
        cluster(), project_name=ProjectName("eu-de", Domain("d1", "Acme Inc"), is_unique=True)
    )
    assert "complete 'Acme Inc/eu-de/production'`" in replace(free, cluster=of_project).next_step
    assert asked.next_step.endswith(f"The old CA is not proved to be refused at {SECOND}.")

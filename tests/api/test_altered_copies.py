"""Altered copies, forged certificates and those from before the upgrade, as an API server asks about them."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

import altered
import world as worlds
from altered_cluster import CAS, WAYS, Held, Site, Way, review, site
from apiserver.expressions import holds
from clustercert.manifests.authorization import Asking, match_conditions
from clustercert.model import Cluster, ClusterOptions, KeyType, credential_group
from clustercert.webhook import sightings
from inprocess import Service
from stores import execute
from waiting import eventually
from world import Person, World

Guard = Literal["default", "known-only", "wide"]
# Whatever an operator may come to exempt; the checks of `cluster update` would not take the first.
EVERYTHING = ("*", "clustercert:*", "system:*")
OPTIONS: dict[Guard, ClusterOptions] = {
    "default": ClusterOptions(),
    "known-only": ClusterOptions(mode="known-only"),
    "wide": ClusterOptions(mode="known-only", exemptions=EVERYTHING),
}
ADMINS = "clustercert:admins"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("altered"))


@pytest.fixture(scope="module")
def service(own: World) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch, Service(own.settings()).running() as running:
        # What is seen is written down at once, or each test would wait for it.
        patch.setattr(sightings, "FLUSH_SECONDS", 0.1)
        yield running


@pytest.fixture(scope="module")
def sites(own: World, service: Service) -> dict[tuple[KeyType, Guard], Site]:
    """A cluster of each kind."""
    return {
        (key_type, guard): site(own, service, key_type, options)
        for key_type in CAS
        for guard, options in OPTIONS.items()
    }


@pytest.fixture(params=OPTIONS)
def guarded(request: pytest.FixtureRequest, sites: dict[tuple[KeyType, Guard], Site]) -> Site:
    """A cluster of each mode."""
    return sites["ec-p256", request.param]


@pytest.fixture
def default(sites: dict[tuple[KeyType, Guard], Site]) -> Site:
    return sites["ec-p256", "default"]


@pytest.fixture(scope="module")
def admin(sites: dict[tuple[KeyType, Guard], Site]) -> Person:
    """Somebody of whom nothing is revoked."""
    return sites["ec-p256", "default"].new_person()


def is_asked(cluster: Cluster, der: bytes, *, tells_hash: bool = True, older: bool = False) -> bool:
    """Whether the API server asks at all, by the conditions that `kubernetes setup` writes.

    `older`: while certificates without a credential group are alive.
    """
    asking = Asking(
        mode=cluster.options.mode,
        groups=(ADMINS, "clustercert:editors", "clustercert:viewers"),
        unnumbered_until=datetime.now(UTC) if older else None,
        exemptions=cluster.options.exemptions,
        failure_policy="NoOpinion",
        authorized_ttl="5s",
        unauthorized_ttl="2s",
        timeout="3s",
        kubeconfig="/webhook.kubeconfig",
    )
    spec = review(der)
    if not tells_hash:
        del spec["extra"]
    return all(holds(condition, {"request": spec}) for condition in match_conditions(asking))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("guard", OPTIONS)
@pytest.mark.parametrize("key_type", CAS)
def test_every_copy_of_a_revoked_certificate_is_denied(
    sites: dict[tuple[KeyType, Guard], Site], key_type: KeyType, guard: Guard, way: Way
) -> None:
    here = sites[key_type, guard]
    person = here.new_person()
    lost = here.issue(person)
    copies = altered.copies(lost.der)
    assert copies.keys() == altered.kinds_of(key_type)
    assert here.answer(lost.der) == ""

    here.revoke(way, lost, person)
    eventually(lambda: "revoked" in here.answer(lost.der))

    for kind, copy in copies.items():
        assert "revoked" in here.answer(copy), kind
        assert is_asked(here.cluster, copy), kind
    # Without a hash all encodings are the same, and the group says which certificate it is.
    assert "revoked" in here.answer_without_id(lost.der)
    assert is_asked(here.cluster, lost.der, tells_hash=False)
    good = here.still_good(way, person)
    assert (here.answer(good.der), here.answer_without_id(good.der)) == ("", "")
    assert "revoked" in here.answer(copies["shifted-kilobyte"])


@pytest.mark.parametrize("key_type", CAS)
def test_every_copy_of_a_good_certificate_is_denied_too_and_told_once_an_hour(
    sites: dict[tuple[KeyType, Guard], Site], key_type: KeyType, admin: Person
) -> None:
    here = sites[key_type, "default"]
    held = here.issue(admin)
    for kind, copy in altered.copies(held.der).items():
        assert "altered copy" in here.answer(copy), kind
    assert here.answer(held.der) == ""

    def told() -> list[str]:
        events = here.events("credential.altered")
        return [said["subject"] for said in events if said["detail"]["credential_number"] == held.number]

    eventually(lambda: told() != [])
    assert told() == [held.fingerprint]


# Forged


def is_told_of(here: Site, held: Held, fault: str) -> bool:
    return any(
        said["subject"] == held.fingerprint and said["detail"]["fault"] == fault
        for said in here.events("credential.unknown")
    )


def mallory() -> str:
    return f"system:mallory-{secrets.token_hex(4)}"


def test_a_strangers_number_is_denied_and_told(guarded: Site, admin: Person) -> None:
    stranger = guarded.issue(admin)
    forged = guarded.sign(mallory(), (ADMINS,), stranger.number)
    same_name = guarded.sign(admin.user.id, (ADMINS, "more"), stranger.number)
    for held in (forged, same_name):
        assert "not the one that its credential number names" in guarded.answer(held.der)
        assert "not the one" in guarded.answer_without_id(held.der)
        eventually(lambda held=held: is_told_of(guarded, held, "forged"))  # type: ignore[misc] # the lambda has no types
    assert guarded.answer(stranger.der) == ""


def test_a_copy_of_everything_but_the_key_is_altered(guarded: Site, admin: Person) -> None:
    """The same name, groups and number: only the hash tells that it is another certificate."""
    stranger = guarded.issue(admin)
    forged = guarded.sign(admin.user.id, (ADMINS,), stranger.number)
    assert "altered copy" in guarded.answer(forged.der)


def test_two_numbers_are_denied_and_told(guarded: Site, admin: Person) -> None:
    first, second = guarded.issue(admin), guarded.issue(admin)
    assert first.number is not None
    forged = guarded.sign(admin.user.id, (ADMINS, credential_group(first.number)), second.number)
    assert "not the one" in guarded.answer(forged.der)
    eventually(lambda: is_told_of(guarded, forged, "forged"))


@pytest.mark.parametrize("number", ["", "0" * 39, "A" * 40, "g" * 40, "0" * 39 + "\u0660"])
def test_a_number_that_is_none_is_denied_and_told(guarded: Site, number: str) -> None:
    forged = guarded.sign(mallory(), (ADMINS, f"clustercert:credential:{number}"))
    assert "not the one" in guarded.answer(forged.der)
    eventually(lambda: is_told_of(guarded, forged, "forged"))


def test_a_number_that_nobody_has_is_denied_and_told(guarded: Site) -> None:
    forged = guarded.sign(mallory(), (ADMINS,), secrets.token_hex(20))
    assert "not in the ledger" in guarded.answer(forged.der)
    eventually(lambda: is_told_of(guarded, forged, "unknown"))


def test_a_number_of_another_cluster_is_denied_and_told(
    guarded: Site, sites: dict[tuple[KeyType, Guard], Site], admin: Person
) -> None:
    elsewhere = sites["ec-p384", "default"].issue(admin)
    assert "another cluster" in guarded.answer(elsewhere.der)
    eventually(lambda: is_told_of(guarded, elsewhere, "other_cluster"))


@pytest.mark.parametrize("guard", ["known-only", "wide"])
def test_without_a_number_a_group_of_ours_is_denied_and_told_whatever_is_exempt(
    sites: dict[tuple[KeyType, Guard], Site], guard: Guard
) -> None:
    here = sites["ec-p256", guard]
    for groups in ((ADMINS,), ("system:nodes", "clustercert:viewers"), ("clustercert:anything",)):
        forged = here.sign(mallory(), groups)
        assert "only certificates that clustercert issued" in here.answer(forged.der)
        assert is_asked(here.cluster, forged.der)
        eventually(lambda forged=forged: is_told_of(here, forged, "unknown"))  # type: ignore[misc] # the lambda has no types
    ours_by_name = here.sign("clustercert:service", ())
    assert here.answer(ours_by_name.der) != ""


def test_without_a_number_by_default_it_is_left_to_rbac_and_told(default: Site) -> None:
    """Rule 4: it may be of another CA."""
    forged = default.sign(mallory(), (ADMINS,))
    assert default.answer(forged.der) == ""
    eventually(lambda: is_told_of(default, forged, "unknown"))


def test_the_number_taken_out_of_a_recorded_certificate_is_forged(guarded: Site, admin: Person) -> None:
    """What only a wrong API server can say: the hash is the ledger's, and the group is not there."""
    held = guarded.issue(admin)
    spec = review(held.der)
    spec["groups"] = [ADMINS, "system:authenticated"]
    assert guarded.status(spec)["denied"] is True


def test_a_token_beside_the_group_is_denied(guarded: Site, admin: Person) -> None:
    """Somebody whose identity provider gives them a group under our prefix."""
    spec = review(guarded.issue(admin).der)
    spec["extra"] = {"authentication.kubernetes.io/credential-id": ["JTI=7f3d1a52"]}
    assert guarded.status(spec)["denied"] is True


# From before the upgrade


def older(here: Site, person: Person, **more: Any) -> Held:
    """A certificate without a credential group, in the ledger as a program of then left it."""
    held = here.sign(person.user.id, (ADMINS,), **more)
    here.record_as_older(held, person.user)
    return held


def test_a_certificate_from_before_goes_on_and_its_copies_are_denied(guarded: Site) -> None:
    person = guarded.new_person()
    held = older(guarded, person)
    assert guarded.answer(held.der) == ""
    numbered = guarded.issue(person)
    for kind, copy in altered.copies(held.der).items():
        assert "not in the ledger" in guarded.answer(copy), kind
        assert is_asked(guarded.cluster, copy, older=True), kind
    assert guarded.answer(numbered.der) == ""


@pytest.mark.parametrize("way", WAYS)
def test_a_certificate_from_before_can_be_revoked_and_its_copies_stay_denied(guarded: Site, way: Way) -> None:
    person = guarded.new_person()
    held = older(guarded, person)
    assert guarded.answer(held.der) == ""
    guarded.revoke(way, held, person)
    eventually(lambda: "revoked" in guarded.answer(held.der))
    for kind, copy in altered.copies(held.der).items():
        assert guarded.answer(copy) != "", kind
    assert guarded.answer(guarded.still_good(way, person).der) == ""


def test_the_rule_holds_for_every_cluster_of_the_ledger(
    default: Site, sites: dict[tuple[KeyType, Guard], Site]
) -> None:
    person = default.new_person()
    held = older(sites["ec-p384", "default"], person)
    assert "another cluster" in default.answer(held.der)
    for copy in altered.copies(held.der).values():
        assert "not in the ledger" in default.answer(copy)
        eventually(lambda copy=copy: _told_of_copy(default, copy))  # type: ignore[misc] # the lambda has no types


def _told_of_copy(here: Site, copy: bytes) -> bool:
    """One event for all of a user's copies: they are one identity."""
    user = review(copy)["user"]
    told = [said for said in here.events("credential.unknown") if said["detail"]["username"] == user]
    return len({said["subject"] for said in told}) >= 1


def test_a_forged_certificate_in_the_name_of_an_older_one_is_denied(default: Site) -> None:
    """Rule 3 where rule 4 would let it pass."""
    person = default.new_person()
    forged = default.sign(person.user.id, ("team",))
    assert default.answer(forged.der) == ""
    older(default, person)
    eventually(lambda: "not in the ledger" in default.answer(forged.der))
    eventually(lambda: is_told_of(default, forged, "unknown"))


def test_the_rule_ends_with_the_certificate(default: Site) -> None:
    person = default.new_person()
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=4)
    held = older(default, person, not_after=soon)
    (copy, *_) = altered.copies(held.der).values()
    assert default.answer(copy) != ""
    eventually(lambda: default.answer(copy) == "")
    assert datetime.now(UTC) >= soon
    long_ago = older(default, default.new_person(), not_after=soon - timedelta(minutes=1))
    assert default.answer(altered.copies(long_ago.der)["null"]) == ""


@pytest.mark.parametrize("extra", [None, ["JTI=7f3d1a52"], []])
def test_a_review_without_an_x509_id_is_never_denied_by_the_rule(
    guarded: Site, extra: list[str] | None
) -> None:
    person = guarded.new_person()
    spec = review(older(guarded, person).der)
    if extra is None:
        del spec["extra"]
    else:
        spec["extra"] = {"authentication.kubernetes.io/credential-id": extra}
    assert guarded.status(spec) == {"allowed": False}


def test_a_row_whose_number_a_program_of_then_never_wrote_is_judged_by_its_hash(default: Site) -> None:
    """A real row of today, with what an older program knows nothing of taken away."""
    person = default.new_person()
    held = default.sign(person.user.id, (ADMINS,))
    issued = default.issue(person)
    execute(
        default.world.database,
        "UPDATE certificate SET credential_number = NULL, der = ?, fingerprint = ? WHERE credential_number = ?",
        *(held.der, bytes.fromhex(held.fingerprint), issued.number),
    )
    assert default.answer(held.der) == ""
    assert "not in the ledger" in default.answer(altered.copies(held.der)["twin"])


# With a binding for each certificate, from before the upgrade


def older_with_binding(here: Site, person: Person) -> Held:
    """Its only group has its serial, which nobody recorded as a number."""
    while True:
        serial = int.from_bytes(secrets.token_bytes(20), "big") >> 1
        if serial >> 152:
            break
    number = f"{serial:040x}"
    held = here.sign(person.user.id, (credential_group(number),), serial=serial)
    here.record_as_older(held, person.user)
    return replace(held, number=number)


def test_a_certificate_with_its_serial_in_the_group_is_known_by_it(guarded: Site) -> None:
    person = guarded.new_person()
    held = older_with_binding(guarded, person)
    copies = altered.copies(held.der)
    assert (guarded.answer(held.der), guarded.answer_without_id(held.der)) == ("", "")
    for kind, copy in copies.items():
        assert "altered copy" in guarded.answer(copy), kind
    # It has a group, so rule 3 is not about its user.
    foreign = guarded.sign(person.user.id, ("team",))
    assert "not in the ledger" not in guarded.answer(foreign.der)
    guarded.revoke("certificate", held, person)
    eventually(lambda: "revoked" in guarded.answer(held.der))
    for kind, copy in copies.items():
        assert "revoked" in guarded.answer(copy), kind
    assert "revoked" in guarded.answer_without_id(held.der)

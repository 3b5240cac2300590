"""How the webhook decides on altered copies and forged certificates."""

import secrets
from collections.abc import Iterator
from typing import Literal

import pytest

from clustercert.kubernetes.setup.authorization import WebhookConfig, match_conditions
from clustercert.kubernetes.webhook import credential_usage
from clustercert.model import Cluster, ClusterOptions, KeyType, credential_group
from support import altered_certificates
from support import world as worlds
from support.apiserver.expressions import holds
from support.service import Service
from support.wait import eventually
from support.webhook_cluster import (
    CAS,
    CONTROLS,
    Control,
    HeldCertificate,
    WebhookCluster,
    new_webhook_cluster,
    review,
)
from support.world import Person, World

Guard = Literal["default", "known-only", "wide"]
# The widest possible exemptions. `cluster update` would reject the first.
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
        # Credential usage is stored at once, so that tests need not wait for it.
        patch.setattr(credential_usage, "FLUSH_SECONDS", 0.1)
        yield running


@pytest.fixture(scope="module")
def sites(own: World, service: Service) -> dict[tuple[KeyType, Guard], WebhookCluster]:
    """A cluster for each key type and each set of options."""
    return {
        (key_type, guard): new_webhook_cluster(own, service, key_type, options)
        for key_type in CAS
        for guard, options in OPTIONS.items()
    }


@pytest.fixture(params=OPTIONS)
def guarded(
    request: pytest.FixtureRequest, sites: dict[tuple[KeyType, Guard], WebhookCluster]
) -> WebhookCluster:
    """Run the test with a cluster in each mode."""
    return sites["ec-p256", request.param]


@pytest.fixture
def default(sites: dict[tuple[KeyType, Guard], WebhookCluster]) -> WebhookCluster:
    return sites["ec-p256", "default"]


@pytest.fixture(scope="module")
def admin(sites: dict[tuple[KeyType, Guard], WebhookCluster]) -> Person:
    """A user without revoked certificates."""
    return sites["ec-p256", "default"].new_person()


def is_asked(cluster: Cluster, der: bytes, *, tells_hash: bool = True) -> bool:
    """Whether the API server calls the webhook, by the match conditions that `kubernetes setup` writes."""
    asking = WebhookConfig(
        mode=cluster.options.mode,
        groups=(ADMINS, "clustercert:editors", "clustercert:viewers"),
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


@pytest.mark.parametrize("way", CONTROLS)
@pytest.mark.parametrize("guard", OPTIONS)
@pytest.mark.parametrize("key_type", CAS)
def test_every_copy_of_a_revoked_certificate_is_denied(
    sites: dict[tuple[KeyType, Guard], WebhookCluster], key_type: KeyType, guard: Guard, way: Control
) -> None:
    here = sites[key_type, guard]
    person = here.new_person()
    lost = here.issue(person)
    copies = altered_certificates.copies(lost.der)
    assert copies.keys() == altered_certificates.kinds_of(key_type)
    assert here.answer(lost.der) == ""

    here.revoke(way, lost, person)
    eventually(lambda: "revoked" in here.answer(lost.der))

    for kind, copy in copies.items():
        assert "revoked" in here.answer(copy), kind
        assert is_asked(here.cluster, copy), kind
    # Without a hash, encodings can't be told apart, and the credential group identifies the certificate.
    assert "revoked" in here.answer_without_id(lost.der)
    assert is_asked(here.cluster, lost.der, tells_hash=False)
    good = here.still_good(way, person)
    assert (here.answer(good.der), here.answer_without_id(good.der)) == ("", "")
    assert "revoked" in here.answer(copies["shifted-kilobyte"])


@pytest.mark.parametrize("key_type", CAS)
def test_every_copy_of_a_good_certificate_is_denied_with_one_alert(
    sites: dict[tuple[KeyType, Guard], WebhookCluster], key_type: KeyType, admin: Person
) -> None:
    here = sites[key_type, "default"]
    held = here.issue(admin)
    for kind, copy in altered_certificates.copies(held.der).items():
        assert "altered copy" in here.answer(copy), kind
    assert here.answer(held.der) == ""

    def told() -> list[str]:
        events = here.events("credential.altered")
        return [said["subject"] for said in events if said["detail"]["credential_number"] == held.number]

    eventually(lambda: told() != [])
    assert told() == [held.fingerprint]


# Forged certificates


def is_told_of(here: WebhookCluster, held: HeldCertificate, fault: str) -> bool:
    return any(
        said["subject"] == held.fingerprint and said["detail"]["fault"] == fault
        for said in here.events("credential.unknown")
    )


def mallory() -> str:
    return f"system:mallory-{secrets.token_hex(4)}"


def test_a_strangers_number_is_denied_and_told(guarded: WebhookCluster, admin: Person) -> None:
    stranger = guarded.issue(admin)
    forged = guarded.sign(mallory(), (ADMINS,), stranger.number)
    same_name = guarded.sign(admin.user.id, (ADMINS, "more"), stranger.number)
    for held in (forged, same_name):
        assert "does not match its credential number" in guarded.answer(held.der)
        assert "does not match its credential number" in guarded.answer_without_id(held.der)
        eventually(lambda held=held: is_told_of(guarded, held, "forged"))  # type: ignore[misc] # the lambda has no types
    assert guarded.answer(stranger.der) == ""


def test_a_copy_of_everything_but_the_key_is_altered(guarded: WebhookCluster, admin: Person) -> None:
    """It has the same name, groups and credential number. Only its hash differs."""
    stranger = guarded.issue(admin)
    forged = guarded.sign(admin.user.id, (ADMINS,), stranger.number)
    assert "altered copy" in guarded.answer(forged.der)


def test_two_numbers_are_denied_and_told(guarded: WebhookCluster, admin: Person) -> None:
    first, second = guarded.issue(admin), guarded.issue(admin)
    forged = guarded.sign(admin.user.id, (ADMINS, credential_group(first.number)), second.number)
    assert "does not match its credential number" in guarded.answer(forged.der)
    eventually(lambda: is_told_of(guarded, forged, "forged"))


@pytest.mark.parametrize("number", ["", "0" * 39, "A" * 40, "g" * 40, "0" * 39 + "\u0660"])
def test_a_number_that_is_none_is_denied_and_told(guarded: WebhookCluster, number: str) -> None:
    forged = guarded.sign(mallory(), (ADMINS, f"clustercert:credential:{number}"))
    assert "does not match its credential number" in guarded.answer(forged.der)
    eventually(lambda: is_told_of(guarded, forged, "forged"))


def test_a_number_that_nobody_has_is_denied_and_told(guarded: WebhookCluster) -> None:
    forged = guarded.sign(mallory(), (ADMINS,), secrets.token_hex(20))
    assert "not in the ledger" in guarded.answer(forged.der)
    eventually(lambda: is_told_of(guarded, forged, "unknown"))


def test_a_number_of_another_cluster_is_denied_and_told(
    guarded: WebhookCluster, sites: dict[tuple[KeyType, Guard], WebhookCluster], admin: Person
) -> None:
    elsewhere = sites["ec-p384", "default"].issue(admin)
    assert "another cluster" in guarded.answer(elsewhere.der)
    eventually(lambda: is_told_of(guarded, elsewhere, "other_cluster"))


@pytest.mark.parametrize("guard", ["known-only", "wide"])
def test_our_group_without_a_number_is_denied_with_an_alert(
    sites: dict[tuple[KeyType, Guard], WebhookCluster], guard: Guard
) -> None:
    here = sites["ec-p256", guard]
    for groups in ((ADMINS,), ("system:nodes", "clustercert:viewers"), ("clustercert:anything",)):
        forged = here.sign(mallory(), groups)
        assert "only certificates that clustercert issued" in here.answer(forged.der)
        assert is_asked(here.cluster, forged.der)
        eventually(lambda forged=forged: is_told_of(here, forged, "unknown"))  # type: ignore[misc] # the lambda has no types
    ours_by_name = here.sign("clustercert:service", ())
    assert here.answer(ours_by_name.der) != ""


def test_without_a_number_by_default_it_is_left_to_rbac_and_told(default: WebhookCluster) -> None:
    """Rule 4: it may be from another CA."""
    forged = default.sign(mallory(), (ADMINS,))
    assert default.answer(forged.der) == ""
    eventually(lambda: is_told_of(default, forged, "unknown"))


def test_a_recorded_certificate_without_its_group_is_unknown(guarded: WebhookCluster, admin: Person) -> None:
    """The ledger knows the hash, but the group is missing. Only a faulty API server can send this."""
    held = guarded.issue(admin)
    spec = review(held.der)
    spec["groups"] = [ADMINS, "system:authenticated"]
    is_denied = guarded.status(spec).get("denied", False)
    assert is_denied == (guarded.cluster.options.mode == "known-only")
    eventually(lambda: is_told_of(guarded, held, "unknown"))


def test_a_token_beside_the_group_is_denied(guarded: WebhookCluster, admin: Person) -> None:
    """The identity provider gave the user a group with our prefix."""
    spec = review(guarded.issue(admin).der)
    spec["extra"] = {"authentication.kubernetes.io/credential-id": ["JTI=7f3d1a52"]}
    assert guarded.status(spec)["denied"] is True

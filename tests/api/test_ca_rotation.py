"""The rotation of client CAs. The service and its leader job are real, the API servers are the tests' doubles."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clustercert.pki.certificates import fingerprint
from support.ca_rotation import (
    Holder,
    NewRotation,
    RotatingService,
    Rotation,
    new_rotations,
    rotating_service,
)
from support.stores import rows
from support.wait import eventually


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RotatingService]:
    with rotating_service(tmp_path_factory.mktemp("rotation")) as running:
        yield running


@pytest.fixture
def new(site: RotatingService, tmp_path: Path) -> Iterator[NewRotation]:
    with new_rotations(site, tmp_path) as start:
        yield start


def kinds(rotation: Rotation) -> list[str]:
    """The kinds of the audit events about the rotation, oldest first."""
    query = "SELECT kind FROM audit_event WHERE subject = ? AND kind LIKE 'ca_rotation.%' ORDER BY id"
    return [
        str(kind).removeprefix("ca_rotation.")
        for (kind,) in rows(rotation.world.database, query, rotation.cluster_id)
    ]


def test_a_ca_is_replaced_while_every_holder_keeps_access(new: NewRotation) -> None:
    rotation = new(2)
    first, second = rotation.doubles
    old = rotation.issue()
    started = rotation.post(body={})
    assert (started["state"], started["old_ca_holders"]["certificates"]) == ("planned", 1)
    assert [each["user_name"] for each in started["holders"]] == ["member"]
    assert started["started_by"] == rotation.world.people["operator"].user.id
    assert started["started_by_name"] == rotation.get()["started_by_name"] == "tests/operator"
    assert len(x509.load_pem_x509_certificates(rotation.bundle())) == 2

    # One of two API servers is not enough.
    rotation.trust(first)
    eventually(lambda: rotation.get()["api_servers"][0]["new_ca"] == "accepted")
    shown = rotation.get()
    assert (shown["state"], shown["api_servers"][1]["new_ca"]) == ("planned", "refused")
    assert rotation.ca_of(rotation.issue()) == started["old_ca"]["id"]

    rotation.trust(second)
    rotation.reach("draining")
    new_holder = eventually(lambda: rotation.issue_from(started["new_ca"]["id"]))
    assert new_holder is not None
    draining = rotation.get()
    # On a slow machine, the old CA may have signed more than one certificate while `issue_from` tried again.
    query = "SELECT count(*) FROM certificate WHERE ca_id = ?"
    [(held,)] = rows(rotation.world.database, query, started["old_ca"]["id"])
    assert draining["old_ca_holders"]["certificates"] == held
    assert isinstance(held, int)
    assert held >= 2
    assert draining["safe_at"] == draining["old_ca_holders"]["until"]
    assert {each["state"] for each in rotation.get("/client-cas")["client_cas"]} == {"retiring", "active"}
    for double in rotation.doubles:
        assert [each.status_at(double) for each in (old, new_holder)] == [200, 200]

    refused = rotation.send("POST", "/client-ca-rotation/complete", {})
    assert refused.status_code == 409
    assert f"Valid certificates of the old CA: {held}, not " in refused.json()["message"]
    wrong = rotation.send("POST", "/client-ca-rotation/complete", {"force": True, "holders": held - 1})
    assert wrong.status_code == 409
    completing = rotation.post("/complete", {"force": True, "holders": held})
    assert (completing["state"], completing["forced"]) == ("draining", True)
    assert len(x509.load_pem_x509_certificates(rotation.bundle())) == 1
    rotation.trust(first)
    eventually(lambda: rotation.get()["api_servers"][0]["old_ca"] == "refused")
    assert rotation.get()["state"] == "draining"
    rotation.trust(second)
    rotation.reach("complete")
    for double in rotation.doubles:
        assert [each.status_at(double) for each in (old, new_holder)] == [401, 200]

    [ca] = [
        each for each in rotation.get("/client-cas")["client_cas"] if each["id"] == started["old_ca"]["id"]
    ]
    assert ca["state"] == "retired"
    database = rotation.world.database
    assert rows(database, "SELECT sealed_key FROM client_ca WHERE id = ?", ca["id"]) == [(None,)]
    eventually(lambda: rows(database, "SELECT id FROM discarded_ca WHERE id = ?", ca["id"]) == [])
    assert rows(database, "SELECT kind FROM audit_event WHERE subject = ?", ca["id"]) == [
        ("client_ca.key_deleted",)
    ]
    assert kinds(rotation) == [
        "started",
        "distributed",
        "issuing_begun",
        "draining_begun",
        "completion_requested",
        "completed",
    ]


def test_an_abort_before_issuing_deletes_the_new_ca(new: NewRotation) -> None:
    rotation = new()
    started = rotation.post()
    assert rotation.send("POST", "/client-ca-rotation", {}).status_code == 409
    planned = rotation.send("POST", "/client-ca-rotation/abort?dryRun=All")
    assert (planned.json()["state"], planned.json()["keys"]) == ("aborted", [])
    assert rotation.get()["state"] == "planned"
    aborted = rotation.post("/abort")
    assert aborted["state"] == "aborted"
    [key] = aborted["keys"]
    assert (key["client_ca_id"], key["deleted"]) == (started["new_ca"]["id"], True)
    assert rotation.ca_of(rotation.issue()) == started["old_ca"]["id"]
    assert len(x509.load_pem_x509_certificates(rotation.bundle())) == 1
    assert rotation.post("/abort")["keys"] == []
    # Another rotation may follow.
    assert rotation.post()["state"] == "planned"


@pytest.mark.full
def test_an_abort_while_draining_goes_back_to_the_former_ca(new: NewRotation) -> None:
    rotation = new()
    started = rotation.post()
    rotation.trust()
    rotation.reach("draining")
    eventually(lambda: rotation.ca_of(rotation.issue()) == started["new_ca"]["id"])
    reversed_ = rotation.post("/abort")
    assert (reversed_["state"], reversed_["reverses"], reversed_["keys"]) == ("planned", True, [])
    assert reversed_["old_ca"]["id"] == started["new_ca"]["id"]
    assert reversed_["old_ca_holders"]["certificates"] >= 1
    draining = rotation.reach("draining")
    eventually(lambda: rotation.ca_of(rotation.issue()) == started["old_ca"]["id"])
    holders = draining["old_ca_holders"]["certificates"]
    rotation.post("/complete", {"force": True, "holders": holders})
    rotation.trust()
    rotation.reach("complete")
    states = {each["id"]: each["state"] for each in rotation.get("/client-cas")["client_cas"]}
    assert states == {started["old_ca"]["id"]: "active", started["new_ca"]["id"]: "retired"}


def test_a_dry_run_names_the_holders_and_creates_nothing(new: NewRotation) -> None:
    rotation = new()
    rotation.issue("admin")
    planned = rotation.send("POST", "/client-ca-rotation?dryRun=All", {"auto_complete": True})
    assert planned.status_code == 201
    assert [each["user_name"] for each in planned.json()["holders"]] == ["admin"]
    assert rotation.send("GET", "/client-ca-rotation").status_code == 404
    assert len(rotation.get("/client-cas")["client_cas"]) == 1


def test_only_operators_rotate_and_project_admins_read(new: NewRotation) -> None:
    rotation = new()
    for tail in ("", "/complete", "/abort", "/certificates", "/proofs"):
        for who in ("admin", "member"):
            assert rotation.send("POST", f"/client-ca-rotation{tail}", {}, who=who).status_code == 403
    rotation.post()
    assert rotation.get(who="admin")["state"] == "planned"
    assert rotation.send("GET", "/client-ca-rotation", who="member").status_code == 403
    lists = "/clustercert/v1/client-ca-rotations"
    client, people = rotation.service.client, rotation.world.people
    assert client.get(lists, headers=people["admin"].headers).status_code == 403
    of_project = f"/clustercert/v1/projects/{rotation.world.project.id}/client-ca-rotations?state=running"
    for path, who in ((lists + "?state=planned", "auditor"), (of_project, "admin")):
        found = client.get(path, headers=people[who].headers).json()["rotations"]
        assert rotation.cluster_id in {each["id"] for each in found}


@pytest.mark.full
def test_an_operator_proves_the_cas_from_elsewhere(new: NewRotation) -> None:
    """The registered address is one that the service does not reach."""
    rotation = new()
    [double] = rotation.doubles
    put = rotation.send("PUT", "", rotation.get("") | {"api_servers": ["https://127.0.0.1:1"]})
    assert put.status_code == 200, put.text
    started = rotation.post()
    problem = eventually(lambda: rotation.get()["problem"])
    assert "https://127.0.0.1:1" in problem
    assert rotation.get()["state"] == "planned"

    def prove(expected: dict[str, str]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        csr_pem = csr.public_bytes(serialization.Encoding.PEM).decode()
        answer = rotation.post("/certificates", {"csr": csr_pem})
        assert answer["addresses"] == ["https://127.0.0.1:1"]
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        results = []
        for each in answer["certificates"]:
            status = Holder(each["certificate"].encode(), key_pem).status_at(double)
            outcome = {200: "accepted", 401: "refused"}[status]
            assert (outcome, each["expected"]) == (expected[each["client_ca_id"]],) * 2
            results.append(
                {"client_ca_id": each["client_ca_id"], "address": "https://127.0.0.1:1", "outcome": outcome}
            )
        rotation.post("/proofs", {"results": results})

    rotation.trust()
    prove({started["new_ca"]["id"]: "accepted"})
    draining = rotation.reach("draining")
    [server] = draining["api_servers"]
    assert server["by"] == rotation.world.people["operator"].user.id
    rotation.post("/complete", {})
    rotation.trust()
    prove({started["new_ca"]["id"]: "accepted", started["old_ca"]["id"]: "refused"})
    rotation.reach("complete")
    assert kinds(rotation).count("proof_reported") == 2

    foreign = {"client_ca_id": "0" * 32, "address": "https://127.0.0.1:1", "outcome": "accepted"}
    assert rotation.send("POST", "/client-ca-rotation/proofs", {"results": [foreign]}).status_code == 409


@pytest.mark.full
def test_the_webhook_denies_the_old_ca_once_its_removal_is_forced(new: NewRotation) -> None:
    """The API server still trusts both CAs, and the rotation is not complete before it refuses the old one."""
    rotation = new()
    token = rotation.send("POST", "/webhook-tokens").json()["token"]
    old = rotation.issue()
    rotation.post(body={"deny_old": True})
    rotation.trust()
    draining = rotation.reach("draining")
    holder = eventually(lambda: rotation.issue_from(draining["new_ca"]["id"]))
    assert holder is not None
    assert not rotation.is_denied(old, token)
    states = [rotation.certificate(each)["client_ca_state"] for each in (old, holder)]
    assert states == ["retiring", "active"]

    held = draining["old_ca_holders"]["certificates"]
    rotation.post("/complete", {"force": True, "holders": rotation.get()["old_ca_holders"]["certificates"]})
    assert held >= 1
    eventually(lambda: rotation.is_denied(old, token))
    assert not rotation.is_denied(holder, token)
    eventually(lambda: rotation.get()["api_servers"][0]["old_ca"] == "accepted")
    assert rotation.get()["state"] == "draining"
    rotation.trust()
    rotation.reach("complete")
    assert rotation.certificate(old)["client_ca_state"] == "retired"


@pytest.mark.full
def test_both_cas_have_a_crl_as_long_as_both_are_trusted(new: NewRotation) -> None:
    rotation = new()
    started = rotation.post()
    crls = [
        f"/clustercert/v1/clusters/{rotation.cluster_id}/client-cas/{started[which]['id']}/crl"
        for which in ("old_ca", "new_ca")
    ]

    def statuses() -> list[int]:
        return [rotation.service.client.get(path).status_code for path in crls]

    assert statuses() == [200, 200]
    rotation.trust()
    rotation.reach("draining")
    assert statuses() == [200, 200]


@pytest.mark.full
def test_the_list_of_clusters_says_which_ca_signs_now(new: NewRotation) -> None:
    """By the key identifier, which the certificates have too: that is how a client sees that its CA is replaced."""
    rotation = new()
    old = rotation.issue()

    def is_of_signing_ca(holder: Holder) -> bool:
        answer = rotation.service.client.get(
            f"/clustercert/v1/clusters?name={rotation.cluster_id}",
            headers=rotation.world.people["member"].headers,
        )
        [cluster] = answer.json()["clusters"]
        identifier = holder.leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert identifier.key_identifier is not None
        return bool(identifier.key_identifier.hex() == cluster["client_ca_key_id"])

    assert is_of_signing_ca(old)
    started = rotation.post()
    rotation.trust()
    rotation.reach("draining")
    holder = eventually(lambda: rotation.issue_from(started["new_ca"]["id"]))
    assert holder is not None
    assert is_of_signing_ca(holder)
    assert not is_of_signing_ca(old)


@pytest.mark.full
def test_a_rotation_is_complete_by_itself_once_nobody_is_left(new: NewRotation) -> None:
    rotation = new()
    old = rotation.issue()
    rotation.post(body={"auto_complete": True})
    rotation.trust()
    rotation.reach("draining")
    assert rotation.get()["completion_asked_at"] is None
    answer = rotation.send("POST", f"/certificates/{fingerprint(old.leaf).hex()}/revoke", {})
    assert answer.is_success, answer.text
    eventually(lambda: rotation.get()["completion_asked_at"])
    rotation.trust()
    assert rotation.reach("complete")["forced"] is False


def test_the_metrics_count_rotations(new: NewRotation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clustercert.server.application.GAUGE_SECONDS", 0)
    rotation = new()
    rotation.post()
    found = rotation.service.client.get("/metrics").text
    counted = dict(
        line.rsplit(" ", 1) for line in found.splitlines() if line.startswith("clustercert_client_ca")
    )
    assert float(counted['clustercert_client_ca_rotations{state="planned"}']) >= 1
    assert float(counted["clustercert_client_ca_rotation_oldest_seconds"]) >= 0
    assert float(counted["clustercert_client_ca_not_after_timestamp_seconds"]) > 1e9

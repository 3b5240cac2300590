"""Clusters that sign with their own CA, over the API: registration, certificates, tokens, rights."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.store import tables
from support.administration import Administration, unique
from support.apiserver import ApiServer
from support.leaf_checks import leaf_of
from support.managed_cluster import NAMESPACES, as_user
from support.signing_cluster import first_token, give_access, requests_in


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("apiserver")) as running:
        give_access(running)
        running.bind("clustercert:editors", "view")
        yield running


def path(administration: Administration, name: str) -> str:
    return f"/projects/{administration.world.project.id}/clusters/{name}"


def body(double: ApiServer, **more: object) -> dict[str, Any]:
    return {
        "internal_url": double.url,
        "server_ca": double.server_ca.read_text(),
        "signer": "csr_api",
        **more,
    }


def token(double: ApiServer) -> str:
    return first_token(double).decode().strip()


@pytest.fixture
def registered(administration: Administration, double: ApiServer) -> dict[str, Any]:
    made = administration.put(path(administration, unique()), body(double, signer_token=token(double)))
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


def issue(
    administration: Administration, cluster: dict[str, Any], wanted: dict[str, Any], query: str = ""
) -> Any:
    headers = administration.world.people["member"].headers | {"Content-Type": "application/json"}
    url = f"/api/v3/projects/{cluster['project_id']}/clusters/{cluster['id']}/clustercert{query}"
    return administration.service.client.post(url, content=json.dumps(wanted), headers=headers)


def test_the_cluster_accepts_what_it_signed_itself(
    administration: Administration, double: ApiServer, registered: dict[str, Any]
) -> None:
    answer = issue(administration, registered, {"duration": -1})
    assert answer.status_code == 200, answer.text
    kubeconfig = answer.json()
    as_user(double, kubeconfig, lambda api: api.get(NAMESPACES))
    seen = double.seen[-1].identity
    assert seen is not None
    assert "clustercert:editors" in seen.groups
    leaf = leaf_of(kubeconfig)
    assert registered["client_ca"].encode() == double.own_ca_pem
    [row] = administration.rows(tables.certificate, fingerprint=leaf.fingerprint(SHA256()))
    # The cluster's CA ends within a day, and so does the certificate.
    assert row.not_after == leaf.not_valid_after_utc
    assert row.not_before == leaf.not_valid_before_utc
    [event] = administration.events(row.fingerprint.hex())
    assert event["kind"] == "certificate.issued"
    assert event["detail"]["not_after"] == leaf.not_valid_after_utc.isoformat()
    assert answer.headers["X-Clustercert-Not-After"] == f"{leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"


def test_the_token_is_stored_sealed_and_shown_nowhere(
    administration: Administration, double: ApiServer
) -> None:
    name, secret = unique(), token(double)
    preview = administration.put(
        f"{path(administration, name)}?dryRun=All", body(double, signer_token=secret)
    )
    assert preview.status_code == 201, preview.text
    before = len(double.seen)
    made = administration.put(path(administration, name), body(double, signer_token=secret))
    assert len(double.seen) > before
    shown = administration.get(path(administration, name))
    [ca] = administration.rows(tables.client_ca, cluster_id=made.json()["id"])
    assert (ca.signer, ca.key_reference) == ("csr_api", "kubernetes.io/kube-apiserver-client")
    events = administration.events(made.json()["id"])
    for text in (preview.text, made.text, shown.text, json.dumps(events), ca.sealed_key.decode("latin-1")):
        assert secret not in text
        assert '"signer_token"' not in text


def test_a_dry_run_asks_the_cluster_nothing(administration: Administration, double: ApiServer) -> None:
    before = len(double.seen)
    wanted = body(double, signer_token=token(double))
    preview = administration.put(f"{path(administration, unique())}?dryRun=All", wanted)
    assert preview.status_code == 201, preview.text
    assert len(double.seen) == before


def test_a_new_token_replaces_the_stored_one(
    administration: Administration, double: ApiServer, registered: dict[str, Any]
) -> None:
    [before] = administration.rows(tables.client_ca, cluster_id=registered["id"])
    url = path(administration, registered["id"])
    changed = administration.put(url, registered | {"signer_token": token(double)})
    assert changed.status_code == 200, changed.text
    [after] = administration.rows(tables.client_ca, cluster_id=registered["id"])
    assert before.sealed_key != after.sealed_key
    assert administration.kinds(registered["id"]) == ["cluster.added", "cluster.updated"]
    assert issue(administration, registered, {"duration": -1}).status_code == 200
    wrong = administration.put(url, registered | {"signer_token": "secret"})
    assert (wrong.status_code, "secret" in wrong.text) == (400, False)
    assert "token of a service account" in wrong.json()["message"]


def test_a_project_admin_may_not_send_the_token_elsewhere(
    administration: Administration, double: ApiServer, registered: dict[str, Any]
) -> None:
    url = path(administration, registered["id"])
    for change in (
        {"internal_url": "https://203.0.113.66:6443"},
        {"server_ca": double.own_ca_pem.decode()},
        {"signer_token": token(double)},
    ):
        refused = administration.put(url, registered | change, who="admin")
        assert refused.status_code == 403, refused.text
        assert f"{next(iter(change))}: only operators" in refused.json()["message"]
    allowed = administration.put(url, registered | {"version": "v1.36"}, who="admin")
    assert allowed.status_code == 200, allowed.text


def test_a_token_for_a_signer_that_takes_none_is_refused(
    administration: Administration, double: ApiServer
) -> None:
    wanted = body(double, signer_token=token(double)) | {"signer": "local"}
    refused = administration.put(path(administration, unique()), wanted)
    assert refused.status_code == 400
    assert "the signer local takes no token" in refused.json()["message"]
    made = administration.put(path(administration, unique()), body(double) | {"signer": "local"}).json()
    refused = administration.put(path(administration, made["id"]), made | {"signer_token": token(double)})
    assert "the signer local takes no token" in refused.json()["message"]


def test_a_callers_own_key_is_refused_with_advice(
    administration: Administration, registered: dict[str, Any]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    wanted = {"duration": -1, "csr": csr.public_bytes(Encoding.PEM).decode()}
    for query in ("", "?dryRun=All"):
        answer = issue(administration, registered, wanted, query)
        assert answer.status_code == 400
        assert "signs only for keys that this service generates" in answer.json()["message"]


def test_there_is_no_crl_and_the_place_of_the_key_is_shown(
    administration: Administration, double: ApiServer, registered: dict[str, Any]
) -> None:
    crl = administration.service.client.get(
        f"/clustercert/v1/clusters/{registered['id']}/client-cas/{registered['client_ca_id']}/crl"
    )
    assert crl.status_code == 404
    shown = administration.get(f"{path(administration, registered['id'])}/client-ca")
    assert shown.status_code == 200, shown.text
    assert "this service has no CA key" in shown.json()["key_location"]
    removed = administration.delete(path(administration, registered["id"]))
    [fate] = removed.json()["keys"]
    assert "The cluster keeps its own CA" in fate["result"]


def test_nothing_is_left_in_the_cluster(double: ApiServer) -> None:
    assert requests_in(double) == []

"""Clusters whose credentials are tokens, through the whole service and at the double of kube-apiserver."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import CertificateSigningRequestBuilder, Name

from clustercert.issuance.signers.account_tokens import read_claims
from clustercert.model import parse_rfc3339
from clustercert.model.issuance import jti_fingerprint
from clustercert.model.kubernetes import installation_id
from clustercert.store import tables
from support import world as worlds
from support.administration import Administration, unique
from support.apiserver import ApiServer
from support.request_client import RequestClient
from support.service import Service
from support.token_site import accounts_in, bindings_in, first_token, give_access, status_of
from support.wait import eventually

POLICY: dict[str, Any] = {
    "rules": [
        {
            "name": "view",
            "when": {"roles": ["member"]},
            "grant": {"groups": ["viewers", "auditors"], "max_lifetime": "8h"},
        },
        {
            "name": "edit",
            "when": {"roles": ["member"]},
            "offer": {"groups": ["editors"], "max_lifetime": "4h", "approvals": []},
        },
        {
            "name": "other",
            "when": {"roles": ["reader"]},
            "grant": {"groups": ["auditors"], "max_lifetime": "8h"},
        },
    ]
}
ROLES = {"viewers": ("clusterrole/view",), "editors": ("clusterrole/edit@blue",)}
SECRETS_IN_BLUE = "/api/v1/namespaces/blue/secrets"


@dataclass(frozen=True)
class Site:
    """A service with a cluster whose credentials are tokens, and the cluster."""

    double: ApiServer
    administration: Administration
    requests: RequestClient
    cluster: dict[str, Any]

    @property
    def url(self) -> str:
        return f"/api/v3/projects/{self.cluster['project_id']}/clusters/{self.cluster['id']}/clustercert"

    def issue(self, who: str = "member", query: str = "", **body: Any) -> httpx2.Response:
        return self.requests.post(who, self.url + query, {"duration": -1, "credential": "token"} | body)

    def issued(self, **body: Any) -> str:
        """A new token."""
        answer = self.issue(**body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["users"][0]["user"]["token"])

    def status(self, token: str, path: str = "/api/v1/namespaces") -> int:
        return asyncio.run(status_of(self.double, token, path))


def body(double: ApiServer, **more: object) -> dict[str, Any]:
    return {
        "internal_url": double.url,
        "external_url": double.url.replace("127.0.0.1", "localhost"),
        "server_ca": double.server_ca.read_text(),
        "signer": "token",
        "group_roles": ROLES,
        "signer_token": first_token(double).decode().strip(),
        **more,
    }


def path(administration: Administration) -> str:
    return f"/projects/{administration.world.project.id}/clusters/{unique()}"


def installation(administration: Administration) -> str:
    [log] = administration.rows(tables.audit_log)
    return installation_id(bytes(log.public_key))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    world = worlds.make(tmp_path_factory.mktemp("world"))
    with (
        ApiServer(tmp_path_factory.mktemp("apiserver")) as double,
        Service(world.settings(policy=POLICY)).running() as service,
    ):
        administration = Administration(world, service)
        give_access(double, installation(administration), ROLES)
        made = administration.put(path(administration), body(double))
        assert made.status_code == 201, made.text
        yield Site(double, administration, RequestClient(world, service.client), made.json())


def test_a_token_has_the_rights_of_its_groups(site: Site) -> None:
    answer = site.issue(reason="INC-7")
    assert answer.status_code == 200, answer.text
    document = answer.json()
    [user] = document["users"]
    assert user["user"].keys() == {"token"}
    token = user["user"]["token"]
    assert (site.status(token), site.status(token, SECRETS_IN_BLUE)) == (200, 403)
    seen = site.double.seen[-1].identity
    assert seen is not None
    jti = read_claims(token)["jti"]
    assert seen.credential_id == f"JTI={jti}"
    assert answer.headers["X-Clustercert-Left-Out"] == "auditors"
    not_after, expires = (
        parse_rfc3339(answer.headers[f"X-Clustercert-{name}"]) for name in ("Not-After", "Token-Expires")
    )
    # The API server counts whole seconds from when it is asked, which is a moment after the grant.
    assert not_after <= expires < not_after + timedelta(minutes=5)
    [row] = site.administration.rows(tables.certificate, fingerprint=jti_fingerprint(str(jti)))
    assert (row.kind, row.der, row.groups) == ("token", b"", ["viewers"])
    assert answer.headers["X-Clustercert-Fingerprint"] == row.fingerprint.hex()
    [event] = site.administration.events(row.fingerprint.hex())
    assert event["detail"]["account"].endswith(row.credential_number)
    assert token not in json.dumps(event)
    assert token.rpartition(".")[2].encode() not in site.administration.world.database.read_bytes()
    # The service connects with its account, and issues no certificate to itself.
    kinds = {
        each.kind for each in site.administration.rows(tables.certificate, cluster_id=site.cluster["id"])
    }
    assert kinds == {"token"}


def test_no_address_in_a_kubeconfig_with_a_token_is_unverified(site: Site) -> None:
    entries = site.issue().json()["clusters"]
    assert [each["name"] for each in entries] == [
        "internalCluster",
        "externalCluster",
        "externalClusterTLSVerify",
    ]
    for each in entries:
        assert each["cluster"].keys() == {"server", "certificate-authority-data"}


def test_a_client_that_does_not_ask_for_a_token_gets_none(site: Site) -> None:
    before = accounts_in(site.double)
    plain = site.requests.post("member", site.url, {"duration": -1})
    read = site.requests.get("member", site.url)
    for refused in (plain, read):
        assert refused.status_code == 409, refused.text
        assert "clustercert kubeconfig get" in refused.json()["message"]
    other = site.requests.post(
        "member", site.requests.world.path("plain"), {"duration": -1, "credential": "token"}
    )
    assert other.status_code == 409, other.text
    assert accounts_in(site.double) == before


def test_a_csr_is_refused(site: Site) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = CertificateSigningRequestBuilder().subject_name(Name([])).sign(key, SHA256())
    refused = site.issue(csr=csr.public_bytes(Encoding.PEM).decode())
    assert refused.status_code == 400
    assert refused.json()["message"].startswith("csr: this cluster's credentials are tokens")


def test_a_preview_creates_nothing(site: Site) -> None:
    accounts, bindings = accounts_in(site.double), len(bindings_in(site.double))
    preview = site.issue(query="?dryRun=All").json()
    assert (preview["credential"], preview["left_out"]) == ("token", ["auditors"])
    assert preview["organizations"] == ["viewers"]
    assert (accounts_in(site.double), len(bindings_in(site.double))) == (accounts, bindings)


def test_groups_without_a_role_are_refused(site: Site) -> None:
    refused = site.issue("reader")
    assert refused.status_code == 403
    assert "None of your groups (auditors) has a role in this cluster" in refused.json()["message"]


def test_a_short_credential_says_that_its_token_lives_longer(site: Site) -> None:
    answer = site.requests.post("member", site.url, {"expires_in": 300, "credential": "token"})
    assert answer.status_code == 200, answer.text
    ends, expires = (
        parse_rfc3339(answer.headers[f"X-Clustercert-{name}"]) for name in ("Not-After", "Token-Expires")
    )
    assert timedelta(minutes=4) < expires - ends < timedelta(minutes=6)


def test_an_access_request_raises_and_ends_rights_with_the_next_credential(site: Site) -> None:
    standing = site.issued()
    made = site.requests.post(
        "member",
        "/clustercert/v1/access-requests",
        {"cluster_id": site.cluster["id"], "groups": ["editors"], "duration": 3600, "reason": "INC-42: shop"},
    )
    assert made.status_code == 201, made.text
    request_id = made.json()["id"]
    raised = site.issued(access_request=request_id)
    assert [site.status(each, SECRETS_IN_BLUE) for each in (standing, raised)] == [403, 200]
    account = str(read_claims(raised)["sub"]).rpartition(":")[2]
    site.requests.done("member", request_id, "end")
    eventually(lambda: account not in accounts_in(site.double))
    assert site.status(raised, SECRETS_IN_BLUE) in (401, 403)
    assert site.status(standing) == 200
    assert site.issue(access_request=request_id).status_code in (403, 409)


def test_a_revoked_token_loses_its_bindings_and_then_its_account(site: Site) -> None:
    answer, kept = site.issue(), site.issued()
    token = str(answer.json()["users"][0]["user"]["token"])
    account = str(read_claims(token)["sub"]).rpartition(":")[2]
    fingerprint = answer.headers["X-Clustercert-Fingerprint"]
    site.requests.post("member", f"/clustercert/v1/certificates/{fingerprint}/revoke", {}).raise_for_status()
    eventually(lambda: account not in accounts_in(site.double))
    assert not [each for each in bindings_in(site.double) if each["subjects"][0]["name"] == account]
    assert (site.status(token) in (401, 403), site.status(kept)) == (True, 200)


def test_a_revocation_of_a_token_can_not_be_undone(site: Site) -> None:
    fingerprint = site.issue().headers["X-Clustercert-Fingerprint"]
    made = site.requests.post("member", f"/clustercert/v1/certificates/{fingerprint}/revoke", {}).json()
    undone = site.requests.post("operator", f"/clustercert/v1/revocations/{made['id']}/undo", {})
    assert undone.status_code == 409
    assert "Get a new token" in undone.json()["error_msg"]


def test_a_failure_at_the_cluster_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    before = accounts_in(site.double)
    rows = len(site.administration.rows(tables.certificate, cluster_id=site.cluster["id"]))
    monkeypatch.setattr(site.double.tokens, "requested", lambda *_: {"status": {"token": "a.b.c"}})
    failed = site.issue()
    assert failed.status_code == 502, failed.text
    assert "no valid token" in failed.json()["message"]
    eventually(lambda: accounts_in(site.double) == before)
    assert len(site.administration.rows(tables.certificate, cluster_id=site.cluster["id"])) == rows


def test_there_is_no_client_ca_to_show(site: Site) -> None:
    url = f"/projects/{site.cluster['project_id']}/clusters/{site.cluster['id']}/client-ca"
    refused = site.administration.get(url)
    assert refused.status_code == 409, refused.text
    assert "no client CA" in refused.json()["message"]


@pytest.mark.parametrize("query", ["", "?dryRun=All"])
def test_a_rotation_does_not_change_the_kind_of_credential(site: Site, query: str) -> None:
    administration = site.administration
    before = administration.rows(tables.client_ca)
    plain = administration.world.clusters["plain"].id
    for cluster, signer, status in ((site.cluster["id"], "local", 409), (plain, "token", 400)):
        url = f"/projects/{site.cluster['project_id']}/clusters/{cluster}/client-ca-rotation{query}"
        refused = administration.post(url, {"signer": signer})
        assert refused.status_code == status, refused.text
    assert administration.rows(tables.client_ca) == before


@pytest.mark.parametrize(
    "change",
    [
        {"internal_url": "https://203.0.113.66:6443"},
        {"external_url": "https://203.0.113.66:6443"},
        {"san_urls": ["https://203.0.113.66:6443"]},
    ],
)
def test_a_project_admin_sends_the_tokens_of_users_to_no_other_address(
    site: Site, change: dict[str, Any]
) -> None:
    """If the CA of the cluster is a public one, everybody can get a certificate for an own address."""
    where = f"/projects/{site.cluster['project_id']}/clusters/{site.cluster['id']}"
    refused = site.administration.put(where, site.cluster | change, who="admin")
    assert refused.status_code == 403, refused.text
    assert f"{next(iter(change))}: only operators" in refused.json()["message"]
    allowed = site.administration.put(where, site.cluster | {"version": "v1.36"}, who="admin")
    assert allowed.status_code == 200, allowed.text


def test_a_project_admin_does_not_take_the_end_of_tokens_away(site: Site) -> None:
    where = f"/projects/{site.cluster['project_id']}/clusters/{site.cluster['id']}"
    refused = site.administration.delete(where, who="admin")
    assert refused.status_code == 403, refused.text
    assert "Only operators may remove" in refused.json()["message"]
    assert site.administration.get(where).status_code == 200


def test_a_cluster_with_live_tokens_is_not_removed(site: Site) -> None:
    made = site.administration.put(path(site.administration), body(site.double)).json()
    own = replace(site, cluster=made)
    token = own.issued()
    place = f"/projects/{made['project_id']}/clusters/{made['id']}"

    refused = site.administration.delete(place)

    assert refused.status_code == 409
    assert "clustercert certificate revoke --cluster" in refused.json()["error_msg"]
    assert own.status(token) == 200
    revoked = site.requests.post("operator", f"/clustercert/v1{place}/revoke", {})
    assert revoked.status_code == 200, revoked.text
    eventually(lambda: own.status(token) == 403)
    assert site.administration.delete(place).status_code == 200


def test_removing_a_cluster_deletes_the_token_of_the_service_and_nothing_in_the_cluster(site: Site) -> None:
    administration = site.administration
    url = path(administration)
    made = administration.put(url, body(site.double))
    assert made.status_code == 201, made.text
    assert len(administration.rows(tables.client_ca, cluster_id=made.json()["id"])) == 1
    token = site.issued()
    administration.delete(url).raise_for_status()
    assert administration.rows(tables.client_ca, cluster_id=made.json()["id"]) == []
    eventually(lambda: administration.rows(tables.discarded_ca) == [])
    assert site.status(token) == 200


def test_a_cluster_that_is_not_fit_is_not_registered(site: Site) -> None:
    administration, double = site.administration, site.double
    double.version = "v1.29.4"
    try:
        refused = administration.put(path(administration), body(double))
    finally:
        double.version = None
    assert refused.status_code == 400, refused.text
    assert refused.json()["message"].startswith("signer: Kubernetes v1.29.4 lacks admission policies")
    preview = administration.put(f"{path(administration)}?dryRun=All", body(double))
    assert preview.status_code == 201, preview.text


def test_the_objects_of_another_installation_are_refused(site: Site, tmp_path: Path) -> None:
    with ApiServer(tmp_path) as double:
        give_access(double, "f" * 32, ROLES)
        refused = site.administration.put(path(site.administration), body(double))
    assert refused.status_code == 400, refused.text
    assert "does not belong to this installation" in refused.json()["message"]

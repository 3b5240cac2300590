"""The double of kube-apiserver against a real kubectl and a CA of the tests' own: whom it believes, and when."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from support.apiserver import ApiServer
from support.apiserver_clients import client_of
from support.certificate_authority import Authority
from support.kubectl import kubectl


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("clients-of-the-double")


def version(client: httpx2.Client) -> tuple[int, object]:
    """The status, and the client's end of the connection that it came on."""
    answer = client.get("/version")
    return answer.status_code, answer.extensions["network_stream"].get_extra_info("client_addr")


def test_kubectl_sees_whom_the_certificate_names(apiserver: ApiServer, authority: Authority) -> None:
    apiserver.trust(authority.certificate_pem)
    identity_pem = authority.client_identity_pem(
        "7116d09f88fa41908676fdd4b039e95b", ["b:team", "a:team", "b:team"]
    )

    whoami = kubectl(apiserver.kubeconfig_of(identity_pem, "somebody"), "auth", "whoami", "-o", "json")

    assert whoami.returncode == 0, whoami.stderr
    der = x509.load_pem_x509_certificate(identity_pem).public_bytes(serialization.Encoding.DER)
    assert json.loads(whoami.stdout)["status"]["userInfo"] == {
        "username": "7116d09f88fa41908676fdd4b039e95b",
        "groups": ["b:team", "a:team", "b:team", "system:authenticated"],
        "extra": {
            "authentication.kubernetes.io/credential-id": [f"X509SHA256={hashlib.sha256(der).hexdigest()}"]
        },
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda _: Authority("other").client_identity_pem("eve"),
        lambda a: a.client_identity_pem("late", not_after=datetime.now(UTC) - timedelta(minutes=1)),
        lambda a: a.client_identity_pem("server", usage=ExtendedKeyUsageOID.SERVER_AUTH),
    ],
    ids=["another CA's", "expired", "for servers only"],
)
def test_a_certificate_that_proves_nothing_is_a_401(
    apiserver: ApiServer, authority: Authority, make: Callable[[Authority], bytes]
) -> None:
    apiserver.trust(authority.certificate_pem)

    refused = kubectl(apiserver.kubeconfig_of(make(authority), "somebody"), "get", "namespaces")

    assert refused.returncode == 1
    assert "You must be logged in to the server" in refused.stderr
    assert {(seen.identity, seen.status) for seen in apiserver.seen} == {(None, 401)}


@pytest.mark.parametrize("common_name", [None, "system:anonymous"], ids=["no name", "no certificate"])
def test_nobody_in_particular_may_see_the_version_and_nothing_else(
    apiserver: ApiServer, authority: Authority, tmp_path: Path, common_name: str | None
) -> None:
    apiserver.trust(authority.certificate_pem)
    identity_pem = authority.client_identity_pem(None, ["system:masters"]) if common_name is None else None

    with client_of(apiserver, tmp_path, identity_pem) as client:
        public, namespaces = client.get("/version"), client.get("/api/v1/namespaces")

    assert (public.status_code, namespaces.status_code) == (200, 403)
    assert namespaces.json()["message"] == (
        'namespaces is forbidden: User "system:anonymous" cannot list resource "namespaces" in API group "" '
        "at the cluster scope"
    )


def test_a_kept_connection_checks_the_certificate_at_each_request(
    apiserver: ApiServer, authority: Authority, tmp_path: Path
) -> None:
    apiserver.trust(authority.certificate_pem)
    answers = []

    with client_of(apiserver, tmp_path, authority.client_identity_pem("brief")) as client:
        for lead in (timedelta(), timedelta(days=1)):
            apiserver.now = partial(lambda lead: datetime.now(UTC) + lead, lead)
            answers.append(version(client))

    assert [status for status, _ in answers] == [200, 401]
    assert len({connection for _, connection in answers}) == 1


def test_a_ca_removed_from_the_bundle_fails_on_open_connections_too(
    apiserver: ApiServer, authority: Authority, tmp_path: Path
) -> None:
    stays = Authority("stays")
    apiserver.trust(authority.certificate_pem + stays.certificate_pem)

    with (
        client_of(apiserver, tmp_path, authority.client_identity_pem("alice")) as dropped,
        client_of(apiserver, tmp_path, stays.client_identity_pem("bob")) as kept,
    ):
        before = [version(client) for client in (dropped, kept)]
        apiserver.trust(stays.certificate_pem)
        after = [version(client) for client in (dropped, kept)]

    assert [status for status, _ in (*before, *after)] == [200, 200, 401, 200]
    assert [connection for _, connection in before] == [connection for _, connection in after]


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_bad_bundle_leaves_what_was_good(
    apiserver: ApiServer, authority: Authority, tmp_path: Path, content: bytes
) -> None:
    apiserver.trust(authority.certificate_pem)
    with client_of(apiserver, tmp_path, authority.client_identity_pem("alice")) as client:
        assert client.get("/version").status_code == 200

        apiserver.client_ca.write_bytes(content)

        assert client.get("/version").status_code == 200
    assert len(apiserver.complaints) == 1


def test_a_ca_may_join_the_bundle_while_it_runs(
    apiserver: ApiServer, authority: Authority, tmp_path: Path
) -> None:
    newcomer = Authority("newcomer")
    apiserver.trust(authority.certificate_pem)

    with client_of(apiserver, tmp_path, newcomer.client_identity_pem("alice")) as client:
        before = client.get("/version").status_code
        apiserver.trust(authority.certificate_pem + newcomer.certificate_pem)
        after = client.get("/version").status_code

    assert (before, after) == (401, 200)

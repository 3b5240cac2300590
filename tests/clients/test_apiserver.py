"""The double of kube-apiserver against a real kubectl and a CA of the tests' own: later tests lean on it."""

import base64
import hashlib
import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from apiserver import ApiServer, Identity
from authority import Authority
from kubectl import kubectl, written


def kubeconfig_for(apiserver: ApiServer, identity_pem: bytes) -> dict[str, object]:
    encoded = base64.b64encode(identity_pem).decode()
    cluster = {
        "server": apiserver.url,
        "certificate-authority-data": base64.b64encode(apiserver.server_ca.read_bytes()).decode(),
    }
    return {
        "kind": "Config",
        "apiVersion": "v1",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"client-certificate-data": encoded, "client-key-data": encoded}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("clients-of-the-double")


def test_kubectl_sees_whom_the_certificate_names(
    apiserver: ApiServer, authority: Authority, tmp_path: Path
) -> None:
    apiserver.trust(authority.certificate_pem)
    identity_pem = authority.client_identity_pem("7116d09f88fa41908676fdd4b039e95b", ["b:team", "a:team"])

    whoami = kubectl(
        written(tmp_path, kubeconfig_for(apiserver, identity_pem)), "auth", "whoami", "-o", "json"
    )

    assert whoami.returncode == 0, whoami.stderr
    der = x509.load_pem_x509_certificate(identity_pem).public_bytes(serialization.Encoding.DER)
    assert json.loads(whoami.stdout)["status"]["userInfo"] == {
        "username": "7116d09f88fa41908676fdd4b039e95b",
        "groups": ["b:team", "a:team", "system:authenticated"],
        "extra": {
            "authentication.kubernetes.io/credential-id": [f"X509SHA256={hashlib.sha256(der).hexdigest()}"]
        },
    }


def test_kubectl_lists_namespaces_for_a_group_that_may_and_not_for_another(
    apiserver: ApiServer, authority: Authority, tmp_path: Path
) -> None:
    apiserver.trust(authority.certificate_pem)

    viewer_pem = authority.client_identity_pem("alice", ["clustercert:viewers"])
    viewer = kubectl(
        written(tmp_path, kubeconfig_for(apiserver, viewer_pem)), "get", "namespaces", "-o", "name"
    )
    stranger_pem = authority.client_identity_pem("bob", ["strangers"])
    stranger = kubectl(written(tmp_path, kubeconfig_for(apiserver, stranger_pem)), "get", "namespaces")

    assert viewer.stdout.split() == ["namespace/default", "namespace/kube-system"], viewer.stderr
    assert stranger.returncode == 1
    assert "Forbidden" in stranger.stderr


def client_of(apiserver: ApiServer, tmp_path: Path, identity_pem: bytes | None) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(apiserver.server_ca))
    if identity_pem is not None:
        path = tmp_path / "identity.pem"
        path.write_bytes(identity_pem)
        context.load_cert_chain(path)
    return httpx.Client(base_url=apiserver.url, verify=context, trust_env=False)


def test_without_a_certificate_the_answer_is_a_401_status(apiserver: ApiServer, tmp_path: Path) -> None:
    with client_of(apiserver, tmp_path, None) as client:
        answer = client.get("/version")

    assert answer.status_code == 401
    assert (answer.json()["kind"], answer.json()["reason"]) == ("Status", "Unauthorized")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda _: Authority("other").client_identity_pem("eve"), "CERTIFICATE_VERIFY_FAILED"),
        (
            lambda a: a.client_identity_pem("late", not_after=datetime.now(UTC) - timedelta(minutes=1)),
            "certificate has expired",
        ),
        (
            lambda a: a.client_identity_pem("server", usage=ExtendedKeyUsageOID.SERVER_AUTH),
            "unsuitable certificate purpose",
        ),
    ],
    ids=["another CA's", "expired", "for servers only"],
)
def test_a_certificate_that_proves_nothing_ends_the_handshake(
    apiserver: ApiServer,
    authority: Authority,
    tmp_path: Path,
    make: Callable[[Authority], bytes],
    complaint: str,
) -> None:
    apiserver.trust(authority.certificate_pem)

    with (
        client_of(apiserver, tmp_path, make(authority)) as client,
        pytest.raises(httpx.TransportError),
    ):
        client.get("/version")

    assert complaint in apiserver.refused.get(timeout=10)
    assert apiserver.seen == []


def test_a_connection_is_kept_and_its_certificate_is_judged_at_each_request(
    apiserver: ApiServer, authority: Authority, tmp_path: Path
) -> None:
    apiserver.trust(authority.certificate_pem)
    statuses, ports = [], set()

    with client_of(apiserver, tmp_path, authority.client_identity_pem("brief")) as client:
        for lead in (timedelta(), timedelta(days=1)):
            apiserver.now = partial(lambda lead: datetime.now(UTC) + lead, lead)
            answer = client.get("/version")
            statuses.append(answer.status_code)
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))

    assert statuses == [200, 401]
    assert len(ports) == 1, "the second request came on the first one's connection"


def test_the_hook_denies_one_credential_and_spares_the_other(
    apiserver: ApiServer, authority: Authority, tmp_path: Path
) -> None:
    apiserver.trust(authority.certificate_pem)
    first, second = (authority.client_identity_pem("bob", ["clustercert:admins"]) for _ in range(2))
    der = x509.load_pem_x509_certificate(first).public_bytes(serialization.Encoding.DER)
    denied = Identity.of(der)
    assert denied is not None
    apiserver.verdict = lambda who, _method, _path: "revoked" if who == denied else None

    answers = []
    for identity_pem in (first, second):
        with client_of(apiserver, tmp_path, identity_pem) as client:
            answers.append(client.get("/version"))

    assert [answer.status_code for answer in answers] == [403, 200]
    assert "revoked" in answers[0].json()["message"]


def test_a_bundle_may_be_replaced_while_it_runs(
    apiserver: ApiServer, authority: Authority, tmp_path: Path
) -> None:
    newcomer = Authority("newcomer")
    identity_pem = newcomer.client_identity_pem("alice")
    apiserver.trust(authority.certificate_pem)
    with client_of(apiserver, tmp_path, identity_pem) as client, pytest.raises(httpx.TransportError):
        client.get("/version")

    apiserver.trust(authority.certificate_pem + newcomer.certificate_pem)

    with client_of(apiserver, tmp_path, identity_pem) as client:
        assert client.get("/version").status_code == 200


def test_a_subject_without_a_common_name_is_nobody(
    apiserver: ApiServer, authority: Authority, tmp_path: Path
) -> None:
    apiserver.trust(authority.certificate_pem)
    with client_of(
        apiserver, tmp_path, authority.client_identity_pem(None, ["clustercert:admins"])
    ) as client:
        assert client.get("/version").status_code == 401

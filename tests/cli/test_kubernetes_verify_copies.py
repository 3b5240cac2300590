"""`clustercert kubernetes verify` with altered copies of certificates."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.apiserver import ApiServer
from support.command_line import Operator
from support.operated_cluster import OperatedCluster
from support.stores import Store, sqlite_url
from support.wait import eventually


@pytest.fixture
def rsa_site(made: tuple[Operator, str], tmp_path: Path) -> Iterator[OperatedCluster]:
    """A site whose client CA is RSA: its signatures have only one form."""
    operator, url = made
    before = operator.config.read_text()
    with ApiServer(tmp_path) as cluster:
        operator.configure('[issuing]\nca_key_type = "rsa-2048"\n')
        try:
            operator.output(
                *("cluster", "add", "prod", "--project", "eu-de"),
                *("--internal-url", cluster.url, "--server-ca", cluster.server_ca),
            )
        finally:
            operator.config.write_text(before)
        try:
            cluster.trust(operator.output("cluster", "ca", "show", "prod", "--bundle").encode())
            yield OperatedCluster(operator, cluster, url)
        finally:
            operator.output("cluster", "remove", "prod", "--yes")


def store(site: OperatedCluster) -> Store:
    return Store(sqlite_url(site.database))


def copies_seen(site: OperatedCluster) -> list[int]:
    """The statuses of requests with copies of the throw-away certificates."""
    known = {
        f"X509SHA256={bytes(fingerprint).hex()}"  # type: ignore[call-overload] # a column of bytes
        for (fingerprint,) in store(site).rows(
            "SELECT fingerprint FROM certificate WHERE user_id = 'clustercert:verify'"
        )
    }
    return [
        each.status
        for each in site.cluster.seen
        if each.identity
        and each.identity.username == "clustercert:verify"
        and each.identity.credential_id not in known
    ]


def test_copies_of_both_certificates_are_refused(site: OperatedCluster) -> None:
    site.set_up()

    code, checks = site.verify()

    assert code == 0, checks
    assert (checks["altered copy"]["result"], checks["altered copy"]["detail"]) == (
        "ok",
        "refused with a different signature too",
    )
    assert checks["authenticate"]["detail"] == "accepted, and recognized by its credential group"
    # A copy of the revoked certificate, and one of the other.
    assert copies_seen(site) == [403, 403]
    numbers = [
        str(number)
        for (number,) in store(site).rows(
            "SELECT credential_number FROM certificate WHERE user_id = 'clustercert:verify' ORDER BY id DESC LIMIT 2"
        )
    ]

    def told() -> set[object]:
        events = [said for said in store(site).events() if said["kind"] == "credential.altered"]
        return {said["detail"]["credential_number"] for said in events}  # type: ignore[index] # JSON

    eventually(lambda: told() >= set(numbers))


def test_all_checks_pass_if_the_api_server_tells_no_hash(site: OperatedCluster) -> None:
    """As before Kubernetes 1.32."""
    site.set_up()
    site.cluster.tells_credential_ids = False

    code, checks = site.verify()

    assert code == 0, checks
    assert "sends no hash" in checks["authenticate"]["detail"]
    assert checks["altered copy"]["result"] == "ok"
    # Such an API server can't distinguish a copy of a valid certificate.
    assert [each["result"] for each in checks.values()] == ["ok"] * 6


def test_with_an_rsa_ca_copies_are_not_tried(rsa_site: OperatedCluster) -> None:
    rsa_site.set_up()

    code, checks = rsa_site.verify()

    assert code == 0, checks
    assert checks["altered copy"]["result"] == "skipped"
    assert checks["altered copy"]["detail"].startswith("not tried: ")
    assert "rsa-2048" in checks["altered copy"]["detail"]
    assert checks["other certificate"]["result"] == "ok"
    assert copies_seen(rsa_site) == []

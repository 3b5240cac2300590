"""`clustercert kubernetes verify` and altered copies: what it presents, and what follows from the answer."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import enforcing
from apiserver import ApiServer, kinds
from clustercert.app.wiring import components
from clustercert.manifests.admission import POLICY
from clustercert.model import Origin
from clustercert.settings import load
from kubernetes_site import Site
from operating import Operator
from stores import Store, event, sqlite_url
from waiting import eventually


@pytest.fixture
def rsa_site(made: tuple[Operator, str], tmp_path: Path) -> Iterator[Site]:
    """A site whose cluster has an RSA client CA, and so signatures of one form only."""
    operator, url = made
    before = operator.config.read_text()
    with ApiServer(tmp_path) as cluster:
        operator.configure('[issuing]\nca_key_type = "rsa-2048"\n')
        try:
            operator.gets(
                *("cluster", "add", "prod", "--project", "eu-de"),
                *("--internal-url", cluster.url, "--server-ca", cluster.server_ca),
            )
        finally:
            operator.config.write_text(before)
        try:
            cluster.trust(operator.gets("kubernetes", "ca-bundle", "prod").encode())
            yield Site(operator, cluster, url)
        finally:
            operator.gets("cluster", "remove", "prod", "--yes")


def store(site: Site) -> Store:
    return Store(sqlite_url(site.database))


def copies_seen(site: Site) -> list[int]:
    """What the API server answered copies of throw-away certificates."""
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


def by_number(site: Site) -> list[object]:
    """What the last events of the cluster say of its admission policy."""
    return [
        said["detail"]["options"].get("admission_by_number")  # type: ignore[index] # JSON
        for said in store(site).events()
        if said["kind"] == "cluster.updated"
    ]


def without_webhook(site: Site) -> None:
    document = yaml.safe_load((site.folder / "authorization-config.yaml").read_text())
    document["authorizers"] = [each for each in document["authorizers"] if each["type"] != "Webhook"]
    other = site.folder / "without.yaml"
    other.write_text(yaml.safe_dump(document))
    site.cluster.authorize_with(other)


def with_admission(site: Site, *options: str) -> None:
    """A cluster where the admission policy alone stops what is revoked."""
    site.update("--admission", *options)
    site.set_up()
    for name in ("admission.yaml", "service-access.yaml"):
        for document in yaml.safe_load_all((site.folder / name).read_text()):
            path = enforcing._PATHS[str(document["kind"])]
            enforcing.as_admin(site.cluster, lambda api, p=path, d=document: api.create(p, d))  # type: ignore[misc] # the lambda has no types
    without_webhook(site)


def make_policy_older(site: Site) -> Callable[[], None]:
    """Have the cluster's policy read hashes alone, as the one of 25 November; the answer undoes it."""
    new = site.cluster.storage.get(kinds.POLICIES, "", POLICY)["spec"]
    older = {
        **new,
        "validations": [each for each in new["validations"] if "credential-id" in each["expression"]],
    }
    assert len(older["validations"]) == 1

    def change(spec: Any) -> None:
        site.cluster.storage.replace(kinds.POLICIES, "", POLICY, lambda old: old | {"spec": spec})

    change(older)
    return lambda: change(new)


def test_copies_of_both_certificates_are_refused_and_the_other_goes_on(site: Site) -> None:
    site.set_up()

    code, checks = site.verify()

    assert code == 0, checks
    assert (checks["altered copy"]["result"], checks["altered copy"]["detail"]) == (
        "ok",
        "refused with another signature too",
    )
    assert checks["authenticate"]["detail"] == "accepted, and told apart by its credential group"
    # One of the revoked certificate, one of the other.
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


def test_an_api_server_that_tells_no_hash_is_served_by_the_group(site: Site) -> None:
    """As before Kubernetes 1.32."""
    site.set_up()
    site.cluster.tells_credential_ids = False

    code, checks = site.verify()

    assert code == 0, checks
    assert "tells no hash" in checks["authenticate"]["detail"]
    assert checks["altered copy"]["result"] == "ok"
    # A copy of a good certificate is the same to such an API server.
    assert [each["result"] for each in checks.values()] == ["ok"] * 6


def test_with_an_rsa_ca_copies_are_not_tried(rsa_site: Site) -> None:
    rsa_site.set_up()

    code, checks = rsa_site.verify()

    assert code == 0, checks
    assert checks["altered copy"]["result"] == "skipped"
    assert checks["altered copy"]["detail"].startswith("not tried: ")
    assert "rsa-2048" in checks["altered copy"]["detail"]
    assert checks["other certificate"]["result"] == "ok"
    assert copies_seen(rsa_site) == []


def test_a_policy_that_refuses_the_copy_reads_numbers_and_hashes_end(site: Site) -> None:
    with_admission(site)

    code, checks = site.verify()

    assert code == 0, checks
    assert "no hashes are written beside them any more" in checks["altered copy"]["detail"]
    assert by_number(site)[-1] is True
    # Those that were there go.
    eventually(lambda: {len(key) for key in enforcing.revoked(site.cluster)} == {40})
    told = len(by_number(site))
    again = site.verify()[1]
    assert again["altered copy"]["detail"] == "refused with another signature too"
    assert len(by_number(site)) == told


def test_a_policy_that_knows_hashes_alone_lets_the_copy_in_and_both_keys_stay(site: Site) -> None:
    with_admission(site)
    renew = make_policy_older(site)

    code, checks = site.verify("--wait", "8")

    assert (code, checks["revoke"]["result"]) == (1, "ok"), checks
    assert checks["altered copy"]["result"] == "failed"
    assert "is accepted" in checks["altered copy"]["detail"]
    assert "admission.yaml" in checks["altered copy"]["advice"]
    assert checks["other certificate"]["result"] == "skipped"
    assert by_number(site)[-1] is False
    eventually(lambda: {len(key) for key in enforcing.revoked(site.cluster)} == {40, 64})

    renew()
    code, checks = site.verify()
    assert code == 0, checks
    assert by_number(site)[-1] is True


def test_a_webhook_that_refuses_the_copy_says_nothing_of_an_older_policy(site: Site) -> None:
    with_admission(site)
    make_policy_older(site)
    site.cluster.authorize_with(site.folder / "authorization-config.yaml")

    code, checks = site.verify()

    assert code == 0, checks
    assert "its admission policy is an older one" in checks["altered copy"]["detail"]
    assert by_number(site)[-1] is False


def test_without_a_copy_the_policy_itself_is_read(rsa_site: Site) -> None:
    with_admission(rsa_site)
    renew = make_policy_older(rsa_site)
    code, checks = rsa_site.verify()
    assert (code, checks["altered copy"]["result"]) == (1, "failed")
    assert "admission.yaml" in checks["altered copy"]["advice"]
    assert by_number(rsa_site)[-1] is False

    renew()
    code, checks = rsa_site.verify()
    assert code == 0, checks
    assert checks["altered copy"]["result"] == "skipped"
    assert "no hashes are written beside them any more" in checks["altered copy"]["detail"]
    assert by_number(rsa_site)[-1] is True
    assert checks["other certificate"]["result"] == "ok"


def test_where_the_policy_cannot_be_read_both_keys_go_on_being_written(rsa_site: Site) -> None:
    with_admission(rsa_site)
    role: dict[str, object] = {
        "metadata": {"name": "namespace-maker"},
        "rules": [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["create"]}],
    }
    enforcing.as_admin(rsa_site.cluster, lambda api: api.create(enforcing._PATHS["ClusterRole"], role))
    rsa_site.cluster.bind("clustercert:editors", "namespace-maker")

    code, checks = rsa_site.verify("--rule", "member", "--can", "create:namespaces")

    assert code == 0, checks
    assert "its admission policy could not be read" in checks["altered copy"]["detail"]
    assert by_number(rsa_site)[-1] is False


def test_the_end_of_its_binding_stops_the_copy_too(site: Site) -> None:
    site.update("--credential-role", "admin=cluster-admin")
    site.set_up()
    for document in yaml.safe_load_all((site.folder / "service-access.yaml").read_text()):
        path = enforcing._PATHS[str(document["kind"])]
        enforcing.as_admin(site.cluster, lambda api, p=path, d=document: api.create(p, d))  # type: ignore[misc] # the lambda has no types
    without_webhook(site)

    code, checks = site.verify()

    assert code == 0, checks
    assert checks["altered copy"]["result"] == "ok"
    assert checks["issue"]["detail"] == "two for clustercert:verify in a credential group each"


def test_what_else_was_said_of_a_cluster_meanwhile_stays(site: Site) -> None:
    """The proof begins with the cluster as it was, and may take minutes."""

    async def noted() -> None:
        async with components(load(site.operator.config)) as parts:
            (before,) = await parts.clusters.rows.find("prod")
            wanted = replace(before, options=replace(before.options, admission=True, mode="known-only"))
            await parts.clusters.rows.replace(wanted, event("cluster.updated"))
            await parts.clusters.note_admission_by_number(before, actor="cli:test", origin=Origin.local())
            (after,) = await parts.clusters.rows.find("prod")
            assert after.options == replace(wanted.options, admission_by_number=True)

    asyncio.run(noted())

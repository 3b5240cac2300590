"""Clusters without access to the API server's flags: a binding for each certificate, and admission of revoked ids.

Service, TLS and requests are real. The API server is the tests' double.
"""

import base64
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from clustercert.kubernetes.setup.admission import NAMESPACE
from clustercert.model import Cluster, ClusterOptions, Origin
from support import world as worlds
from support.apiserver import ApiServer
from support.leaf_checks import assert_subject
from support.managed_cluster import ROLES, bindings, register, revoked, set_up, status, write_status
from support.service import Service
from support.stores import execute, rows
from support.wait import eventually
from support.world import World

ORIGIN = Origin(address="local", request_id="e" * 32)
BOTH = ClusterOptions(credential_roles=ROLES, admission=True)


@dataclass(frozen=True)
class Scene:
    """A service, and a cluster that is set up for it."""

    world: World
    service: Service
    double: ApiServer
    cluster: Cluster

    def path(self, tail: str) -> str:
        return f"/api/v3/projects/{self.cluster.project_id}/clusters/{self.cluster.id}{tail}"

    def asks(self, who: str = "admin", **more: object) -> Any:
        body = {"duration": 1} | more
        return self.service.client.post(
            self.path("/clustercert"), json=body, headers=self.world.people[who].headers
        )

    def gets(self, who: str = "admin") -> Any:
        answer = self.asks(who)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def revokes(self, who: str) -> None:
        """Revoke all certificates of a user, as an administrator."""
        answer = self.service.client.post(
            self.path("/clustercertrevoke"),
            json={"userId": self.world.people[who].user.id},
            headers=self.world.people["admin"].headers,
        )
        assert answer.status_code == 200, answer.text

    def revokes_one(self, kubeconfig: Any) -> None:
        answer = self.service.client.post(
            f"/clustercert/v1/projects/{self.cluster.project_id}/clusters/{self.cluster.id}"
            f"/certificates/{fingerprint(kubeconfig)}/revoke",
            json={},
            headers=self.world.people["admin"].headers,
        )
        assert answer.is_success, answer.text


def leaf(kubeconfig: Any) -> x509.Certificate:
    pem = base64.b64decode(kubeconfig["users"][0]["user"]["client-certificate-data"])
    return x509.load_pem_x509_certificate(pem)


def fingerprint(kubeconfig: Any) -> str:
    return hashlib.sha256(leaf(kubeconfig).public_bytes(Encoding.DER)).hexdigest()


def group(kubeconfig: Any) -> str:
    """Return the certificate's only group."""
    (name,) = leaf(kubeconfig).subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(name.value)


def by_the_service(scene: Scene) -> list[tuple[str, str]]:
    """Return method and path of each request from the service to the API server."""
    return [
        (each.method, each.path)
        for each in scene.double.seen
        if each.identity and each.identity.username == "clustercert:service"
    ]


def live(scene: Scene) -> set[str]:
    """The credential groups of live certificates, which must have a binding."""
    query = (
        "SELECT credential_number FROM certificate c WHERE cluster_id = ? AND rule IS NOT NULL"
        " AND revoked_at IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM revocation r WHERE r.fingerprint IS NULL AND r.undone_at IS NULL"
        " AND r.cluster_id IN (c.cluster_id, '') AND r.user_id IN (c.user_id, '') AND r.epoch > c.epoch)"
    )
    found = rows(scene.world.database, query, scene.cluster.id)
    return {f"clustercert:credential:{number}" for (number,) in found}


def settled(scene: Scene) -> set[str]:
    """The bindings, once the service has done what revocations of earlier tests left to do."""
    eventually(lambda: bindings(scene.double).keys() == live(scene))
    return live(scene)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("guarded")
    world = worlds.make(folder)
    (folder / "apiserver").mkdir()
    with ApiServer(folder / "apiserver") as double:
        set_up(double)
        cluster = register(world, double, "guarded", BOTH)
        with Service(world.settings()).running() as service:
            yield Scene(world, service, double, cluster)


# Per-credential RBAC


def test_a_certificate_has_one_group_bound_before_the_answer(
    scene: Scene,
) -> None:
    kubeconfig = scene.gets("member")
    name = f"clustercert:credential:{leaf(kubeconfig).serial_number:040x}"
    assert group(kubeconfig) == name
    binding: Any = bindings(scene.double)[name]
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "edit",
    }
    assert binding["subjects"] == [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name}]
    assert binding["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "clustercert"}
    assert binding["metadata"]["annotations"] == {
        "clustercert/fingerprint": fingerprint(kubeconfig),
        "clustercert/not-after": f"{leaf(kubeconfig).not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
    }


def test_revoking_one_ends_it_and_leaves_the_others_of_the_same_user(scene: Scene) -> None:
    first, second = scene.gets(), scene.gets()
    assert [status(scene.double, each) for each in (first, second)] == [200, 200]
    scene.revokes_one(first)
    eventually(lambda: status(scene.double, first) == 403)
    assert status(scene.double, second) == 200
    assert group(first) not in bindings(scene.double)
    assert group(second) in bindings(scene.double)


def test_revoking_a_user_unbinds_all_of_theirs_and_none_issued_afterwards(scene: Scene) -> None:
    before = [scene.gets("member") for _ in range(3)]
    others = scene.gets("admin")
    scene.revokes("member")
    after = scene.gets("member")
    eventually(lambda: not {group(each) for each in before} & bindings(scene.double).keys())
    assert {group(after), group(others)} <= bindings(scene.double).keys()


def test_the_service_renews_its_own_revoked_certificate_at_once(
    scene: Scene,
) -> None:
    kubeconfig = scene.gets()
    own = rows(scene.world.database, "SELECT count(*) FROM certificate WHERE user_id = 'clustercert:service'")
    assert own != [(0,)]
    answer = scene.service.client.post(
        f"/clustercert/v1/projects/{scene.cluster.project_id}/clusters/{scene.cluster.id}/revoke",
        json={},
        headers=scene.world.people["admin"].headers,
    )
    assert answer.is_success, answer.text
    eventually(lambda: status(scene.double, kubeconfig) == 403)
    assert status(scene.double, scene.gets()) == 200


def test_who_undoes_a_revocation_gets_the_binding_back(scene: Scene) -> None:
    kubeconfig = scene.gets("admin")
    scene.revokes_one(kubeconfig)
    eventually(lambda: status(scene.double, kubeconfig) == 403)
    [(number,)] = rows(scene.world.database, "SELECT max(id) FROM revocation")
    answer = scene.service.client.post(
        f"/clustercert/v1/revocations/{number}/undo", headers=scene.world.people["operator"].headers
    )
    assert answer.is_success, answer.text
    eventually(lambda: status(scene.double, kubeconfig) == 200)


def test_a_rule_without_a_cluster_role_gets_nothing_and_is_told_why(scene: Scene) -> None:
    before = settled(scene)
    answer = scene.asks("reader")
    assert answer.status_code == 403
    assert "ClusterRole for the rule reader" in answer.json()["errorMessage"]
    assert bindings(scene.double).keys() == before


def test_a_preview_shows_the_kind_of_group_and_binds_nothing(scene: Scene) -> None:
    before = settled(scene)
    answer = scene.service.client.post(
        scene.path("/clustercert?dryRun=All"),
        json={"duration": 1},
        headers=scene.world.people["admin"].headers,
    )
    assert answer.status_code == 200
    assert answer.json()["organizations"] == ["clustercert:credential:<number>"]
    assert bindings(scene.double).keys() == before


def test_where_recording_fails_nothing_stays_bound(scene: Scene) -> None:
    before = settled(scene)
    done = len(by_the_service(scene))
    execute(
        scene.world.database,
        "CREATE TRIGGER refuse BEFORE INSERT ON certificate WHEN NEW.user_id <> 'clustercert:service'"
        " BEGIN SELECT RAISE(ABORT, 'no'); END",
    )
    try:
        assert scene.asks().status_code >= 500
    finally:
        execute(scene.world.database, "DROP TRIGGER refuse")
    assert bindings(scene.double).keys() <= before
    ((_, _), (removing, path), *_) = [
        each for each in by_the_service(scene)[done:] if "clusterrolebindings" in each[1] and each[0] != "GET"
    ]
    assert (removing, path.partition("clustercert:")[1]) == ("DELETE", "clustercert:")


def test_where_the_api_server_does_not_answer_nothing_is_issued(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "apiserver").mkdir()
    with ApiServer(tmp_path / "apiserver") as gone:
        cluster = register(scene.world, gone, f"gone-{tmp_path.name}", BOTH)
    answer = Scene(scene.world, scene.service, gone, cluster).asks()
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    mine = "SELECT count(*) FROM certificate WHERE cluster_id = ? AND user_id <> 'clustercert:service'"
    assert rows(scene.world.database, mine, cluster.id) == [(0,)]


def test_where_the_service_may_not_bind_nothing_is_issued(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "apiserver").mkdir()
    with ApiServer(tmp_path / "apiserver") as strict:
        cluster = register(scene.world, strict, f"strict-{tmp_path.name}", BOTH)
        strict.trust(cluster.client_ca.ca_certificate.public_bytes(Encoding.PEM))
        answer = Scene(scene.world, scene.service, strict, cluster).asks()
        assert answer.status_code == 502
        assert bindings(strict) == {}
    mine = "SELECT count(*) FROM certificate WHERE cluster_id = ? AND user_id <> 'clustercert:service'"
    assert rows(scene.world.database, mine, cluster.id) == [(0,)]


def test_a_cluster_without_the_option_is_never_spoken_to(scene: Scene) -> None:
    """Nothing responds at its address, so a request would take seconds to fail."""
    headers = scene.world.people["admin"].headers
    answer = scene.service.client.post(scene.world.path(), json={"duration": 1}, headers=headers)
    assert answer.status_code == 200
    issued = leaf(answer.json())
    assert_subject(
        issued,
        scene.world.people["admin"].user.id,
        ["clustercert:admins", f"clustercert:credential:{issued.serial_number:040x}"],
    )


def test_bindings_converge_to_the_ledger_under_any_interleaving(scene: Scene) -> None:
    def issue(number: int) -> None:
        scene.gets("admin" if number % 2 else "member")

    def revoke(number: int) -> None:
        scene.revokes("admin" if number % 2 else "member")

    with ThreadPoolExecutor(8) as many:
        for _ in many.map(lambda n: revoke(n) if n % 5 == 4 else issue(n), range(30)):
            pass
    answers = [scene.gets("member"), scene.gets("admin")]

    assert {group(each) for each in answers} <= live(scene)
    settled(scene)


def test_what_is_done_is_counted(scene: Scene) -> None:
    scene.gets()
    samples = (
        'clustercert_enforcements_total{outcome="done",what="bind"}',
        'clustercert_enforcements_total{outcome="done",what="bindings"}',
        'clustercert_enforcements_total{outcome="done",what="admission"}',
        "clustercert_enforcement_seconds_count",
        "clustercert_enforcement_failing",
    )

    def counted() -> bool:
        said = scene.service.client.get("/metrics").text
        return all(sample in said for sample in samples)

    eventually(counted)


# The service's own identity


def test_the_service_is_in_the_ledger_for_a_quarter_of_an_hour(scene: Scene) -> None:
    scene.gets()
    query = (
        "SELECT der, auth_method, groups, credential_number FROM certificate"
        " WHERE cluster_id = ? AND user_id = 'clustercert:service' ORDER BY id DESC LIMIT 1"
    )
    [(der, method, groups, numbered)] = rows(scene.world.database, query, scene.cluster.id)
    assert isinstance(der, bytes)
    own = x509.load_der_x509_certificate(der)
    number = f"{own.serial_number:040x}"
    own_groups = ["clustercert:service", f"clustercert:credential:{number}"]
    assert_subject(own, "clustercert:service", own_groups)
    assert (own.not_valid_after_utc - own.not_valid_before_utc).total_seconds() == (15 + 5) * 60
    assert (method, groups, numbered) == ("service", '["clustercert:service"]', number)
    assert by_the_service(scene)


# Admission


def test_a_revoked_credential_number_stops_writes(scene: Scene) -> None:
    kubeconfig = scene.gets()
    assert write_status(scene.double, kubeconfig, "before") == 201
    scene.revokes_one(kubeconfig)
    number = group(kubeconfig).removeprefix("clustercert:credential:")
    eventually(lambda: number in revoked(scene.double))
    assert revoked(scene.double)[number] == f"{leaf(kubeconfig).not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    # Admission refuses writes even with a binding.
    scene.double.bind(group(kubeconfig), "cluster-admin")
    assert status(scene.double, kubeconfig) == 200
    assert write_status(scene.double, kubeconfig, "after") == 403
    assert write_status(scene.double, scene.gets(), "by-another") == 201


def test_the_map_is_in_the_namespace_that_the_manifests_make(scene: Scene) -> None:
    scene.gets()
    paths = eventually(lambda: {path for _, path in by_the_service(scene) if "configmaps" in path})
    assert paths == {f"/api/v1/namespaces/{NAMESPACE}/configmaps/clustercert-revoked"}

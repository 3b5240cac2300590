"""GET /clustercert/v1/clusters: the clusters that a caller can reach, and kubeconfigs for them."""

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import yaml
from sqlalchemy import Table

from clustercert.pki.client_ca import ca_subject
from clustercert.store import tables
from clustercert.store.clusters.signing_clusters import SigningClusterQueries
from clustercert.wiring import open_components
from support import world as worlds
from support.service import Service
from support.stores import execute
from support.token_clusters import use_tokens
from support.world import World

OWN = "/clustercert/v1"
RULES = {
    "rules": [
        {
            "name": "admin",
            "when": {"roles": ["admin"]},
            "grant": {"groups": ["ops"], "max_lifetime": "2h", "default_lifetime": "1h"},
        },
        {
            "name": "member",
            "when": {"roles": ["member"]},
            "grant": {"groups": ["devs"], "max_lifetime": "15m", "csr_required": True},
        },
        {
            "name": "reader",
            "when": {"roles": ["reader"]},
            "grant": {"groups": ["viewers"], "reason_required": True},
        },
        {
            "name": "edit-on-request",
            "when": {"roles": ["member", "reader"]},
            "offer": {"groups": ["editors", "owners"], "max_lifetime": "1h", "approvals": []},
        },
        {
            "name": "owners",
            "when": {"roles": ["reader"]},
            "offer": {"groups": ["owners"], "max_lifetime": "2h", "approvals": []},
        },
    ]
}


@dataclass(frozen=True)
class Place:
    """A service with clusters in two projects."""

    world: World
    client: httpx2.Client

    def get(self, who: str, path: str, **query: str) -> httpx2.Response:
        return self.client.get(OWN + path, params=query, headers=self.world.people[who].headers)

    def names(self, who: str, **query: str) -> list[str]:
        answer = self.get(who, "/clusters", **query)
        assert answer.status_code == 200, answer.text
        return sorted(each["name"] for each in answer.json()["clusters"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    world = worlds.make(tmp_path_factory.mktemp("caller"))
    with Service(world.settings()).running() as service:
        yield Place(world, service.client)


def test_clusters_of_own_projects_are_listed(place: Place) -> None:
    assert place.names("reader") == ["eip", "plain", "sans"]
    assert place.names("stranger") == ["foreign"]
    for who in ("operator", "auditor"):
        assert place.names(who) == ["eip", "foreign", "plain", "sans"]
    assert place.names("operator", own="true") == []
    [found] = place.get("admin", "/clusters", name="eip").json()["clusters"]
    known = place.world.clusters["eip"]
    assert {**found, "created_at": "", "updated_at": ""} == {
        "id": known.id,
        "name": "eip",
        "project": "eu-de",
        "project_id": place.world.project.id,
        "domain": "tests",
        "domain_id": place.world.project.domain.id,
        "version": "v1.32",
        "internal_url": known.internal_url,
        "external_url": known.external_url,
        "server_ca": known.server_ca_pem.decode(),
        "labels": {"team": "tests"},
        "credential": "certificate",
        "issuing_stopped": False,
        "groups": ["clustercert:admins"],
        "longest_lifetime_seconds": 1825 * 86400,
        "requestable_groups": [],
        "client_ca_id": known.client_ca.id,
        "client_ca_key_id": ca_subject(known.client_ca.ca_certificate).key_identifier.hex(),
        "created_at": "",
        "updated_at": "",
        "verified_at": None,
    }


def test_a_cluster_says_that_its_credentials_are_tokens(tmp_path: Path) -> None:
    world = worlds.make(tmp_path)
    asyncio.run(_use_tokens(world))
    with Service(world.settings(policy=RULES)).running() as service:
        place = Place(world, service.client)
        [found] = place.get("admin", "/clusters", name="eip").json()["clusters"]
        assert (found["credential"], found["client_ca_key_id"]) == ("token", None)
        assert (found["groups"], found["longest_lifetime_seconds"]) == (["ops"], 7200)
        [found] = place.get("member", "/clusters", name="eip").json()["clusters"]
        assert (found["groups"], found["longest_lifetime_seconds"]) == ([], None)
        assert found["requestable_groups"] == ["editors"]
        assert found["issuing_stopped"] is False
        asyncio.run(_note_problem(world, "The role view can do too much."))
        answer = place.get("member", "/clusters")
        stopped = {each["name"] for each in answer.json()["clusters"] if each["issuing_stopped"]}
        assert (stopped, "can do too much" in answer.text) == ({"eip"}, False)


async def _note_problem(world: World, problem: str) -> None:
    async with open_components(world.settings()) as components:
        queries = SigningClusterQueries(components.database)
        assert await queries.note_problem(world.clusters["eip"].client_ca.id, problem)


async def _use_tokens(world: World) -> None:
    async with open_components(world.settings()) as components:
        roles = {"ops": ("clusterrole/view",), "editors": ("clusterrole/edit@blue",)}
        await use_tokens(components.database, world.clusters["eip"], roles)


def test_foreign_clusters_do_not_exist(place: Place) -> None:
    foreign = place.world.clusters["foreign"]
    for name in ("foreign", foreign.id):
        assert place.names("member", name=name) == []
        assert place.names("operator", name=name) == ["foreign"]
    assert place.get("member", "/clusters", name="a\nb").status_code == 400


def test_clusters_are_found_by_a_part_of_their_name_or_of_their_projects(place: Place) -> None:
    assert place.names("operator", search="LAI") == ["plain"]
    assert place.names("operator", search="eu-d", limit="1") == place.names(
        "operator", search="EU-DE", limit="1"
    )
    assert place.names("member", search="eu-de") == ["eip", "plain", "sans"]
    for pattern in ("%", "_", "l_in", "nothing"):
        assert place.names("operator", search=pattern) == []
    assert place.names("member", search="foreign") == []


def test_a_kubeconfig_for_the_exec_plugin_has_no_secret(place: Place) -> None:
    known, project = place.world.clusters["eip"], place.world.project
    path = f"/clusters/{known.id}/kubeconfig"
    answer = place.get("member", path)
    assert answer.headers["cache-control"] == "no-store"
    name = f"default-eip-{known.id[:8]}"
    mark = {
        "profile": "default",
        "project_id": project.id,
        "project": "eu-de",
        "domain": "tests",
        "cluster_id": known.id,
        "cluster": "eip",
        "login": "tests/member",
    }
    found = answer.json()
    [user], [cluster], [context] = (found[kind] for kind in ("users", "clusters", "contexts"))
    assert (found["current-context"], user["name"]) == (name, name)
    assert context == {
        "name": name,
        "context": {
            "cluster": name,
            "user": name,
            "extensions": [{"name": "clustercert", "extension": mark}],
        },
    }
    assert (cluster["cluster"]["server"], "insecure-skip-tls-verify" in cluster["cluster"]) == (
        known.external_url,
        False,
    )
    assert base64.b64decode(cluster["cluster"]["certificate-authority-data"]) == known.server_ca_pem
    assert user["user"].keys() == {"exec", "extensions"}
    assert user["user"]["exec"]["command"] == "kubectl-clustercert"
    assert user["user"]["exec"]["args"] == [
        *("credential", known.id, "--profile", "default", "--project", project.id),
        *("--user", "tests/member"),
    ]

    headers = place.world.people["member"].headers | {"Accept": "application/yaml"}
    as_yaml = place.client.get(OWN + path, headers=headers)
    assert as_yaml.headers["content-type"].startswith("application/yaml")
    assert yaml.safe_load(as_yaml.text) == found

    work = place.get("member", path, profile="work").json()
    assert work["current-context"] == f"work-eip-{known.id[:8]}"
    assert place.get("member", path, profile="../x").status_code == 400


def test_clusters_out_of_reach_have_no_kubeconfig(place: Place) -> None:
    foreign, nothing = place.world.clusters["foreign"].id, "0" * 8
    answers = [place.get("member", f"/clusters/{each}/kubeconfig") for each in (foreign, nothing)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json()["message"] == answers[1].json()["message"]


def test_a_cluster_without_an_address_that_kubectl_can_check_has_no_kubeconfig(place: Place) -> None:
    known, database = place.world.clusters["plain"], place.world.database
    change = "UPDATE cluster SET internal_url = ? WHERE id = ?"
    execute(database, change, "http://10.0.0.1:8080", known.id)
    try:
        answer = place.get("member", f"/clusters/{known.id}/kubeconfig")
    finally:
        execute(database, change, known.internal_url, known.id)
    assert answer.status_code == 409
    assert "--insecure" in answer.json()["message"]


def test_each_cluster_has_the_groups_and_the_longest_lifetime_of_the_caller(place: Place) -> None:
    with Service(place.world.settings(policy=RULES)).running() as service:
        shown = {
            who: service.client.get(
                f"{OWN}/clusters", params={"name": "plain"}, headers=place.world.people[who].headers
            ).json()["clusters"][0]
            for who in ("admin", "member", "reader", "operator")
        }
    assert {who: (each["groups"], each["longest_lifetime_seconds"]) for who, each in shown.items()} == {
        # The default lifetime is shorter.
        "admin": (["ops"], 7200),
        # The rule needs a CSR, which the exec plugin sends.
        "member": (["devs"], 900),
        # The rule needs a reason, which the exec plugin can't send.
        "reader": ([], None),
        "operator": ([], None),
    }
    assert {who: each["requestable_groups"] for who, each in shown.items()} == {
        "admin": [],
        "member": ["editors", "owners"],
        "reader": ["editors", "owners"],
        "operator": [],
    }


def test_a_page_with_large_cas_is_bounded(place: Place) -> None:
    ca = place.world.clusters["plain"].server_ca_pem
    large = ca * (64 * 1024 // len(ca))
    execute(place.world.database, "UPDATE cluster SET server_ca_pem = ?", large)
    try:
        with Service(place.world.settings(limits={"page_kib": 150})).running() as service:
            found: list[str] = []
            cursor: dict[str, str] = {}
            pages: list[int] = []
            while True:
                headers = place.world.people["operator"].headers
                answer = service.client.get(f"{OWN}/clusters", params=cursor, headers=headers)
                pages.append(len(answer.content))
                found += [each["name"] for each in answer.json()["clusters"]]
                if answer.json()["next"] is None:
                    break
                cursor = {"cursor": answer.json()["next"]}
    finally:
        execute(place.world.database, "UPDATE cluster SET server_ca_pem = ?", ca)
    assert sorted(found) == ["eip", "foreign", "plain", "sans"]
    assert len(pages) == 2
    assert max(pages) < 200 * 1024


def test_clusters_are_sorted_by_name_in_pages(place: Place) -> None:
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = place.get("operator", "/clusters", order="name", limit="1", **cursor).json()
        found += [each["name"] for each in page["clusters"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert found == ["eip", "foreign", "plain", "sans"]
    # The position of another tenant's cluster tells nothing.
    for unknown in (place.world.clusters["foreign"].id, "0" * 8):
        answer = place.get("member", "/clusters", order="name", cursor=unknown)
        assert answer.status_code == 400
        assert "Begin with the first page" in answer.json()["message"]


def test_clusters_have_pages(place: Place) -> None:
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = place.get("operator", "/clusters", limit="3", **cursor).json()
        found += [each["id"] for each in page["clusters"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert found == sorted(each.id for each in place.world.clusters.values())


def test_a_page_has_at_most_100_clusters(place: Place) -> None:
    database, copied = place.world.database, place.world.clusters["plain"].id
    for number in range(97):
        made = f"{number:08x}-0000-0000-0000-000000000000"
        _copy(database, tables.cluster, "id", copied, {"id": made, "name": f"copy-{number}"})
        _copy(database, tables.client_ca, "cluster_id", copied, {"id": f"{number:032x}", "cluster_id": made})
    try:
        first = place.get("operator", "/clusters", limit="500").json()
        last = place.get("operator", "/clusters", limit="500", cursor=first["next"]).json()
    finally:
        for table, column in (("client_ca", "cluster_id"), ("cluster", "id")):
            execute(database, f"DELETE FROM {table} WHERE {column} LIKE '%-0000-0000-0000-000000000000'")
    assert (len(first["clusters"]), len(last["clusters"]), last["next"]) == (100, 1, None)


def _copy(database: Path, table: Table, column: str, value: str, changes: dict[str, str]) -> None:
    """Copy a row, with other values in some columns."""
    names = [each.name for each in table.columns]
    values = ", ".join("?" if name in changes else name for name in names)
    given = [changes[name] for name in names if name in changes]
    query = (
        f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {values} FROM {table.name} WHERE {column} = ?"
    )
    execute(database, query, *given, value)


def test_roles_count_whatever_the_tokens_scope_unless_the_project_is_disabled(place: Place) -> None:
    world, headers = place.world, place.world.people["operator"].headers
    path = f"{OWN}/projects/{world.other_project.id}/assignments/reader/users/member"
    assert place.client.put(path, headers=headers).status_code == 201
    [found] = place.get("member", "/clusters", name="foreign").json()["clusters"]
    assert (found["project"], found["groups"]) == ("eu-nl", ["clustercert:viewers"])
    execute(world.database, "UPDATE project SET enabled = 0 WHERE id = ?", world.other_project.id)
    assert place.names("member", name="foreign") == []
    assert place.names("operator", name="foreign") == ["foreign"]
    execute(world.database, "UPDATE project SET enabled = 1 WHERE id = ?", world.other_project.id)
    assert place.client.delete(path, headers=headers).status_code == 200

"""The overview, and the list of clusters: of the projects that a caller administers, or of all projects."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import pytest

from clustercert.model import rfc3339
from support.request_client import OFFERED_TO_ALL, RequestClient
from support.service import Service
from support.world import World


@dataclass(frozen=True)
class Place:
    """A service with certificates in two projects, and one access request."""

    world: World
    client: httpx2.Client

    def get(self, who: str, path: str = "overview", **query: str) -> httpx2.Response:
        headers = self.world.people[who].headers
        return self.client.get(f"/clustercert/v1/{path}", params=query, headers=headers)


@pytest.fixture(scope="module")
def place(own_world: World) -> Iterator[Place]:
    world = own_world
    with Service(world.settings(policy=OFFERED_TO_ALL)).running() as service:
        for who, cluster in (
            ("admin", "plain"),
            ("member", "plain"),
            ("member", "eip"),
            ("stranger", "foreign"),
        ):
            body = {"expires_in": 3600 if who == "member" else 72 * 3600}
            answer = service.client.post(world.path(cluster), json=body, headers=world.people[who].headers)
            assert answer.status_code == 200, answer.text
        asked = RequestClient(world, service.client).create("member", "asked")
        assert asked.status_code == 201, asked.text
        yield Place(world, service.client)


def test_a_project_admin_sees_the_counts_of_the_own_projects(place: Place) -> None:
    answer = place.get("admin")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["all_projects"] is False
    assert body["holders"] == {"people": 2, "machines": 0}
    assert body["certificates"] == 3
    assert body["access_requests"] == {"pending": 1, "approved": 0, "active": 0, "to_decide": 1}
    assert body["clusters"] == 3
    assert body["enforcement"] == {
        "unreviewed": 0,
        "none": 3,
        "used": 0,
        "incomplete": 0,
        "only_writes": 0,
        "quiet": 0,
        "unverified": 0,
        "bindings": 0,
        "tokens": 0,
        "verified": 0,
    }
    assert body["rotations"] == {"running": 0, "failing": 0, "ready": 0}
    assert body["unknown"] == {"identities": 0, "clusters": 0}
    assert body["revoked_uses"] == 0
    assert body["revoked_accepted"] == 0
    # Two certificates are valid for an hour, and one for three days.
    assert body["ends_within_day"] == {"certificates": 2, "access_requests": 0, "client_cas": 0}


def test_operators_and_auditors_see_all_projects(place: Place) -> None:
    for who in ("operator", "auditor"):
        body = place.get(who).json()
        assert (body["all_projects"], body["clusters"], body["certificates"]) == (True, 4, 4)
        assert body["holders"] == {"people": 3, "machines": 0}
        # An operator may deny each request, but approves none.
        assert body["access_requests"]["to_decide"] == 0


def test_an_admin_sees_nothing_of_other_projects(place: Place) -> None:
    body = place.get("stranger").json()
    assert (body["clusters"], body["certificates"]) == (1, 1)
    assert body["access_requests"] == {"pending": 0, "approved": 0, "active": 0, "to_decide": 0}


def test_others_see_no_overview(place: Place) -> None:
    for who in ("member", "reader"):
        for path in ("overview", "fleet", "fleet/clusters"):
            assert place.get(who, path).status_code == 403


def test_the_list_has_the_clusters_of_the_own_projects(place: Place) -> None:
    for who, expected in (
        ("admin", ["eip", "plain", "sans"]),
        ("stranger", ["foreign"]),
        ("auditor", ["eip", "foreign", "plain", "sans"]),
    ):
        body = place.get(who, "fleet/clusters").json()
        assert ([each["name"] for each in body["clusters"]], body["total"]) == (expected, len(expected))
    [found] = place.get("operator", "fleet/clusters", text="eip").json()["clusters"]
    known = place.world.clusters["eip"]
    assert found["id"] == known.id
    assert (found["project"], found["domain"]) == (place.world.project.name, "tests")
    assert (found["version"], found["labels"], found["enforcement"]) == ("v1.32", {"team": "tests"}, "none")
    assert (found["certificates"], found["unknown"], found["rotation"]) == (1, 0, None)
    assert found["client_ca_not_after"] == rfc3339(known.client_ca.not_after)


def test_the_list_is_read_in_pages(place: Place) -> None:
    query = {"limit": "3", "label": "team=tests"}
    first = place.get("operator", "fleet/clusters", **query).json()
    second = place.get("operator", "fleet/clusters", **query, cursor=first["next"]).json()
    names = [each["name"] for page in (first, second) for each in page["clusters"]]
    assert names == ["eip", "foreign", "plain", "sans"]
    assert (first["total"], second["total"], second["next"]) == (4, 4, None)


def test_an_admin_can_not_begin_a_page_after_a_foreign_cluster(place: Place) -> None:
    foreign = place.get("admin", "fleet/clusters", cursor=place.world.clusters["foreign"].id)
    missing = place.get("admin", "fleet/clusters", cursor="0" * 32)
    assert (foreign.status_code, missing.status_code) == (400, 400)
    assert foreign.json()["error_msg"] == missing.json()["error_msg"]


def test_filters_are_checked(place: Place) -> None:
    for query in (
        {"enforcement": "good"},
        {"enforcement": ""},
        {"order": "age"},
        {"label": "a b"},
        {"rotation": "over"},
        {"text": ""},
    ):
        assert place.get("operator", "fleet/clusters", **query).status_code == 400, query
    for query in (
        {"enforcement": "behind"},
        {"enforcement": "none"},
        {"version": "v1.32"},
        {"certificates": "true"},
    ):
        assert place.get("operator", "fleet/clusters", **query).json()["total"] >= 3, query


def test_the_fleet_is_counted(place: Place) -> None:
    body = place.get("admin", "fleet").json()
    assert body["versions"] == {"v1.32": 3}
    assert body["ended_client_cas"] == 0
    assert body["enforcement"]["none"] == 3

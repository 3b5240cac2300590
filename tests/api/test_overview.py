"""GET /clustercert/v1/overview: counts of the projects that a caller administers, or of all projects."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from support.request_client import OFFERED_TO_ALL, RequestClient
from support.service import Service
from support.world import World


@dataclass(frozen=True)
class Place:
    """A service with certificates in two projects, and one access request."""

    world: World
    client: httpx.Client

    def get(self, who: str) -> httpx.Response:
        return self.client.get("/clustercert/v1/overview", headers=self.world.people[who].headers)


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
        "none": 3,
        "unreviewed": 0,
        "incomplete": 0,
        "unverified": 0,
        "verified": 0,
    }
    assert body["rotations"] == {"running": 0, "failing": 0, "ready": 0}
    assert body["unknown"] == {"identities": 0, "clusters": 0}
    assert body["revoked_uses"] == 0
    assert body["ends_within_day"] == {"certificates": 2, "access_requests": 0, "client_cas": 0}
    hours = body["hours"]
    assert hours[0] == {"at": body["at"], "certificates": 3}
    # Two certificates are valid for an hour, and one for three days.
    assert [each["certificates"] for each in hours[1:]] == [1] * 24


def test_operators_and_auditors_see_all_projects(place: Place) -> None:
    for who in ("operator", "auditor"):
        body = place.get(who).json()
        assert (body["all_projects"], body["clusters"], body["certificates"]) == (True, 4, 4)
        assert body["holders"] == {"people": 3, "machines": 0}
        # An operator may deny each request, an auditor none.
        assert body["access_requests"]["to_decide"] == (1 if who == "operator" else 0)


def test_an_admin_sees_nothing_of_other_projects(place: Place) -> None:
    body = place.get("stranger").json()
    assert (body["clusters"], body["certificates"]) == (1, 1)
    assert body["access_requests"] == {"pending": 0, "approved": 0, "active": 0, "to_decide": 0}


def test_others_see_no_overview(place: Place) -> None:
    for who in ("member", "reader"):
        assert place.get(who).status_code == 403

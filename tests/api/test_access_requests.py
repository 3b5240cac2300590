"""Access requests over the API, on both databases."""

from collections.abc import Iterator
from typing import Any

import pytest

from clustercert.model import parse_rfc3339
from support.leaf_checks import leaf_of
from support.request_client import POLICY, REQUESTS, RequestClient
from support.service import Service
from support.world import World


@pytest.fixture(scope="module")
def running(own_world: World) -> Iterator[RequestClient]:
    with Service(own_world.settings(policy=POLICY)).running() as service:
        yield RequestClient(own_world, service.client)


@pytest.fixture
def requests(running: RequestClient) -> RequestClient:
    running.end_all()
    return running


def test_two_approvers_give_access_that_starts_with_the_first_certificate(requests: RequestClient) -> None:
    made = requests.create()
    assert made.status_code == 201, made.text
    request = made.json()
    assert (request["state"], request["rule"], request["groups"]) == ("pending", "edit", ["editors"])
    assert request["user"]["name"] == "tests/member"
    assert request["cluster"] == {"id": requests.world.clusters["plain"].id, "name": "plain"}
    project = requests.world.project
    assert request["project"] == {"id": project.id, "name": project.name, "domain": "tests"}
    assert "one with the role admin; one with the role inspector" in request["next"]
    assert request["may"] == ["end"]
    refused = requests.issue("member", request["id"])
    assert (refused.status_code, "waits for approvals" in refused.json()["message"]) == (409, True)

    assert requests.show("inspector", request["id"])["may"] == ["approve", "deny", "end"]
    half = requests.done("inspector", request["id"], "approve")
    assert (half["state"], half["may"]) == ("pending", ["deny", "end"])
    assert [each["approved_by"] for each in half["conditions"]] == [None, "tests/inspector"]
    assert "somebody else with the role admin" in half["next"]
    approved = requests.done("admin", request["id"], "approve", reason="go ahead")
    assert (approved["state"], approved["started_at"], approved["ends_at"]) == ("approved", None, None)
    assert [each["reason"] for each in approved["decisions"]][-1] == "go ahead"

    preview = requests.post(
        "member",
        requests.world.path() + "?dryRun=All",
        {"duration": -1, "access_request": request["id"]},
    ).json()
    assert (preview["access_request"], preview["trace"]["allowed_by"]) == (request["id"], "access_request")
    assert requests.show("member", request["id"])["state"] == "approved"
    issued = requests.issue("member", request["id"])
    assert issued.status_code == 200, issued.text
    assert issued.headers["x-clustercert-access-request"] == request["id"]
    used = requests.show("member", request["id"])
    assert (used["state"], used["certificates"]) == ("active", 1)
    leaf = leaf_of(issued.json())
    assert leaf.not_valid_after_utc <= parse_rfc3339(used["ends_at"])
    names = [part.value for part in leaf.subject if part.oid.dotted_string == "2.5.4.10"]
    assert names[:-1] == ["editors", "viewers"]

    without = requests.issue("member", None)
    assert "x-clustercert-access-request" not in without.headers


def test_an_equal_open_request_is_returned_and_another_one_is_refused(requests: RequestClient) -> None:
    first = requests.create()
    again = requests.create()
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    other = requests.create("member", "debuggers")
    assert (other.status_code, first.json()["id"] in other.json()["message"]) == (409, True)
    assert requests.create("member", cluster="eip").status_code == 201
    requests.done("member", first.json()["id"], "end")
    assert requests.create("member", "debuggers").status_code == 201


def test_the_end_of_a_request_revokes_its_certificates_and_no_others(requests: RequestClient) -> None:
    request_id = requests.created("admin", "maintainers")
    assert requests.show("admin", request_id)["state"] == "approved"
    fingerprints = [
        requests.issue("admin", request_id).raise_for_status().headers["x-clustercert-fingerprint"]
        for _ in range(2)
    ]
    ended = requests.done("operator", request_id, "end", reason="not needed")
    assert (ended["state"], ended["closed_by"], ended["closed_why"]) == (
        "ended",
        "tests/operator",
        "not needed",
    )
    assert ended["next"] == "The access was ended by tests/operator: not needed."
    for each in fingerprints:
        shown = requests.get("admin", f"/clustercert/v1/certificates/{each}").json()
        assert (shown["state"], shown["revocation_reason"]) == ("revoked", "cessationOfOperation")
    assert requests.issue("admin", request_id).status_code == 409
    # A repeated end changes nothing.
    assert requests.done("admin", request_id, "end", reason="again")["closed_why"] == "not needed"


def test_a_page_has_the_newest_requests_first(requests: RequestClient) -> None:
    made = [requests.created("member", cluster=cluster) for cluster in ("plain", "eip", "sans")]
    assert requests.listed("member", state="open", limit="1") == made[::-1]
    assert requests.listed("admin", state="open", to_decide="true") == made[::-1]
    assert requests.listed("member", state="open", to_decide="true") == []
    assert requests.listed("admin", state="open", mine="true") == []
    assert requests.listed("operator", id=made[0][:8]) == [made[0]]
    eip = requests.world.clusters["eip"].id
    assert requests.listed("auditor", state="pending", cluster=eip) == [made[1]]
    assert requests.listed("auditor", state="open", project=requests.world.other_project.id) == []
    for query in ({"cursor": "1-x"}, {"cursor": "1" * 30}, {"id": "%"}, {"state": "old"}, {"mine": "no"}):
        assert requests.get("member", REQUESTS, **query).status_code == 400, query


def test_offers_are_what_the_caller_can_request(requests: RequestClient) -> None:
    path = f"/clustercert/v1/clusters/{requests.world.clusters['plain'].id}/offers"
    assert requests.get("member", path).json() == {
        "offers": [
            {
                "rule": "edit",
                "groups": ["editors", "debuggers"],
                "max_lifetime": 14400,
                "min_reason_length": 8,
                "approvals": ["role is admin", "role is inspector"],
                "before_approval": False,
                "uses_before_approval": 2,
                "approve_within": 28800,
                "claim_within": 28800,
            }
        ]
    }
    assert requests.get("inspector", path).json() == {"offers": []}
    assert requests.get("stranger", path).status_code == 404


@pytest.mark.parametrize(
    ("changed", "status", "message"),
    [
        ({"groups": ["cluster-admins"]}, 403, "does not offer you cluster-admins in one request"),
        ({"groups": ["editors", "oncall"]}, 403, "Rules that you can use: edit: editors, debuggers."),
        ({"groups": []}, 400, "groups: name 1 to 32 groups."),
        ({"groups": ["x\n"]}, 400, "printable"),
        ({"rule": "view"}, 403, "does not offer you editors"),
        ({"duration": 14401}, 403, "exceeds the limit of rule edit (4 hours)"),
        ({"duration": 299}, 400, "duration: must be 300 (5 minutes) to 157680000 (1825 days) seconds."),
        ({"reason": "short"}, 400, "reason: write at least 8 characters."),
        ({"reason": "x" * 513}, 400, "at most 512"),
        ({"reason": "eight ch\x00"}, 400, "control"),
        ({"ticket": ""}, 400, "ticket: write 1 to 128"),
        ({"cluster_id": "none"}, 404, "There is no such cluster"),
        ({"project_id": "0" * 32}, 404, "There is no such cluster"),
    ],
)
def test_a_faulty_request_is_refused(
    requests: RequestClient, changed: dict[str, Any], status: int, message: str
) -> None:
    refused = requests.create("member", **changed)
    assert (refused.status_code, message in refused.json()["message"]) == (status, True), refused.text
    assert requests.listed("member", state="open") == []


@pytest.mark.parametrize(
    ("who", "step", "status"),
    [
        ("member", "approve", 403),
        ("member", "deny", 403),
        ("admin", "extend", 403),
        ("operator", "approve", 403),
        ("auditor", "approve", 403),
        ("auditor", "deny", 403),
        ("auditor", "end", 403),
        ("reader", "approve", 404),
        ("reader", "end", 404),
        ("stranger", "approve", 404),
        ("stranger", "deny", 404),
        ("stranger", "end", 404),
    ],
)
def test_only_approvers_decide(requests: RequestClient, who: str, step: str, status: int) -> None:
    request_id = requests.created()
    refused = requests.step(who, request_id, step, duration=900)
    assert refused.status_code == status, refused.text
    assert requests.show("member", request_id)["state"] == "pending"
    if status == 404:
        unknown = requests.step(who, "0" * 32, step)
        assert unknown.json()["message"] == refused.json()["message"]


def test_lists_and_reports_say_which_request_gave_the_access(requests: RequestClient) -> None:
    request_id = requests.used("admin", "maintainers")
    place = f"/clustercert/v1/projects/{requests.world.project.id}"
    listed = requests.get("admin", f"{place}/certificates", access_request=request_id).json()["certificates"]
    assert [(each["rule"], each["access_request_id"]) for each in listed] == [("alone", request_id)]
    assert (
        requests.get("member", f"{place}/certificates", access_request=request_id).json()["certificates"]
        == []
    )
    cluster = f"{place}/clusters/{requests.world.clusters['plain'].id}"
    report = requests.get("admin", f"{cluster}/access", group="maintainers").json()
    credentials = {each["fingerprint"]: each for user in report["users"] for each in user["credentials"]}
    found = credentials[listed[0]["fingerprint"]]
    assert (found["rule"], found["access_request_id"]) == ("alone", request_id)
    assert parse_rfc3339(found["not_after"]) <= parse_rfc3339(requests.show("admin", request_id)["ends_at"])

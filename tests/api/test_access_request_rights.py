"""Who can use and decide access requests after rights, the policy, users or clusters change; and other tenants."""

import copy
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from clustercert.model import Domain, User, parse_rfc3339
from support import world as worlds
from support.administration import CLUSTER, unique
from support.keystone import PASSWORD, login_body
from support.request_client import POLICY, REQUESTS, RequestClient
from support.service import Service
from support.stores import execute
from support.wait import eventually
from support.world import Person, World

OWN = "/clustercert/v1"
STEPS = ("approve", "deny", "extend", "end")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("requests"))


@pytest.fixture(scope="module")
def running(world: World) -> Iterator[RequestClient]:
    with Service(world.settings(policy=POLICY)).running() as service:
        yield RequestClient(world, service.client)


@pytest.fixture
def requests(running: RequestClient) -> RequestClient:
    running.end_all()
    return running


def administer(requests: RequestClient, method: str, path: str, body: object = None) -> Any:
    answer = requests.client.request(
        method, OWN + path, json=body, headers=requests.world.people["operator"].headers
    )
    assert answer.is_success, answer.text
    return answer.json() if answer.content else None


def new_person(requests: RequestClient, **roles: str) -> str:
    """Create a user with a role in some projects, and log in to the first. Returns the name of the person."""
    world, name = requests.world, unique("person")
    made = administer(requests, "PUT", f"/users/{name}?domain=tests", {"password": PASSWORD})
    user = User(made["id"], name, Domain("", "tests"))
    projects = {"here": world.project.id, "there": world.other_project.id}
    for place, role in roles.items():
        administer(requests, "PUT", f"/projects/{projects[place]}/assignments/{role}/users/{user.id}", {})
    log_in(requests, name, user, projects[next(iter(roles))])
    return name


def log_in(requests: RequestClient, name: str, user: User, project_id: str) -> None:
    """Log in to a project as the person with this name."""
    body = login_body(user, {"project": {"id": project_id}})
    token = requests.client.post("/v3/auth/tokens", json=body).headers["x-subject-token"]
    requests.world.people[name] = Person(user, PASSWORD, token)


def approved(requests: RequestClient, who: str = "member") -> str:
    request_id = requests.created(who)
    requests.done("inspector", request_id, "approve")
    assert requests.done("admin", request_id, "approve")["state"] == "approved"
    return request_id


def changed(**offer: object) -> dict[str, Any]:
    """The policy, with other terms of the rule `edit`. None removes the rule."""
    policy = copy.deepcopy(POLICY)
    [edit] = [rule for rule in policy["rules"] if rule["name"] == "edit"]
    edit["offer"] |= offer
    return policy


def refusal(requests: RequestClient, who: str, request_id: str) -> httpx2.Response:
    """The answer after a change of rights, which the service reads four times a second."""
    eventually(lambda: not requests.issue(who, request_id).is_success)
    return requests.issue(who, request_id)


# Tenants


def test_requests_of_another_tenant_do_not_exist(requests: RequestClient) -> None:
    request_id = requests.created()
    unknown = requests.get("stranger", f"{REQUESTS}/{'0' * 32}")
    seen = requests.get("stranger", f"{REQUESTS}/{request_id}")
    assert (seen.status_code, seen.json()["message"]) == (404, unknown.json()["message"])
    for step in STEPS:
        answer = requests.step("stranger", request_id, step, duration=900)
        assert (answer.status_code, answer.json()["message"]) == (404, unknown.json()["message"]), step
    for filters in ({}, {"id": request_id}, {"project": requests.world.project.id}, {"to_decide": "true"}):
        assert requests.listed("stranger", **filters) == []
    used = requests.issue("stranger", request_id, cluster="foreign")
    assert (used.status_code, "no such access request" in used.json()["message"]) == (404, True)
    for who in ("admin", "inspector"):
        # Those who may decide it can't use it.
        assert requests.issue(who, request_id).status_code in (403, 404)
    assert requests.create("stranger").status_code == 404


def test_a_member_of_the_approvers_group_needs_a_role_in_the_project(world: World) -> None:
    with Service(world.settings(policy=changed(approvals=[{"groups": ["leads"]}]))).running() as service:
        requests = RequestClient(world, service.client)
        requests.end_all()
        group = administer(requests, "PUT", "/groups/leads?domain=tests", {})
        inside, outside = new_person(requests, here="reader"), new_person(requests, there="admin")
        for who in (inside, outside):
            administer(requests, "PUT", f"/groups/{group['id']}/members/{world.people[who].user.id}", {})
            user = world.people[who].user
            log_in(requests, who, user, (world.project if who == inside else world.other_project).id)
        request_id = requests.created()
        assert requests.listed(outside) == []
        assert requests.step(outside, request_id, "approve").status_code == 404
        assert requests.listed(inside, to_decide="true") == [request_id]
        assert requests.done(inside, request_id, "approve")["state"] == "approved"


def test_a_group_of_another_domain_gives_no_approval(world: World) -> None:
    with Service(
        world.settings(policy=changed(approvals=[{"groups": ["tests/chiefs"]}]))
    ).running() as service:
        requests = RequestClient(world, service.client)
        requests.end_all()
        administer(requests, "PUT", "/domains/others", {})
        group = administer(requests, "PUT", "/groups/chiefs?domain=others", {})
        who = new_person(requests, here="reader")
        administer(requests, "PUT", f"/groups/{group['id']}/members/{world.people[who].user.id}", {})
        request_id = requests.created()
        assert requests.step(who, request_id, "approve").status_code == 404


# Rights of approvers


def test_an_approver_who_lost_the_role_cannot_decide(requests: RequestClient) -> None:
    who = new_person(requests, here="inspector")
    user_id = requests.world.people[who].user.id
    request_id = requests.created()
    assert requests.show(who, request_id)["may"] == ["approve", "deny", "end"]
    place = f"/projects/{requests.world.project.id}/assignments"
    administer(requests, "PUT", f"{place}/reader/users/{user_id}", {})
    administer(requests, "DELETE", f"{place}/inspector/users/{user_id}")
    for step in STEPS:
        assert requests.step(who, request_id, step, duration=900).status_code == 404
    assert requests.listed(who) == []
    assert requests.show("member", request_id)["decisions"] == []


def test_a_token_for_another_project_decides_nothing(requests: RequestClient) -> None:
    world = requests.world
    who = new_person(requests, there="reader", here="inspector")
    request_id = requests.created()
    # The list and the request are shown, whatever the token's scope.
    assert requests.listed(who, state="open") == [request_id]
    for step in ("approve", "deny", "end"):
        refused = requests.step(who, request_id, step)
        assert refused.status_code == 403
        assert refused.json()["message"] == (
            f"Your token is not for the request's project ({world.project.id}), so it can't decide about this request."
            " Log in to this project."
        )
    log_in(requests, who, world.people[who].user, world.project.id)
    assert requests.done(who, request_id, "approve")["conditions"][1]["approved_by"] == f"tests/{who}"


def test_an_own_request_is_ended_with_any_token_but_created_only_in_the_tokens_project(
    requests: RequestClient,
) -> None:
    world = requests.world
    who = new_person(requests, here="member", there="reader")
    user = world.people[who].user
    request_id = approved(requests, who)
    requests.issue(who, request_id).raise_for_status()
    log_in(requests, who, user, world.other_project.id)
    refused = requests.create(who, cluster="eip")
    assert (refused.status_code, "the project of your token" in refused.json()["message"]) == (404, True)
    assert requests.step(who, request_id, "extend", duration=900).status_code == 404
    assert requests.issue(who, request_id).status_code == 404
    ended = requests.done(who, request_id, "end")
    assert (ended["state"], ended["certificates"]) == ("ended", 0)


def test_a_person_who_meets_two_conditions_counts_for_one(requests: RequestClient) -> None:
    who = new_person(requests, here="inspector")
    user_id = requests.world.people[who].user.id
    path = f"/projects/{requests.world.project.id}/assignments/admin/users/{user_id}"
    administer(requests, "PUT", path, {})
    request_id = requests.created()
    assert requests.done(who, request_id, "approve")["state"] == "pending"
    again = requests.done(who, request_id, "approve")
    assert (again["state"], len(again["decisions"])) == ("pending", 1)
    # The admin takes the condition that only an admin meets.
    assert requests.done("admin", request_id, "approve")["state"] == "approved"


# The policy


@pytest.mark.parametrize(
    ("offer", "message"),
    [
        ({"approvals": [{"role": "admin"}] * 3}, "needs other approvals now"),
        ({"approvals": [{"role": "operator"}]}, "needs other approvals now"),
        ({"groups": ["debuggers"]}, "does not offer you this access any more"),
        ({"max_lifetime": "15m"}, None),
        ({"approvals": [{"role": "admin"}]}, None),
    ],
)
def test_the_policy_is_asked_again_for_each_certificate(
    requests: RequestClient, offer: dict[str, Any], message: str | None
) -> None:
    request_id = approved(requests)
    with Service(requests.world.settings(policy=changed(**offer))).running() as service:
        stricter = RequestClient(requests.world, service.client)
        answer = stricter.issue("member", request_id)
    if message is None:
        assert answer.status_code == 200, answer.text
    else:
        assert (answer.status_code, message in answer.json()["message"]) == (403, True), answer.text
        assert requests.show("member", request_id)["state"] == "approved"


@pytest.mark.parametrize(
    ("offer", "asked_again"),
    [
        # A request for the same groups by this rule is not possible any more.
        ({"groups": ["debuggers"]}, 403),
        ({"approvals": [{"role": "admin"}] * 3}, 409),
    ],
)
def test_a_request_that_the_policy_refuses_says_so_and_is_not_returned_as_an_equal_one(
    requests: RequestClient, offer: dict[str, Any], asked_again: int
) -> None:
    request_id = approved(requests)
    assert requests.show("member", request_id)["refusal"] is None
    with Service(requests.world.settings(policy=changed(**offer))).running() as service:
        stricter = RequestClient(requests.world, service.client)
        message = stricter.issue("member", request_id).json()["message"]
        assert message.endswith("End the access request, and create a new one.")
        for who in ("member", "admin"):
            shown = stricter.show(who, request_id)
            assert (shown["state"], shown["next"], shown["refusal"]) == ("approved", message, message)
        again = stricter.create("member")
        assert again.status_code == asked_again, again.text
        if asked_again == 409:
            assert again.json()["message"] == f"You have this open request already: {request_id}. {message}"
            assert stricter.done("member", request_id, "end")["refusal"] is None
            assert stricter.created("member") != request_id


def test_a_role_that_was_lost_gives_no_certificate(requests: RequestClient) -> None:
    who = new_person(requests, here="member")
    user_id = requests.world.people[who].user.id
    request_id = approved(requests, who)
    place = f"/projects/{requests.world.project.id}/assignments"
    administer(requests, "PUT", f"{place}/inspector/users/{user_id}", {})
    administer(requests, "DELETE", f"{place}/member/users/{user_id}")
    refused = refusal(requests, who, request_id)
    assert (refused.status_code, "does not offer you this access" in refused.json()["message"]) == (403, True)


@pytest.mark.parametrize("how", ["role", "project", "block", "delete"])
def test_an_approver_sees_that_the_user_has_lost_the_rights(requests: RequestClient, how: str) -> None:
    who = new_person(requests, here="member")
    user_id = requests.world.people[who].user.id
    request_id = requests.created(who)
    shown = requests.show("inspector", request_id)
    assert (shown["user_entitled"], shown["label"], shown["severity"]) == (True, "pending", "warn")
    place = f"/projects/{requests.world.project.id}/assignments"
    if how == "role":
        administer(requests, "PUT", f"{place}/inspector/users/{user_id}", {})
    if how in ("role", "project"):
        administer(requests, "DELETE", f"{place}/member/users/{user_id}")
    elif how == "block":
        administer(requests, "POST", f"/users/{user_id}/block")
    else:
        administer(requests, "DELETE", f"/users/{user_id}")
    shown = requests.show("inspector", request_id)
    assert (shown["user_entitled"], shown["label"], shown["severity"]) == (
        False,
        "pending, rights lost",
        "bad",
    )
    assert shown["next"].startswith(
        "The user does not meet the conditions of the rule edit any more, and gets no certificate. The request waits"
    )
    [listed] = [
        each
        for each in requests.get("inspector", REQUESTS, to_decide="true").json()["access_requests"]
        if each["id"] == request_id
    ]
    assert listed == shown
    requests.done("operator", request_id, "end")
    assert requests.show("inspector", request_id)["user_entitled"] is None


def test_the_rights_of_a_user_of_an_issuer_are_unknown_until_the_user_comes(requests: RequestClient) -> None:
    who = new_person(requests, here="member")
    user_id = requests.world.people[who].user.id
    request_id = requests.created(who)
    administer(requests, "DELETE", f"/users/{user_id}")
    federated = (
        "INSERT INTO federated_user (id, name, domain, issuer) VALUES (?, 'x', 'issuer', 'https://issuer')"
    )
    execute(requests.world.database, federated, user_id)
    shown = requests.show("inspector", request_id)
    assert (shown["user_entitled"], shown["label"]) == (None, "pending")


def test_the_policy_can_withdraw_use_before_the_approval(requests: RequestClient) -> None:
    strict = copy.deepcopy(POLICY)
    strict["rules"][2]["offer"]["before_approval"] = False
    request_id = requests.created("reader", "oncall")
    with Service(requests.world.settings(policy=strict)).running() as service:
        stricter = RequestClient(requests.world, service.client)
        refused = stricter.issue("reader", request_id)
        assert stricter.show("reader", request_id)["next"] == refused.json()["message"]
    assert refused.status_code == 403
    assert "does not allow use before the approval any more" in refused.json()["message"]
    assert requests.done("admin", request_id, "approve")["state"] == "approved"


def test_use_before_the_approval_ends_with_a_denial(requests: RequestClient) -> None:
    made = requests.create("reader", "oncall")
    assert "can be used now, before the approval" in made.json()["next"]
    request_id = made.json()["id"]
    issued = requests.issue("reader", request_id).raise_for_status()
    used = requests.show("reader", request_id)
    assert (used["state"], used["approved_at"], used["certificates"]) == ("active", None, 1)
    assert issued.headers["x-clustercert-not-after"] <= used["approve_by"]
    denied = requests.done("admin", request_id, "deny", reason="nobody called")
    assert (denied["state"], denied["certificates"], denied["closed_by"]) == ("ended", 0, "tests/admin")
    refused = requests.issue("reader", request_id)
    assert (refused.status_code, "it is ended (nobody called)" in refused.json()["message"]) == (409, True)

    again = requests.created("reader", "oncall")
    assert requests.show("reader", again)["usable"] is False
    assert requests.issue("reader", again).status_code == 409
    requests.done("admin", again, "approve")
    requests.issue("reader", again).raise_for_status()


def used_early(requests: RequestClient, who: str, cluster: str = "plain", **asked: Any) -> str:
    """The id of a new request that was used before its approval, and ended by its user."""
    request_id = requests.created(who, "oncall", cluster=cluster, **asked)
    requests.issue(who, request_id, cluster).raise_for_status()
    requests.done(who, request_id, "end")
    return request_id


def test_use_before_the_approval_is_limited_until_somebody_decides(requests: RequestClient) -> None:
    who = new_person(requests, here="reader")
    first, second = (used_early(requests, who) for _ in range(2))
    third = requests.create(who, "oncall").json()
    assert (third["state"], third["usable"]) == ("pending", False)
    assert third["next"].startswith(
        "The access can't be used before the approval. This user has reached the rule's limit for"
        " such uses before an approval: 2 within 24 hours. The request waits for "
    )
    refused = requests.issue(who, third["id"])
    assert refused.status_code == 409
    assert (
        f"The next use before an approval is possible at {third['next_use_at']}. The request waits"
        in (refused.json()["message"])
    )
    asked_at = parse_rfc3339(requests.show(who, first)["started_at"])
    assert parse_rfc3339(third["next_use_at"]) == asked_at + timedelta(days=1)
    # The limit is for one cluster.
    used_early(requests, who, "eip")

    # An approval after the end gives the use back, and nothing else.
    assert {first, second, third["id"]} <= {*requests.listed("admin", to_decide="true")}
    assert requests.step(who, first, "approve").status_code == 403
    approved = requests.done("admin", first, "approve")
    assert (approved["state"], approved["label"], approved["usable"]) == ("ended", "ended", False)
    assert requests.issue(who, first).status_code == 409
    assert first not in requests.listed("admin", to_decide="true")
    assert requests.show(who, third["id"])["usable"] is True
    assert requests.show(who, third["id"])["next_use_at"] is None
    requests.issue(who, third["id"]).raise_for_status()
    requests.done(who, third["id"], "end")


def test_a_denial_after_the_end_forbids_use_before_the_approval(requests: RequestClient) -> None:
    who = new_person(requests, here="reader")
    first = used_early(requests, who)
    # Created while a use is left.
    second = requests.create(who, "oncall").json()
    assert second["usable"] is True
    denied = requests.done("admin", first, "deny", reason="nobody called")
    assert (denied["state"], denied["closed_by"], denied["may"]) == ("ended", f"tests/{who}", [])
    shown = requests.show(who, second["id"])
    assert (shown["usable"], "An approver has denied this user such access" in shown["next"]) == (False, True)
    assert parse_rfc3339(shown["next_use_at"]) == parse_rfc3339(denied["decisions"][0]["at"]) + timedelta(
        days=1
    )
    refused = requests.issue(who, second["id"])
    assert (refused.status_code, shown["next_use_at"] in refused.json()["message"]) == (409, True)
    requests.done("admin", second["id"], "approve")
    requests.issue(who, second["id"]).raise_for_status()


def test_uses_by_all_rules_that_offer_one_of_the_groups_count(requests: RequestClient) -> None:
    several = copy.deepcopy(POLICY)
    urgent = copy.deepcopy(several["rules"][2])
    urgent["name"] = "urgent"
    urgent["offer"] |= {"groups": ["oncall", "debuggers"], "uses_before_approval": 1}
    several["rules"].append(urgent)
    who = new_person(requests, here="reader")
    used_early(requests, who)
    with Service(requests.world.settings(policy=several)).running() as service:
        client = RequestClient(requests.world, service.client)
        other = client.created(who, "debuggers", rule="urgent")
        assert client.issue(who, other).status_code == 409
        client.done(who, other, "end")
        used_early(client, who, rule="break-glass")
    # A rule with another name counts the same uses.
    several["rules"] = [each for each in several["rules"] if each["name"] != "break-glass"]
    several["rules"][-1]["offer"]["uses_before_approval"] = 2
    with Service(requests.world.settings(policy=several)).running() as service:
        client = RequestClient(requests.world, service.client)
        assert client.show(who, client.created(who, "oncall"))["usable"] is False


@pytest.mark.parametrize("offer", [{"groups": ["debuggers"]}, {"approvals": [{"role": "admin"}] * 3}])
def test_access_that_the_policy_refuses_is_not_extended(
    requests: RequestClient, offer: dict[str, Any]
) -> None:
    request_id = approved(requests)
    requests.issue("member", request_id).raise_for_status()
    assert requests.show("member", request_id)["may"] == ["extend", "end"]
    with Service(requests.world.settings(policy=changed(**offer))).running() as service:
        stricter = RequestClient(requests.world, service.client)
        shown = stricter.show("member", request_id)
        refused = stricter.step("member", request_id, "extend", duration=900)
    assert (shown["state"], shown["may"]) == ("active", ["end"])
    assert (refused.status_code, refused.json()["message"]) == (403, shown["refusal"])


def test_an_extension_needs_the_same_approvals_again(requests: RequestClient) -> None:
    request_id = approved(requests)
    requests.issue("member", request_id).raise_for_status()
    ends_at = requests.show("member", request_id)["ends_at"]
    asked = requests.done("member", request_id, "extend", duration=1800)
    assert asked["extension"] == {"duration": 1800, "reason": "INC-42: the shop is down", "state": "pending"}
    assert [each["approved_by"] for each in asked["conditions"]] == [None, None]
    wrong = requests.step("inspector", request_id, "deny", part="access")
    assert (wrong.status_code, "about its extension, not about its access" in wrong.json()["message"]) == (
        409,
        True,
    )
    half = requests.done("inspector", request_id, "approve", part="extension")
    assert [each["approved_by"] for each in half["conditions"]] == [None, "tests/inspector"]
    assert requests.show("member", request_id)["ends_at"] == ends_at
    extended = requests.done("admin", request_id, "approve")
    assert (extended["extension"]["state"], extended["ends_at"] > ends_at) == ("approved", True)
    # Nothing is open any more, so these are the approvals of the access.
    assert None not in [each["approved_by"] for each in extended["conditions"]]
    assert requests.step("member", request_id, "extend", duration=900).status_code == 409


# Revocations, users and clusters


def test_revoked_certificates_of_an_ended_request_stay_revoked(requests: RequestClient) -> None:
    request_id = requests.used("admin", "maintainers")
    requests.done("admin", request_id, "end")
    place = f"{OWN}/projects/{requests.world.project.id}"
    [certificate] = requests.get("admin", f"{place}/certificates", access_request=request_id).json()[
        "certificates"
    ]
    [revocation] = [
        each
        for each in requests.get("admin", f"{place}/revocations").json()["revocations"]
        if each["fingerprint"] == certificate["fingerprint"]
    ]
    assert revocation["note"] == f"access request {request_id} was ended"
    refused = requests.post("operator", f"{OWN}/revocations/{revocation['id']}/undo", {})
    assert (refused.status_code, "Create a new request" in refused.json()["message"]) == (409, True)


def test_a_blocked_or_deleted_user_uses_no_request(requests: RequestClient) -> None:
    for how in ("block", "delete"):
        who = new_person(requests, here="member")
        user_id = requests.world.people[who].user.id
        request_id = approved(requests, who)
        requests.issue(who, request_id).raise_for_status()
        if how == "block":
            administer(requests, "POST", f"/users/{user_id}/block")
        else:
            administer(requests, "DELETE", f"/users/{user_id}")
        assert refusal(requests, who, request_id).status_code == 401
        shown = requests.show("admin", request_id)
        assert (shown["user"]["name"], shown["certificates"]) == (f"tests/{who}", 0)
        assert requests.done("inspector", request_id, "end")["state"] == "ended"


def test_a_request_for_a_removed_cluster_gives_nothing(requests: RequestClient) -> None:
    path = f"/projects/{requests.world.project.id}/clusters/{unique('removed')}"
    made = administer(requests, "PUT", path, CLUSTER)
    request_id = requests.created("member", cluster_id=made["id"])
    requests.done("inspector", request_id, "approve")
    administer(requests, "DELETE", path)
    requests.done("admin", request_id, "approve")
    url = f"/api/v3/projects/{requests.world.project.id}/clusters/{made['id']}/clustercert"
    used = requests.post("member", url, {"duration": -1, "access_request": request_id})
    assert used.status_code == 404
    assert requests.show("member", request_id)["cluster"]["name"] == made["name"]
    assert requests.done("member", request_id, "end")["state"] == "ended"
    assert requests.create("member", cluster_id=made["id"]).status_code == 404


def test_a_request_is_used_only_for_its_cluster(requests: RequestClient) -> None:
    request_id = approved(requests)
    refused = requests.issue("member", request_id, cluster="eip")
    assert refused.status_code == 409
    assert refused.json()["message"] == (
        "The access request is for the cluster tests/eu-de/plain, not for tests/eu-de/eip."
    )
    for unknown in ("0" * 32, "x", "", "\x00", "0" * 4000):
        assert requests.issue("member", unknown).status_code == 404

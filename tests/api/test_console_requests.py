"""The console's pages about access requests. They say and do what the API says and does."""

import re
from collections.abc import Iterator
from datetime import timedelta
from html import unescape

import pytest

from clustercert.http.console.typed_fields import COOKIE as TYPED_COOKIE
from clustercert.http.console.typed_fields import OWNER_FIELD
from clustercert.http.console.visits import SESSION_COOKIE
from clustercert.model import utc_now
from clustercert.model.ids import new_cluster_id
from support.access_requests import access_request, store_request
from support.console import Browser, make_logins_old, page_text
from support.console_sessions import services_of
from support.request_client import POLICY, REASON, RequestClient
from support.service import Service
from support.stores import execute, rows
from support.world import World, make

HOME = "/console/requests"
TYPED = {"duration": "3600", "reason": str(REASON["reason"]), "ticket": "OPS-12"}


@pytest.fixture(scope="module")
def own_place(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def site(own_place: World) -> Iterator[Service]:
    with Service(own_place.settings(policy=POLICY, console={"enabled": True})).running() as running:
        yield running


@pytest.fixture
def requests(site: Service, own_place: World) -> RequestClient:
    client = RequestClient(own_place, site.client)
    client.end_all()
    return client


class People:
    """The browsers of the people in a world, by name."""

    def __init__(self, site: Service, world: World) -> None:
        self._site, self._world = site, world

    def __getitem__(self, who: str) -> Browser:
        return Browser.in_session(self._site, self._world.people[who])


@pytest.fixture
def people(site: Service, own_place: World) -> People:
    return People(site, own_place)


def form_for(requests: RequestClient, cluster: str = "plain", rule: str = "edit") -> dict[str, str]:
    return TYPED | {"cluster": requests.world.clusters[cluster].id, "rule": rule}


def ask(browser: Browser, requests: RequestClient) -> str:
    """Ask for access with the form. Returns the address of the new request."""
    made = browser.post(f"{HOME}/new", None, **form_for(requests), **{"group-0": "editors"})
    assert made.status_code == 303, made.text
    return str(made.headers["location"])


def test_access_is_asked_for_approved_used_and_ended(requests: RequestClient, people: People) -> None:
    address = ask(people["member"], requests)
    request_id = address.rpartition("/")[2]
    asked = requests.show("member", request_id)
    assert (asked["groups"], asked["duration"], asked["ticket"]) == (["editors"], 3600, "OPS-12")
    assert (asked["reason"], asked["rule"], asked["state"]) == (TYPED["reason"], "edit", "pending")

    for approver in ("inspector", "admin"):
        page = page_text(people[approver].get(address).text)
        assert "missing one person with the role admin" in page
        decided = people[approver].post(f"{address}/approve", None, reason="go ahead", part="access")
        assert decided.status_code == 303
        assert f"approved the request of {asked['user']['name']}" in decided.headers["set-cookie"].replace(
            "%20", " "
        )
    approved = requests.show("member", request_id)
    assert (approved["state"], approved["decisions"][-1]["reason"]) == ("approved", "go ahead")

    page = page_text(people["member"].get(address).text)
    assert (
        "clustercert request create tests/eu-de/plain --group editors --for 1h --reason 'INC-42: the shop is down'"
        " --rule edit" in page
    )
    assert "editors in tests/eu-de/plain" in page
    assert "tests/eu-de/plain" in page_text(people["admin"].get(f"{HOME}?list=all").text)
    assert f"clustercert kubeconfig get tests/eu-de/plain --request {request_id[:8]}" in page
    fingerprint = requests.issue("member", request_id).headers["x-clustercert-fingerprint"]
    assert fingerprint[:12] in people["member"].get(address).text

    longer = people["member"].post(f"{address}/extend", None, duration="1800", reason="still at work")
    assert longer.status_code == 303
    assert requests.show("member", request_id)["extension"]["state"] == "pending"
    assert people["admin"].post(f"{address}/deny", None, reason="no", part="extension").status_code == 303
    assert requests.show("member", request_id)["extension"]["state"] == "denied"

    assert people["member"].post(f"{address}/end", None, reason="repaired").status_code == 303
    ended = requests.show("member", request_id)
    assert (ended["state"], ended["closed_why"]) == ("ended", "repaired")
    page = page_text(people["member"].get(address).text)
    assert "tests/admin denied the extension “no”".replace("“", "").replace("”", "") in page
    assert "tests/member ended repaired" in page
    assert "Use it" not in page


@pytest.mark.parametrize(
    ("changed", "status", "message"),
    [
        ({"reason": "short"}, 400, "reason: write at least 8 characters."),
        ({"duration": "14401"}, 403, "exceeds the limit of rule edit (4 hours)"),
        ({"duration": "9" * 40}, 400, "duration: must be 300"),
        ({"rule": "view"}, 403, "does not offer you editors"),
        ({"group-0": "cluster-admins"}, 403, "does not offer you cluster-admins"),
        ({"ticket": "x" * 129}, 400, "ticket: write 1 to 128"),
    ],
)
def test_a_faulty_form_keeps_what_was_typed_and_says_what_the_api_says(
    requests: RequestClient, people: People, changed: dict[str, str], status: int, message: str
) -> None:
    typed = form_for(requests) | {"group-0": "editors", "reason": 'eight "chars" & more'} | changed
    refused = people["member"].post(f"{HOME}/new", None, **typed)
    assert (refused.status_code, message in page_text(refused.text)) == (status, True), refused.text
    if typed["rule"] == "edit":
        assert (
            f">{typed['reason'].replace('&', '&amp;').replace(chr(34), '&#34;')}</textarea>" in refused.text
        )
        assert f'name="ticket" maxlength="128" value="{typed["ticket"]}"' in refused.text
    assert requests.listed("member", state="open") == []


def test_the_same_request_again_creates_none(requests: RequestClient, people: People) -> None:
    address = ask(people["member"], requests)
    assert ask(people["member"], requests) == address
    page = people["member"].get(f"{HOME}/new?cluster={requests.world.clusters['plain'].id}")
    assert f'href="{address}"' in page.text


def test_the_form_shows_what_the_policy_offers(requests: RequestClient, people: People) -> None:
    chosen = people["member"].get(f"{HOME}/new")
    assert f"/new?cluster={requests.world.clusters['plain'].id}" in chosen.text
    assert "foreign" not in chosen.text
    page = people["member"].get(f"{HOME}/new?cluster=plain").text
    shown = page_text(page)
    assert "one person with the role admin one person with the role inspector" in shown
    assert re.findall(r'<option value="(\d+)"', page) == ["900", "1800", "3600", "7200", "14400"]
    assert "This access works before anybody approves it." not in shown
    before = page_text(people["reader"].get(f"{HOME}/new?cluster=plain").text)
    assert "This access works before anybody approves it." in before
    assert re.search(r"Approve within [\w ]+; then the access ends Use within at once, or within", before)
    assert re.search(
        r"Approve within [\w ]+; then the request expires Use within [\w ]+ after the approval", shown
    )
    assert "The policy offers you no groups" in page_text(
        people["inspector"].get(f"{HOME}/new?cluster=plain").text
    )
    assert "You can reach no cluster of this name." in page_text(
        people["member"].get(f"{HOME}/new?cluster=foreign").text
    )


def test_an_approval_needs_a_login_of_the_last_minutes(requests: RequestClient, people: People) -> None:
    address = ask(people["member"], requests)
    admin = people["admin"]
    make_logins_old(requests.world, "admin")
    answer = admin.post(f"{address}/approve", None, reason="go ahead", part="access")
    assert answer.headers["location"].startswith("/console/login?")
    assert "again=1" in answer.headers["location"]
    page = admin.get(address).text
    assert "Log in again" in page
    assert "<button>Approve</button>" not in page
    shown = requests.show("member", address.rpartition("/")[2])
    assert [each["approved_by"] for each in shown["conditions"]] == [None, None]
    # A denial only takes access away.
    assert admin.post(f"{address}/deny", None, reason="no", part="access").status_code == 303


def test_who_can_only_deny_reads_who_can_approve(requests: RequestClient, people: People) -> None:
    address = ask(people["member"], requests)
    why = "Only one person with the role admin and one person with the role inspector can approve."
    page = page_text(people["operator"].get(address).text)
    assert f"Deny the request {why}" in page
    people["admin"].post(f"{address}/approve", None, reason="go ahead", part="access")
    page = page_text(people["admin"].get(address).text)
    assert "You approved already. Only one person with the role inspector can approve." in page
    page = page_text(people["inspector"].get(address).text)
    assert ("Decide about the request" in page, "Only one person" in page) == (True, False)


def test_the_navigation_has_the_number_of_requests_that_the_visitor_may_approve(
    requests: RequestClient, people: People
) -> None:
    for cluster in ("plain", "eip"):
        requests.created("member", cluster=cluster)
    shown = {
        who: page_text(people[who].get("/console/clusters").text) for who in ("admin", "operator", "member")
    }
    assert "Requests 2 wait for you" in shown["admin"]
    assert "wait for you" not in shown["operator"] + shown["member"]


def test_what_was_typed_survives_the_end_of_the_session(
    requests: RequestClient, people: People, site: Service
) -> None:
    member, other = people["member"], people["reader"]
    page = f"{HOME}/new?cluster={requests.world.clusters['plain'].id}"
    sent = {"Referer": f"{site.client.base_url}".rstrip("/") + page}
    fields = form_for(requests) | {
        "group-0": "debuggers",
        OWNER_FIELD: requests.world.people["member"].user.id,
    }
    member.cookies[SESSION_COOKIE] = "0" * 64
    ended = member.post(f"{HOME}/new", sent, **fields)
    assert (ended.status_code, "You are not logged in any more" in ended.text) == (401, True)
    # The form of another site is not kept.
    assert (
        "set-cookie"
        not in member.post(f"{HOME}/new", sent | {"Sec-Fetch-Site": "cross-site"}, **fields).headers
    )
    kept = member.cookies[TYPED_COOKIE]
    other.cookies[TYPED_COOKIE] = kept
    assert TYPED["reason"] not in unescape(other.get(page).text)
    assert member.log_in(requests.world.people["member"], next=page).status_code == 303
    shown = unescape(member.get(page).text)
    assert f">{TYPED['reason']}</textarea>" in shown
    assert 'value="debuggers" checked' in shown
    assert requests.listed("member", state="open") == []


def test_who_may_not_decide_reads_the_answer_of_the_api(requests: RequestClient, people: People) -> None:
    address = ask(people["member"], requests)
    request_id = address.rpartition("/")[2]
    answer = people["auditor"].post(f"{address}/approve", None, reason="because", part="access")
    expected = requests.step("auditor", request_id, "approve")
    assert (answer.status_code, expected.status_code) == (403, 403)
    assert expected.json()["message"] in page_text(answer.text)
    assert requests.show("member", request_id)["state"] == "pending"


def test_an_approver_who_sees_no_certificates_leaves_no_refused_request(
    requests: RequestClient, people: People
) -> None:
    address = ask(people["member"], requests)
    for approver in ("inspector", "admin"):
        people[approver].post(f"{address}/approve", None, reason="go ahead", part="access")
    requests.issue("member", address.rpartition("/")[2])
    refused = "SELECT COUNT(*) FROM audit_event WHERE kind = 'request.refused'"
    before = rows(requests.world.database, refused)
    assert "<h2>Certificates</h2>" in people["admin"].get(address).text
    assert "<h2>Certificates</h2>" not in people["inspector"].get(address).text
    assert rows(requests.world.database, refused) == before


def test_a_request_is_shown_and_ended_after_its_user_lost_the_role(
    requests: RequestClient, people: People
) -> None:
    address = ask(people["member"], requests)
    for approver in ("inspector", "admin"):
        people[approver].post(f"{address}/approve", None, reason="go ahead", part="access")
    requests.issue("member", address.rpartition("/")[2])
    operator = requests.world.people["operator"].headers
    role = (
        f"/clustercert/v1/projects/{requests.world.project.id}/assignments/member/users/"
        f"{requests.world.people['member'].user.id}"
    )
    requests.client.delete(role, headers=operator).raise_for_status()
    try:
        page = people["member"].get(address)
        assert (page.status_code, "Ask for more time…" in page.text) == (200, False)
        assert "active, rights lost" in page_text(people["admin"].get(address).text)
        assert people["member"].post(f"{address}/end").status_code == 303
    finally:
        requests.client.put(role, headers=operator).raise_for_status()


def test_lists_show_what_waits_and_can_be_filtered(requests: RequestClient, people: People) -> None:
    addresses = [
        f"{HOME}/{requests.created('member', cluster=cluster)}" for cluster in ("plain", "eip", "sans")
    ]
    first, second, third = addresses

    def shown(who: str, query: str = "") -> set[str]:
        page = people[who].get(f"{HOME}{query}")
        assert page.status_code == 200, page.text
        return {each for each in addresses if f'href="{each}"' in page.text}

    assert shown("member") == shown("admin") == set(addresses)
    # Operators can deny each request, but approve none.
    assert shown("auditor") == shown("reader") == shown("operator") == set()
    assert shown("auditor", "?list=all") == set(addresses)
    assert shown("admin", "?list=mine") == shown("stranger", "?list=all") == set()
    assert shown("admin", "?list=decide&cluster=eip") == {second}
    assert shown("admin", f"?list=all&cluster={requests.world.clusters['sans'].id}") == {third}
    requests.done("member", first.rpartition("/")[2], "end")
    assert shown("member") == {second, third}
    assert shown("member", "?list=mine&state=ended&cluster=plain") == {first}
    assert people["member"].get(f"{HOME}?list=mine&state=old").status_code == 400


def test_every_request_is_on_one_page_of_a_list(
    requests: RequestClient, people: People, site: Service
) -> None:
    queries = services_of(site).requests.queries
    project_id = requests.world.project.id
    names = {f"person-{number}" for number in range(201)}
    for name in names:
        # The newest requests.
        made = access_request(utc_now(), user_name=name, cluster_id=new_cluster_id(), project_id=project_id)
        site.run(store_request(queries, made))
    operator, address = people["operator"], f"{HOME}?list=all&state=any"
    on_pages = list[set[str]]()
    while address:
        page = operator.get(address).text
        on_pages.append(set(re.findall(r"person-\d+", page)))
        following = re.search(r'href="([^"]+)">Next page<', page)
        address = unescape(following[1]) if following is not None else ""
    assert [len(each) for each in on_pages[:2]] == [100, 100]
    assert set.union(*on_pages) == names
    assert sum(map(len, on_pages)) == len(names)
    # Auditors see all of them, and decide about none.
    assert "None of the newest open requests waits for you" in people["auditor"].get(HOME).text
    assert "No request waits for you" in people["member"].get(HOME).text
    # Other tests end the open requests, one after the other.
    execute(requests.world.database, "DELETE FROM access_request WHERE user_name LIKE 'person-%'")


def test_the_list_of_clusters_says_when_access_ends_without_an_approval(
    requests: RequestClient, people: People
) -> None:
    request_id = requests.used("reader", "oncall")
    soon = utc_now() + timedelta(minutes=5)
    execute(
        requests.world.database,
        "UPDATE access_request SET approve_by = ? WHERE id = ?",
        f"{soon:%Y-%m-%d %H:%M:%S.%f}",
        request_id,
    )
    due_at = requests.show("reader", request_id)["due_at"]
    assert due_at == requests.show("reader", request_id)["approve_by"]
    page = people["reader"].get("/console/clusters").text
    assert f'until <time datetime="{due_at}"' in page
    assert "active, not approved" in page
    # A user has two uses before an approval a day.
    execute(requests.world.database, "DELETE FROM access_request WHERE id = ?", request_id)


def test_access_that_was_used_before_its_approval_is_decided_after_its_end(
    requests: RequestClient, people: People
) -> None:
    addresses = []
    for _ in range(2):
        request_id = requests.created("reader", "oncall")
        requests.issue("reader", request_id).raise_for_status()
        requests.done("reader", request_id, "end")
        addresses.append(f"{HOME}/{request_id}")
    made = requests.created("reader", "oncall")
    page = page_text(people["reader"].get(f"{HOME}/{made}").text)
    assert "can't be used before the approval. This user has reached the rule's limit for such uses" in page
    assert re.search(r"next use before an approval is possible \S+ \S+ UTC \(in 24 h\)", page)
    assert "Use it after the approval" in page
    for query in ("", "?list=decide"):
        shown = people["admin"].get(f"{HOME}{query}").text
        assert all(f'href="{each}"' in shown for each in addresses)
    page = people["admin"].get(addresses[0]).text
    assert "ended, not approved" in page_text(page)
    assert "<button>Approve</button>" in page
    assert "and end the access" not in page
    for address, step in zip(addresses, ("approve", "deny"), strict=True):
        done = people["admin"].post(f"{address}/{step}", None, reason="I called", part="access")
        assert done.status_code == 303
    shown = people["admin"].get(HOME).text
    assert not any(f'href="{each}"' in shown for each in addresses)


def test_markup_in_a_reason_stays_text(requests: RequestClient, people: People) -> None:
    reason = "<img src=x onerror=alert(1)> {{ 7 * 7 }} ' \" &amp;"
    made = requests.create("member", reason=reason, ticket="<b>bold</b>").json()
    for address in (f"{HOME}/{made['id']}", HOME):
        page = people["member"].get(address).text
        assert "<img" not in page
        assert "<b>bold" not in page
        assert reason in unescape(page)


def test_a_reason_that_looks_like_a_time_or_a_command_stays_text(
    requests: RequestClient, people: People
) -> None:
    reason = "done at 2026-99-99T99:99:99Z with `kubectl drain`"
    request_id = requests.created("member")
    requests.done("member", request_id, "end", reason=reason)
    for who in ("member", "admin", "operator"):
        page = people[who].get(f"{HOME}/{request_id}")
        assert page.status_code == 200, page.text
        assert f"The access was ended by tests/member: {reason}." in page_text(page.text)


def test_an_update_of_a_live_part_does_not_keep_the_session_open(
    requests: RequestClient, people: People
) -> None:
    member = people["member"]
    user, earlier = requests.world.people["member"].user.id, utc_now() - timedelta(minutes=10)
    execute(
        requests.world.database,
        "UPDATE console_session SET seen_at = ? WHERE user_id = ?",
        f"{earlier:%Y-%m-%d %H:%M:%S.%f}",
        user,
    )
    query = "SELECT DISTINCT seen_at FROM console_session WHERE user_id = ?"
    before = rows(requests.world.database, query, user)
    assert len(before) == 1
    assert member.get(HOME, {"Live-Update": "1"}).status_code == 200
    assert rows(requests.world.database, query, user) == before
    member.get(HOME)
    assert rows(requests.world.database, query, user) != before

"""A user who leaves a group, or loses a role, keeps their certificates unless the request revokes them."""

import asyncio
from typing import Any

import pytest

from clustercert.certificates import lost_roles
from clustercert.certificates.lost_roles import LostRoles
from clustercert.identity.directory import Directory
from clustercert.model import rfc3339
from clustercert.model.errors import Unavailable
from clustercert.store.certificates.access_controls import AccessQueries
from clustercert.store.certificates.revocations import RevocationQueries
from support.administration import unique
from support.revocation_client import OWN, RevocationClient
from support.stores import Store

pytestmark = pytest.mark.usefixtures("quick_propagation")


def send(place: RevocationClient, method: str, path: str, who: str = "operator") -> Any:
    headers = place.world.people[who].headers
    answer = place.client.request(method, OWN + path, json={} if method == "PUT" else None, headers=headers)
    assert answer.is_success, answer.text
    return answer.json()


def store(place: RevocationClient) -> Store:
    return Store(place.world.settings().store_url)


def failing(real: Any, *, first: int) -> Any:
    """A method that fails from its call number `first` on."""
    calls = 0

    async def fail(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= first:
            raise Unavailable("The store failed.")
        return await real(*args, **named)

    return fail


@pytest.fixture
def group(place: RevocationClient) -> str:
    """A group with a role in the first project. Its members are a member and a reader there, and a stranger."""
    made = send(place, "PUT", f"/groups/{unique()}?domain=tests")
    for who in ("member", "reader", "stranger"):
        send(place, "PUT", f"/groups/{made['id']}/members/{place.user(who)}")
    send(place, "PUT", f"/projects/{place.world.project.id}/assignments/inspector/groups/{made['id']}")
    # The certificates of other tests are revoked, so that none of them is counted here.
    for cluster in ("plain", "eip"):
        place.post("operator", place.own("/revoke", cluster))
    return str(made["id"])


def test_a_removed_member_keeps_certificates_unless_they_are_revoked(
    place: RevocationClient, group: str
) -> None:
    theirs = [place.issue("member", "plain"), place.issue("member", "plain"), place.issue("member", "eip")]
    others = place.issue("reader"), place.issue("stranger", "foreign")
    member = f"/groups/{group}/members/{place.user('member')}"
    counted = {
        "certificates": 3,
        "users": 1,
        "clusters": 2,
        "until": rfc3339(max(each.not_valid_after_utc for each in theirs)),
        "complete": True,
    }
    assert send(place, "DELETE", f"{member}?dryRun=All&revoke=true") == counted
    assert send(place, "DELETE", member) == counted
    assert place.states(*theirs, *others) == ["live"] * 5

    send(place, "PUT", member)
    assert send(place, "DELETE", f"{member}?revoke=true") == counted
    assert place.states(*theirs, *others) == ["revoked"] * 3 + ["live"] * 2
    revoked = place.events("user.revoked")[-2:]
    assert {(each["subject"], each["detail"]["reason"], each["detail"]["note"]) for each in revoked} == {
        (place.user("member"), "affiliationChanged", "group.member_removed")
    }
    nothing = {"certificates": 0, "users": 0, "clusters": 0, "until": None, "complete": True}
    assert send(place, "DELETE", f"/groups/{group}/members/{place.user('stranger')}?revoke=true") == nothing
    assert place.states(*others) == ["live", "live"]


def test_all_members_of_a_group_lose_its_role(place: RevocationClient, group: str) -> None:
    lost = place.issue("member"), place.issue("reader", "eip")
    others = place.issue("admin"), place.issue("stranger", "foreign")
    path = f"/projects/{place.world.project.id}/assignments/inspector/groups/{group}"
    found = send(place, "DELETE", f"{path}?revoke=true")
    assert (found["certificates"], found["users"], found["clusters"]) == (2, 2, 2)
    assert place.states(*lost, *others) == ["revoked", "revoked", "live", "live"]
    # Both were revoked in one transaction, so with one epoch.
    newest = store(place).rows("SELECT user_id, epoch FROM revocation ORDER BY id DESC LIMIT 2")
    assert {user for user, _ in newest} == {place.user("member"), place.user("reader")}
    assert len({epoch for _, epoch in newest}) == 1


@pytest.mark.parametrize("revoke", [False, True])
def test_all_members_of_a_deleted_group_lose_its_roles(
    place: RevocationClient, group: str, monkeypatch: pytest.MonkeyPatch, revoke: bool
) -> None:
    lost, late = [place.issue("member"), place.issue("reader", "eip")], []
    others = place.issue("admin"), place.issue("stranger", "foreign")
    revoke_again = LostRoles.revoke_again

    async def issue_late(self: LostRoles, *given: Any, **named: Any) -> None:
        # A worker that still has the membership in its cache.
        late.append(await asyncio.to_thread(place.issue, "reader"))
        await revoke_again(self, *given, **named)

    monkeypatch.setattr(LostRoles, "revoke_again", issue_late)
    path = f"/groups/{group}"
    counted = send(place, "DELETE", f"{path}?dryRun=All")
    assert (counted["certificates"], counted["users"], counted["clusters"]) == (2, 2, 2)
    assert send(place, "DELETE", f"{path}?revoke=true" if revoke else path) == counted
    assert len(late) == revoke
    assert set(place.states(*lost, *late)) == {"revoked" if revoke else "live"}
    assert place.states(*others) == ["live", "live"]
    assert store(place).rows("SELECT user_id FROM group_member WHERE group_id = ?", group) == []


def test_a_user_loses_a_role_in_one_project(place: RevocationClient, group: str) -> None:
    lost, other = place.issue("reader"), place.issue("member")
    path = f"/projects/{place.world.project.id}/assignments/member/users/{place.user('reader')}"
    send(place, "PUT", path)
    found = send(place, "DELETE", f"{path}?revoke=true", who="admin")
    assert (found["certificates"], found["users"]) == (1, 1)
    assert place.states(lost, other) == ["revoked", "live"]


def test_too_many_certificates_are_not_revoked_in_one_request(
    place: RevocationClient, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_roles, "MAX_PAIRS", 1)
    lost = place.issue("member"), place.issue("member", "eip")
    path = f"{OWN}/groups/{group}/members/{place.user('member')}"
    operator = place.world.people["operator"].headers
    refused = place.client.delete(f"{path}?revoke=true", headers=operator)
    assert (refused.status_code, "more than 1 pairs" in refused.text) == (409, True)
    assert place.client.delete(path, headers=operator).json()["complete"] is False
    assert place.states(*lost) == ["live", "live"]


@pytest.mark.parametrize(
    ("owner", "method", "first", "is_member", "state"),
    [
        (RevocationQueries, "revoke_all", 1, True, "live"),
        # The first call only checks that the membership can be removed.
        (Directory, "remove_member", 2, True, "revoked"),
        (LostRoles, "revoke_again", 1, False, "revoked"),
    ],
    ids=["revocation", "removal", "second revocation"],
)
def test_an_interrupted_removal_never_spares_the_certificates(
    place: RevocationClient,
    group: str,
    owner: type,
    method: str,
    first: int,
    is_member: bool,
    state: str,
) -> None:
    lost, user = place.issue("member"), place.user("member")
    path, operator = f"/groups/{group}/members/{user}", place.world.people["operator"].headers
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, method, failing(getattr(owner, method), first=first))
        assert place.client.delete(f"{OWN}{path}?revoke=true", headers=operator).status_code == 503
    members = "SELECT user_id FROM group_member WHERE group_id = ? AND user_id = ?"
    assert (store(place).rows(members, group, user) == [(user,)], place.state(lost)) == (is_member, state)
    if is_member:
        found = send(place, "DELETE", f"{path}?revoke=true")
        assert found["certificates"] == (1 if state == "live" else 0)
        assert (store(place).rows(members, group, user), place.state(lost)) == ([], "revoked")


def test_a_refused_removal_revokes_nothing(place: RevocationClient, group: str) -> None:
    lost = place.issue("member")
    headers = {**place.world.people["operator"].headers, "If-Match": '"old"'}
    path = f"{OWN}/groups/{group}/members/{place.user('member')}?revoke=true"
    assert place.client.delete(path, headers=headers).status_code == 412
    assert place.state(lost) == "live"


def test_a_role_is_removed_even_if_the_certificates_cannot_be_counted(
    place: RevocationClient, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccessQueries, "live_of_lost_role", failing(None, first=1))
    path = f"/groups/{group}/members/{place.user('member')}"
    operator = place.world.people["operator"].headers
    assert place.client.delete(f"{OWN}{path}?revoke=true", headers=operator).status_code == 503
    unknown = {"certificates": None, "users": None, "clusters": None, "until": None, "complete": False}
    assert send(place, "DELETE", f"{path}?dryRun=All") == unknown
    assert send(place, "DELETE", path) == unknown
    assert place.client.delete(f"{OWN}{path}", headers=operator).status_code == 404

"""Users who could get a group: those of the built-in identity, and those of other issuers who had certificates."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import pytest

from clustercert.issuance import entitled_users, recorded_callers
from clustercert.issuance.entitled_users import EntitledUserPage, EntitledUsers
from clustercert.issuance.recorded_callers import RecordedCallers
from clustercert.issuance.service import Issuance
from clustercert.model import Actor, Caller, Cluster, Domain, Group, IssueRequest, KnownUser, User
from clustercert.model.events.administration import RevocationChanged, UserBlocked
from clustercert.policy.entitlements import Entitlement, Entitlements
from clustercert.policy.rule_settings import PolicySettings
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.revocations import NO_END
from clustercert.store.identity.known_users import FederationQueries, KnownUserQueries
from support.accounts import ACTOR, ORIGIN, Accounts
from support.issuance_doubles import Clusters, issuance
from support.samples import NOW, caller, cluster
from support.stores import revocation
from support.wait import SECONDS

BY = Actor(ACTOR, ORIGIN)
ISSUER = "https://issuer.example"
POLICY = PolicySettings.model_validate(
    {
        "rules": [
            {"name": "sre", "when": {"groups": ["*sre"]}, "grant": {"groups": ["admins"]}},
            {"name": "members", "when": {"roles": ["member"]}, "grant": {"groups": ["viewers"]}},
        ]
    }
).policy()


def federated(accounts: Accounts, name: str, *groups: str, issuer: str = ISSUER) -> Caller:
    domain = Domain("e" * 32, "issuer")
    return replace(
        caller(in_projects={accounts.project.id: ("member",)}),
        user=User(f"{len(name):032x}", name, domain),
        groups=tuple(Group(f"{n:032x}", each, domain) for n, each in enumerate(groups)),
        method="oidc",
        issuer=issuer,
    )


def where(accounts: Accounts) -> Cluster:
    return replace(cluster(), project_id=accounts.project.id)


def service(accounts: Accounts, at: datetime) -> Issuance:
    found = issuance(clusters=Clusters(where(accounts)), now=lambda: at)
    return replace(found, policy=POLICY, ledger=Ledger(accounts.database))


async def issue(accounts: Accounts, who: Caller, at: datetime = NOW) -> None:
    place = where(accounts)
    if who.issuer != "built-in":
        # As after a login.
        known = KnownUser(who.user.id, who.user.name, who.user.domain.name, who.issuer)
        await KnownUserQueries(accounts.database).record_user(known)
    await service(accounts, at).issue(who, place.project_id, place.id, IssueRequest(duration=1))


async def found(
    accounts: Accounts, group: str, since: datetime = NOW - timedelta(days=1)
) -> Sequence[tuple[str, tuple[str, ...], datetime | None]]:
    pages = [
        page async for page in pages_of(accounts, Entitlements(POLICY, where(accounts), group, NOW), since)
    ]
    users = [each for page in pages for each in page.users]
    assert [each.caller.user.id for each in users] == sorted(each.caller.user.id for each in users)
    return sorted(
        (each.caller.user.name, tuple(way.rule for way in each.entitlements), each.seen_at) for each in users
    )


async def pages_of(
    accounts: Accounts, entitlements: Entitlements, since: datetime = NOW - timedelta(days=1)
) -> AsyncIterator[EntitledUserPage]:
    """Pages of at most two users."""
    users = EntitledUsers(accounts.database, RecordedCallers(accounts.database))
    after: str | None = ""
    while after is not None:
        page = await users.page(entitlements, accounts.project.id, since, after=after, limit=2)
        yield page
        after = page.following


async def test_every_member_is_considered(accounts: Accounts) -> None:
    group = await accounts.identity.directory.create_group("sre", accounts.domain, actor=BY)
    for name in ("a", "b", "c", "d", "e"):
        user = await accounts.new_user(name, "member" if name != "e" else "reader")
        if name in "ae":
            await accounts.identity.directory.add_member(group, user, actor=BY)
    assert await found(accounts, "viewers") == [(name, ("members",), None) for name in "abcd"]
    assert await found(accounts, "admins") == [("a", ("sre",), None), ("e", ("sre",), None)]
    assert await found(accounts, "other") == []


async def test_users_of_other_issuers_count_with_their_latest_groups(accounts: Accounts) -> None:
    later = NOW + timedelta(hours=1)
    await issue(accounts, federated(accounts, "joined"))
    await issue(accounts, federated(accounts, "joined", "sre"), later)
    await issue(accounts, federated(accounts, "has left", "sre"))
    await issue(accounts, federated(accounts, "has left"), later)
    await issue(accounts, federated(accounts, "old", "sre"), NOW - timedelta(days=2))
    assert await found(accounts, "admins") == [("joined", ("sre",), later)]
    assert await found(accounts, "viewers") == [
        ("has left", ("members",), later),
        ("joined", ("members",), later),
    ]
    assert "old" in {name for name, *_ in await found(accounts, "admins", NOW - timedelta(days=3))}


async def test_users_whose_request_is_not_found_are_named(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_callers, "NEWEST_EVENTS", 0)
    monkeypatch.setattr(recorded_callers, "EVENTS_AROUND", 0)
    lost = federated(accounts, "lost", "sre")
    await issue(accounts, lost)
    await issue(accounts, federated(accounts, "long ago", "sre"), NOW - timedelta(days=2))
    await accounts.new_user("alice", "member")
    search = Entitlements(POLICY, where(accounts), "*", NOW)
    pages = [page async for page in pages_of(accounts, search)]
    assert [each for page in pages for each in page.left_out] == [lost.user.id]
    assert [each.caller.user.name for page in pages for each in page.users] == ["alice"]


async def test_removed_and_blocked_users_get_nothing(accounts: Accounts) -> None:
    user = await accounts.new_user("alice", "member")
    removed = replace(federated(accounts, "removed", issuer="built-in"), method="token")
    await issue(accounts, removed)
    blocked = federated(accounts, "blocked", "sre")
    await issue(accounts, blocked)
    assert await found(accounts, "admins") == [("blocked", ("sre",), NOW)]
    wanted = replace(revocation(), user_id=blocked.user.id, cluster_id="", fingerprint=None, epoch=NO_END)
    events = (
        UserBlocked(at=NOW, kind="user.blocked", actor=BY, subject=blocked.user.id),
        RevocationChanged(
            at=NOW,
            kind="user.revoked",
            actor=BY,
            subject=blocked.user.id,
            user_id=blocked.user.id,
            cluster_id=None,
            reason="cessationOfOperation",
            note="user.blocked",
            proved=False,
        ),
    )
    await FederationQueries(accounts.database).block(wanted, *events)
    assert await found(accounts, "admins") == []
    assert await found(accounts, "viewers") == [("alice", ("members",), None)]
    await accounts.identity.directory.enable_user(user, enabled=False, actor=BY)
    assert await found(accounts, "viewers") == []


async def test_events_are_read_only_if_there_are_users_of_other_issuers(accounts: Accounts) -> None:
    await accounts.new_user("alice", "member")
    await issue(accounts, replace(federated(accounts, "alice", issuer="built-in"), method="access_key"))
    with accounts.counted_statements() as seen:
        await found(accounts, "viewers")
    assert not [statement for statement in seen if "audit_event" in statement]


async def test_a_page_ends_early_if_the_search_takes_long(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entitled_users, "MAX_COMPARED", 0)
    for name in ("a", "b", "c"):
        await accounts.new_user(name, "member")
    await issue(accounts, federated(accounts, "of the issuer"))
    search = Entitlements(POLICY, where(accounts), "viewers", NOW)
    pages = [page async for page in pages_of(accounts, search)]
    assert [len(page.users) for page in pages] == [1, 1, 1, 1]
    assert pages[-1].following is None
    # The search counts what it compares: the rules with each user, and one request with the rule that grants it.
    assert search.compared == 4 * len(POLICY.rules) + 2


async def test_the_event_loop_goes_on_during_a_search(accounts: Accounts) -> None:
    for name in ("a", "b"):
        await accounts.new_user(name, "member")
    search, begun, ended = (
        _Waiting(POLICY, where(accounts), "viewers", NOW),
        asyncio.Event(),
        threading.Event(),
    )
    search.begun, search.ended = partial(asyncio.get_running_loop().call_soon_threadsafe, begun.set), ended
    task = asyncio.ensure_future(anext(pages_of(accounts, search)))
    await begun.wait()
    assert not task.done()
    ended.set()
    assert len((await task).users) == 2


class _Waiting(Entitlements):
    """A search that waits until a test continues it."""

    begun: Callable[[], object]
    ended: threading.Event

    def entitlements_of(self, caller: Caller) -> tuple[Entitlement, ...]:
        self.begun()
        assert self.ended.wait(SECONDS)
        return super().entitlements_of(caller)

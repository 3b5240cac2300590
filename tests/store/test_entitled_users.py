"""Users who could get a group: those of the built-in identity, and those of other issuers who had certificates."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from clustercert.issuance import entitled_users
from clustercert.issuance.entitled_users import EntitledUsers
from clustercert.issuance.service import Issuance
from clustercert.model import Actor, Caller, Cluster, Domain, Group, IssueRequest, User
from clustercert.model.events.administration import RevocationChanged, UserBlocked
from clustercert.policy.entitlements import Entitlements
from clustercert.policy.rule_settings import PolicySettings
from clustercert.store.known_users import FederationQueries, SeenUserQueries
from clustercert.store.ledger import Ledger
from clustercert.store.revocations import NO_END
from support.accounts import ACTOR, ORIGIN, Accounts
from support.issuance_doubles import Clusters, issuance
from support.samples import NOW, caller, cluster
from support.stores import revocation

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
    await service(accounts, at).issue(who, place.project_id, place.id, IssueRequest(duration=1))


async def found(
    accounts: Accounts, group: str, since: datetime = NOW - timedelta(days=1)
) -> Sequence[tuple[str, tuple[str, ...], datetime | None]]:
    entitlements = Entitlements(POLICY, where(accounts), group, NOW)
    users = EntitledUsers(accounts.database).find(entitlements, accounts.project.id, since)
    return sorted(
        [
            (each.caller.user.name, tuple(way.rule for way in each.entitlements), each.seen_at)
            async for each in users
        ]
    )


async def test_every_member_is_considered(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entitled_users, "PAGE", 2)
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
    assert await SeenUserQueries(accounts.database).users_of_other_issuers(accounts.project.id, NOW) == {}
    with accounts.counted_statements() as seen:
        await found(accounts, "viewers")
    assert not [statement for statement in seen if "audit_event" in statement]

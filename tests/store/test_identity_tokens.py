from datetime import timedelta

import pytest
from argon2 import PasswordHasher
from sqlalchemy import Table, select, update

from clustercert.identity.passwords import Passwords
from clustercert.identity.service import Identity
from clustercert.identity.tokens import ByPassword, ByToken, DomainScope, ProjectScope, Scope
from clustercert.model import Actor, Caller, User
from clustercert.model.errors import NotFound, Unauthenticated
from clustercert.store import tables
from clustercert.store.identity.entities import Reference
from clustercert.store.identity.logins import MAX_NETWORKS, NETWORK_LIFETIME, TokenQueries
from support.accounts import ACTOR, LIFETIME, ORIGIN, PASSWORD, Accounts, caller_of, count, enable


async def test_a_token_from_a_login_has_the_users_roles_in_its_project(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "reader", "admin")
    elsewhere = await accounts.new_project("eu-nl")
    await accounts.assign("admin", alice, elsewhere)
    await accounts.assign("operator", alice, None)
    issued = await accounts.login(alice, accounts.project)
    caller = await caller_of(accounts, issued.text)
    assert caller == Caller(
        user=alice,
        roles={accounts.project.id: ("admin", "reader")},
        method="token",
        origin=ORIGIN,
        service_roles=("operator",),
        expires_at=accounts.clock() + LIFETIME,
        credential_id=issued.live.token.hash.hex(),
    )
    assert caller.roles_in(elsewhere.id) == ()
    with pytest.raises(TypeError):
        caller.roles["x"] = ("admin",)  # type: ignore[index] # must be immutable


async def test_a_token_without_a_project_reaches_none(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "admin")
    for scope in (None, accounts.domain):
        issued = await accounts.login(alice, scope)
        assert dict((await caller_of(accounts, issued.text)).roles) == {}
        assert issued.live.domain == scope


@pytest.mark.parametrize("user", ["id", "name and domain name", "name and domain id", "name in another form"])
async def test_a_user_is_found_by_id_or_by_name_and_domain(accounts: Accounts, user: str) -> None:
    zoe = await accounts.new_user("Zo\u00eb", "reader")
    reference = {
        "id": Reference(id=zoe.id),
        "name and domain name": Reference(name="Zo\u00eb", domain_name="OTC1"),
        "name and domain id": Reference(name="Zo\u00eb", domain_id=accounts.domain.id),
        "name in another form": Reference(name="Zoe\u0308", domain_name="OTC1"),
    }[user]
    issued = await accounts.identity.tokens.issue(ByPassword(reference, PASSWORD), None)
    assert issued.live.user == zoe


@pytest.mark.parametrize("by", ["id", "name", "name and domain name", "name and domain id"])
async def test_a_project_name_without_a_domain_is_of_the_users_domain(accounts: Accounts, by: str) -> None:
    other = await accounts.new_domain("OTC2")
    theirs = await accounts.new_project("eu-de", other)
    alice = await accounts.new_user("alice", "reader")
    await accounts.assign("admin", alice, theirs)
    reference = {
        "id": Reference(id=accounts.project.id),
        "name": Reference(name="eu-de"),
        "name and domain name": Reference(name="eu-de", domain_name="OTC1"),
        "name and domain id": Reference(name="eu-de", domain_id=accounts.domain.id),
    }[by]
    login = ByPassword(Reference(id=alice.id), PASSWORD)
    issued = await accounts.identity.tokens.issue(login, ProjectScope(reference))
    assert issued.live.project == accounts.project
    assert [role.name for role in issued.live.roles.by_project[accounts.project.id]] == ["reader"]


def bad_logins(alice: User) -> dict[str, ByPassword]:
    return {
        "wrong password": ByPassword(Reference(id=alice.id), "correct horsf"),
        "no password": ByPassword(Reference(id=alice.id), ""),
        "endless password": ByPassword(Reference(id=alice.id), "x" * 60_000),
        "password that is no text": ByPassword(Reference(id=alice.id), "\ud800" * 9),
        "unknown user": ByPassword(Reference(name="mallory", domain_name="OTC1"), PASSWORD),
        "unknown domain": ByPassword(Reference(name="alice", domain_name="OTC9"), PASSWORD),
        "unknown id": ByPassword(Reference(id="0" * 32), PASSWORD),
        "id that is none": ByPassword(Reference(id="\x00' OR 1=1 --"), PASSWORD),
        "domain id that is none": ByPassword(Reference(name="alice", domain_id="\ud800"), PASSWORD),
        "name that is no text": ByPassword(Reference(name="al\ud800ce", domain_name="OTC1"), PASSWORD),
        "name with a zero byte": ByPassword(Reference(name="alice\x00", domain_name="OTC1"), PASSWORD),
        "domain name that is no text": ByPassword(Reference(name="alice", domain_name="\udfff"), PASSWORD),
    }


async def test_a_login_that_proves_nothing_is_refused_in_the_same_words(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "reader")
    said = set()
    for case, login in bad_logins(alice).items():
        with pytest.raises(Unauthenticated) as refusal:
            await accounts.identity.tokens.issue(login, None)
        assert "password" in refusal.value.reason, case
        said.add(refusal.value.message)
    assert len(said) == 1
    assert await count(accounts, "token") == 0


async def test_a_user_without_a_password_and_one_who_is_disabled_have_no_login(accounts: Accounts) -> None:
    directory = accounts.identity.directory
    keyed = await accounts.new_user("robot", "reader", password=None)
    disabled = await accounts.new_user("alice", "reader")
    await directory.enable_user(disabled, enabled=False, actor=Actor(ACTOR, ORIGIN))
    for user in (keyed, disabled):
        with pytest.raises(Unauthenticated):
            await accounts.login(user)
    await directory.enable_user(disabled, enabled=True, actor=Actor(ACTOR, ORIGIN))
    await accounts.login(disabled)
    await enable(directory, accounts.domain, enabled=False, actor=Actor(ACTOR, ORIGIN))
    with pytest.raises(Unauthenticated):
        await accounts.login(disabled)


async def test_a_scope_that_is_not_the_users_is_refused(accounts: Accounts) -> None:
    other = await accounts.new_domain("OTC2")
    theirs = await accounts.new_project("eu-nl", other)
    disabled = await accounts.new_project("closed")
    alice = await accounts.new_user("alice", "reader")
    await accounts.assign("reader", alice, disabled)
    await enable(accounts.identity.directory, disabled, enabled=False, actor=Actor(ACTOR, ORIGIN))
    scopes: list[Scope] = [
        ProjectScope(Reference(id=theirs.id)),
        ProjectScope(Reference(id="0" * 32)),
        ProjectScope(Reference(id="eu-de")),
        ProjectScope(Reference(name="eu-nl")),
        ProjectScope(Reference(name="eu-de", domain_name="OTC2")),
        ProjectScope(Reference(name="\ud800")),
        ProjectScope(Reference(id=disabled.id)),
        DomainScope(id=other.id),
        DomainScope(name="OTC2"),
        DomainScope(name="OTC1", id=other.id),
    ]
    for scope in scopes:
        with pytest.raises(Unauthenticated):
            await accounts.identity.tokens.issue(ByPassword(Reference(id=alice.id), PASSWORD), scope)
    own = await accounts.identity.tokens.issue(
        ByPassword(Reference(id=alice.id), PASSWORD), DomainScope(name="OTC1")
    )
    assert own.live.domain == accounts.domain


async def test_a_token_for_another_scope_keeps_the_first_ones_end(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "member")
    first = await accounts.login(alice)
    accounts.clock.forward(timedelta(hours=20))
    second = await accounts.identity.tokens.issue(
        ByToken(first.text), ProjectScope(Reference(id=accounts.project.id))
    )
    third = await accounts.identity.tokens.issue(ByToken(second.text), None)
    assert second.live.token.methods == ("password", "token") == third.live.token.methods
    assert first.live.token.expires_at == second.live.token.expires_at == third.live.token.expires_at
    assert (await caller_of(accounts, second.text)).roles_in(accounts.project.id) == ("member",)
    accounts.clock.forward(timedelta(hours=4))
    for text in (first.text, second.text, third.text):
        with pytest.raises(Unauthenticated, match=r"Authorization failed\."):
            await caller_of(accounts, text)
        with pytest.raises(Unauthenticated):
            await accounts.identity.tokens.issue(ByToken(text), None)


async def test_only_a_hash_of_a_token_is_kept(accounts: Accounts) -> None:
    issued = await accounts.login(await accounts.new_user())
    assert len(issued.text) == 43
    stored = accounts.store.content()
    assert issued.live.token.hash in stored
    assert issued.text.encode() not in stored
    assert PASSWORD.encode() not in stored
    assert issued.text not in repr(issued)


async def test_a_token_is_shown_to_its_user_and_operators_only(
    accounts: Accounts,
) -> None:
    alice, bob = await accounts.new_user("alice"), await accounts.new_user("bob")
    root = await accounts.new_user("root")
    await accounts.assign("operator", root, None)
    issued = await accounts.login(alice)
    tokens = accounts.identity.tokens
    for user in (alice, root):
        assert (
            await tokens.inspect(await caller_of(accounts, (await accounts.login(user)).text), issued.text)
            == issued.live
        )
    stranger = await caller_of(accounts, (await accounts.login(bob)).text)
    for text in (issued.text, "x" * 43, "nonsense"):
        with pytest.raises(NotFound, match="Could not find token"):
            await tokens.inspect(stranger, text)
        with pytest.raises(NotFound, match="Could not find token"):
            await tokens.revoke(stranger, text)
    await caller_of(accounts, issued.text)


async def test_a_revocation_is_audited_and_ends_one_token_alone(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "member")
    first, second = await accounts.login(alice, accounts.project), await accounts.login(alice)
    await accounts.identity.tokens.revoke(await caller_of(accounts, second.text), first.text)
    await caller_of(accounts, second.text)
    with pytest.raises(Unauthenticated):
        await caller_of(accounts, first.text)
    last = (await accounts.events())[-1]
    assert last == {
        "at": "2026-01-15T10:30:00+00:00",
        "kind": "token.revoked",
        "version": 1,
        "project_id": accounts.project.id,
        "actor": alice.id,
        "subject": first.live.token.hash.hex(),
        "source": ORIGIN.address,
        "request_id": ORIGIN.request_id,
        "detail": {"user_id": alice.id},
    }


@pytest.mark.parametrize("table", [tables.user, tables.domain])
async def test_a_refused_logout_everywhere_deletes_nothing(accounts: Accounts, table: Table) -> None:
    caller = await caller_of(accounts, (await accounts.login(await accounts.new_user("alice"))).text)
    async with accounts.database.transaction() as connection:
        await connection.execute(update(table).values(enabled=False))
    with pytest.raises(Unauthenticated):
        await accounts.identity.logins.end_all(caller, with_keys=True)
    assert await count(accounts, "token") == 1


async def test_a_hash_with_old_parameters_is_renewed_by_a_login(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    stronger = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    identity = Identity(
        accounts.database, accounts.sealer, region="eu-de", passwords=Passwords(stronger), now=accounts.clock
    )
    await identity.tokens.issue(ByPassword(Reference(id=alice.id), PASSWORD), None)
    async with accounts.database.read() as connection:
        kept = (await connection.execute(select(tables.user.c.password_hash))).scalar_one()
    assert "m=16,t=2" in kept
    await identity.tokens.issue(ByPassword(Reference(id=alice.id), PASSWORD), None)


async def test_expired_tokens_are_forgotten_however_many(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    old = [await accounts.login(alice) for _ in range(3)]
    accounts.clock.forward(LIFETIME / 2)
    new = await accounts.login(alice)
    accounts.clock.forward(LIFETIME / 2)
    assert await accounts.identity.prune() == len(old)
    assert await count(accounts, "token") == 1
    await caller_of(accounts, new.text)
    assert await accounts.identity.prune() == 0


@pytest.mark.parametrize("network", ["192.0.2.1", "2001:db8:1:1::/64"])
async def test_a_login_makes_its_network_known_to_every_process(accounts: Accounts, network: str) -> None:
    alice, bob = await accounts.new_user(), await accounts.new_user("bob")
    by_alice = ByPassword(Reference(id=alice.id), PASSWORD)
    with pytest.raises(Unauthenticated):
        await accounts.identity.tokens.issue(ByPassword(by_alice.user, "wrong password"), None, network)
    assert await known_networks(accounts, alice) == set()
    await accounts.identity.tokens.issue(by_alice, None, network)
    other = TokenQueries(accounts.second_database())
    known = {
        (user.name, source): login is not None and login.is_known_source
        for user in (alice, bob)
        for source in (network, "198.51.100.1")
        for login in [await other.login(Reference(id=user.id), source)]
    }
    assert known == {
        ("alice", network): True,
        ("alice", "198.51.100.1"): False,
        ("bob", network): False,
        ("bob", "198.51.100.1"): False,
    }
    await accounts.identity.directory.remove_user(alice, actor=Actor(ACTOR, ORIGIN))
    assert await known_networks(accounts, alice) == set()


async def test_known_networks_are_few_and_expire(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    by_alice = ByPassword(Reference(id=alice.id), PASSWORD)
    for number in (*range(MAX_NETWORKS), 0, MAX_NETWORKS):
        accounts.clock.forward(timedelta(seconds=1))
        await accounts.identity.tokens.issue(by_alice, None, f"2001:db8:0:{number:x}::/64")
    expected = {f"2001:db8:0:{number:x}::/64" for number in (0, *range(2, MAX_NETWORKS + 1))}
    assert await known_networks(accounts, alice) == expected
    accounts.clock.forward(NETWORK_LIFETIME - timedelta(seconds=1))
    await accounts.identity.prune()
    assert await known_networks(accounts, alice) == {f"2001:db8:0:{MAX_NETWORKS:x}::/64"}
    accounts.clock.forward(timedelta(seconds=1))
    await accounts.identity.prune()
    assert await known_networks(accounts, alice) == set()


async def known_networks(accounts: Accounts, user: User) -> set[str]:
    async with accounts.database.read() as connection:
        table = tables.login_network
        query = select(table.c.network).where(table.c.user_id == user.id)
        return set((await connection.execute(query)).scalars())

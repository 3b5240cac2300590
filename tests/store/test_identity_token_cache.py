from datetime import timedelta

import pytest

from clustercert.identity.passwords import Passwords
from clustercert.identity.service import Identity
from clustercert.identity.tokens import ByPassword, ByToken
from clustercert.model import Actor, Caller, User
from clustercert.model.errors import NotFound, Unauthenticated
from clustercert.store.identity.entities import Reference
from support.accounts import ACTOR, CHEAP, LIFETIME, ORIGIN, PASSWORD, Accounts, caller_of, count, enable


async def test_what_is_no_token_of_ours_never_reaches_the_database(accounts: Accounts) -> None:
    with accounts.counted_statements() as statements:
        for text in ("", "x", "x" * 4096, "\ud800" * 43, "é" * 43):
            with pytest.raises(Unauthenticated):
                await caller_of(accounts, text)
    assert statements == []
    with pytest.raises(Unauthenticated) as refusal:
        await caller_of(accounts, "x" * 43)
    assert refusal.value.reason == "the token is unknown"


async def test_a_token_that_was_seen_a_moment_ago_costs_no_statement(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "member")
    issued = await accounts.login(alice, accounts.project)
    await accounts.database.generation.refresh()
    first = await caller_of(accounts, issued.text)
    with accounts.counted_statements() as statements:
        assert await caller_of(accounts, issued.text) == first
    assert statements == []


async def test_expiry_counts_for_a_remembered_token_too(accounts: Accounts) -> None:
    issued = await accounts.login(await accounts.new_user())
    await accounts.database.generation.refresh()
    accounts.clock.forward(LIFETIME - timedelta(microseconds=1))
    await caller_of(accounts, issued.text)
    accounts.clock.forward(timedelta(microseconds=1))
    with pytest.raises(Unauthenticated) as refusal:
        await caller_of(accounts, issued.text)
    assert refusal.value.reason == "the token has expired"


CHANGES = [
    "user disabled",
    "user removed",
    "password changed",
    "domain disabled",
    "project disabled",
    "project removed",
    "token revoked",
]


async def change(
    accounts: Accounts, identity: Identity, alice: User, what: str, caller: Caller, text: str
) -> None:
    directory = identity.directory
    if what == "user disabled":
        await directory.enable_user(alice, enabled=False, actor=Actor(ACTOR, ORIGIN))
    elif what == "user removed":
        await directory.remove_user(alice, actor=Actor(ACTOR, ORIGIN))
    elif what == "password changed":
        await directory.set_password(alice, "another horse", actor=Actor(ACTOR, ORIGIN))
    elif what == "domain disabled":
        await enable(directory, accounts.domain, enabled=False, actor=Actor(ACTOR, ORIGIN))
    elif what == "project disabled":
        await enable(directory, accounts.project, enabled=False, actor=Actor(ACTOR, ORIGIN))
    elif what == "project removed":
        await directory.remove_project(accounts.project, actor=Actor(ACTOR, ORIGIN))
    else:
        await identity.tokens.revoke(caller, text)


@pytest.mark.parametrize("what", CHANGES)
async def test_a_change_by_another_process_ends_a_remembered_token(accounts: Accounts, what: str) -> None:
    alice = await accounts.new_user("alice", "member")
    issued = await accounts.login(alice, accounts.project)
    await accounts.database.generation.refresh()
    caller = await caller_of(accounts, issued.text)
    second_process = accounts.second_process()
    await change(accounts, second_process, alice, what, caller, issued.text)
    await accounts.database.generation.refresh()
    with pytest.raises(Unauthenticated):
        await caller_of(accounts, issued.text)
    with pytest.raises(Unauthenticated):
        await accounts.identity.tokens.issue(ByToken(issued.text), None)


async def test_roles_that_come_and_go_hold_for_a_remembered_token(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "member")
    issued = await accounts.login(alice, accounts.project)
    second_process = accounts.second_process()
    group = await second_process.directory.create_group("admins", accounts.domain, actor=Actor(ACTOR, ORIGIN))
    await second_process.roles.assign("admin", group, accounts.project, actor=Actor(ACTOR, ORIGIN))
    await second_process.roles.assign("member", group, accounts.project, actor=Actor(ACTOR, ORIGIN))

    async def roles() -> tuple[str, ...]:
        await accounts.database.generation.refresh()
        return (await caller_of(accounts, issued.text)).roles_in(accounts.project.id)

    assert await roles() == ("member",)
    await second_process.directory.add_member(group, alice, actor=Actor(ACTOR, ORIGIN))
    assert await roles() == ("admin", "member")
    await second_process.roles.unassign("member", alice, accounts.project, actor=Actor(ACTOR, ORIGIN))
    assert await roles() == ("admin", "member")
    await second_process.directory.remove_member(group, alice, actor=Actor(ACTOR, ORIGIN))
    # The token is still valid, but its user has no role in the project any more.
    assert await roles() == ()


async def test_tokens_and_temporary_keys_of_a_disabled_domain_stay_ended(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "member")
    issued = await accounts.login(alice, accounts.project)
    kept = await accounts.identity.access_keys.create(alice, actor=Actor(ACTOR, ORIGIN))
    temporary = await accounts.identity.access_keys.create_temporary(await caller_of(accounts, issued.text))
    for enabled in (False, True):
        await enable(
            accounts.identity.directory, accounts.domain, enabled=enabled, actor=Actor(ACTOR, ORIGIN)
        )
    with pytest.raises(Unauthenticated) as refusal:
        await caller_of(accounts, issued.text)
    assert refusal.value.reason == "the token is unknown"
    with pytest.raises(NotFound):
        await accounts.identity.access_keys.find(temporary.key.id)
    assert await accounts.identity.access_keys.find(kept.key.id) == kept.key


async def test_tokens_ended_by_a_disabled_user_or_password_stay_ended(accounts: Accounts) -> None:
    directory = accounts.identity.directory
    alice = await accounts.new_user()
    ended = [await accounts.login(alice)]
    await directory.enable_user(alice, enabled=False, actor=Actor(ACTOR, ORIGIN))
    await directory.enable_user(alice, enabled=True, actor=Actor(ACTOR, ORIGIN))
    ended.append(await accounts.login(alice))
    await directory.set_password(alice, PASSWORD, actor=Actor(ACTOR, ORIGIN))
    for issued in ended:
        with pytest.raises(Unauthenticated):
            await caller_of(accounts, issued.text)
    with pytest.raises(Unauthenticated):
        await accounts.login(alice, password="correct horse?")
    await caller_of(accounts, (await accounts.login(alice)).text)


async def test_a_token_of_a_remembered_but_revoked_one_is_refused_at_once(accounts: Accounts) -> None:
    issued = await accounts.login(await accounts.new_user())
    await accounts.database.generation.refresh()
    caller = await caller_of(accounts, issued.text)
    await accounts.second_process().tokens.revoke(caller, issued.text)
    # Within the second in which this process may still use its cache.
    await caller_of(accounts, issued.text)
    with pytest.raises(Unauthenticated):
        await accounts.identity.tokens.issue(ByToken(issued.text), None)
    with pytest.raises(NotFound, match="Could not find token"):
        await accounts.identity.tokens.revoke(caller, issued.text)


class Interrupted(Passwords):
    """Runs a change between the check of a password and the creation of the token."""

    def __init__(self, accounts: Accounts) -> None:
        super().__init__(CHEAP)
        self._house = accounts
        self.what = ""
        self.user: User | None = None

    async def rehashed(self, password: str, stored: str) -> str | None:
        if self.user is not None:
            caller = Caller(user=self.user, roles={}, method="cli", origin=ORIGIN)
            await change(self._house, self._house.identity, self.user, self.what, caller, "")
        return await super().rehashed(password, stored)


@pytest.mark.parametrize("what", ["user disabled", "user removed", "password changed"])
async def test_a_login_that_a_change_overtakes_gives_no_token(accounts: Accounts, what: str) -> None:
    alice = await accounts.new_user()
    passwords = Interrupted(accounts)
    identity = Identity(
        accounts.database, accounts.sealer, region="eu-de", passwords=passwords, now=accounts.clock
    )
    passwords.what, passwords.user = what, alice
    with pytest.raises(Unauthenticated) as refusal:
        await identity.tokens.issue(ByPassword(Reference(id=alice.id), PASSWORD), None)
    assert refusal.value.reason == "the password or token was revoked while it was being checked"
    assert await count(accounts, "token") == 0

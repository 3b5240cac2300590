from datetime import timedelta

import pytest

from clustercert.errors import NotFound, Unauthenticated
from clustercert.identity import Identity
from clustercert.identity.passwords import Passwords
from clustercert.identity.tokens import ByPassword, ByToken
from clustercert.model import Caller, User
from clustercert.store.nouns import Reference
from identities import ACTOR, CHEAP, LIFETIME, ORIGIN, PASSWORD, House, caller_of, count


async def test_what_is_no_token_of_ours_never_reaches_the_database(house: House) -> None:
    with house.counted_statements() as statements:
        for text in ("", "x", "x" * 4096, "\ud800" * 43, "é" * 43):
            with pytest.raises(Unauthenticated):
                await caller_of(house, text)
    assert statements == []
    with pytest.raises(Unauthenticated) as refusal:
        await caller_of(house, "x" * 43)
    assert refusal.value.reason == "the token is unknown"


async def test_a_token_that_was_seen_a_moment_ago_costs_no_statement(house: House) -> None:
    alice = await house.new_user("alice", "member")
    issued = await house.login(alice, house.project)
    await house.database.generation.refresh()
    first = await caller_of(house, issued.text)
    with house.counted_statements() as statements:
        assert await caller_of(house, issued.text) == first
    assert statements == []


async def test_expiry_counts_for_a_remembered_token_too(house: House) -> None:
    issued = await house.login(await house.new_user())
    await house.database.generation.refresh()
    house.clock.forward(LIFETIME - timedelta(microseconds=1))
    await caller_of(house, issued.text)
    house.clock.forward(timedelta(microseconds=1))
    with pytest.raises(Unauthenticated) as refusal:
        await caller_of(house, issued.text)
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


async def change(house: House, identity: Identity, alice: User, what: str, caller: Caller, text: str) -> None:
    directory = identity.directory
    if what == "user disabled":
        await directory.enable_user(alice, enabled=False, actor=ACTOR, origin=ORIGIN)
    elif what == "user removed":
        await directory.remove_user(alice, actor=ACTOR, origin=ORIGIN)
    elif what == "password changed":
        await directory.set_password(alice, "another horse", actor=ACTOR, origin=ORIGIN)
    elif what == "domain disabled":
        await directory.enable_domain(house.domain, enabled=False, actor=ACTOR, origin=ORIGIN)
    elif what == "project disabled":
        await directory.enable_project(house.project, enabled=False, actor=ACTOR, origin=ORIGIN)
    elif what == "project removed":
        await directory.remove_project(house.project, actor=ACTOR, origin=ORIGIN)
    else:
        await identity.tokens.revoke(caller, text)


@pytest.mark.parametrize("what", CHANGES)
async def test_a_change_by_another_process_ends_a_remembered_token(house: House, what: str) -> None:
    alice = await house.new_user("alice", "member")
    issued = await house.login(alice, house.project)
    await house.database.generation.refresh()
    caller = await caller_of(house, issued.text)
    neighbour = house.neighbour()
    await change(house, neighbour, alice, what, caller, issued.text)
    await house.database.generation.refresh()
    with pytest.raises(Unauthenticated):
        await caller_of(house, issued.text)
    with pytest.raises(Unauthenticated):
        await house.identity.tokens.issue(ByToken(issued.text), None)


async def test_roles_that_come_and_go_hold_for_a_remembered_token(house: House) -> None:
    alice = await house.new_user("alice", "member")
    issued = await house.login(alice, house.project)
    neighbour = house.neighbour()
    group = await neighbour.directory.create_group("admins", house.domain, actor=ACTOR, origin=ORIGIN)
    await neighbour.roles.assign("admin", group, house.project, actor=ACTOR, origin=ORIGIN)
    await neighbour.roles.assign("member", group, house.project, actor=ACTOR, origin=ORIGIN)

    async def roles() -> tuple[str, ...]:
        await house.database.generation.refresh()
        return (await caller_of(house, issued.text)).roles_in(house.project.id)

    assert await roles() == ("member",)
    await neighbour.directory.add_member(group, alice, actor=ACTOR, origin=ORIGIN)
    assert await roles() == ("admin", "member")
    await neighbour.roles.unassign("member", alice, house.project, actor=ACTOR, origin=ORIGIN)
    assert await roles() == ("admin", "member")
    await neighbour.directory.remove_member(group, alice, actor=ACTOR, origin=ORIGIN)
    # Still a good token, of somebody who has no role there any more.
    assert await roles() == ()


async def test_tokens_ended_by_a_disabled_user_or_a_new_password_do_not_come_back(house: House) -> None:
    directory = house.identity.directory
    alice = await house.new_user()
    ended = [await house.login(alice)]
    await directory.enable_user(alice, enabled=False, actor=ACTOR, origin=ORIGIN)
    await directory.enable_user(alice, enabled=True, actor=ACTOR, origin=ORIGIN)
    ended.append(await house.login(alice))
    await directory.set_password(alice, PASSWORD, actor=ACTOR, origin=ORIGIN)
    for issued in ended:
        with pytest.raises(Unauthenticated):
            await caller_of(house, issued.text)
    with pytest.raises(Unauthenticated):
        await house.login(alice, password="correct horse?")
    await caller_of(house, (await house.login(alice)).text)


async def test_a_token_of_a_remembered_but_revoked_one_is_refused_at_once(house: House) -> None:
    issued = await house.login(await house.new_user())
    await house.database.generation.refresh()
    caller = await caller_of(house, issued.text)
    await house.neighbour().tokens.revoke(caller, issued.text)
    # Within the second in which this process may still believe in it.
    await caller_of(house, issued.text)
    with pytest.raises(Unauthenticated):
        await house.identity.tokens.issue(ByToken(issued.text), None)
    with pytest.raises(NotFound, match="Could not find token"):
        await house.identity.tokens.revoke(caller, issued.text)


class Interrupted(Passwords):
    """Lets something happen between a password's check and the token that it gives."""

    def __init__(self, house: House) -> None:
        super().__init__(CHEAP)
        self._house = house
        self.what = ""
        self.user: User | None = None

    async def fresher(self, password: str, kept: str) -> str | None:
        if self.user is not None:
            caller = Caller(user=self.user, roles={}, method="cli", origin=ORIGIN)
            await change(self._house, self._house.identity, self.user, self.what, caller, "")
        return await super().fresher(password, kept)


@pytest.mark.parametrize("what", ["user disabled", "user removed", "password changed"])
async def test_a_login_that_a_change_overtakes_gives_no_token(house: House, what: str) -> None:
    alice = await house.new_user()
    passwords = Interrupted(house)
    identity = Identity(house.database, house.sealer, region="eu-de", passwords=passwords, now=house.clock)
    passwords.what, passwords.user = what, alice
    with pytest.raises(Unauthenticated) as refusal:
        await identity.tokens.issue(ByPassword(Reference(id=alice.id), PASSWORD), None)
    assert refusal.value.reason == "the password or token was revoked while it was checked"
    assert await count(house, "token") == 0

from datetime import timedelta

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select

from clustercert.errors import NotFound, Unauthenticated
from clustercert.identity import Identity
from clustercert.identity.passwords import Passwords
from clustercert.identity.tokens import ByPassword, ByToken, DomainScope, ProjectScope, Scope
from clustercert.model import Caller, User
from clustercert.store import tables
from clustercert.store.nouns import Reference
from identities import ACTOR, LIFETIME, ORIGIN, PASSWORD, House, caller_of, count


async def test_a_login_gives_a_token_whose_caller_has_the_users_roles_in_its_project(house: House) -> None:
    alice = await house.new_user("alice", "reader", "admin")
    elsewhere = await house.new_project("eu-nl")
    await house.assign("admin", alice, elsewhere)
    await house.assign("operator", alice, None)
    issued = await house.login(alice, house.project)
    caller = await caller_of(house, issued.text)
    assert caller == Caller(
        user=alice,
        roles={house.project.id: ("admin", "reader")},
        method="token",
        origin=ORIGIN,
        service_roles=("operator",),
        expires_at=house.clock() + LIFETIME,
        credential_id=issued.live.token.hash.hex(),
    )
    assert caller.roles_in(elsewhere.id) == ()
    with pytest.raises(TypeError):
        caller.roles["x"] = ("admin",)  # type: ignore[index] # that it can't be changed is the point


async def test_a_token_without_a_project_reaches_none(house: House) -> None:
    alice = await house.new_user("alice", "admin")
    for scope in (None, house.domain):
        issued = await house.login(alice, scope)
        assert dict((await caller_of(house, issued.text)).roles) == {}
        assert issued.live.domain == scope


@pytest.mark.parametrize("user", ["id", "name and domain name", "name and domain id", "name in another form"])
async def test_a_user_is_found_by_id_or_by_name_and_domain(house: House, user: str) -> None:
    zoe = await house.new_user("Zo\u00eb", "reader")
    reference = {
        "id": Reference(id=zoe.id),
        "name and domain name": Reference(name="Zo\u00eb", domain_name="OTC1"),
        "name and domain id": Reference(name="Zo\u00eb", domain_id=house.domain.id),
        "name in another form": Reference(name="Zoe\u0308", domain_name="OTC1"),
    }[user]
    issued = await house.identity.tokens.issue(ByPassword(reference, PASSWORD), None)
    assert issued.live.user == zoe


@pytest.mark.parametrize("by", ["id", "name", "name and domain name", "name and domain id"])
async def test_a_project_is_found_by_id_or_by_name_which_alone_means_the_users_own_domain(
    house: House, by: str
) -> None:
    other = await house.new_domain("OTC2")
    theirs = await house.new_project("eu-de", other)
    alice = await house.new_user("alice", "reader")
    await house.assign("admin", alice, theirs)
    reference = {
        "id": Reference(id=house.project.id),
        "name": Reference(name="eu-de"),
        "name and domain name": Reference(name="eu-de", domain_name="OTC1"),
        "name and domain id": Reference(name="eu-de", domain_id=house.domain.id),
    }[by]
    login = ByPassword(Reference(id=alice.id), PASSWORD)
    issued = await house.identity.tokens.issue(login, ProjectScope(reference))
    assert issued.live.project == house.project
    assert [role.name for role in issued.live.roles.by_project[house.project.id]] == ["reader"]


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


async def test_a_login_that_proves_nothing_is_refused_in_the_same_words(house: House) -> None:
    alice = await house.new_user("alice", "reader")
    said = set()
    for case, login in bad_logins(alice).items():
        with pytest.raises(Unauthenticated) as refusal:
            await house.identity.tokens.issue(login, None)
        assert "password" in refusal.value.reason, case
        said.add(refusal.value.message)
    assert len(said) == 1
    assert await count(house, "token") == 0


async def test_a_user_without_a_password_and_one_who_is_disabled_have_no_login(house: House) -> None:
    directory = house.identity.directory
    keyed = await house.new_user("robot", "reader", password=None)
    disabled = await house.new_user("alice", "reader")
    await directory.enable_user(disabled, enabled=False, actor=ACTOR, origin=ORIGIN)
    for user in (keyed, disabled):
        with pytest.raises(Unauthenticated):
            await house.login(user)
    await directory.enable_user(disabled, enabled=True, actor=ACTOR, origin=ORIGIN)
    await house.login(disabled)
    await directory.enable_domain(house.domain, enabled=False, actor=ACTOR, origin=ORIGIN)
    with pytest.raises(Unauthenticated):
        await house.login(disabled)


async def test_a_scope_that_is_not_the_users_is_refused(house: House) -> None:
    other = await house.new_domain("OTC2")
    theirs = await house.new_project("eu-nl", other)
    disabled = await house.new_project("closed")
    alice = await house.new_user("alice", "reader")
    await house.assign("reader", alice, disabled)
    await house.identity.directory.enable_project(disabled, enabled=False, actor=ACTOR, origin=ORIGIN)
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
            await house.identity.tokens.issue(ByPassword(Reference(id=alice.id), PASSWORD), scope)
    own = await house.identity.tokens.issue(
        ByPassword(Reference(id=alice.id), PASSWORD), DomainScope(name="OTC1")
    )
    assert own.live.domain == house.domain


async def test_a_token_for_another_scope_keeps_the_first_ones_end(house: House) -> None:
    alice = await house.new_user("alice", "member")
    first = await house.login(alice)
    house.clock.forward(timedelta(hours=20))
    second = await house.identity.tokens.issue(
        ByToken(first.text), ProjectScope(Reference(id=house.project.id))
    )
    third = await house.identity.tokens.issue(ByToken(second.text), None)
    assert second.live.token.methods == ("password", "token") == third.live.token.methods
    assert first.live.token.expires_at == second.live.token.expires_at == third.live.token.expires_at
    assert (await caller_of(house, second.text)).roles_in(house.project.id) == ("member",)
    house.clock.forward(timedelta(hours=4))
    for text in (first.text, second.text, third.text):
        with pytest.raises(Unauthenticated, match=r"Authorization failed\."):
            await caller_of(house, text)
        with pytest.raises(Unauthenticated):
            await house.identity.tokens.issue(ByToken(text), None)


async def test_only_a_hash_of_a_token_is_kept(house: House) -> None:
    issued = await house.login(await house.new_user())
    assert len(issued.text) == 43
    stored = house.store.content()
    assert issued.live.token.hash in stored
    assert issued.text.encode() not in stored
    assert PASSWORD.encode() not in stored
    assert issued.text not in repr(issued)


async def test_a_token_is_shown_to_its_user_and_to_operators_and_does_not_exist_for_others(
    house: House,
) -> None:
    alice, bob = await house.new_user("alice"), await house.new_user("bob")
    root = await house.new_user("root")
    await house.assign("operator", root, None)
    issued = await house.login(alice)
    tokens = house.identity.tokens
    for user in (alice, root):
        assert (
            await tokens.inspect(await caller_of(house, (await house.login(user)).text), issued.text)
            == issued.live
        )
    stranger = await caller_of(house, (await house.login(bob)).text)
    for text in (issued.text, "x" * 43, "nonsense"):
        with pytest.raises(NotFound, match="Could not find token"):
            await tokens.inspect(stranger, text)
        with pytest.raises(NotFound, match="Could not find token"):
            await tokens.revoke(stranger, text)
    await caller_of(house, issued.text)


async def test_a_revocation_is_audited_and_ends_one_token_alone(house: House) -> None:
    alice = await house.new_user("alice", "member")
    first, second = await house.login(alice, house.project), await house.login(alice)
    await house.identity.tokens.revoke(await caller_of(house, second.text), first.text)
    await caller_of(house, second.text)
    with pytest.raises(Unauthenticated):
        await caller_of(house, first.text)
    last = (await house.events())[-1]
    assert last == {
        "at": "2026-01-15T10:30:00+00:00",
        "kind": "token.revoked",
        "project_id": house.project.id,
        "actor": alice.id,
        "subject": first.live.token.hash.hex(),
        "source": ORIGIN.address,
        "request_id": ORIGIN.request_id,
        "detail": {"user_id": alice.id},
    }


async def test_a_hash_with_old_parameters_is_renewed_by_a_login(house: House) -> None:
    alice = await house.new_user()
    stronger = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    identity = Identity(
        house.database, house.sealer, region="eu-de", passwords=Passwords(stronger), now=house.clock
    )
    await identity.tokens.issue(ByPassword(Reference(id=alice.id), PASSWORD), None)
    async with house.database.read() as connection:
        kept = (await connection.execute(select(tables.user.c.password_hash))).scalar_one()
    assert "m=16,t=2" in kept
    await identity.tokens.issue(ByPassword(Reference(id=alice.id), PASSWORD), None)


async def test_expired_tokens_are_forgotten_however_many(house: House) -> None:
    alice = await house.new_user()
    old = [await house.login(alice) for _ in range(3)]
    house.clock.forward(LIFETIME / 2)
    new = await house.login(alice)
    house.clock.forward(LIFETIME / 2)
    assert await house.identity.prune() == len(old)
    assert await count(house, "token") == 1
    await caller_of(house, new.text)
    assert await house.identity.prune() == 0

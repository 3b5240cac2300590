import hashlib
import re
from dataclasses import replace
from datetime import timedelta

import pytest

from clustercert.errors import Forbidden, InvalidRequest, NotFound, SealError, Unauthenticated
from clustercert.identity import Identity
from clustercert.identity.access_keys import TemporaryKey
from clustercert.model import Caller, User
from clustercert.store.access_keys import AccessKeyRows
from identities import ACTOR, LIFETIME, ORIGIN, House


async def caller_of_key(identity: Identity, key_id: str) -> Caller:
    signing_key = await identity.access_keys.signing_key(key_id)
    assert signing_key is not None
    return await identity.access_keys.caller_of_access_key(signing_key, ORIGIN)


async def caller_by_token(house: House, user: User) -> Caller:
    return await house.identity.tokens.caller_of_token((await house.login(user)).text, ORIGIN)


async def test_a_key_has_the_vendors_form_and_opens_to_its_secret(house: House) -> None:
    alice = await house.new_user("alice", "member")
    issued = await house.new_key(alice)
    assert re.fullmatch(r"[A-Z0-9]{20}", issued.key.id)
    assert re.fullmatch(r"[A-Za-z0-9]{40}", issued.secret)
    signing_key = await house.identity.access_keys.signing_key(issued.key.id)
    assert signing_key is not None
    assert signing_key.secret == issued.secret.encode()
    assert (signing_key.user_id, signing_key.security_token_hash, signing_key.expires_at) == (
        alice.id,
        None,
        None,
    )


async def test_a_key_reaches_all_projects_of_its_user_that_are_in_use(house: House) -> None:
    other = await house.new_domain("OTC2")
    theirs = await house.new_project("eu-nl", other)
    closed = await house.new_project("closed")
    await house.new_project("nobody's")
    alice = await house.new_user("alice", "reader", "member")
    for project in (theirs, closed):
        await house.assign("admin", alice, project)
    await house.assign("operator", alice, None)
    directory = house.identity.directory
    await directory.enable_project(closed, enabled=False, actor=ACTOR, origin=ORIGIN)
    key = (await house.new_key(alice)).key
    assert await caller_of_key(house.identity, key.id) == Caller(
        user=alice,
        roles={house.project.id: ("member", "reader"), theirs.id: ("admin",)},
        method="access_key",
        origin=ORIGIN,
        service_roles=("operator",),
        credential_id=key.id,
    )
    await directory.enable_domain(other, enabled=False, actor=ACTOR, origin=ORIGIN)
    assert set((await caller_of_key(house.identity, key.id)).roles) == {house.project.id}


async def test_a_key_that_was_seen_a_moment_ago_costs_no_statement(house: House) -> None:
    key = (await house.new_key(await house.new_user("alice", "member"))).key
    await house.database.generation.refresh()
    first = await caller_of_key(house.identity, key.id)
    with house.counted_statements() as statements:
        assert await caller_of_key(house.identity, key.id) == first
    assert statements == []


async def test_what_can_be_no_access_key_never_reaches_the_database(house: House) -> None:
    with house.counted_statements() as statements:
        for text in ("", "x" * 41, "AK'--", "\ud800", "Ä" * 20):
            assert await house.identity.access_keys.signing_key(text) is None
            with pytest.raises(NotFound):
                await house.identity.access_keys.find(text)
    assert statements == []
    assert await house.identity.access_keys.signing_key("A" * 20) is None


async def test_a_secret_is_kept_sealed_and_opens_for_its_own_row_alone(house: House) -> None:
    alice = await house.new_user()
    first, second = await house.new_key(alice), await house.new_key(alice)
    assert first.secret.encode() not in house.store.content()
    assert first.secret not in repr(first)
    swapped = replace(first.key, id="B" * 20, sealed_secret=second.key.sealed_secret)
    event = house.identity.access_keys._event("access_key.created", swapped, ACTOR, ORIGIN)
    await AccessKeyRows(house.database).add(swapped, event)
    with pytest.raises(SealError):
        await house.identity.access_keys.signing_key(swapped.id)


async def test_a_disabled_key_is_none_at_all_and_comes_back(house: House) -> None:
    keys = house.identity.access_keys
    alice = await house.new_user()
    key = (await house.new_key(alice)).key
    neighbour = house.neighbour()
    await house.database.generation.refresh()
    await caller_of_key(house.identity, key.id)
    await neighbour.access_keys.enable(key, enabled=False, actor=ACTOR, origin=ORIGIN)
    await house.database.generation.refresh()
    assert await keys.signing_key(key.id) is None
    assert [(k.id, k.enabled) for k in await keys.of_user(alice)] == [(key.id, False)]
    assert not (await keys.find(key.id)).enabled
    await neighbour.access_keys.enable(key, enabled=True, actor=ACTOR, origin=ORIGIN)
    await caller_of_key(house.identity, key.id)
    await neighbour.access_keys.remove(key, actor=ACTOR, origin=ORIGIN)
    await house.database.generation.refresh()
    assert await keys.signing_key(key.id) is None
    assert await keys.of_user(alice) == ()
    for again in (
        keys.enable(key, enabled=True, actor=ACTOR, origin=ORIGIN),
        keys.remove(key, actor=ACTOR, origin=ORIGIN),
    ):
        with pytest.raises(NotFound):
            await again


async def test_a_key_that_goes_between_its_two_questions_is_refused(house: House) -> None:
    keys = house.identity.access_keys
    key = (await house.new_key(await house.new_user())).key
    signing_key = await keys.signing_key(key.id)
    assert signing_key is not None
    await keys.remove(key, actor=ACTOR, origin=ORIGIN)
    with pytest.raises(Unauthenticated):
        await keys.caller_of_access_key(signing_key, ORIGIN)


@pytest.mark.parametrize("what", ["user", "domain"])
async def test_a_disabled_users_key_is_refused_and_works_again_afterwards(house: House, what: str) -> None:
    alice = await house.new_user("alice", "member")
    key = (await house.new_key(alice)).key

    async def enable(*, enabled: bool) -> None:
        directory = house.identity.directory
        if what == "user":
            await directory.enable_user(alice, enabled=enabled, actor=ACTOR, origin=ORIGIN)
        else:
            await directory.enable_domain(house.domain, enabled=enabled, actor=ACTOR, origin=ORIGIN)

    await enable(enabled=False)
    with pytest.raises(Unauthenticated):
        await caller_of_key(house.identity, key.id)
    await enable(enabled=True)
    assert (await caller_of_key(house.identity, key.id)).user == alice


async def test_a_temporary_key_is_bound_to_its_token_and_ends_by_itself(house: House) -> None:
    alice = await house.new_user("alice", "member")
    caller = await caller_by_token(house, alice)
    issued = await house.identity.access_keys.create_temporary(caller)
    assert issued.expires_at == house.clock() + timedelta(minutes=15)
    signing_key = await house.identity.access_keys.signing_key(issued.key.id)
    assert signing_key is not None
    assert signing_key.security_token_hash == hashlib.sha256(issued.security_token.encode()).digest()
    found = await house.identity.access_keys.caller_of_access_key(signing_key, ORIGIN)
    assert (found.user, found.expires_at) == (alice, issued.expires_at)
    assert found.roles_in(house.project.id) == ("member",)
    stored = house.store.content()
    for text in (issued.secret, issued.security_token):
        assert text.encode() not in stored
        assert text not in repr(issued)
    # The security token is no bearer token.
    with pytest.raises(Unauthenticated):
        await house.identity.tokens.caller_of_token(issued.security_token, ORIGIN)
    house.clock.forward(timedelta(minutes=15))
    with pytest.raises(Unauthenticated):
        await house.identity.access_keys.caller_of_access_key(signing_key, ORIGIN)
    assert await house.identity.prune() == 1
    assert await house.identity.access_keys.of_user(alice) == ()


async def test_a_temporary_key_lasts_for_15_minutes_to_24_hours(house: House) -> None:
    alice = await house.new_user()
    key = (await house.new_key(alice)).key
    caller = await caller_of_key(house.identity, key.id)
    keys = house.identity.access_keys
    for seconds in (900, 86_400):
        issued = await keys.create_temporary(caller, timedelta(seconds=seconds))
        assert issued.expires_at == house.clock() + timedelta(seconds=seconds)
    for seconds in (-1, 0, 899, 86_401):
        with pytest.raises(InvalidRequest, match="900 to 86400"):
            await keys.create_temporary(caller, timedelta(seconds=seconds))


async def test_a_temporary_key_ends_no_later_than_the_token_it_was_made_with(house: House) -> None:
    caller = await caller_by_token(house, await house.new_user())
    house.clock.forward(LIFETIME - timedelta(minutes=5))
    issued = await house.identity.access_keys.create_temporary(caller, timedelta(hours=24))
    assert issued.expires_at == caller.expires_at == house.clock() + timedelta(minutes=5)


async def test_a_temporary_key_makes_no_other_one(house: House) -> None:
    issued = await house.identity.access_keys.create_temporary(
        await caller_by_token(house, await house.new_user())
    )
    with pytest.raises(Forbidden, match="temporary access key"):
        await house.identity.access_keys.create_temporary(await caller_of_key(house.identity, issued.key.id))


async def temporary_keys(house: House, alice: User) -> list[TemporaryKey]:
    keys = house.identity.access_keys
    permanent = (await house.new_key(alice)).key
    by_key = await keys.create_temporary(await caller_of_key(house.identity, permanent.id))
    return [by_key, await keys.create_temporary(await caller_by_token(house, alice))]


@pytest.mark.parametrize("what", ["user disabled", "password changed", "key disabled", "key removed"])
async def test_what_takes_a_users_credential_away_ends_their_temporary_keys(house: House, what: str) -> None:
    alice, bob = await house.new_user("alice"), await house.new_user("bob")
    issued = await temporary_keys(house, alice)
    others = await temporary_keys(house, bob)
    permanent = (await house.identity.access_keys.of_user(alice))[0]
    directory, keys = house.identity.directory, house.identity.access_keys
    if what == "user disabled":
        await directory.enable_user(alice, enabled=False, actor=ACTOR, origin=ORIGIN)
        await directory.enable_user(alice, enabled=True, actor=ACTOR, origin=ORIGIN)
    elif what == "password changed":
        await directory.set_password(alice, "another horse", actor=ACTOR, origin=ORIGIN)
    elif what == "key disabled":
        await keys.enable(permanent, enabled=False, actor=ACTOR, origin=ORIGIN)
    else:
        await keys.remove(permanent, actor=ACTOR, origin=ORIGIN)
    for gone in issued:
        assert await keys.signing_key(gone.key.id) is None
    for there in others:
        assert await keys.signing_key(there.key.id) is not None


@pytest.mark.parametrize(
    "what", ["user disabled", "password changed", "token revoked", "key disabled", "key removed"]
)
async def test_a_credential_that_was_just_taken_away_makes_no_temporary_key(house: House, what: str) -> None:
    alice = await house.new_user()
    permanent = (await house.new_key(alice)).key
    issued = await house.login(alice)
    by_token = await house.identity.tokens.caller_of_token(issued.text, ORIGIN)
    caller = await caller_of_key(house.identity, permanent.id) if what.startswith("key") else by_token
    if what == "user disabled":
        await house.identity.directory.enable_user(alice, enabled=False, actor=ACTOR, origin=ORIGIN)
    elif what == "password changed":
        await house.identity.directory.set_password(alice, "another horse", actor=ACTOR, origin=ORIGIN)
    elif what == "token revoked":
        await house.identity.tokens.revoke(by_token, issued.text)
    elif what == "key disabled":
        await house.identity.access_keys.enable(permanent, enabled=False, actor=ACTOR, origin=ORIGIN)
    else:
        await house.identity.access_keys.remove(permanent, actor=ACTOR, origin=ORIGIN)
    with pytest.raises(Unauthenticated):
        await house.identity.access_keys.create_temporary(caller)


async def test_keys_are_audited_without_their_secrets(house: House) -> None:
    alice = await house.new_user()
    keys = house.identity.access_keys
    issued = await keys.create(alice, description="for the pipeline", actor=ACTOR, origin=ORIGIN)
    temporary = await keys.create_temporary(await caller_by_token(house, alice))
    await keys.enable(issued.key, enabled=False, actor=ACTOR, origin=ORIGIN)
    await keys.enable(issued.key, enabled=True, actor=ACTOR, origin=ORIGIN)
    await keys.remove(issued.key, actor=ACTOR, origin=ORIGIN)
    events = (await house.events())[-5:]
    assert [(event["kind"], event["actor"], event["subject"]) for event in events] == [
        ("access_key.created", ACTOR, issued.key.id),
        ("access_key.created", alice.id, temporary.key.id),
        ("access_key.disabled", ACTOR, issued.key.id),
        ("access_key.enabled", ACTOR, issued.key.id),
        ("access_key.removed", ACTOR, issued.key.id),
    ]
    assert events[0]["detail"] == {"user_id": alice.id, "description": "for the pipeline", "expires_at": None}
    assert events[1]["detail"] == {
        "user_id": alice.id,
        "description": "",
        "expires_at": "2026-01-15T10:45:00+00:00",
    }


async def test_a_key_for_a_user_who_is_gone_is_refused(house: House) -> None:
    alice = await house.new_user()
    await house.identity.directory.remove_user(alice, actor=ACTOR, origin=ORIGIN)
    before = await house.events()
    with pytest.raises(NotFound, match="does not exist any more"):
        await house.new_key(alice)
    assert await house.events() == before

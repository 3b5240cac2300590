import hashlib
import re
from dataclasses import replace
from datetime import timedelta

import pytest

from clustercert.authn.access_keys import AccessKeyAuthenticator
from clustercert.authn.credentials import UnverifiedCredential
from clustercert.identity.access_keys import TemporaryKey
from clustercert.identity.service import Identity
from clustercert.model import Actor, Caller, UnverifiedRequest, User
from clustercert.model.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated, UnsealError
from clustercert.pki.request_signature import (
    TIMESTAMP_FORMAT,
    SignatureCredential,
    SignedParts,
    payload_hash,
    sign,
)
from clustercert.store.identity.logins import AccessKeyQueries
from support.accounts import ACTOR, LIFETIME, ORIGIN, Accounts, enable
from support.stores import NOW


async def caller_of_key(identity: Identity, key_id: str) -> Caller:
    signing_key = await identity.access_keys.signing_key(key_id)
    assert signing_key is not None
    return await identity.access_keys.caller_of_access_key(signing_key, ORIGIN)


async def caller_by_token(accounts: Accounts, user: User) -> Caller:
    return await accounts.identity.tokens.caller_of_token((await accounts.login(user)).text, ORIGIN)


async def test_a_key_has_the_vendors_form_and_opens_to_its_secret(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "member")
    issued = await accounts.new_key(alice)
    assert re.fullmatch(r"[A-Z0-9]{20}", issued.key.id)
    assert re.fullmatch(r"[A-Za-z0-9]{40}", issued.secret)
    signing_key = await accounts.identity.access_keys.signing_key(issued.key.id)
    assert signing_key is not None
    assert signing_key.secret == issued.secret.encode()
    assert (signing_key.user_id, signing_key.security_token_hash, signing_key.expires_at) == (
        alice.id,
        None,
        None,
    )


async def test_a_key_reaches_all_projects_of_its_user_that_are_in_use(accounts: Accounts) -> None:
    other = await accounts.new_domain("OTC2")
    theirs = await accounts.new_project("eu-nl", other)
    closed = await accounts.new_project("closed")
    await accounts.new_project("nobody's")
    alice = await accounts.new_user("alice", "reader", "member")
    for project in (theirs, closed):
        await accounts.assign("admin", alice, project)
    await accounts.assign("operator", alice, None)
    directory = accounts.identity.directory
    await enable(directory, closed, enabled=False, actor=Actor(ACTOR, ORIGIN))
    key = (await accounts.new_key(alice)).key
    assert await caller_of_key(accounts.identity, key.id) == Caller(
        user=alice,
        roles={accounts.project.id: ("member", "reader"), theirs.id: ("admin",)},
        method="access_key",
        origin=ORIGIN,
        service_roles=("operator",),
        credential_id=key.id,
    )
    await enable(directory, other, enabled=False, actor=Actor(ACTOR, ORIGIN))
    assert set((await caller_of_key(accounts.identity, key.id)).roles) == {accounts.project.id}


async def test_a_key_that_was_seen_a_moment_ago_costs_no_statement(accounts: Accounts) -> None:
    key = (await accounts.new_key(await accounts.new_user("alice", "member"))).key
    await accounts.database.generation.refresh()
    first = await caller_of_key(accounts.identity, key.id)
    with accounts.counted_statements() as statements:
        assert await caller_of_key(accounts.identity, key.id) == first
    assert statements == []


@pytest.mark.parametrize("key", ["unknown", "disabled", "not cached", "cached"])
async def test_a_wrong_signature_costs_the_same_statements_for_every_key(
    accounts: Accounts, key: str
) -> None:
    """Otherwise the time until the 401 would reveal which access keys exist, and which are in use."""
    keys = accounts.identity.access_keys
    known = (await accounts.new_key(await accounts.new_user("alice", "member"))).key
    if key == "disabled":
        await keys.enable(known, enabled=False, actor=Actor(ACTOR, ORIGIN))
    await accounts.database.generation.refresh()
    if key == "cached":
        await caller_of_key(accounts.identity, known.id)
    credential, request = forged_request("A" * 20 if key == "unknown" else known.id)
    authenticator = AccessKeyAuthenticator(keys, lambda: NOW)
    with accounts.counted_statements() as statements, pytest.raises(Unauthenticated):
        await authenticator.authenticate(credential, request)
    of_key, of_roles, of_groups = [text for text in statements if text != "BEGIN"]
    assert "FROM access_key" in of_key
    assert "FROM role_assignment" in of_roles
    assert 'FROM "group"' in of_groups


def forged_request(access_key_id: str) -> tuple[UnverifiedCredential, UnverifiedRequest]:
    """A request that is signed with a wrong SK."""
    headers = ((b"x-sdk-date", NOW.strftime(TIMESTAMP_FORMAT).encode()),)
    parts = SignedParts("GET", "/", "", headers, payload_hash(b""))
    text = sign(parts, SignatureCredential("flat", access_key_id), b"wrong")
    request = UnverifiedRequest("GET", "/", "", headers, b"", ORIGIN)
    return UnverifiedCredential(text.partition(" ")[0], text), request


async def test_what_can_be_no_access_key_never_reaches_the_database(accounts: Accounts) -> None:
    with accounts.counted_statements() as statements:
        for text in ("", "x" * 41, "AK'--", "\ud800", "Ä" * 20):
            assert await accounts.identity.access_keys.signing_key(text) is None
            with pytest.raises(NotFound):
                await accounts.identity.access_keys.find(text)
    assert statements == []
    assert await accounts.identity.access_keys.signing_key("A" * 20) is None


async def test_keys_come_in_pages_by_id_of_both_kinds_or_of_one(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    await accounts.new_key(await accounts.new_user("bob"))
    queries = accounts.identity.access_keys.queries
    permanent = [(await accounts.new_key(alice)).key for _ in range(3)]
    temporary = [
        replace(permanent[0], id=f"T{number:019}", security_token_hash=bytes([number]) * 32)
        for number in range(4)
    ]
    for key in temporary:
        await queries.add(
            key, accounts.identity.access_keys._event("access_key.created", key, Actor(ACTOR, ORIGIN))
        )

    async def ids(*, temporary: bool | None) -> list[str]:
        found, after = list[str](), ""
        while page := await queries.page_of_user(alice.id, temporary=temporary, after=after, limit=2):
            assert len(page) <= 2
            found += [each.id for each in page]
            after = found[-1]
        return found

    expected = {
        kind: sorted(each.id for each in keys) for kind, keys in ((False, permanent), (True, temporary))
    }
    assert {kind: await ids(temporary=kind) for kind in expected} == expected
    assert await ids(temporary=None) == sorted(expected[False] + expected[True])
    logins = await accounts.identity.logins.logins_of_caller(
        await caller_of_key(accounts.identity, permanent[0].id)
    )
    assert (logins.temporary_keys, {each.id for each in logins.keys}) == (4, {*expected[False]})


async def test_a_secret_is_kept_sealed_and_opens_for_its_own_row_alone(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    first, second = await accounts.new_key(alice), await accounts.new_key(alice)
    assert first.secret.encode() not in accounts.store.content()
    assert first.secret not in repr(first)
    swapped = replace(first.key, id="B" * 20, sealed_secret=second.key.sealed_secret)
    event = accounts.identity.access_keys._event("access_key.created", swapped, Actor(ACTOR, ORIGIN))
    await AccessKeyQueries(accounts.database).add(swapped, event)
    with pytest.raises(UnsealError):
        await accounts.identity.access_keys.signing_key(swapped.id)


async def test_a_disabled_key_is_none_at_all_and_comes_back(accounts: Accounts) -> None:
    keys = accounts.identity.access_keys
    alice = await accounts.new_user()
    key = (await accounts.new_key(alice)).key
    second_process = accounts.second_process()
    await accounts.database.generation.refresh()
    await caller_of_key(accounts.identity, key.id)
    await second_process.access_keys.enable(key, enabled=False, actor=Actor(ACTOR, ORIGIN))
    await accounts.database.generation.refresh()
    assert await keys.signing_key(key.id) is None
    assert [(k.id, k.enabled) for k in await keys.queries.keys_of_user(alice.id)] == [(key.id, False)]
    assert not (await keys.find(key.id)).enabled
    await second_process.access_keys.enable(key, enabled=True, actor=Actor(ACTOR, ORIGIN))
    await caller_of_key(accounts.identity, key.id)
    await second_process.access_keys.remove(key, actor=Actor(ACTOR, ORIGIN))
    await accounts.database.generation.refresh()
    assert await keys.signing_key(key.id) is None
    assert await keys.queries.keys_of_user(alice.id) == ()
    for again in (
        keys.enable(key, enabled=True, actor=Actor(ACTOR, ORIGIN)),
        keys.remove(key, actor=Actor(ACTOR, ORIGIN)),
    ):
        with pytest.raises(NotFound):
            await again


async def test_a_key_that_goes_between_its_two_questions_is_refused(accounts: Accounts) -> None:
    keys = accounts.identity.access_keys
    key = (await accounts.new_key(await accounts.new_user())).key
    signing_key = await keys.signing_key(key.id)
    assert signing_key is not None
    await keys.remove(key, actor=Actor(ACTOR, ORIGIN))
    with pytest.raises(Unauthenticated):
        await keys.caller_of_access_key(signing_key, ORIGIN)


@pytest.mark.parametrize("what", ["user", "domain"])
async def test_a_disabled_users_key_is_refused_and_works_again_afterwards(
    accounts: Accounts, what: str
) -> None:
    alice = await accounts.new_user("alice", "member")
    key = (await accounts.new_key(alice)).key

    async def switch(*, enabled: bool) -> None:
        directory = accounts.identity.directory
        if what == "user":
            await directory.enable_user(alice, enabled=enabled, actor=Actor(ACTOR, ORIGIN))
        else:
            await enable(directory, accounts.domain, enabled=enabled, actor=Actor(ACTOR, ORIGIN))

    await switch(enabled=False)
    with pytest.raises(Unauthenticated):
        await caller_of_key(accounts.identity, key.id)
    await switch(enabled=True)
    assert (await caller_of_key(accounts.identity, key.id)).user == alice


async def test_a_temporary_key_is_bound_to_its_token_and_ends_by_itself(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "member")
    caller = await caller_by_token(accounts, alice)
    issued = await accounts.identity.access_keys.create_temporary(caller)
    assert issued.expires_at == accounts.clock() + timedelta(minutes=15)
    signing_key = await accounts.identity.access_keys.signing_key(issued.key.id)
    assert signing_key is not None
    assert signing_key.security_token_hash == hashlib.sha256(issued.security_token.encode()).digest()
    found = await accounts.identity.access_keys.caller_of_access_key(signing_key, ORIGIN)
    assert (found.user, found.expires_at) == (alice, issued.expires_at)
    assert found.roles_in(accounts.project.id) == ("member",)
    stored = accounts.store.content()
    for text in (issued.secret, issued.security_token):
        assert text.encode() not in stored
        assert text not in repr(issued)
    # The security token is not accepted as a bearer token.
    with pytest.raises(Unauthenticated):
        await accounts.identity.tokens.caller_of_token(issued.security_token, ORIGIN)
    accounts.clock.forward(timedelta(minutes=15))
    with pytest.raises(Unauthenticated):
        await accounts.identity.access_keys.caller_of_access_key(signing_key, ORIGIN)
    assert await accounts.identity.prune() == 1
    assert await accounts.identity.access_keys.queries.keys_of_user(alice.id) == ()


async def test_a_temporary_key_lasts_for_15_minutes_to_24_hours(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    key = (await accounts.new_key(alice)).key
    caller = await caller_of_key(accounts.identity, key.id)
    keys = accounts.identity.access_keys
    for seconds in (900, 86_400):
        issued = await keys.create_temporary(caller, timedelta(seconds=seconds))
        assert issued.expires_at == accounts.clock() + timedelta(seconds=seconds)
    for seconds in (-1, 0, 899, 86_401):
        with pytest.raises(InvalidRequest, match="900 to 86400"):
            await keys.create_temporary(caller, timedelta(seconds=seconds))


async def test_a_temporary_key_ends_no_later_than_the_token_it_was_made_with(accounts: Accounts) -> None:
    caller = await caller_by_token(accounts, await accounts.new_user())
    accounts.clock.forward(LIFETIME - timedelta(minutes=5))
    issued = await accounts.identity.access_keys.create_temporary(caller, timedelta(hours=24))
    assert issued.expires_at == caller.expires_at == accounts.clock() + timedelta(minutes=5)


async def test_a_temporary_key_makes_no_other_one(accounts: Accounts) -> None:
    issued = await accounts.identity.access_keys.create_temporary(
        await caller_by_token(accounts, await accounts.new_user())
    )
    with pytest.raises(Forbidden, match="temporary access key"):
        await accounts.identity.access_keys.create_temporary(
            await caller_of_key(accounts.identity, issued.key.id)
        )


async def temporary_keys(accounts: Accounts, alice: User) -> list[TemporaryKey]:
    keys = accounts.identity.access_keys
    permanent = (await accounts.new_key(alice)).key
    by_key = await keys.create_temporary(await caller_of_key(accounts.identity, permanent.id))
    return [by_key, await keys.create_temporary(await caller_by_token(accounts, alice))]


@pytest.mark.parametrize("what", ["user disabled", "password changed", "key disabled", "key removed"])
async def test_what_takes_a_users_credential_away_ends_their_temporary_keys(
    accounts: Accounts, what: str
) -> None:
    alice, bob = await accounts.new_user("alice"), await accounts.new_user("bob")
    issued = await temporary_keys(accounts, alice)
    others = await temporary_keys(accounts, bob)
    permanent = (await accounts.identity.access_keys.queries.keys_of_user(alice.id))[0]
    directory, keys = accounts.identity.directory, accounts.identity.access_keys
    if what == "user disabled":
        await directory.enable_user(alice, enabled=False, actor=Actor(ACTOR, ORIGIN))
        await directory.enable_user(alice, enabled=True, actor=Actor(ACTOR, ORIGIN))
    elif what == "password changed":
        await directory.set_password(alice, "another horse", actor=Actor(ACTOR, ORIGIN))
    elif what == "key disabled":
        await keys.enable(permanent, enabled=False, actor=Actor(ACTOR, ORIGIN))
    else:
        await keys.remove(permanent, actor=Actor(ACTOR, ORIGIN))
    for gone in issued:
        assert await keys.signing_key(gone.key.id) is None
    for there in others:
        assert await keys.signing_key(there.key.id) is not None


@pytest.mark.parametrize(
    "what", ["user disabled", "password changed", "token revoked", "key disabled", "key removed"]
)
async def test_a_credential_that_was_just_taken_away_makes_no_temporary_key(
    accounts: Accounts, what: str
) -> None:
    alice = await accounts.new_user()
    permanent = (await accounts.new_key(alice)).key
    issued = await accounts.login(alice)
    by_token = await accounts.identity.tokens.caller_of_token(issued.text, ORIGIN)
    caller = await caller_of_key(accounts.identity, permanent.id) if what.startswith("key") else by_token
    if what == "user disabled":
        await accounts.identity.directory.enable_user(alice, enabled=False, actor=Actor(ACTOR, ORIGIN))
    elif what == "password changed":
        await accounts.identity.directory.set_password(alice, "another horse", actor=Actor(ACTOR, ORIGIN))
    elif what == "token revoked":
        await accounts.identity.tokens.revoke(by_token, issued.text)
    elif what == "key disabled":
        await accounts.identity.access_keys.enable(permanent, enabled=False, actor=Actor(ACTOR, ORIGIN))
    else:
        await accounts.identity.access_keys.remove(permanent, actor=Actor(ACTOR, ORIGIN))
    with pytest.raises(Unauthenticated):
        await accounts.identity.access_keys.create_temporary(caller)


async def test_keys_are_audited_without_their_secrets(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    keys = accounts.identity.access_keys
    issued = await keys.create(alice, description="for the pipeline", actor=Actor(ACTOR, ORIGIN))
    temporary = await keys.create_temporary(await caller_by_token(accounts, alice))
    await keys.enable(issued.key, enabled=False, actor=Actor(ACTOR, ORIGIN))
    await keys.enable(issued.key, enabled=True, actor=Actor(ACTOR, ORIGIN))
    await keys.remove(issued.key, actor=Actor(ACTOR, ORIGIN))
    events = (await accounts.events())[-5:]
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


async def test_a_key_for_a_user_who_is_gone_is_refused(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    await accounts.identity.directory.remove_user(alice, actor=Actor(ACTOR, ORIGIN))
    before = await accounts.events()
    with pytest.raises(NotFound, match="no longer exists"):
        await accounts.new_key(alice)
    assert await accounts.events() == before

"""Sessions of the console: whom they stand for, how long, and what is stored of them."""

import hashlib
import json
from datetime import timedelta

import pytest

from clustercert.identity.passwords import Passwords
from clustercert.identity.service import Identity
from clustercert.identity.sessions import MAX_SESSIONS
from clustercert.identity.tokens import ByPassword
from clustercert.model import Actor, Caller, User
from clustercert.model.errors import NotFound, Unauthenticated, UnsealError
from clustercert.model.sessions import IDLE_LIFETIME, LIFETIME, RECENT_LOGIN
from clustercert.store.identity.entities import Reference
from support.accounts import ACTOR, CHEAP, ORIGIN, PASSWORD, Accounts, count, enable
from support.console_sessions import caller_of_session, log_in, log_in_by_claims, use_issuer
from support.oidc import AUDIENCE, URL, claims_of
from support.stores import Store


async def test_a_session_has_the_users_roles_in_all_projects(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "reader", "admin")
    elsewhere = await accounts.new_project("eu-nl")
    await accounts.assign("member", alice, elsewhere)
    await accounts.assign("operator", alice, None)
    cookie = await log_in(accounts.identity, alice)
    session, caller = await accounts.identity.sessions.find(cookie, ORIGIN)
    assert caller == Caller(
        user=alice,
        roles={accounts.project.id: ("admin", "reader"), elsewhere.id: ("member",)},
        method="token",
        origin=ORIGIN,
        service_roles=("operator",),
        expires_at=accounts.clock() + LIFETIME,
        credential_id=hashlib.sha256(cookie.encode()).hexdigest(),
    )
    assert (session.id, session.user_id, session.address) == (caller.credential_id, alice.id, ORIGIN.address)
    assert await accounts.identity.sessions.caller_of_session(cookie, ORIGIN) == caller


async def test_only_the_hash_of_a_cookie_is_stored(accounts: Accounts, store: Store) -> None:
    cookie = await log_in(accounts.identity, await accounts.new_user())
    [row] = store.rows("SELECT * FROM console_session")
    assert hashlib.sha256(cookie.encode()).hexdigest() in row
    assert cookie not in repr(row)
    assert len(cookie) == 43
    assert cookie not in json.dumps(await accounts.events())


async def test_malformed_cookies_never_reach_the_database(accounts: Accounts) -> None:
    sessions = accounts.identity.sessions
    with accounts.counted_statements() as statements:
        for text in ("", "x", "x" * 4096, "\ud800" * 43, "é" * 43):
            with pytest.raises(Unauthenticated):
                await sessions.find(text, ORIGIN)
            await sessions.end(text, ORIGIN)
    assert statements == []
    with pytest.raises(Unauthenticated) as refusal:
        await sessions.find("x" * 43, ORIGIN)
    assert refusal.value.reason == "the session is unknown or has ended"


async def test_a_session_that_was_just_used_costs_no_statement(accounts: Accounts) -> None:
    cookie = await log_in(accounts.identity, await accounts.new_user("alice", "member"))
    await accounts.database.generation.refresh()
    first = await accounts.identity.sessions.find(cookie, ORIGIN)
    accounts.clock.forward(timedelta(seconds=59))
    with accounts.counted_statements() as statements:
        assert await accounts.identity.sessions.find(cookie, ORIGIN) == first
    assert statements == []


async def test_a_session_ends_after_its_idle_time(accounts: Accounts) -> None:
    cookie = await log_in(accounts.identity, await accounts.new_user())
    await accounts.database.generation.refresh()
    accounts.clock.forward(IDLE_LIFETIME - timedelta(microseconds=1))
    await caller_of_session(accounts.identity, cookie)
    # This use counts, so the idle time starts again.
    accounts.clock.forward(IDLE_LIFETIME - timedelta(microseconds=1))
    await caller_of_session(accounts.identity, cookie)
    accounts.clock.forward(IDLE_LIFETIME)
    with pytest.raises(Unauthenticated) as refusal:
        await caller_of_session(accounts.identity, cookie)
    assert refusal.value.reason == "the session is too old, or was unused for too long"


async def test_requests_that_do_not_extend_a_session_let_it_become_idle(accounts: Accounts) -> None:
    cookie = await log_in(accounts.identity, await accounts.new_user())
    for _ in range(2):
        accounts.clock.forward(IDLE_LIFETIME / 2 - timedelta(seconds=1))
        await accounts.identity.sessions.find(cookie, ORIGIN, extend=False)
    accounts.clock.forward(timedelta(seconds=2))
    with pytest.raises(Unauthenticated):
        await accounts.identity.sessions.find(cookie, ORIGIN, extend=False)


async def test_a_session_that_another_process_uses_does_not_become_idle(accounts: Accounts) -> None:
    cookie = await log_in(accounts.identity, await accounts.new_user())
    await accounts.database.generation.refresh()
    await caller_of_session(accounts.identity, cookie)
    elsewhere = accounts.second_process()
    for _ in range(3):
        accounts.clock.forward(IDLE_LIFETIME / 2)
        await caller_of_session(elsewhere, cookie)
    await caller_of_session(accounts.identity, cookie)


async def test_a_login_beyond_the_maximum_ends_the_oldest_session(accounts: Accounts) -> None:
    alice, bob = await accounts.new_user("alice", "member"), await accounts.new_user("bob", "member")
    of_bob = await log_in(accounts.identity, bob)
    cookies = []
    for _ in range(MAX_SESSIONS + 2):
        accounts.clock.forward(timedelta(seconds=1))
        cookies.append(await log_in(accounts.identity, alice))
    caller = await caller_of_session(accounts.identity, cookies[-1])
    kept = [hashlib.sha256(cookie.encode()).hexdigest() for cookie in reversed(cookies[2:])]
    assert [each.id for each in await accounts.identity.sessions.of_caller(caller)] == kept
    for cookie in cookies[:2]:
        with pytest.raises(Unauthenticated):
            await caller_of_session(accounts.identity, cookie)
    await caller_of_session(accounts.identity, of_bob)
    ended = [event for event in await accounts.events() if event["kind"] == "session.ended"]
    assert [event["subject"] for event in ended] == [
        hashlib.sha256(each.encode()).hexdigest() for each in cookies[:2]
    ]


async def test_a_session_ends_after_its_lifetime_even_if_it_is_used(accounts: Accounts) -> None:
    cookie = await log_in(accounts.identity, await accounts.new_user())
    await accounts.database.generation.refresh()
    steps = LIFETIME // (IDLE_LIFETIME / 2)
    for _ in range(steps - 1):
        accounts.clock.forward(IDLE_LIFETIME / 2)
        await caller_of_session(accounts.identity, cookie)
    accounts.clock.forward(IDLE_LIFETIME / 2)
    with pytest.raises(Unauthenticated):
        await caller_of_session(accounts.identity, cookie)


async def test_a_use_is_recorded_at_most_once_a_minute(accounts: Accounts, store: Store) -> None:
    cookie = await log_in(accounts.identity, await accounts.new_user())
    start = accounts.clock()
    for seconds in (59, 1, 30):
        accounts.clock.forward(timedelta(seconds=seconds))
        await caller_of_session(accounts.identity, cookie)
    assert store.rows("SELECT seen_at FROM console_session") == [(store.time(start + timedelta(minutes=1)),)]


async def test_only_expired_sessions_are_pruned(accounts: Accounts, store: Store) -> None:
    identity, alice = accounts.identity, await accounts.new_user()
    await log_in(identity, alice)
    accounts.clock.forward(IDLE_LIFETIME - timedelta(minutes=5))
    used = await log_in(identity, alice)
    accounts.clock.forward(timedelta(minutes=5))
    assert await identity.prune() == 1
    assert store.rows("SELECT id FROM console_session") == [(hashlib.sha256(used.encode()).hexdigest(),)]
    for _ in range(LIFETIME // (IDLE_LIFETIME / 2)):
        await caller_of_session(identity, used)
        accounts.clock.forward(IDLE_LIFETIME / 2 - timedelta(seconds=1))
    accounts.clock.forward(timedelta(minutes=1))
    assert await identity.prune() == 1
    assert store.rows("SELECT id FROM console_session") == []


CHANGES = [
    "user disabled",
    "user removed",
    "password changed",
    "domain disabled",
    "logout",
    "logout everywhere",
]


@pytest.mark.parametrize("what", CHANGES)
async def test_a_change_by_another_process_ends_a_cached_session(accounts: Accounts, what: str) -> None:
    alice = await accounts.new_user("alice", "member")
    cookie = await log_in(accounts.identity, alice)
    await accounts.database.generation.refresh()
    caller = await caller_of_session(accounts.identity, cookie)
    actor, elsewhere = Actor(ACTOR, ORIGIN), accounts.second_process()
    if what == "user disabled":
        await elsewhere.directory.enable_user(alice, enabled=False, actor=actor)
    elif what == "user removed":
        await elsewhere.directory.remove_user(alice, actor=actor)
    elif what == "domain disabled":
        await enable(elsewhere.directory, accounts.domain, enabled=False, actor=actor)
    elif what == "password changed":
        await elsewhere.directory.set_password(alice, "another horse", actor=actor)
    elif what == "logout":
        await elsewhere.sessions.end(cookie, ORIGIN)
    else:
        await elsewhere.logins.end_all(caller, with_keys=False)
    await accounts.database.generation.refresh()
    with pytest.raises(Unauthenticated):
        await caller_of_session(accounts.identity, cookie)


async def test_sessions_of_a_disabled_user_stay_ended(accounts: Accounts) -> None:
    directory, alice = accounts.identity.directory, await accounts.new_user()
    cookie = await log_in(accounts.identity, alice)
    for enabled in (False, True):
        await directory.enable_user(alice, enabled=enabled, actor=Actor(ACTOR, ORIGIN))
    with pytest.raises(Unauthenticated) as refusal:
        await caller_of_session(accounts.identity, cookie)
    assert refusal.value.reason == "the session is unknown or has ended"


async def test_sessions_of_a_disabled_domain_stay_ended_and_others_go_on(accounts: Accounts) -> None:
    directory, actor = accounts.identity.directory, Actor(ACTOR, ORIGIN)
    cookie = await log_in(accounts.identity, await accounts.new_user())
    other = await directory.create_domain("elsewhere", actor=actor)
    eve = await directory.create_user("eve", other, password=PASSWORD, actor=actor)
    of_eve = await log_in(accounts.identity, eve)
    for enabled in (False, True):
        await enable(directory, accounts.domain, enabled=enabled, actor=actor)
    with pytest.raises(Unauthenticated) as refusal:
        await caller_of_session(accounts.identity, cookie)
    assert refusal.value.reason == "the session is unknown or has ended"
    assert (await caller_of_session(accounts.identity, of_eve)).user == eve


async def test_only_the_session_that_changes_the_password_goes_on(accounts: Accounts) -> None:
    identity = accounts.identity
    alice, bob = await accounts.new_user("alice"), await accounts.new_user("bob")
    kept, other, of_bob = [await log_in(identity, user) for user in (alice, alice, bob)]
    await identity.change_password(alice.id, PASSWORD, "another horse", ORIGIN, cookie=kept)
    await caller_of_session(identity, kept)
    with pytest.raises(Unauthenticated):
        await caller_of_session(identity, other)
    await identity.change_password(alice.id, "another horse", PASSWORD, ORIGIN, cookie=of_bob)
    with pytest.raises(Unauthenticated):
        await caller_of_session(identity, kept)
    await caller_of_session(identity, of_bob)


async def test_a_logout_everywhere_counts_and_ends_the_sessions_of_one_user(accounts: Accounts) -> None:
    identity = accounts.identity
    use_issuer(accounts, identity)
    alice, bob = await accounts.new_user("alice"), await accounts.new_user("bob")
    of_alice = [await log_in(identity, alice) for _ in range(2)]
    of_sso = [await log_in_by_claims(accounts, identity, claims(iat=accounts.clock().timestamp()))]
    of_bob = await log_in(identity, bob)
    for cookies, issuer in ((of_alice, "built-in"), (of_sso, URL)):
        caller = await caller_of_session(identity, cookies[0])
        assert (await identity.logins.logins_of_caller(caller)).sessions == len(cookies)
        assert (await identity.logins.end_all(caller, with_keys=False)).sessions == len(cookies)
        event = (await accounts.events())[-1]
        assert (event["kind"], event["actor"]) == ("user.logged_out", caller.user.id)
        detail = {"name": caller.user.name, "issuer": issuer, "sessions": len(cookies)}
        assert event["detail"] == detail
        for cookie in cookies:
            with pytest.raises(Unauthenticated):
                await caller_of_session(identity, cookie)
    await caller_of_session(identity, of_bob)


async def test_a_session_that_ends_here_is_refused_here_at_once(accounts: Accounts) -> None:
    cookie = await log_in(accounts.identity, await accounts.new_user())
    await accounts.database.generation.refresh()
    await caller_of_session(accounts.identity, cookie)
    await accounts.identity.sessions.end(cookie, ORIGIN)
    with pytest.raises(Unauthenticated):
        await caller_of_session(accounts.identity, cookie)
    # To end it again changes nothing.
    await accounts.identity.sessions.end(cookie, ORIGIN)


async def test_roles_that_come_and_go_hold_for_a_cached_session(accounts: Accounts) -> None:
    alice = await accounts.new_user("alice", "member")
    cookie = await log_in(accounts.identity, alice)
    roles = accounts.second_process().roles

    async def present() -> tuple[str, ...]:
        await accounts.database.generation.refresh()
        return (await caller_of_session(accounts.identity, cookie)).roles_in(accounts.project.id)

    assert await present() == ("member",)
    await roles.assign("admin", alice, accounts.project, actor=Actor(ACTOR, ORIGIN))
    assert await present() == ("admin", "member")
    await roles.unassign("member", alice, accounts.project, actor=Actor(ACTOR, ORIGIN))
    assert await present() == ("admin",)


async def test_a_login_ends_the_earlier_session_of_the_browser(accounts: Accounts) -> None:
    alice, bob = await accounts.new_user("alice"), await accounts.new_user("bob")
    earlier = await log_in(accounts.identity, alice)
    cookie = await log_in(accounts.identity, bob, before=earlier)
    with pytest.raises(Unauthenticated):
        await caller_of_session(accounts.identity, earlier)
    assert (await caller_of_session(accounts.identity, cookie)).user == bob
    # An invented cookie is ignored, and never becomes the cookie of the session.
    for before in ("x" * 43, "", "é"):
        assert await log_in(accounts.identity, bob, before=before) != before


async def test_a_wrong_password_starts_no_session(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    with pytest.raises(Unauthenticated):
        await accounts.identity.sessions.log_in(
            ByPassword(Reference(id=alice.id), "correct horsf"), ORIGIN, before=None
        )
    accounts.identity.sessions.has_built_in = False
    with pytest.raises(Unauthenticated):
        await log_in(accounts.identity, alice)
    assert await count(accounts, "console_session") == 0


async def test_sessions_of_built_in_users_end_with_the_built_in_identity_service(accounts: Accounts) -> None:
    cookie = await log_in(accounts.identity, await accounts.new_user())
    restarted = accounts.second_process()
    restarted.sessions.has_built_in = False
    with pytest.raises(Unauthenticated):
        await caller_of_session(restarted, cookie)


class Interrupted(Passwords):
    """Disables a user, or changes the password, between the check of the password and the start of the session."""

    def __init__(self, accounts: Accounts, user: User, what: str) -> None:
        super().__init__(CHEAP)
        self._directory = accounts.identity.directory
        self._user = user
        self._what = what

    async def rehashed(self, password: str, stored: str) -> str | None:
        if self._what == "disabled":
            await self._directory.enable_user(self._user, enabled=False, actor=Actor(ACTOR, ORIGIN))
        else:
            await self._directory.set_password(self._user, "another horse", actor=Actor(ACTOR, ORIGIN))
        return await super().rehashed(password, stored)


@pytest.mark.parametrize("what", ["disabled", "password changed"])
async def test_a_login_that_a_change_overtakes_starts_no_session(accounts: Accounts, what: str) -> None:
    alice = await accounts.new_user()
    passwords = Interrupted(accounts, alice, what)
    identity = Identity(
        accounts.database, accounts.sealer, region="eu-de", passwords=passwords, now=accounts.clock
    )
    with pytest.raises(Unauthenticated) as refusal:
        await log_in(identity, alice)
    assert refusal.value.reason == "the password was changed, or the user disabled, during the login"
    assert await count(accounts, "console_session") == 0
    identity.close()


async def test_users_list_and_end_only_their_own_open_sessions(accounts: Accounts) -> None:
    sessions = accounts.identity.sessions
    alice, bob = await accounts.new_user("alice"), await accounts.new_user("bob")
    await log_in(accounts.identity, alice)
    accounts.clock.forward(IDLE_LIFETIME)
    older = await log_in(accounts.identity, alice)
    accounts.clock.forward(timedelta(minutes=2))
    newer = await log_in(accounts.identity, alice)
    of_bob, caller_bob = await sessions.find(await log_in(accounts.identity, bob), ORIGIN)
    session, caller = await sessions.find(newer, ORIGIN)
    assert [each.id for each in await sessions.of_caller(caller)] == [
        hashlib.sha256(cookie.encode()).hexdigest() for cookie in (newer, older)
    ]
    for foreign in (of_bob.id, of_bob.id[:12], session.id[:7], "", "z" * 64):
        with pytest.raises(NotFound):
            await sessions.end_one(caller, foreign)
    await sessions.end_one(caller, session.id[:8])
    with pytest.raises(Unauthenticated):
        await sessions.find(newer, ORIGIN)
    await sessions.find(older, ORIGIN)
    assert await sessions.of_caller(caller_bob) == (of_bob,)


async def test_start_and_end_of_a_session_are_audit_events(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    before = len(await accounts.events())
    cookie = await log_in(accounts.identity, alice)
    await accounts.identity.sessions.end(cookie, ORIGIN)
    started, ended = (await accounts.events())[before:]
    assert [started["kind"], ended["kind"]] == ["session.started", "session.ended"]
    for event in (started, ended):
        assert (event["actor"], event["source"], event["request_id"]) == (
            alice.id,
            ORIGIN.address,
            ORIGIN.request_id,
        )
        assert event["subject"] == hashlib.sha256(cookie.encode()).hexdigest()
        assert event["detail"] == {"user_id": alice.id, "issuer": "built-in"}


async def test_a_login_is_recent_for_five_minutes(accounts: Accounts) -> None:
    cookie = await log_in(accounts.identity, await accounts.new_user())
    session, _ = await accounts.identity.sessions.find(cookie, ORIGIN)
    now = accounts.clock()
    assert session.has_recent_login(now + RECENT_LOGIN)
    assert not session.has_recent_login(now + RECENT_LOGIN + timedelta(microseconds=1))


def claims(**changed: object) -> dict[str, object]:
    return claims_of(URL, sid="session-at-the-issuer", **changed)


async def test_a_session_of_an_issuers_user_has_the_roles_of_the_present_settings(accounts: Accounts) -> None:
    identity = accounts.identity
    use_issuer(accounts, identity)
    cookie = await log_in_by_claims(accounts, identity, claims())
    session, caller = await identity.sessions.find(cookie, ORIGIN)
    assert (caller.user.name, caller.issuer, caller.method) == ("sso/alice", URL, "oidc")
    assert (session.sid, session.sub) == ("session-at-the-issuer", "f3b1")
    assert [group.name for group in caller.groups] == ["sso/team-blue"]
    assert caller.roles_in(accounts.project.id) == ("member",)
    assert (caller.credential_id, caller.expires_at) == (session.id, accounts.clock() + LIFETIME)
    use_issuer(accounts, identity, roles=[{"role": "reader", "groups": ["team-*"]}])
    assert (await caller_of_session(identity, cookie)).roles_in(accounts.project.id) == ("reader",)


@pytest.mark.parametrize(
    "what",
    [
        "issuer removed",
        "client removed",
        "another client",
        "audience not trusted",
        "claim refused",
        "another user",
    ],
)
async def test_changed_settings_of_an_issuer_end_sessions(accounts: Accounts, what: str) -> None:
    identity = accounts.identity
    use_issuer(accounts, identity, trusted_audiences=["trusted"])
    cookie = await log_in_by_claims(accounts, identity, claims(aud=[AUDIENCE, "trusted"]))
    assert (await caller_of_session(identity, cookie)).user.name == "sso/alice"
    if what == "issuer removed":
        identity.sessions.use_issuers(None)
    elif what == "client removed":
        use_issuer(accounts, identity, console=None)
    elif what == "audience not trusted":
        use_issuer(accounts, identity)
    elif what == "another client":
        use_issuer(
            accounts, identity, console={"client_id": "another"}, trusted_audiences=["trusted", AUDIENCE]
        )
    elif what == "claim refused":
        use_issuer(accounts, identity, claims={"groups": ["team-red"]}, trusted_audiences=["trusted"])
    else:
        use_issuer(accounts, identity, subject=["preferred_username"], trusted_audiences=["trusted"])
    with pytest.raises(Unauthenticated):
        await caller_of_session(identity, cookie)


async def test_a_session_outlives_the_id_token_but_not_a_block(accounts: Accounts) -> None:
    identity = accounts.identity
    use_issuer(accounts, identity)
    cookie = await log_in_by_claims(accounts, identity, claims(exp=1, iat=1))
    await accounts.database.generation.refresh()
    caller = await caller_of_session(identity, cookie)
    federation = accounts.second_process().federation
    await federation.block(caller.user.id, actor=Actor(ACTOR, ORIGIN))
    await accounts.database.generation.refresh()
    with pytest.raises(Unauthenticated):
        await caller_of_session(identity, cookie)
    with pytest.raises(Unauthenticated) as refusal:
        await log_in_by_claims(accounts, identity, claims())
    assert refusal.value.reason == "the user is blocked"
    await federation.unblock(caller.user.id, actor=Actor(ACTOR, ORIGIN))
    await accounts.database.generation.refresh()
    with pytest.raises(Unauthenticated):
        await caller_of_session(identity, cookie)
    await caller_of_session(identity, await log_in_by_claims(accounts, identity, claims()))


async def test_claims_are_stored_encrypted_for_their_row_only(accounts: Accounts, store: Store) -> None:
    identity = accounts.identity
    use_issuer(accounts, identity)
    first = await log_in_by_claims(accounts, identity, claims())
    second = await log_in_by_claims(accounts, identity, claims(sub="other"))
    rows = store.rows("SELECT sealed_credential FROM console_session")
    assert all(b"team-blue" not in bytes(sealed) for (sealed,) in rows)  # type: ignore[call-overload] # bytes
    ids = [hashlib.sha256(cookie.encode()).hexdigest() for cookie in (first, second)]
    store.execute(
        "UPDATE console_session SET sealed_credential = (SELECT sealed_credential FROM console_session WHERE id = ?)"
        " WHERE id = ?",
        *ids,
    )
    with pytest.raises(UnsealError):
        await caller_of_session(identity, second)


@pytest.mark.parametrize("sid", ["a\0b", "\ud800", 5, None, ["a"]])
async def test_an_id_that_no_database_stores_is_left_out(accounts: Accounts, sid: object) -> None:
    identity = accounts.identity
    use_issuer(accounts, identity)
    cookie = await log_in_by_claims(accounts, identity, claims() | {"sid": sid})
    session, _ = await identity.sessions.find(cookie, ORIGIN)
    assert session.sid is None


async def test_an_issuer_ends_sessions_by_its_session_or_its_user(accounts: Accounts) -> None:
    identity = accounts.identity
    use_issuer(accounts, identity)
    first = await log_in_by_claims(accounts, identity, claims())
    second = await log_in_by_claims(accounts, identity, claims() | {"sid": "another"})
    other = await log_in_by_claims(accounts, identity, claims(sub="other") | {"sid": "third"})
    ended = [
        await identity.sessions.end_by_issuer(URL, sid=sid, sub=sub, at=accounts.clock(), origin=ORIGIN)
        for sid, sub in [("session-at-the-issuer", "other"), ("session-at-the-issuer", None), (None, "f3b1")]
    ]
    assert ended == [0, 1, 1]
    at = accounts.clock()
    elsewhere = await identity.sessions.end_by_issuer(
        "https://x.example", sid="third", sub=None, at=at, origin=ORIGIN
    )
    assert elsewhere == 0
    for cookie in (first, second):
        with pytest.raises(Unauthenticated):
            await caller_of_session(identity, cookie)
    await caller_of_session(identity, other)
    with pytest.raises(ValueError, match="neither"):
        await identity.sessions.end_by_issuer(URL, sid=None, sub=None, at=at, origin=ORIGIN)

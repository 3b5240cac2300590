"""Concurrent changes to the same rows: one transaction is open when the other starts, and commits while it waits.

On SQLite, the second one waits for the writer's lock. On PostgreSQL, it waits for a row, and then uses the new version
of the row.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import insert, select, update

from clustercert.model import Caller, Token, User
from clustercert.model.errors import Unauthenticated, Unavailable
from clustercert.model.identity import BUILT_IN
from clustercert.model.sessions import Session
from clustercert.store import tables
from clustercert.store.engine.database import Database
from clustercert.store.identity.directory import DirectoryQueries
from clustercert.store.identity.logins import AccessKeyQueries, PasswordLogin, TokenQueries, UserLoginQueries
from clustercert.store.identity.roles import RoleQueries
from support.accounts import ORIGIN, Accounts
from support.lock_waits import LockWaits
from support.paused_database import PausedDatabase
from support.stores import NOW, Store, event, patient


@asynccontextmanager
async def begun(
    store: Store, work: Callable[[Database], Coroutine[None, None, object]]
) -> AsyncIterator[None]:
    """Keep a transaction of another process open while the block runs, and commit it afterwards."""
    other = PausedDatabase(store.url)
    task = asyncio.create_task(work(other))
    await other.inside.wait()
    try:
        yield
    finally:
        other.go_on.set()
        await task
        await other.close()


def token(user: User, number: int = 1, **changed: object) -> Token:
    made = Token(bytes([number]) * 32, user.id, None, None, ("password",), NOW, NOW + timedelta(hours=1))
    return replace(made, **changed)  # type: ignore[arg-type] # as the tests say


def session(user: User) -> Session:
    return Session("5" * 64, user.id, BUILT_IN, "token", ORIGIN.address, NOW, NOW, NOW)


def password_login(user: User, checked_hash: str) -> PasswordLogin:
    return PasswordLogin(user.id, NOW, "192.0.2.1", checked_hash)


async def disable_domain(accounts: Accounts, database: Database) -> None:
    domain = accounts.domain
    disabled = replace(domain, enabled=False)
    await DirectoryQueries(database).replace(domain, disabled, event())
    await DirectoryQueries(database).end_logins(disabled)


async def password_hash(accounts: Accounts, user: User) -> str:
    async with accounts.database.read() as connection:
        query = select(tables.user.c.password_hash).where(tables.user.c.id == user.id)
        return str((await connection.execute(query)).scalar_one())


@pytest.mark.parametrize("kind", ["token", "session"])
@pytest.mark.parametrize("what", ["password", "disabled", "removed", "domain disabled"])
async def test_no_login_slips_in_behind_what_ends_logins(
    accounts: Accounts, store: Store, what: str, kind: str
) -> None:
    alice = await accounts.new_user()
    checked = await password_hash(accounts, alice)
    changes: dict[str, Callable[[Database], Coroutine[None, None, None]]] = {
        "password": lambda other: DirectoryQueries(other).set_password(alice.id, "other", event()),
        "disabled": lambda other: DirectoryQueries(other).enable_user(alice.id, False, event()),
        "removed": lambda other: DirectoryQueries(other).remove_user(alice.id, event()),
        "domain disabled": lambda other: disable_domain(accounts, other),
    }
    waits = LockWaits(accounts.database, store)
    confirmed = password_login(alice, checked)
    attempts: dict[str, Callable[[], Coroutine[None, None, object]]] = {
        "token": lambda: TokenQueries(accounts.database).add_by_password(token(alice), confirmed),
        "session": lambda: UserLoginQueries(accounts.database).add_session(session(alice), confirmed),
    }
    async with begun(store, changes[what]):
        login = asyncio.create_task(attempts[kind]())
        await waits.begun(login)
    assert not await login
    assert store.rows(f"SELECT * FROM {'token' if kind == 'token' else 'console_session'}") == []


@pytest.mark.parametrize("what", ["password", "domain disabled"])
async def test_what_ends_logins_waits_for_the_one_that_was_first(
    accounts: Accounts, store: Store, what: str
) -> None:
    alice = await accounts.new_user()
    checked = await password_hash(accounts, alice)

    async def log_in(other: Database) -> None:
        assert await TokenQueries(other).add_by_password(token(alice), password_login(alice, checked))

    changes: dict[str, Callable[[Database], Coroutine[None, None, None]]] = {
        "password": lambda database: DirectoryQueries(database).set_password(alice.id, "other", event()),
        "domain disabled": lambda database: disable_domain(accounts, database),
    }
    waits = LockWaits(accounts.database, store)
    async with begun(store, log_in):
        change = asyncio.create_task(changes[what](accounts.database))
        await waits.begun(change)
    await change
    assert store.rows("SELECT * FROM token") == []


async def test_a_token_that_is_being_revoked_gives_no_other(accounts: Accounts, store: Store) -> None:
    alice = await accounts.new_user()
    parent = (await accounts.login(alice)).live.token
    waits = LockWaits(accounts.database, store)
    async with begun(store, lambda other: TokenQueries(other).remove(parent.hash, event())):
        login = asyncio.create_task(TokenQueries(accounts.database).add_by_token(token(alice), parent.hash))
        await waits.begun(login)
    assert await login is None
    assert store.rows("SELECT * FROM token") == []


@pytest.mark.parametrize("what", ["project", "its domain"])
@pytest.mark.parametrize("by", ["password", "token"])
async def test_a_project_that_is_being_disabled_is_no_tokens_scope(
    accounts: Accounts, store: Store, what: str, by: str
) -> None:
    """Otherwise the token would work once the project is enabled again."""
    elsewhere = await accounts.new_domain("elsewhere")
    project = await accounts.new_project("eu-nl", elsewhere)
    place = project if what == "project" else elsewhere
    alice = await accounts.new_user()
    checked = await password_hash(accounts, alice)
    parent = (await accounts.login(alice)).live.token
    waits = LockWaits(accounts.database, store)
    scoped = token(alice, project_id=project.id)

    async def log_in(database: Database) -> object:
        queries = TokenQueries(database)
        if by == "token":
            return await queries.add_by_token(scoped, parent.hash)
        return await queries.add_by_password(scoped, password_login(alice, checked))

    disabled = replace(place, enabled=False)
    async with begun(store, lambda other: DirectoryQueries(other).replace(place, disabled, event())):
        login = asyncio.create_task(log_in(accounts.database))
        await waits.begun(login)
    assert await login is None
    await DirectoryQueries(accounts.database).replace(disabled, place, event())
    async with begun(store, log_in):
        disabling = asyncio.create_task(DirectoryQueries(accounts.database).replace(place, disabled, event()))
        await waits.begun(disabling)
    await disabling
    await DirectoryQueries(accounts.database).end_logins(disabled)
    assert store.rows("SELECT project_id FROM token") == [(None,)]


async def test_a_project_that_is_being_removed_is_no_tokens_scope(accounts: Accounts, store: Store) -> None:
    alice = await accounts.new_user("alice", "reader")
    checked = await password_hash(accounts, alice)
    waits = LockWaits(accounts.database, store)
    async with begun(
        store, lambda other: DirectoryQueries(other).remove_project(accounts.project.id, event())
    ):
        scoped = token(alice, project_id=accounts.project.id)
        login = asyncio.create_task(
            TokenQueries(accounts.database).add_by_password(scoped, password_login(alice, checked))
        )
        await waits.begun(login)
    assert await login is None
    assert store.rows("SELECT * FROM token") == []


@pytest.mark.parametrize("what", ["disabled", "removed", "domain disabled"])
async def test_no_temporary_key_slips_in_behind_what_ends_its_parent(
    accounts: Accounts, store: Store, what: str
) -> None:
    alice = await accounts.new_user()
    parent = (await accounts.new_key(alice)).key
    caller = Caller(user=alice, roles={}, method="access_key", origin=ORIGIN, credential_id=parent.id)
    changes: dict[str, Callable[[Database], Coroutine[None, None, None]]] = {
        "disabled": lambda other: AccessKeyQueries(other).enable(parent, False, event()),
        "removed": lambda other: AccessKeyQueries(other).remove(parent, event()),
        "domain disabled": lambda other: disable_domain(accounts, other),
    }
    temporary = replace(parent, id="TEMPORARY", security_token_hash=b"h" * 32, expires_at=NOW)
    waits = LockWaits(accounts.database, store)
    async with begun(store, changes[what]):
        asking = asyncio.create_task(
            AccessKeyQueries(accounts.database).add_temporary(temporary, caller, event())
        )
        await waits.begun(asking)
    with pytest.raises(Unauthenticated):
        await asking
    assert store.rows("SELECT id FROM access_key WHERE id = 'TEMPORARY'") == []


async def test_what_ends_a_key_takes_a_temporary_one_that_was_first_along(
    accounts: Accounts, store: Store
) -> None:
    alice = await accounts.new_user()
    parent = (await accounts.new_key(alice)).key
    caller = Caller(user=alice, roles={}, method="access_key", origin=ORIGIN, credential_id=parent.id)
    temporary = replace(parent, id="TEMPORARY", security_token_hash=b"h" * 32, expires_at=NOW)
    waits = LockWaits(accounts.database, store)
    async with begun(store, lambda other: AccessKeyQueries(other).add_temporary(temporary, caller, event())):
        removing = asyncio.create_task(AccessKeyQueries(accounts.database).remove(parent, event()))
        await waits.begun(removing)
    await removing
    assert store.rows("SELECT id FROM access_key") == []


async def test_a_role_is_made_once_by_those_who_need_it_at_once(accounts: Accounts, store: Store) -> None:
    waits = LockWaits(accounts.database, store)
    async with begun(store, lambda other: RoleQueries(other).ensure(["inspector"])):
        ensuring = asyncio.create_task(RoleQueries(accounts.database).ensure(["inspector"]))
        await waits.begun(ensuring)
    await ensuring
    assert len(store.rows("SELECT id FROM role WHERE name = 'inspector'")) == 1


async def test_every_change_counts(database: Database, store: Store) -> None:
    other = patient(store.url)

    async def change(by: Database) -> None:
        async with by.transaction(event(), invalidate=True):
            pass

    await asyncio.gather(*(change(by) for by in (database, other) for _ in range(20)))
    assert store.rows("SELECT value FROM generation") == [(40,)]
    assert store.rows("SELECT count(*) FROM audit_event") == [(40,)]
    await other.close()


async def test_two_that_wait_for_each_other_are_told_to_try_again(on_postgresql: Store) -> None:
    """A deadlock. SQLite has only one writer at a time, so it can't happen there."""
    database = patient(on_postgresql.url)
    async with database.transaction() as connection:
        for number in (1, 2):
            row = {"id": f"{number:032x}", "name": f"domain {number}", "enabled": True}
            await connection.execute(insert(tables.domain).values(row))
    both = asyncio.Barrier(2)

    async def rename(first: int, second: int) -> None:
        async with database.transaction(event()) as connection:
            for number in (first, second):
                query = update(tables.domain).where(tables.domain.c.id == f"{number:032x}")
                await connection.execute(query.values(name=f"{first} was first at {number}"))
                if number == first:
                    await both.wait()

    outcomes = await asyncio.gather(rename(1, 2), rename(2, 1), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "Unavailable"]
    assert any(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert on_postgresql.rows("SELECT count(*) FROM audit_event") == [(1,)]
    await database.close()

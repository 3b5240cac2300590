"""Two processes at the same rows at the same moment: one has begun when the other comes, and ends while it waits.

On SQLite the second one waits for its turn; on PostgreSQL for a row, and what it decides by is then the row's new
version.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import insert, select, update

from clustercert.errors import Unauthenticated, Unavailable
from clustercert.model import AuditEvent, Caller, Token, User
from clustercert.store import tables
from clustercert.store.access_keys import AccessKeyRows
from clustercert.store.database import Database
from clustercert.store.directory import DirectoryRows
from clustercert.store.roles import RoleRows
from clustercert.store.tokens import TokenRows
from clustercert.store.transaction import Transaction
from identities import ORIGIN, House
from lock_waits import LockWaits
from stores import NOW, Store, event


class Paused(Database):
    """One whose next transaction stays open until it is told to go on."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.inside, self.go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def write(self, *events: AuditEvent) -> AsyncIterator[Transaction]:
        async with super().write(*events) as connection:
            yield connection
            self.inside.set()
            await self.go_on.wait()


@asynccontextmanager
async def begun(store: Store, work: Callable[[Database], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Another process is in the middle of its transaction while the block runs, and commits at the block's end."""
    other = Paused(store.url)
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


async def password_hash(house: House, user: User) -> str:
    async with house.database.read() as connection:
        query = select(tables.user.c.password_hash).where(tables.user.c.id == user.id)
        return str((await connection.execute(query)).scalar_one())


@pytest.mark.parametrize("what", ["password", "disabled", "removed"])
async def test_no_login_slips_in_behind_what_ends_logins(house: House, store: Store, what: str) -> None:
    alice = await house.new_user()
    checked = await password_hash(house, alice)
    changes: dict[str, Callable[[Database], Coroutine[None, None, None]]] = {
        "password": lambda other: DirectoryRows(other).set_password(alice.id, "other", event()),
        "disabled": lambda other: DirectoryRows(other).enable_user(alice.id, False, event()),
        "removed": lambda other: DirectoryRows(other).remove_user(alice.id, event()),
    }
    waits = LockWaits(house.database, store)
    async with begun(store, changes[what]):
        login = asyncio.create_task(
            TokenRows(house.database).add_by_password(token(alice), checked, fresh_hash=None)
        )
        await waits.begun(login)
    assert await login is None
    assert store.rows("SELECT * FROM token") == []


async def test_what_ends_logins_waits_for_the_one_that_was_first(house: House, store: Store) -> None:
    alice = await house.new_user()
    checked = await password_hash(house, alice)

    async def log_in(other: Database) -> None:
        assert await TokenRows(other).add_by_password(token(alice), checked, fresh_hash=None)

    waits = LockWaits(house.database, store)
    async with begun(store, log_in):
        change = asyncio.create_task(DirectoryRows(house.database).set_password(alice.id, "other", event()))
        await waits.begun(change)
    await change
    assert store.rows("SELECT * FROM token") == []


async def test_a_token_that_is_being_revoked_gives_no_other(house: House, store: Store) -> None:
    alice = await house.new_user()
    parent = (await house.login(alice)).live.token
    waits = LockWaits(house.database, store)
    async with begun(store, lambda other: TokenRows(other).remove(parent.hash, event())):
        login = asyncio.create_task(TokenRows(house.database).add_by_token(token(alice), parent.hash))
        await waits.begun(login)
    assert await login is None
    assert store.rows("SELECT * FROM token") == []


async def test_a_project_that_is_being_removed_is_no_tokens_scope(house: House, store: Store) -> None:
    alice = await house.new_user("alice", "reader")
    checked = await password_hash(house, alice)
    waits = LockWaits(house.database, store)
    async with begun(store, lambda other: DirectoryRows(other).remove_project(house.project.id, event())):
        scoped = token(alice, project_id=house.project.id)
        login = asyncio.create_task(
            TokenRows(house.database).add_by_password(scoped, checked, fresh_hash=None)
        )
        await waits.begun(login)
    assert await login is None
    assert store.rows("SELECT * FROM token") == []


@pytest.mark.parametrize("what", ["disabled", "removed"])
async def test_no_temporary_key_slips_in_behind_what_ends_its_parent(
    house: House, store: Store, what: str
) -> None:
    alice = await house.new_user()
    parent = (await house.new_key(alice)).key
    caller = Caller(user=alice, roles={}, method="access_key", origin=ORIGIN, credential_id=parent.id)
    changes: dict[str, Callable[[Database], Coroutine[None, None, None]]] = {
        "disabled": lambda other: AccessKeyRows(other).enable(parent, False, event()),
        "removed": lambda other: AccessKeyRows(other).remove(parent, event()),
    }
    temporary = replace(parent, id="TEMPORARY", security_token_hash=b"h" * 32, expires_at=NOW)
    waits = LockWaits(house.database, store)
    async with begun(store, changes[what]):
        asking = asyncio.create_task(AccessKeyRows(house.database).add_temporary(temporary, caller, event()))
        await waits.begun(asking)
    with pytest.raises(Unauthenticated):
        await asking
    assert store.rows("SELECT id FROM access_key WHERE id = 'TEMPORARY'") == []


async def test_what_ends_a_key_takes_a_temporary_one_that_was_first_along(house: House, store: Store) -> None:
    alice = await house.new_user()
    parent = (await house.new_key(alice)).key
    caller = Caller(user=alice, roles={}, method="access_key", origin=ORIGIN, credential_id=parent.id)
    temporary = replace(parent, id="TEMPORARY", security_token_hash=b"h" * 32, expires_at=NOW)
    waits = LockWaits(house.database, store)
    async with begun(store, lambda other: AccessKeyRows(other).add_temporary(temporary, caller, event())):
        removing = asyncio.create_task(AccessKeyRows(house.database).remove(parent, event()))
        await waits.begun(removing)
    await removing
    assert store.rows("SELECT id FROM access_key") == []


async def test_a_role_is_made_once_by_those_who_need_it_at_once(house: House, store: Store) -> None:
    alice = await house.new_user()

    async def assign(database: Database) -> None:
        await RoleRows(database).assign(alice.id, house.project.id, "auditor", event())

    waits = LockWaits(house.database, store)
    async with begun(store, lambda other: RoleRows(other).ensure(["auditor"])):
        assigning = asyncio.create_task(assign(house.database))
        await waits.begun(assigning)
    await assigning
    [(role_id,)] = store.rows("SELECT id FROM role WHERE name = 'auditor'")
    assert store.rows("SELECT role_id FROM role_assignment") == [(role_id,)]


async def test_every_change_counts(database: Database, store: Store) -> None:
    other = Database(store.url)

    async def change(by: Database) -> None:
        async with by.change(event()):
            pass

    await asyncio.gather(*(change(by) for by in (database, other) for _ in range(20)))
    assert store.rows("SELECT value FROM generation") == [(40,)]
    assert store.rows("SELECT count(*) FROM audit_event") == [(40,)]
    await other.close()


async def test_two_that_wait_for_each_other_are_told_to_try_again(on_postgresql: Store) -> None:
    """SQLite has one writer at a time, so there it can't happen."""
    database = Database(on_postgresql.url)
    async with database.write() as connection:
        for number in (1, 2):
            row = {"id": f"{number:032x}", "name": f"domain {number}", "enabled": True}
            await connection.execute(insert(tables.domain).values(row))
    both = asyncio.Barrier(2)

    async def rename(first: int, second: int) -> None:
        async with database.write(event()) as connection:
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

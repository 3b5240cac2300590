"""Disabling a domain or project ends the logins in it for good, even if the process is killed meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from clustercert.identity.service import Identity
from clustercert.model import Actor, Domain, Project
from clustercert.model.errors import ConcurrentChange, Unauthenticated
from clustercert.store.engine.transaction import rolling_back
from clustercert.store.identity.directory import DirectoryQueries, LoginCounts
from support import programs
from support.accounts import ACTOR, ORIGIN, PASSWORD, Accounts, enable, new_identity
from support.console_sessions import caller_of_session, log_in
from support.stores import Store, event, patient

KINDS = ["domain", "project"]
BY = Actor(ACTOR, ORIGIN)


@dataclass(frozen=True)
class Logins:
    """Logins in the default domain and project. `kept` works again after either was enabled, `others` always works.

    Attributes:
        of_domain: the logins that the domain ends, but not the project.
        of_project: the logins that both end.
    """

    of_domain: tuple[Callable[[Identity], Awaitable[object]], ...]
    of_project: tuple[Callable[[Identity], Awaitable[object]], ...]
    kept: Callable[[Identity], Awaitable[object]]
    other: Callable[[Identity], Awaitable[object]]

    def ended_by(self, kind: str) -> tuple[Callable[[Identity], Awaitable[object]], ...]:
        return (*self.of_project, *(self.of_domain if kind == "domain" else ()))


def by_token(text: str) -> Callable[[Identity], Awaitable[object]]:
    return lambda identity: identity.tokens.caller_of_token(text, ORIGIN)


def by_key(key_id: str) -> Callable[[Identity], Awaitable[object]]:
    async def log_in(identity: Identity) -> object:
        found = await identity.access_keys.signing_key(key_id)
        if found is None:
            raise Unauthenticated("no such key")
        return await identity.access_keys.caller_of_access_key(found, ORIGIN)

    return log_in


@pytest.fixture
async def logins(accounts: Accounts) -> Logins:
    identity = accounts.identity
    alice = await accounts.new_user("alice", "member")
    elsewhere = await accounts.new_domain("elsewhere")
    eve = await identity.directory.create_user("eve", elsewhere, password=PASSWORD, actor=BY)
    await accounts.assign("member", eve, accounts.project)
    unscoped = [(await accounts.login(alice)).text for _ in range(3)]
    scoped = [(await accounts.login(user, accounts.project)).text for user in (alice, alice, alice, eve, eve)]
    caller = await identity.tokens.caller_of_token(unscoped[0], ORIGIN)
    temporary = [(await identity.access_keys.create_temporary(caller)).key.id for _ in range(3)]
    cookies = [await log_in(identity, alice) for _ in range(3)]
    in_domain = [
        *map(by_token, unscoped),
        *map(by_key, temporary),
        *((lambda identity, cookie=cookie: caller_of_session(identity, cookie)) for cookie in cookies),
    ]
    return Logins(
        tuple(in_domain),
        tuple(map(by_token, scoped)),
        by_key((await accounts.new_key(alice)).key.id),
        by_token((await accounts.login(eve)).text),
    )


async def works(identity: Identity, login: Callable[[Identity], Awaitable[object]]) -> bool:
    try:
        await login(identity)
    except Unauthenticated:
        return False
    return True


async def which_work(
    identity: Identity, logins: tuple[Callable[[Identity], Awaitable[object]], ...]
) -> set[bool]:
    return {await works(identity, login) for login in logins}


def place_of(accounts: Accounts, kind: str) -> Domain | Project:
    return accounts.domain if kind == "domain" else accounts.project


@pytest.mark.parametrize("kind", KINDS)
async def test_one_row_ends_all_logins_at_once_and_the_rest_ends_before_it_is_enabled(
    accounts: Accounts, logins: Logins, kind: str
) -> None:
    place, ended = place_of(accounts, kind), logins.ended_by(kind)
    queries, identity = DirectoryQueries(accounts.database), accounts.identity
    assert await which_work(identity, (*ended, logins.kept, logins.other)) == {True}
    await queries.replace(place, replace(place, enabled=False), event(f"{kind}.disabled"))
    await accounts.database.generation.refresh()
    assert await which_work(identity, ended) == {False}
    assert await works(identity, logins.kept) == (kind == "project")
    assert await works(identity, logins.other)
    # The process was killed before it deleted a login. Nobody disables again before the domain is enabled.
    await enable(identity.directory, place, enabled=True, actor=BY)
    await accounts.database.generation.refresh()
    assert await which_work(identity, ended) == {False}
    assert await which_work(identity, (logins.kept, logins.other)) == {True}
    if kind == "project":
        assert await which_work(identity, logins.of_domain) == {True}


@pytest.mark.long_on_server
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_a_process_that_is_killed_while_it_disables_leaves_no_login(
    accounts: Accounts, logins: Logins, store: Store, kind: str
) -> None:
    place, ended = place_of(accounts, kind), logins.ended_by(kind)
    await accounts.database.close()
    # The process forks, and the forks must not share connections to a server.
    done = await asyncio.to_thread(programs.run, "killed_disabling", kind, place.id, store.url)
    assert done.returncode == 0, done.stderr
    killed = int(done.stdout)
    between = 0
    for number in range(1, killed + 2):
        copy = Store(f"{store.url}_{number}")
        database = patient(copy.url)
        identity = new_identity(database, accounts.sealer, accounts.clock)
        (is_enabled,) = {
            bool(each) for (each,) in copy.rows(f"SELECT enabled FROM {kind} WHERE id = ?", place.id)
        }
        left = await DirectoryQueries(database).count_logins(place)
        total = left.sessions + left.tokens + left.temporary_keys
        # Before the one row is committed, all work. From then on, none does.
        assert await which_work(identity, ended) == {is_enabled}
        if is_enabled:
            assert (number <= killed, total) == (True, len(ended))
        else:
            between += 0 < total < len(ended)
            if number % 2:
                await enable(identity.directory, place, enabled=False, actor=BY)
                assert await DirectoryQueries(database).count_logins(place) == LoginCounts(0, 0, 0)
            await enable(identity.directory, place, enabled=True, actor=BY)
            await database.generation.refresh()
            assert await which_work(identity, ended) == {False}
            assert await which_work(identity, (logins.kept, logins.other)) == {True}
        identity.close()
        await database.close()
    assert between >= 2


@pytest.mark.parametrize("kind", KINDS)
async def test_disabling_again_deletes_the_rest_and_records_nothing(
    accounts: Accounts, logins: Logins, kind: str
) -> None:
    del logins
    place, queries = place_of(accounts, kind), DirectoryQueries(accounts.database)
    await queries.replace(place, replace(place, enabled=False), event(f"{kind}.disabled"))
    before = len(await accounts.events())
    expected = LoginCounts(3, 8, 3) if kind == "domain" else LoginCounts(0, 5, 0)
    assert await queries.count_logins(place) == expected
    await enable(accounts.identity.directory, place, enabled=False, actor=BY)
    assert await queries.count_logins(place) == LoginCounts(0, 0, 0)
    assert len(await accounts.events()) == before


@pytest.mark.parametrize("kind", KINDS)
async def test_no_login_of_an_enabled_domain_or_project_is_deleted(
    accounts: Accounts, logins: Logins, kind: str
) -> None:
    await DirectoryQueries(accounts.database).end_logins(place_of(accounts, kind))
    assert await which_work(accounts.identity, logins.ended_by(kind)) == {True}


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_enabled_with_logins_that_another_request_ended_meanwhile(
    accounts: Accounts, logins: Logins, kind: str
) -> None:
    """Between the deletion and the change, others enabled and disabled it again."""
    del logins
    place, queries = place_of(accounts, kind), DirectoryQueries(accounts.database)
    disabled = replace(place, enabled=False)
    await queries.replace(place, disabled, event(f"{kind}.disabled"))
    with pytest.raises(ConcurrentChange):
        await queries.replace(disabled, place, event(f"{kind}.enabled"))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_dry_run_deletes_no_login(accounts: Accounts, logins: Logins, kind: str) -> None:
    place, queries = place_of(accounts, kind), DirectoryQueries(accounts.database)
    with rolling_back():
        await enable(accounts.identity.directory, place, enabled=False, actor=BY)
    assert await which_work(accounts.identity, logins.ended_by(kind)) == {True}
    await queries.replace(place, replace(place, enabled=False), event(f"{kind}.disabled"))
    before = await queries.count_logins(place)
    for enabled in (False, True):
        with rolling_back():
            await enable(accounts.identity.directory, place, enabled=enabled, actor=BY)
    assert await queries.count_logins(place) == before

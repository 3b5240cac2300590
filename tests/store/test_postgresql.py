"""PostgreSQL: settings of new connections, and requests while the server is down or hangs."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from clustercert.model.errors import StoreFault, Unavailable
from clustercert.store import tables
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.engine.connections import POOL_SIZE
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes.credential_cache import RevocationFeed
from support import pgbouncer, postgres
from support.stores import Store, certificate_record, child, event, new_template, start
from support.wait import eventually, eventually_async

BUSY, STATEMENT = 3.0, 1.5
# The longest time for a statement or connection without a response, with a margin for a busy machine.
HANGS = BUSY + STATEMENT + 60

WITH_POOLER = (
    pytest.mark.full,
    pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="pgbouncer is not installed"),
)


@pytest.fixture(scope="module")
def fragile() -> Iterator[postgres.Server]:
    """Return a server that the test may kill or stop."""
    with postgres.server() as running:
        yield running


@pytest.fixture(scope="module")
def fragile_template(fragile: postgres.Server) -> str:
    return new_template(fragile)


@pytest.fixture
def fragile_store(fragile: postgres.Server, fragile_template: str) -> Iterator[Store]:
    store = Store(fragile.create(fragile_template))
    yield store
    store.remove()


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url, BUSY, STATEMENT)
    try:
        yield database
    finally:
        await database.close()


async def shown(database: Database, name: str, *, writes: bool = False) -> object:
    async with database.transaction() if writes else database.read() as connection:
        return (await connection.execute(text(f"SHOW {name}"))).scalar_one()


async def cause_of_failure(database: Database, *, lasting: bool = False) -> str:
    with pytest.raises(Unavailable) as caught:
        await database.ping()
    failure = caught.value
    if lasting:
        assert isinstance(failure, StoreFault)
        assert "Try again" not in failure.message + failure.reason
    else:
        assert failure.message == "The database does not answer. Try again later."
    return f"{failure.__cause__!r}"


@pytest.mark.parametrize(
    ("by_default", "then"), [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")]
)
async def test_a_commit_is_durable_whatever_the_server_says(
    on_postgresql: Store, by_default: str, then: str
) -> None:
    name = make_url(on_postgresql.url).database
    on_postgresql.execute(f"ALTER DATABASE {name} SET synchronous_commit = {by_default}")
    async with opened(on_postgresql.url) as database:
        assert await shown(database, "synchronous_commit", writes=True) == then


async def test_transactions_set_their_own_timeouts_and_isolation(
    on_postgresql: Store,
) -> None:
    name = make_url(on_postgresql.url).database
    on_postgresql.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
    async with opened(on_postgresql.url) as database:
        assert await shown(database, "transaction_isolation") == "repeatable read"
        assert await shown(database, "transaction_read_only") == "on"
        assert await shown(database, "transaction_isolation", writes=True) == "read committed"
        assert await shown(database, "transaction_read_only", writes=True) == "off"
        assert await shown(database, "statement_timeout") == "1500ms"
        assert await shown(database, "idle_in_transaction_session_timeout") == "10s"
        async with database.migration() as connection:
            assert (await connection.execute(text("SHOW statement_timeout"))).scalar_one() == "0"


async def test_a_server_that_does_not_flush_is_known(on_postgresql: Store, file: object) -> None:
    async with opened(on_postgresql.url) as database:
        assert not await database.flushes()
    async with opened(f"sqlite+aiosqlite:///{file}") as database:
        assert await database.flushes()


async def test_a_faulty_statement_is_not_reported_as_a_database_failure(
    on_postgresql: Store,
) -> None:
    row = {"id": "1" * 32, "name": "a", "enabled": True}
    wrong = {
        "a zero byte": row | {"name": "\x00"},
        "no character": row | {"name": "\ud800"},
        "too long": row | {"name": "a" * 65},
    }
    async with opened(on_postgresql.url) as database:
        for values in wrong.values():
            with pytest.raises(DBAPIError):
                async with database.transaction() as connection:
                    await connection.execute(insert(tables.domain).values(values))
        with pytest.raises(ProgrammingError):
            async with database.read() as connection:
                await connection.execute(text("SELECT nothing"))
        for _ in range(2):
            with contextlib.suppress(IntegrityError):
                async with database.transaction() as connection:
                    await connection.execute(insert(tables.domain).values(row))
    assert on_postgresql.rows("SELECT name FROM domain") == [("a",)]


async def test_a_slow_statement_is_given_up_and_its_connection_is_kept(on_postgresql: Store) -> None:
    async with opened(on_postgresql.url) as database:
        async with database.read() as connection:
            pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            async with database.read() as connection:
                await connection.execute(text("SELECT pg_sleep(600)"))
        assert time.monotonic() - began < HANGS
        assert "statement timeout" in str(caught.value.__cause__)
        async with database.read() as connection:
            assert (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one() == pid


async def test_waiting_for_a_locked_row_ends_before_the_statement_timeout_and_says_so(
    on_postgresql: Store,
) -> None:
    async with opened(on_postgresql.url) as database, database.transaction(invalidate=True):
        pass
    async with opened(on_postgresql.url) as database, opened(on_postgresql.url) as other:
        async with database.transaction() as connection:
            await connection.execute(text("UPDATE generation SET value = 7"))
            with pytest.raises(Unavailable, match="Another transaction has locked a part of the database"):
                async with other.transaction(event(), invalidate=True):
                    pass
        async with other.transaction(event(), invalidate=True):
            pass
    assert on_postgresql.rows("SELECT value FROM generation") == [(8,)]


async def test_no_free_connection_is_unavailable_until_there_is_one(on_postgresql: Store) -> None:
    """The generation has a connection of its own: without it, a worker uses no caches and needs more connections."""
    async with opened(on_postgresql.url) as database:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(POOL_SIZE - 1):
                await stack.enter_async_context(database.read())
            waiting = asyncio.gather(*(read(database) for _ in range(POOL_SIZE)), return_exceptions=True)
            await asyncio.sleep(0)
            feed = RevocationFeed(database)
            await feed.refresh()
            await database.generation.refresh()
            assert feed.fresh()
            assert database.generation.fresh()
            failures = await waiting
        causes = [each.__cause__ for each in failures if isinstance(each, Unavailable)]
        assert ["Timeout" in repr(each) for each in causes] == [True] * POOL_SIZE
        await read(database)


async def read(database: Database) -> None:
    async with database.read():
        pass


async def test_writers_leave_connections_to_the_readers(on_postgresql: Store) -> None:
    async with opened(on_postgresql.url) as database, contextlib.AsyncExitStack() as stack:

        async def take_all() -> None:
            for _ in range(POOL_SIZE):
                await stack.enter_async_context(database.transaction())

        with pytest.raises(Unavailable):
            await take_all()
        await database.ping()


async def test_a_server_out_of_connections_is_unavailable_until_it_recovers(
    on_postgresql: Store,
) -> None:
    name = make_url(on_postgresql.url).database
    postgres.administer(on_postgresql.url, f"ALTER DATABASE {name} CONNECTION LIMIT 1")
    async with opened(on_postgresql.url) as database, opened(on_postgresql.url) as other:
        async with database.read() as connection:
            await connection.execute(text("SELECT 1"))
            assert "too many connections" in await cause_of_failure(other)
        await database.ping()
        postgres.administer(on_postgresql.url, f"ALTER DATABASE {name} CONNECTION LIMIT 2")
        await other.ping()


@pytest.mark.parametrize("wrong", ["password", "database", "port", "host"])
async def test_what_keeps_us_out_is_said_to_the_log_alone(on_postgresql: Store, wrong: str) -> None:
    url = make_url(on_postgresql.url)
    changed, said = {
        "password": (url.set(password="wrong"), "password authentication failed"),
        "database": (url.set(database="missing"), "does not exist"),
        "port": (url.set(port=1), "Connect call failed"),
        "host": (url.set(host="nowhere.invalid"), "gaierror"),
    }[wrong]
    lasting = wrong in ("password", "database")
    async with opened(changed.render_as_string(hide_password=False)) as database:
        assert said in await cause_of_failure(database, lasting=lasting)


async def test_of_several_hosts_the_one_that_answers_is_taken(on_postgresql: Store) -> None:
    url = make_url(on_postgresql.url)
    several = url.set(host=None, port=None).update_query_dict(
        {"host": ["127.0.0.1:1", f"127.0.0.1:{url.port}"]}
    )
    async with opened(several.render_as_string(hide_password=False)) as database:
        await database.ping()


async def test_a_server_that_lost_its_place_is_left(on_postgresql: Store) -> None:
    """A demoted server still reads. The pool must drop connections to it, because its name now leads elsewhere."""
    name = make_url(on_postgresql.url).database
    async with opened(on_postgresql.url) as database:
        on_postgresql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with pytest.raises(Unavailable) as caught:
            async with database.transaction(event(), invalidate=True):
                pass
        assert "read-only transaction" in str(caught.value.__cause__)
        postgres.administer(on_postgresql.url, f"ALTER DATABASE {name} RESET default_transaction_read_only")
        async with database.transaction(event(), invalidate=True):
            pass


async def test_a_restarted_server_is_used_again(fragile: postgres.Server, fragile_store: Store) -> None:
    async with opened(fragile_store.url) as database:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(database.read())
        await database.ping()
        fragile.kill()
        for _ in range(2):
            await cause_of_failure(database)
        fragile.start()
        for _ in range(10):
            async with database.transaction(event(), invalidate=True):
                pass
    assert fragile_store.rows("SELECT value FROM generation") == [(10,)]


async def test_idle_connections_go_with_the_first_that_fails(
    fragile: postgres.Server, fragile_store: Store
) -> None:
    async with opened(fragile_store.url) as database:

        async def pings(count: int) -> list[BaseException | None]:
            return await asyncio.gather(*(database.ping() for _ in range(count)), return_exceptions=True)

        assert await pings(POOL_SIZE) == [None] * POOL_SIZE
        fragile.kill()
        fragile.start()
        # Like the periodic read of the generation.
        await cause_of_failure(database)
        assert await pings(POOL_SIZE) == [None] * POOL_SIZE


async def test_a_hung_server_is_unavailable_within_seconds_and_used_again(
    fragile: postgres.Server, fragile_store: Store
) -> None:
    async with opened(fragile_store.url) as database:
        ledger, (record, issued) = Ledger(database), certificate_record()
        await database.ping()
        with fragile.hung():
            for attempt in (database.ping, database.ping, lambda: ledger.record(record, issued)):
                began = time.monotonic()
                with pytest.raises(Unavailable):
                    await attempt()
                assert time.monotonic() - began < HANGS
        for _ in range(3):
            await database.ping()
        await ledger.record(record, issued)
    assert fragile_store.recorded() == {record.fingerprint.hex()}


async def test_a_server_that_hangs_in_the_middle_of_a_transaction_is_given_up(
    fragile: postgres.Server, fragile_store: Store
) -> None:
    async with opened(fragile_store.url) as database:

        async def change_slowly() -> None:
            async with database.transaction(event(), invalidate=True) as connection:
                await connection.execute(text("UPDATE generation SET value = 100"))
                with fragile.hung():
                    await connection.execute(text("UPDATE generation SET value = 200"))

        began = time.monotonic()
        with pytest.raises(Unavailable):
            await change_slowly()
        assert time.monotonic() - began < HANGS
        async with database.transaction(event(), invalidate=True):
            pass
    assert fragile_store.rows("SELECT value FROM generation") == [(1,)]


@pytest.fixture(params=["directly", pytest.param("pooler", marks=WITH_POOLER)])
def replicated(request: pytest.FixtureRequest) -> Iterator[tuple[postgres.Server, Store, str]]:
    """A server that can wait for a standby, a database, and the URL by which the service connects to it."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            postgres.server(wal_level="replica", max_wal_senders="2", max_connections="20")
        )
        store, url = Store(server.create(new_template(server))), ""
        if request.param == "pooler":
            url = stack.enter_context(pgbouncer.pooled(server, "session"))(store.url)
        yield server, store, url or store.url


async def test_commits_without_their_standby_leave_few_server_processes(
    replicated: tuple[postgres.Server, Store, str],
) -> None:
    """A commit waits for the standby even if its client is gone, and reads must still find a connection."""
    server, store, url = replicated
    async with opened(url) as database:

        async def write() -> bool:
            try:
                async with database.transaction(event()):
                    pass
            except Unavailable:
                return False
            return True

        def waiting() -> int:
            return len(server.run("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))

        assert await write()
        server.run("ALTER SYSTEM SET synchronous_standby_names = 'lost'")
        server.run("SELECT pg_reload_conf()")
        await eventually_async(lambda: store.rows("SHOW synchronous_standby_names") == [("lost",)])
        for _ in range(3):
            await asyncio.gather(*(write() for _ in range(2 * POOL_SIZE)))
        assert not await write()
        assert 1 <= waiting() <= POOL_SIZE // 2
        await database.ping()
        server.run("ALTER SYSTEM RESET synchronous_standby_names")
        server.run("SELECT pg_reload_conf()")
        await eventually_async(write)
        await eventually_async(lambda: waiting() == 0)


async def test_a_process_that_is_stopped_in_a_transaction_is_thrown_out(on_postgresql: Store) -> None:
    async with opened(on_postgresql.url) as database, database.read() as connection:
        pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await connection.execute(text("SET idle_in_transaction_session_timeout = 50"))
        there = "SELECT 1 FROM pg_stat_activity WHERE pid = ?"
        await eventually_async(lambda: not on_postgresql.rows(there, pid))
        with pytest.raises(DBAPIError):
            await connection.execute(text("SELECT 1"))


@pytest.mark.slow
def test_what_was_recorded_survives_the_kill_of_the_server(
    fragile: postgres.Server, fragile_store: Store
) -> None:
    """The server is killed and restarted repeatedly, while two processes record by group commit."""
    with (
        child("record-through-failures", fragile_store) as one,
        child("record-through-failures", fragile_store) as two,
        ThreadPoolExecutor() as readers,
    ):
        outputs: list[list[str]] = [[], []]
        for process, lines in zip((one, two), outputs, strict=True):
            start(process)
            assert process.stdout is not None
            readers.submit(lines.extend, map(str.strip, process.stdout))
        for number in range(6):
            wait_for_more(outputs, recorded, 5 + 5 * number)
            fragile.kill()
            wait_for_more(outputs, failed, 1)
            fragile.start()
        wait_for_more(outputs, recorded, 5)  # they have recovered
        for process in (one, two):
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait(HANGS) for process in (one, two)] == [0, 0]
    received = {line for lines in outputs for line in filter(recorded, lines)}
    assert len(received) > 50
    assert received <= fragile_store.recorded()


def recorded(line: str) -> bool:
    """Whether a line is the fingerprint of a recorded certificate."""
    return len(line) == 64


def failed(line: str) -> bool:
    return line == "unavailable"


def wait_for_more(outputs: list[list[str]], wanted: Callable[[str], bool], count: int) -> None:
    """Wait until each process has printed this many more of these lines."""
    before = [len(lines) for lines in outputs]
    eventually(
        lambda: all(
            sum(map(wanted, lines[start:])) >= count for lines, start in zip(outputs, before, strict=True)
        )
    )

"""A database URL with several hosts, or with a host that is not the primary."""

import socket
from collections.abc import Iterator, Sequence

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from clustercert.model.errors import StoreFault, Unavailable
from clustercert.store.engine.database import Database
from support import ports, postgres
from support.stores import Store
from support.wait import SECONDS, eventually

pytestmark = pytest.mark.postgresql


@pytest.fixture(scope="module")
def standby() -> Iterator[postgres.Server]:
    """A server in recovery, which answers reads."""
    with postgres.server(wal_level="replica") as server:
        server.stop()
        (server.data / "standby.signal").touch()
        server.start()
        yield server


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A host that accepts connections, and never answers."""
    with ports.reserve() as listening:
        listening.listen()
        yield listening


def with_hosts(url: str, *ports: int) -> str:
    """The URL of the same database on these ports of loopback, in this order."""
    hosts = [f"127.0.0.1:{port}" for port in ports]
    return (
        make_url(url).set(host=None, port=None, query={"host": hosts}).render_as_string(hide_password=False)
    )


async def port_of(database: Database) -> object:
    """The port of the server that answers."""
    async with database.read() as connection:
        return (await connection.execute(text("SHOW port"))).scalar_one()


async def port_of_server(url: str) -> object:
    database = Database(url, busy_seconds=SECONDS)
    try:
        return await port_of(database)
    finally:
        await database.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_the_primary_is_found_whatever_its_place_in_the_list(
    on_postgresql: Store, standby: postgres.Server, order: Sequence[int]
) -> None:
    primary = make_url(on_postgresql.url).port
    assert primary is not None
    both = (primary, standby.port)
    assert await port_of_server(with_hosts(on_postgresql.url, *(both[at] for at in order))) == str(primary)


async def test_a_host_that_hangs_delays_the_next_one_and_does_not_hide_it(
    on_postgresql: Store, silent: socket.socket
) -> None:
    primary = make_url(on_postgresql.url).port
    assert primary is not None
    url = with_hosts(on_postgresql.url, ports.port_of(silent), primary)
    assert await port_of_server(url) == str(primary)


async def test_a_former_primary_that_commits_nothing_is_left_for_the_new_one(on_postgresql: Store) -> None:
    new = make_url(on_postgresql.url)
    with postgres.server(wal_level="replica", max_wal_senders="1") as former:
        former.run(f"CREATE DATABASE {new.database} OWNER {postgres.OWNER}")
        former.run(f"ALTER ROLE {postgres.OWNER} PASSWORD '{new.password}'")
        # Commits wait for its standby, which has become the new primary.
        former.run("ALTER SYSTEM SET synchronous_standby_names = 'new'")
        former.run("SELECT pg_reload_conf()")
        eventually(lambda: former.run("SHOW synchronous_standby_names") == [("new",)])
        assert new.port is not None
        database = Database(with_hosts(on_postgresql.url, former.port, new.port), statement_seconds=1)
        try:
            assert await port_of(database) == str(former.port)
            with pytest.raises(Unavailable):
                async with database.transaction() as transaction:
                    await transaction.execute(text("CREATE TABLE written (id integer)"))
            assert await port_of(database) == str(new.port)
        finally:
            await database.close()


async def test_nothing_is_read_from_a_standby(standby: postgres.Server) -> None:
    with pytest.raises(Unavailable) as caught:
        await port_of_server(standby.url("postgres").replace(f"{postgres.OWNER}:", "postgres:"))
    assert "target attribute requirement" in repr(caught.value.__cause__)


async def test_a_rejected_login_is_reported_although_another_host_is_down(on_postgresql: Store) -> None:
    primary = make_url(on_postgresql.url).port
    assert primary is not None
    with ports.reserve() as closed:
        url = with_hosts(on_postgresql.url, primary, ports.port_of(closed))
        with pytest.raises(StoreFault) as caught:
            await port_of_server(url.replace(f"{postgres.OWNER}:", f"{postgres.OWNER}:wrong"))
    assert "rejects the login" in caught.value.reason

"""Replicas on one PostgreSQL: coherent within a second; 503 and no loss while the server is away, and no restart."""

import contextlib
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from clustercert.server.tls_files import tls
from clustercert.settings import SettingsError
from clustercert.wiring import open_components
from support import postgres
from support.replicas import Replica, assert_not_now, issue, listening, started
from support.stores import Store, blob
from support.wait import SECONDS, eventually
from support.world import World, make


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


@pytest.fixture(scope="module")
def world(server: postgres.Server, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("world"), database_url=server.create())


@pytest.fixture(scope="module")
def replicas(world: World) -> Iterator[tuple[Replica, Replica]]:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(world)) for _ in range(2)]
        one, two = (stack.enter_context(listening(process)) for process in processes)
        yield one, two


@pytest.fixture
def store(world: World) -> Store:
    return Store(world.settings().store_url)


def wait_until_issuing(client: httpx2.Client, world: World) -> None:
    def issues() -> bool:
        answer = issue(client, world)
        if answer.status_code != 200:
            assert_not_now(answer)
        return answer.status_code == 200

    eventually(issues)


def test_what_one_replica_revokes_another_one_refuses_within_a_second(
    replicas: tuple[Replica, Replica], world: World
) -> None:
    one, two = replicas
    admin = world.people["admin"]
    asked = {
        "auth": {
            "identity": {
                "methods": ["password"],
                "password": {"user": {"id": admin.user.id, "password": admin.password}},
            },
            "scope": {"project": {"id": world.project.id}},
        }
    }
    token = httpx2.post(f"{one.url}/v3/auth/tokens", json=asked, trust_env=False, timeout=SECONDS).headers[
        "X-Subject-Token"
    ]
    with one.client(token) as at_one, two.client(token) as at_two:
        assert [issue(client, world).status_code for client in (at_one, at_two, at_one, at_two)] == [200] * 4
        at_one.delete("/v3/auth/tokens", headers={"X-Subject-Token": token}).raise_for_status()
        eventually(lambda: issue(at_two, world).status_code != 200)
        assert issue(at_two, world).status_code == 401


def test_one_replica_does_the_work_for_all(replicas: tuple[Replica, Replica], store: Store) -> None:
    leases = store.rows("SELECT name, holder FROM lease")
    assert "prune" in {name for name, _ in leases}
    assert {len(str(holder)) for _, holder in leases} == {32}


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_killed_server_costs_503_and_no_certificate(
    replicas: tuple[Replica, Replica], world: World, server: postgres.Server, store: Store, kills: int
) -> None:
    stop, received, refused = threading.Event(), list[str](), list[httpx2.Response]()

    def use(replica: Replica) -> None:
        with replica.client(world.people["admin"].token) as client:
            while not stop.is_set():
                answer = issue(client, world)
                if answer.status_code == 200:
                    received.append(answer.headers["X-Clustercert-Fingerprint"])
                else:
                    refused.append(answer)
                    time.sleep(0.02)

    users = [threading.Thread(target=use, args=(replica,)) for replica in replicas for _ in range(4)]
    for user in users:
        user.start()

    def wait_for_more(answers: list[str] | list[httpx2.Response]) -> None:
        before = len(answers)
        eventually(lambda: len(answers) >= before + 10)

    for _ in range(kills):
        wait_for_more(received)
        server.kill()
        wait_for_more(refused)
        server.start()
    wait_for_more(received)
    stop.set()
    for user in users:
        user.join(SECONDS)
    for answer in refused:
        assert_not_now(answer)
    assert refused
    for replica in replicas:
        with replica.client(world.people["admin"].token) as client:
            wait_until_issuing(client, world)
    issued = "SELECT subject FROM audit_event WHERE kind = 'certificate.issued'"
    subjects = [str(subject) for (subject,) in store.rows(issued)]
    fingerprints = [blob(found).hex() for (found,) in store.rows("SELECT fingerprint FROM certificate")]
    assert len(received) >= 10 * (kills + 1)
    assert set(received) <= set(fingerprints)
    assert sorted(subjects) == sorted(fingerprints)


@pytest.mark.full
def test_a_hung_server_costs_503(
    replicas: tuple[Replica, Replica], world: World, server: postgres.Server
) -> None:
    with replicas[0].client(world.people["admin"].token) as client:
        wait_until_issuing(client, world)
        with server.hung():
            # The client waits for minutes, and the service gives up before.
            for _ in range(2):
                assert_not_now(issue(client, world))
            assert client.get("/healthz").status_code == 200
        wait_until_issuing(client, world)


def test_a_server_that_takes_no_connections_costs_503(
    replicas: tuple[Replica, Replica], world: World, store: Store
) -> None:
    name = store.url.rpartition("/")[2]
    with replicas[0].client(world.people["admin"].token) as client:
        postgres.administer(store.url, f"ALTER DATABASE {name} CONNECTION LIMIT 0")
        throw_out = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND usename = $2"
        )
        postgres.look(store.url, throw_out, name, postgres.OWNER)
        assert_not_now(issue(client, world))
        postgres.administer(store.url, f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        wait_until_issuing(client, world)


def test_a_shared_database_has_no_self_signed_certificate(world: World) -> None:
    with pytest.raises(SettingsError, match=r"needs TLS.* only for a single server"):
        tls(world.settings(server={"host": "0.0.0.0"}), "0.0.0.0")


@pytest.mark.usefixtures("replicas")  # which write the log
async def test_the_databases_password_is_in_no_log(world: World, server: postgres.Server) -> None:
    async with open_components(world.settings()) as components:
        assert server.password not in repr(components.database.url)
    assert server.password not in (world.folder / "log").read_text()

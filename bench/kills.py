"""Kills the service, and stops its database, under load. Every certificate that a client received must be recorded.

A fault is an answered certificate that is missing in the ledger or in the audit log, a certificate without its event
or the reverse, an audit log that does not verify, or an answer other than 200 and 503 with Retry-After.
"""

import asyncio
import contextlib
import http.client
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from bench import processes, world
from bench.postgres import Postgres
from bench.traffic import BODY, JSON, Who
from bench.world import World

CLIENTS = 16
# A kill comes at a random moment of this time after an answer.
LONGEST_SECONDS = 0.5
KILLS_PER_STOP = 20
# So many answers come before and after a database is stopped.
ANSWERS = 10
PAUSE_SECONDS = 0.05
# No promise is about it: it ends a run that would hang.
PATIENCE_SECONDS = 180.0
FINGERPRINT = "X-Clustercert-Fingerprint"
# In one statement, so that both parts are from the same snapshot.
RECORDED = (
    "SELECT fingerprint, NULL FROM certificate UNION ALL"
    " SELECT NULL, subject FROM audit_event WHERE kind = 'certificate.issued'"
)


@dataclass
class Answers:
    """What clients received.

    Attributes:
        certificates: the fingerprints of all certificates.
        unavailable: the number of answers 503 with Retry-After.
        others: all other answers.
        broken: the number of requests without an answer, and of refused connections.
    """

    certificates: list[str] = field(default_factory=list)
    unavailable: int = 0
    others: list[str] = field(default_factory=list)
    broken: int = 0

    def wait_for_certificates(self, count: int = 1) -> None:
        """Wait until clients have received this many more certificates."""
        before = len(self.certificates)
        _wait_until(lambda: len(self.certificates) >= before + count)

    def wait_for_unavailable(self, count: int) -> None:
        """Wait until clients have received this many more answers 503."""
        before = self.unavailable
        _wait_until(lambda: self.unavailable >= before + count)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one database.

    Attributes:
        times: the number of interruptions.
        not_in_ledger, not_in_audit_log: the numbers of received certificates that are missing there.
        unmatched: the number of certificates without an event, and of events without a certificate.
        verified: whether `clustercert audit verify` accepts the log.
    """

    database: str
    interruption: str
    times: int
    certificates: int
    unavailable: int
    broken: int
    others: Sequence[str]
    not_in_ledger: int
    not_in_audit_log: int
    unmatched: int
    verified: bool

    @property
    def faults(self) -> bool:
        """Whether anything happened that never should."""
        missing = self.not_in_ledger + self.not_in_audit_log + self.unmatched
        return bool(self.others or missing or not self.verified)


def measure(folder: Path, kills: int, postgres: Postgres | None) -> list[dict[str, object]]:
    """Kill the service this many times on each database, and stop each database for every 20 kills."""
    stops = max(1, kills // KILLS_PER_STOP)
    store = world.prepare(folder / "sqlite")
    outcomes = [
        kill_service("SQLite", store, kills),
        stop_database("SQLite", store, stops, lambda: locked(store)),
    ]
    if postgres:
        url = postgres.create("kills")
        store = world.prepare(folder / "postgres", database_url=url, database=postgres.pid)
        outcomes += [
            kill_service("PostgreSQL", store, kills),
            stop_database("PostgreSQL", store, stops, postgres.stopped),
        ]
    if faults := [outcome for outcome in outcomes if outcome.faults]:
        raise RuntimeError("\n".join(map(str, faults)))
    return [asdict(outcome) for outcome in outcomes]


def kill_service(database: str, store: World, times: int) -> Outcome:
    """Kill by turns one worker and all processes, this many times in total, under load; then check the records."""
    answers = Answers()
    with processes.reserved_port() as port, contextlib.ExitStack() as load:
        for number in range(0, times, 2):
            with world.served(store, port=port) as served:
                if not number:
                    load.enter_context(_requested(served.who, answers))
                _wait_for_a_moment(answers)
                os.kill(random.choice(_workers(served.pid)), signal.SIGKILL)
                _wait_for_a_moment(answers)
                os.killpg(served.pid, signal.SIGKILL)
            _wait_until(lambda: not processes.listens(port))
        with world.served(store, port=port):
            answers.wait_for_certificates()
            load.close()
            return _checked(database, "service killed", store, times, answers)


def stop_database(
    database: str, store: World, times: int, stopped: Callable[[], AbstractContextManager[None]]
) -> Outcome:
    """Stop the database this many times under load, each time until clients get 503; then check the records."""
    answers = Answers()
    with world.served(store) as served:
        with _requested(served.who, answers):
            for _ in range(times):
                answers.wait_for_certificates(ANSWERS)
                with stopped():
                    answers.wait_for_unavailable(ANSWERS)
            answers.wait_for_certificates(ANSWERS)
        if answers.broken:
            answers.others.append(f"{answers.broken} connections broken")
        return _checked(database, "database stopped", store, times, answers)


@contextlib.contextmanager
def locked(store: World) -> Iterator[None]:
    """Hold the write lock of a SQLite database during the block. SQLite has no server to stop."""
    path = store.settings.store_url.partition(":///")[2]
    connection = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE_SECONDS)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def _wait_for_a_moment(answers: Answers) -> None:
    answers.wait_for_certificates()
    time.sleep(random.uniform(0, LONGEST_SECONDS))


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing happened for {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.005)


def _workers(pid: int) -> list[int]:
    """Return the process ids of the workers, without multiprocessing's helper process."""
    found = []
    for child in processes.tree(pid)[1:]:
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


@contextlib.contextmanager
def _requested(who: Who, answers: Answers) -> Iterator[None]:
    """Request certificates from several threads during the block, and collect the answers."""
    over = threading.Event()
    counting = threading.Lock()
    clients = [
        threading.Thread(target=_request_until, args=(over, counting, who, answers)) for _ in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join()


def _request_until(over: threading.Event, counting: threading.Lock, who: Who, answers: Answers) -> None:
    connection = http.client.HTTPConnection(who.host, timeout=PATIENCE_SECONDS)
    headers = JSON | {"X-Auth-Token": who.token}
    while not over.is_set():
        try:
            connection.request("POST", who.path(), BODY, headers)
            response = connection.getresponse()
            # Counts as received even if the connection breaks in the middle of the body.
            if response.status == HTTPStatus.OK:
                answers.certificates.append(response.headers[FINGERPRINT])
            body = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            with counting:
                answers.broken += 1
            over.wait(PAUSE_SECONDS)
            continue
        if response.status == HTTPStatus.OK:
            continue
        with counting:
            if response.status == HTTPStatus.SERVICE_UNAVAILABLE and response.headers["Retry-After"]:
                answers.unavailable += 1
            else:
                answers.others.append(f"{response.status} {body.decode(errors='replace')}")
        over.wait(PAUSE_SECONDS)
    connection.close()


def _checked(database: str, interruption: str, store: World, times: int, answers: Answers) -> Outcome:
    certificates, events = asyncio.run(_recorded(store.settings.store_url))
    received = set(answers.certificates)
    command = [sys.executable, "-m", "clustercert", "--config", str(store.config), "audit", "verify"]
    return Outcome(
        database=database,
        interruption=interruption,
        times=times,
        certificates=len(answers.certificates),
        unavailable=answers.unavailable,
        broken=answers.broken,
        others=answers.others,
        not_in_ledger=len(received - certificates),
        not_in_audit_log=len(received - events),
        unmatched=len(certificates ^ events),
        verified=subprocess.run(command, capture_output=True, check=False).returncode == 0,
    )


async def _recorded(url: str) -> tuple[set[str], set[str]]:
    """Return the fingerprints in the ledger, and those in events about issued certificates."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            rows = (await connection.execute(text(RECORDED))).all()
    finally:
        await engine.dispose()
    certificates = {bytes(fingerprint).hex() for fingerprint, _ in rows if fingerprint is not None}
    return certificates, {str(subject) for _, subject in rows if subject is not None}

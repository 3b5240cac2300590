"""Two services of two workers on the nodes' database, their clients, and the checks after the faults."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2

from clustercert.model import Actor, Origin
from clustercert.wiring import open_components
from ha.load import Certificate, Load
from ha.nodes import Nodes
from support import serve_process
from support.demo_process import COMMAND
from support.stores import Store
from support.wait import SECONDS, eventually
from support.world import ACTOR, World, make

SERVICES, WORKERS = 2, 2
# Requests at once, of those that check every revocation at the end.
_AT_ONCE = 8


@dataclass(frozen=True)
class Findings:
    """What is wrong after the faults; nothing should be.

    Attributes:
        not_recorded: answered certificates that the ledger does not have.
        not_in_audit_log: answered certificates without an event.
        not_revoked: certificates whose revocation was answered, and that a service still allows.
        verified: whether `clustercert audit verify` accepts the log.
    """

    certificates: int
    revocations: int
    not_recorded: Sequence[str]
    not_in_audit_log: Sequence[str]
    not_revoked: Sequence[str]
    allowed_late: Sequence[str]
    denied_live: Sequence[str]
    other: Sequence[str]
    verified: bool
    verification: str

    def __str__(self) -> str:
        unmatched, late = len(self.not_in_audit_log), len(self.allowed_late)
        lines = [
            f"answered certificates: {self.certificates}",
            f"  not in the ledger: {len(self.not_recorded)}; not in the audit log, or only there: {unmatched}",
            f"answered revocations: {self.revocations}",
            f"  not in force: {len(self.not_revoked)}; allowed more than a second after the answer: {late}",
            f"valid certificates that were denied: {len(self.denied_live)}",
            f"answers that should never be given: {len(self.other)}",
            f"audit log: {'verified' if self.verified else self.verification}",
        ]
        details = (
            *self.not_recorded,
            *self.not_in_audit_log,
            *self.not_revoked,
            *self.allowed_late,
            *self.denied_live,
            *self.other,
        )
        return "\n".join([*lines, *details[:20]])

    @property
    def faults(self) -> bool:
        return not self.verified or any(
            (
                self.not_recorded,
                self.not_in_audit_log,
                self.not_revoked,
                self.allowed_late,
                self.denied_live,
                self.other,
            )
        )


@dataclass
class Site:
    """The services and their database."""

    nodes: Nodes
    world: World
    webhook_token: str

    @contextlib.contextmanager
    def served(self, database_url: str, *loads: Load) -> Iterator[Load]:
        """Serve during the block. Returns a load, which goes on with what an earlier load knows."""
        workers = self._started_workers()
        with contextlib.ExitStack() as stack:
            urls = [
                stack.enter_context(
                    serve_process.serving(self.world, "--workers", str(WORKERS), DATABASE_URL=database_url)
                ).url
                for _ in range(SERVICES)
            ]
            for url in urls:
                eventually(partial(_ready, url))
            # A worker that starts during a fault waits until the fault is over, and would take no part in it.
            eventually(lambda: self._started_workers() >= workers + SERVICES * WORKERS)
            if loads:
                loads[0].urls = urls
                yield loads[0]
            else:
                yield Load(self.world, urls, self.world.people["admin"].token, self.webhook_token)

    def _started_workers(self) -> int:
        """How many workers have started, by the log of all services."""
        log = self.world.folder / "log"
        return log.read_text().count('"event":"policy loaded"') if log.exists() else 0

    def check(self, load: Load) -> Findings:
        """Compare what clients received with the database and the services, which still run."""
        store = Store(self.nodes.url_at(self.nodes.leader()))
        # In one statement, so that both are from the same snapshot.
        rows = store.rows(
            "SELECT encode(fingerprint, 'hex'), NULL FROM certificate UNION ALL"
            " SELECT NULL, subject FROM audit_event WHERE kind = 'certificate.issued'"
        )
        recorded = {str(fingerprint) for fingerprint, _ in rows if fingerprint is not None}
        events = {str(subject) for _, subject in rows if subject is not None}
        received = {each.fingerprint for each in load.certificates}
        verified = self._verify()
        return Findings(
            certificates=len(received),
            revocations=len(load.revoked),
            not_recorded=sorted(received - recorded),
            not_in_audit_log=sorted((received - events) | (recorded ^ events)),
            not_revoked=asyncio.run(_allowed(load)),
            allowed_late=load.allowed_late,
            denied_live=load.denied_live,
            other=load.other,
            verified=verified.returncode == 0,
            verification=(verified.stdout + verified.stderr).strip(),
        )

    def _verify(self) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, "audit", "verify"],
            env=serve_process.environment_of(self.world),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


def new(nodes: Nodes, folder: Path) -> Site:
    """A new store on the nodes."""
    world = make(folder, database_url=nodes.url())
    return Site(nodes, world, asyncio.run(_webhook_token(world)))


async def _webhook_token(world: World) -> str:
    async with open_components(world.settings()) as components:
        origin = Origin(address="local", request_id=os.urandom(16).hex())
        issued = await components.webhook.tokens.create(world.clusters["plain"], actor=Actor(ACTOR, origin))
        return issued.text


async def _allowed(load: Load) -> list[str]:
    """The certificates whose revocation was answered, and that a service does not deny."""
    limit, found = asyncio.Semaphore(_AT_ONCE), list[str]()

    async def check(client: httpx2.AsyncClient, service: int, certificate: Certificate) -> None:
        async with limit:
            answer = await load.review(client, service, certificate)
        if answer is None or answer.outcome != "denied":
            found.append(f"service {service}: {certificate.serial}: {answer and answer.outcome}")

    async with httpx2.AsyncClient(trust_env=False, timeout=SECONDS) as client, asyncio.TaskGroup() as group:
        for certificate in load.revoked:
            for service in range(len(load.urls)):
                group.create_task(check(client, service, certificate))
    return found


def _ready(url: str) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(f"{url}/readyz", timeout=10, trust_env=False).is_success
    return False

"""Rotates the client CAs of many clusters while the process that advances the rotations is killed again and again.

    python -m bench.ca_rotation --clusters 1000 --kills 500

The API servers are the tests' doubles of kube-apiserver. Operators write bundles and ask for completion, and holders
get certificates and use them, in this process. Another process advances the rotations. It is killed with SIGKILL at
random moments, and another one goes on.

A fault is a holder who is refused before the old CA leaves the bundle, a certificate of the old CA that is accepted
after completion, a rotation that does not end, or a cluster without exactly one CA that signs and has its key.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, cast

from sqlalchemy import text

from clustercert.clusters.ca_progress import CaProgress
from clustercert.clusters.ca_rotation import RotationOptions
from clustercert.custody.keks import write_new_kek_file
from clustercert.jobs.ca_rotation import RotationScheduler
from clustercert.kube_api import ApiServerRefused, ClientIdentity, KubeApi
from clustercert.model import Actor, Caller, Cluster, Domain, Issued, IssueRequest, Origin, User
from clustercert.model.clusters import Registration
from clustercert.model.errors import Conflict
from clustercert.observability import log
from clustercert.pki.certificates import chain_pem
from clustercert.pki.keys import key_pem
from clustercert.pki.leaf import der_pem
from clustercert.settings import Settings, load
from clustercert.wiring import Components, initialise, open_components

# The API server's double is a part of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.apiserver import ApiServer

CLUSTERS_PER_SERVER = 50
# The life of the process, from the moment when it begins to work.
LONGEST_LIFE_SECONDS = 1.5
# Longer than a change takes to reach the caches of this process.
DRAIN_AFTER = timedelta(seconds=3)
HOLDERS_AT_ONCE = 2
# No promise is about it: it ends a run that would hang.
PATIENCE_SECONDS = 3 * 3600.0
_ACCEPTED = 200
_READY = b"r"
LOG = "service.log"


@dataclass
class Figures:
    """The result of a run.

    Attributes:
        used: requests of holders to API servers before their CA left the bundle.
        faults: one sentence for each fault.
        seconds: until the last rotation was complete.
        seconds_to: until the last rotation had reached each state.
    """

    clusters: int
    api_servers: int
    kills: int = 0
    issued: int = 0
    used: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    seconds_to: dict[str, float] = field(default_factory=dict)


def settings_in(folder: Path) -> Settings:
    return load(
        None,
        data_dir=folder / "data",
        kek_file=folder / "kek",
        log={"file": folder / LOG, "format": "json"},
    )


class Leader:
    """The process that advances rotations. It is a child of a process that has imported everything before."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.ca_rotation", "--leader", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._input = cast("IO[str]", self._process.stdin)
        self._output = cast("IO[str]", self._process.stdout)

    def live_and_die(self, seconds: float) -> None:
        """Start the process, and kill it so many seconds after it has begun to work."""
        print(seconds, file=self._input, flush=True)
        said = self._output.readline()
        if said != "killed\n":
            raise RuntimeError(f"the process that advances rotations ended by itself: {said!r}; see {LOG}")

    def close(self) -> None:
        self._process.communicate()


def lead(folder: Path) -> None:
    """Start a child for each line of the input, and kill it. The line has the seconds of its life."""
    # By default, the children would log to standard output, which has the answers.
    log.configure("json", file=folder / LOG)
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            asyncio.run(_advance(folder, writer))
            os._exit(1)
        os.close(writer)
        is_ready = os.read(reader, 1) == _READY
        os.close(reader)
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print("killed" if is_ready and os.WIFSIGNALED(status) else "ended", flush=True)


async def _advance(folder: Path, writer: int) -> None:
    async with open_components(settings_in(folder)) as components:
        progress = CaProgress(components.ca_rotations, components.discarded_keys, DRAIN_AFTER)
        scheduler = RotationScheduler(components.ca_rotations.queries, progress.advance)
        os.write(writer, _READY)
        while True:
            await scheduler.step()
            # The scheduler of the service waits longer.
            await asyncio.sleep(0.02)


@dataclass
class Fleet:
    """Clusters, their API servers, operators and holders.

    Attributes:
        kills: so many kills come before operators have asked for completion everywhere.
        old: the first certificate of each cluster, by the cluster's id.
        leaving: clusters whose old CA may have left the bundle.
    """

    components: Components
    servers: Sequence[ApiServer]
    clusters: Sequence[Cluster]
    figures: Figures
    kills: int
    old: dict[str, Issued] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    def server_of(self, cluster: Cluster) -> ApiServer:
        return self.servers[self.clusters.index(cluster) // CLUSTERS_PER_SERVER]

    async def write_bundles(self, server: ApiServer) -> None:
        """Write the bundles of now of all clusters to an API server."""
        index = self.servers.index(server) * CLUSTERS_PER_SERVER
        queries = self.components.clusters.queries
        bundles = [
            await queries.bundle(each.id) for each in self.clusters[index : index + CLUSTERS_PER_SERVER]
        ]
        server.trust(b"".join(map(chain_pem, bundles)))

    async def issue(self, cluster: Cluster) -> Issued:
        caller = Caller(
            user=User(id="a" * 32, name="bench", domain=Domain(id="", name="")),
            roles={cluster.project_id: ("admin",)},
            method="token",
            origin=Origin.local(),
        )
        self.figures.issued += 1
        request = IssueRequest(duration=1)
        return await self.components.issuance.issue(caller, cluster.project_id, cluster.id, request)

    async def status_of(self, cluster: Cluster, issued: Issued) -> int:
        """The status of a request with a certificate at the API server."""
        if issued.private_key is None:
            raise RuntimeError("a certificate was issued without its key")
        identity = ClientIdentity(der_pem(issued.leaf_der), key_pem(issued.private_key))
        server = self.server_of(cluster)
        async with KubeApi(server.url, server.server_ca.read_bytes(), identity, seconds=600) as api:
            try:
                await api.get("/version")
            except ApiServerRefused as refused:
                return refused.http_status
        return _ACCEPTED

    async def hold(self) -> None:
        """Get certificates and use them, also the oldest ones, until cancelled."""
        while True:
            cluster = random.choice(self.clusters)
            holder = await self.issue(cluster)
            for which, each in (("new", holder), ("oldest", self.old[cluster.id])):
                status = await self.status_of(cluster, each)
                # The old CA may have left the bundle meanwhile, because this run forces completion.
                if cluster.id not in self.leaving:
                    self.figures.used += 1
                    if status != _ACCEPTED:
                        self.figures.faults.append(f"{cluster.id}: the {which} certificate got {status}")

    async def operate(self) -> None:
        """Write bundles and ask for completion, until every rotation is complete."""
        rotations, deadline = self.components.ca_rotations, self.began + PATIENCE_SECONDS
        by_id = {each.id: each for each in self.clusters}
        states: dict[str, str] = {}
        while set(states.values()) != {"complete"}:
            if time.monotonic() > deadline:
                self.figures.faults.append("not all rotations ended")
                return
            await self.write_bundles(random.choice(self.servers))
            async with self.components.database.read() as connection:
                found = await connection.execute(
                    text("SELECT cluster_id, state, completion_asked_at FROM ca_rotation")
                )
                rows = found.all()
            states = {row.cluster_id: row.state for row in rows}
            for state in ("draining", "complete"):
                if all(each in (state, "complete") for each in states.values()):
                    self.figures.seconds_to.setdefault(state, time.monotonic() - self.began)
            ready = [
                row.cluster_id for row in rows if row.state == "draining" and not row.completion_asked_at
            ]
            share = min(1.0, self.figures.kills / self.kills)
            asked = sum(row.completion_asked_at is not None for row in rows)
            for cluster_id in ready[: int(share * len(self.clusters)) - asked]:
                cluster = by_id[cluster_id]
                held = (await rotations.status(cluster)).old.certificates
                self.leaving.add(cluster_id)
                with contextlib.suppress(Conflict):
                    actor = Actor("bench", Origin.local())
                    await rotations.complete(cluster, holders=held, deny_old=None, actor=actor)

    async def check(self) -> None:
        """Look for faults after the last rotation is complete."""
        for cluster in self.clusters:
            if await self.status_of(cluster, self.old[cluster.id]) != 401:  # noqa: PLR2004 - refused
                self.figures.faults.append(f"{cluster.id}: the old CA is accepted after completion")
            if await self.status_of(cluster, await self.issue(cluster)) != _ACCEPTED:
                self.figures.faults.append(f"{cluster.id}: the new CA is refused after completion")
        await self.components.discarded_keys.delete_all()
        query = text(
            "SELECT cluster_id, sum(state = 'active' AND sealed_key IS NOT NULL) AS signing,"
            " sum(state = 'retired' AND sealed_key IS NULL) AS gone, count(*) AS total"
            " FROM client_ca GROUP BY cluster_id"
        )
        events = text(
            "SELECT kind, count(*), count(DISTINCT subject) FROM audit_event WHERE kind LIKE 'ca_rotation.%'"
            " OR kind = 'client_ca.key_deleted' GROUP BY kind"
        )
        async with self.components.database.read() as connection:
            for row in await connection.execute(query):
                if (row.signing, row.gone, row.total) != (1, 1, 2):
                    self.figures.faults.append(
                        f"{row.cluster_id}: {row.signing} CAs sign, {row.gone} are gone"
                    )
            for kind, count, subjects in await connection.execute(events):
                if kind != "ca_rotation.proof_lost" and not count == subjects == len(self.clusters):
                    self.figures.faults.append(f"{kind}: {count} events about {subjects} subjects")


async def _kill(leader: Leader, kills: int, figures: Figures) -> None:
    """Kill the leader so many times, and then let its successors live longer, until cancelled."""
    while True:
        longest = LONGEST_LIFE_SECONDS if figures.kills < kills else 10 * LONGEST_LIFE_SECONDS
        await asyncio.to_thread(leader.live_and_die, random.uniform(0, longest))
        figures.kills += 1


@contextlib.contextmanager
def _api_servers(folder: Path, count: int) -> Iterator[list[ApiServer]]:
    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(count):
            (folder / f"apiserver-{number}").mkdir()
            servers.append(stack.enter_context(ApiServer(folder / f"apiserver-{number}")))
        yield servers


@contextlib.asynccontextmanager
async def _fleet(
    folder: Path, clusters: int, kills: int, servers: Sequence[ApiServer]
) -> AsyncIterator[Fleet]:
    write_new_kek_file(folder / "kek")
    settings, actor = settings_in(folder), Actor("bench", Origin.local())
    await initialise(settings, actor=actor)
    async with open_components(settings) as components, components.database.generation.watching():
        domain = await components.identity.directory.create_domain("bench", actor=actor)
        project = await components.identity.directory.create_project("eu-de", domain, actor=actor)
        added = []
        for number in range(clusters):
            server = servers[number // CLUSTERS_PER_SERVER]
            registration = Registration(
                name=f"cluster-{number}", internal_url=server.url, server_ca_pem=server.server_ca.read_bytes()
            )
            added.append(await components.clusters.add(project.id, registration, actor=actor))
        fleet = Fleet(components, servers, added, Figures(clusters, len(servers)), kills)
        for cluster in added:
            fleet.old[cluster.id] = await fleet.issue(cluster)
        for server in servers:
            await fleet.write_bundles(server)
        yield fleet


async def rotate(folder: Path, clusters: int, kills: int) -> Figures:
    """Rotate the CAs of so many new clusters, and kill the leader so many times. Returns the figures."""
    leader = Leader(folder)
    try:
        with _api_servers(folder, -(-clusters // CLUSTERS_PER_SERVER)) as servers:
            async with _fleet(folder, clusters, kills, servers) as fleet:
                for cluster in fleet.clusters:
                    actor = Actor("bench", Origin.local())
                    await fleet.components.ca_rotations.start(cluster, RotationOptions(), actor=actor)
                fleet.began = time.monotonic()
                background = [asyncio.create_task(fleet.hold()) for _ in range(HOLDERS_AT_ONCE)]
                background.append(asyncio.create_task(_kill(leader, kills, fleet.figures)))
                tasks = [asyncio.create_task(fleet.operate()), *background]
                # If a task of the background fails, the operators would wait in vain.
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
                for ended in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(ended, Exception):
                        raise ended
                fleet.figures.seconds = time.monotonic() - fleet.began
                await fleet.check()
                return fleet.figures
    finally:
        await asyncio.to_thread(leader.close)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ca_rotation")
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--leader", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.leader is not None:
        lead(options.leader)
        return 0
    with tempfile.TemporaryDirectory(prefix="clustercert-rotation-") as name:
        run = functools.partial(rotate, Path(name), options.clusters, options.kills)
        figures: dict[str, Any] = asdict(asyncio.run(run()))
    print(json.dumps(figures, indent=2))
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())

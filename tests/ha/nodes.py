"""Three nodes, each with PostgreSQL under Patroni and a member of etcd."""

import contextlib
import json
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from ha import network, programs
from ha.network import Host
from ha.programs import Program
from support import postgres
from support.processes import has_ended
from support.wait import eventually

COUNT = 3
SCOPE = "clustercert"
DATABASE = "clustercert"

# docs/failover.md has the same settings.
DYNAMIC: Mapping[str, object] = {
    "ttl": 20,
    "loop_wait": 5,
    "retry_timeout": 5,
    "failsafe_mode": True,
    "synchronous_mode": True,
    "synchronous_mode_strict": True,
    "maximum_lag_on_failover": 1048576,
    "postgresql": {
        "use_pg_rewind": True,
        "use_slots": True,
        "parameters": {"max_connections": 100, "wal_keep_size": "256MB"},
    },
}


@dataclass
class Node:
    """A node, named as in Patroni."""

    host: Host
    folder: Path
    etcd: Program
    patroni: Program

    @property
    def name(self) -> str:
        return f"node{self.host.number}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def postgres_pids(self) -> list[int]:
        """The postmaster and its child processes; empty if there is none."""
        try:
            postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return []
        if has_ended(postmaster) or not _is_in(postmaster, self.data):
            return []
        return programs.tree(postmaster)

    def kill_postgres(self) -> None:
        """SIGKILL to PostgreSQL and its child processes. Patroni goes on."""
        pids = self.postgres_pids()
        programs.send(signal.SIGKILL, pids)
        eventually(lambda: all(map(has_ended, pids)))

    def kill(self) -> None:
        """SIGKILL to Patroni and to PostgreSQL, as if the machine lost its power."""
        self.patroni.kill()
        self.kill_postgres()

    def stop(self) -> None:
        """SIGTERM to Patroni, which shuts PostgreSQL down."""
        self.patroni.stop()

    def suspend(self) -> list[int]:
        """SIGSTOP to Patroni and PostgreSQL, as a hypervisor does. Returns the processes."""
        pids = [self.patroni.pid, *self.postgres_pids()]
        programs.send(signal.SIGSTOP, pids)
        return pids


@dataclass
class Nodes:
    """The cluster of databases.

    Attributes:
        password: of the superuser and of the service's role.
    """

    folder: Path
    members: list[Node]
    password: str
    down: set[str] = field(default_factory=set)

    def url(self, order: Sequence[Node] = ()) -> str:
        """The database URL for the service, with all hosts in this order."""
        hosts = "&".join(f"host={node.host.at('postgres')}" for node in order or self.members)
        return f"postgresql+asyncpg://{postgres.OWNER}:{self.password}@/{DATABASE}?{hosts}"

    def url_at(self, node: Node, database: str = DATABASE) -> str:
        """The URL of one node."""
        return f"postgresql+asyncpg://{postgres.OWNER}:{self.password}@{node.host.at('postgres')}/{database}"

    def states(self) -> Mapping[str, Mapping[str, Any]]:
        """What each Patroni that answers says about its own PostgreSQL, by the name of the node."""
        found = {}
        for node in self.members:
            with contextlib.suppress(httpx2.HTTPError):
                answer = httpx2.get(f"{node.host.url('patroni')}/patroni", timeout=1, trust_env=False)
                found[node.name] = answer.json()
        return found

    def leader(self) -> Node:
        """The primary. Waits until there is exactly one."""

        def one() -> Node | None:
            names = [name for name, state in self.states().items() if state.get("role") == "primary"]
            return self._named(names[0]) if len(names) == 1 else None

        found = eventually(one)
        assert found is not None
        return found

    def synchronous_standby(self) -> Node:
        """The standby that may take over. Waits until there is one."""
        found = eventually(lambda: next(iter(self._synchronous_standbys(self.leader())), None))
        return self._named(str(found))

    def _synchronous_standbys(self, primary: Node) -> list[str]:
        """The standbys that may take over, as recorded in etcd; empty if etcd does not answer.

        Asked of the primary, which reads etcd for this answer. What a standby says of itself in `states` is as old as
        its last loop: after a restart of the primary it may be recorded no longer.
        """
        with contextlib.suppress(httpx2.HTTPError):
            answer = httpx2.get(f"{primary.host.url('patroni')}/cluster", timeout=5, trust_env=False)
            if answer.is_success:
                members = answer.json()["members"]
                return [each["name"] for each in members if each["role"] == "sync_standby"]
        return []

    def _named(self, name: str) -> Node:
        return next(node for node in self.members if node.name == name)

    def is_settled(self, running: int = COUNT) -> bool:
        """Whether so many nodes run on one timeline, among them a primary and its synchronous standby.

        The standby must be recorded in etcd: until then, PostgreSQL takes any standby, but none may take over.
        """
        running_nodes = {
            name: state for name, state in self.states().items() if state.get("state") == "running"
        }
        primaries = [name for name, state in running_nodes.items() if state.get("role") == "primary"]
        streaming = {
            name for name, state in running_nodes.items() if state.get("replication_state") == "streaming"
        }
        return (
            len(primaries) == 1
            and len(streaming) >= running - 1
            and len({state.get("timeline") for state in running_nodes.values()}) == 1
            and not streaming.isdisjoint(self._synchronous_standbys(self._named(primaries[0])))
        )

    def wait_until_settled(self, running: int = COUNT) -> None:
        eventually(lambda: self.is_settled(running))

    def configure(self, change: Mapping[str, object]) -> None:
        """Change Patroni's dynamic configuration."""
        answer = httpx2.patch(
            f"{self.leader().host.url('patroni')}/config", json=dict(change), timeout=10, trust_env=False
        )
        answer.raise_for_status()

    def last_log_lines(self, count: int = 15) -> str:
        """The end of the log of each Patroni and its PostgreSQL, which say why a fault does not end."""
        logs = [self.folder / f"{node.patroni.name}.log" for node in self.members]
        ends = {log.name: log.read_text(errors="replace").splitlines()[-count:] for log in logs}
        return "\n".join(["", *(line for name, lines in ends.items() for line in (f"{name}:", *lines))])

    def switch_over(self) -> None:
        """Make the synchronous standby the leader."""
        leader, standby = self.leader(), self.synchronous_standby()
        answer = httpx2.post(
            f"{leader.host.url('patroni')}/switchover",
            json={"leader": leader.name, "candidate": standby.name},
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text

    def connections_elsewhere(self) -> int:
        """How many connections the services have to nodes that are not the leader."""
        leader = self.leader()
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"
        return sum(
            int(postgres.look(self.url_at(node, "postgres"), query, postgres.OWNER)[0][0])
            for node in self.members
            if node is not leader
        )


@contextlib.contextmanager
def running() -> Iterator[Nodes]:
    """A new cluster during the block. Its files and processes don't outlast the block."""
    folder = Path(tempfile.mkdtemp(prefix="clustercert-ha-"))
    folder.chmod(0o755)
    try:
        with network.hosts(COUNT) as hosts:
            nodes = _prepared(folder, hosts)
            try:
                for node in nodes.members:
                    node.etcd.start()
                for node in nodes.members:
                    node.patroni.start()
                nodes.wait_until_settled()
                leader = nodes.url_at(nodes.leader(), "postgres")
                postgres.look(leader, f"CREATE ROLE {postgres.OWNER} LOGIN PASSWORD '{nodes.password}'")
                postgres.look(leader, f"CREATE DATABASE {DATABASE} OWNER {postgres.OWNER}")
                yield nodes
            finally:
                programs.end_all_in(folder)
                for node in nodes.members:
                    for program in (node.etcd, node.patroni):
                        if program.process is not None:
                            program.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepared(folder: Path, hosts: Sequence[Host]) -> Nodes:
    password = secrets.token_hex(8)
    members = []
    for host in hosts:
        home = programs.new_folder(folder / f"node{host.number}")
        etcd_home = programs.new_folder(folder / f"etcd{host.number}")
        settings = home / "patroni.json"
        settings.write_text(json.dumps(_patroni_settings(host, hosts, home, password)))
        shutil.chown(settings, programs.owner())
        members.append(
            Node(
                host,
                home,
                Program(f"etcd{host.number}", _etcd_command(host, hosts, etcd_home), etcd_home, host.prefix),
                Program(f"patroni{host.number}", ["patroni", settings], home, host.prefix),
            )
        )
    return Nodes(folder, members, password)


def _etcd_command(host: Host, hosts: Sequence[Host], folder: Path) -> list[str | Path]:
    peers = ",".join(f"etcd{each.number}={each.url('peers')}" for each in hosts)
    options = {
        "name": f"etcd{host.number}",
        "data-dir": folder / "data",
        "listen-client-urls": host.url("etcd"),
        "advertise-client-urls": host.url("etcd"),
        "listen-peer-urls": host.url("peers"),
        "initial-advertise-peer-urls": host.url("peers"),
        "initial-cluster": peers,
        "initial-cluster-token": folder.parent.name,
        "log-level": "error",
        "heartbeat-interval": "200",
        "election-timeout": "2000",
    }
    return ["etcd", "--unsafe-no-fsync", *(f"--{name}={value}" for name, value in options.items())]


def _patroni_settings(host: Host, hosts: Sequence[Host], folder: Path, password: str) -> Mapping[str, object]:
    return {
        "scope": SCOPE,
        "name": f"node{host.number}",
        "restapi": {"listen": host.at("patroni"), "connect_address": host.at("patroni")},
        "etcd3": {"hosts": [each.at("etcd") for each in hosts]},
        "watchdog": {"mode": "off"},
        "bootstrap": {
            "dcs": dict(DYNAMIC),
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
        },
        "postgresql": {
            "listen": host.at("postgres"),
            "connect_address": host.at("postgres"),
            "data_dir": str(folder / "data"),
            "bin_dir": str(programs.postgres_folder()),
            "pgpass": str(folder / "pgpass"),
            "authentication": {
                "superuser": {"username": "postgres", "password": password},
                "replication": {"username": "replicator", "password": password},
            },
            "pg_hba": [
                "host all all all scram-sha-256",
                "host replication replicator all scram-sha-256",
            ],
            "parameters": {"unix_socket_directories": "", "password_encryption": "scram-sha-256"},
        },
    }


def _is_in(pid: int, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    return False

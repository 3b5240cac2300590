"""`make bench`: measure, store the figures in measured.json, and write them into the documentation.

make bench                               everything except the largest store, the kills and the soak
make bench ARGS="compare growth --full"  parts of it; --full adds 10^7 certificates and 10^6 clusters
make bench ARGS="soak --seconds 600"
make bench ARGS="kills --kills 1000"
make bench ARGS="short_lived --users 100 --seconds 20"
make bench ARGS=peers                    step-ca and OpenBao, if they are installed
make bench ARGS=report                   only write the stored figures into docs/
"""

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench import (
    attacked,
    audit_log,
    cli,
    compare,
    console,
    flame,
    floor,
    growth,
    kills,
    loads,
    logins,
    policy,
    postgres,
    report,
    revoking,
    scaling,
    short_lived,
    signers,
    slow_postgres,
    soak,
    steps,
    tracing,
    traffic,
    webhook,
    world,
)
from bench.peers import alternatives, cfssl, djangoca
from bench.postgres import Postgres

WORK = report.ROOT / "build" / "bench"
PICTURES = report.ROOT / "docs" / "evidence" / "performance"

# Default duration of one measurement in seconds.
SECONDS = {
    "floor": 2.0,
    "steps": 6.0,
    "compare": 5.0,
    "peers": 6.0,
    "loads": 4.0,
    "growth": 4.0,
    "webhook": 10.0,
    "attacked": 20.0,
    "logins": 20.0,
    "short_lived": 300.0,
    "revoking": 20.0,
    "slow_postgres": 20.0,
    "console": 4.0,
    "tracing": 1.0,
    "audit_log": 0.0,
    "policy": 0.0,
    "signers": 0.0,
    "cli": 0.0,
    "kills": 0.0,
    "soak": 600.0,
}
USUAL = (
    "floor",
    "steps",
    "compare",
    "loads",
    "growth",
    "webhook",
    "attacked",
    "logins",
    "short_lived",
    "revoking",
    "slow_postgres",
    "console",
    "tracing",
    "audit_log",
    "policy",
    "signers",
    "cli",
)
STEPS_REQUESTS = 6000
CONNECTIONS = 64
ROUNDS = 3
KILLS = 100
CLI_ROUNDS = 25
TRACING_ROUNDS = 30


class Bench:
    """The parts of the benchmark. Each one stores its figures."""

    def __init__(self, options: argparse.Namespace, server: Postgres | None) -> None:
        self._options = options
        self._postgres = server

    def floor(self, seconds: float) -> None:
        """Measure the minimum work that any issuer has to do."""
        report.save("floor", floor.measure(seconds))

    def steps(self, seconds: float) -> None:
        """Measure where a request spends its time: a table and a flame graph."""
        store = world.prepare(WORK / "steps")
        raw = WORK / "stacks.txt"
        with world.served(store) as served:
            peer = served.taking(traffic.with_token(served.who))
            peer.load(16, 1)
            whole = peer.load(CONNECTIONS, seconds)
            sampling = flame.start_sampling(served.pid, seconds, raw)
            peer.load(CONNECTIONS, seconds + 1)
            sampling.wait()
        who = served.who
        inside = steps.measure(store.config, who.project_id, who.cluster_id, who.token, STEPS_REQUESTS)
        report.save("steps", asdict(inside) | {"served": whole.cpu_us, "rate": whole.rate})
        PICTURES.mkdir(exist_ok=True)
        title = "POST clustercert, 64 connections, SQLite: where the Python of two workers is"
        (PICTURES / "flame.svg").write_text(flame.draw(flame.read(raw.read_text()), title))

    def compare(self, seconds: float) -> None:
        """Compare this service with its peers."""
        with_djangoca = djangoca.ENVIRONMENT.exists()
        measured = compare.measure(
            WORK / "compare", seconds, self._options.rounds, self._postgres, with_djangoca=with_djangoca
        )
        report.save("compare", measured)

    def peers(self, seconds: float) -> None:
        """Compare this service with step-ca and OpenBao."""
        measured = alternatives.measure(WORK / "peers", seconds, self._options.rounds)
        report.save("peers", measured)

    def loads(self, seconds: float) -> None:
        """Measure every way to call the service."""
        report.save("loads", loads.measure(WORK / "loads", seconds, self._postgres))

    def growth(self, seconds: float) -> None:
        """Measure stores of several sizes."""
        from bench import plot  # noqa: PLC0415 - takes a second, and no other part needs it

        sizes = (*growth.SIZES, growth.LARGEST) if self._options.full else growth.SIZES
        rows = growth.measure(WORK / "growth", sizes, seconds, None)
        # It has gigabytes, and the next store needs the space.
        shutil.rmtree(WORK / "growth")
        if self._postgres:
            rows += growth.measure(WORK / "growth", sizes, seconds, self._postgres)
        report.save("growth", rows)
        PICTURES.mkdir(exist_ok=True)
        plot.growth(rows, PICTURES / "growth.png")

    def webhook(self, seconds: float) -> None:
        """Measure the authorization webhook at a steady rate, with stores of several sizes."""
        sizes = (*webhook.SIZES, webhook.LARGEST) if self._options.full else webhook.SIZES
        rows = webhook.measure(WORK / "webhook", sizes, seconds, None)
        # It has gigabytes, and the next store needs the space.
        shutil.rmtree(WORK / "webhook")
        if self._postgres:
            rows += webhook.measure(WORK / "webhook", sizes, seconds, self._postgres)
        report.save("webhook", rows)

    def attacked(self, seconds: float) -> None:
        """Measure the webhook as a process of its own under attacks, behind a proxy and without one."""
        report.save("attacked", attacked.measure(WORK / "attacked", seconds))
        report.save("exposed", attacked.measure_without_proxy(WORK / "exposed", seconds))

    def logins(self, seconds: float) -> None:
        """Measure logins by password while attackers try passwords from many addresses."""
        report.save("logins", logins.measure(WORK / "logins", seconds))

    def short_lived(self, seconds: float) -> None:
        """Measure many users whose certificates live 5 minutes."""
        measured = short_lived.measure(WORK / "short_lived", seconds, self._options.users, self._postgres)
        report.save("short_lived", measured)

    def revoking(self, seconds: float) -> None:
        """Measure reviews and issuing while the admin of another project revokes without a pause."""
        tries = revoking.MOST_TRIES if self._options.full else revoking.TRIES
        measured = revoking.measure(WORK / "revoking", seconds, tries, None)
        if self._postgres:
            more = revoking.measure(WORK / "revoking", seconds, tries, self._postgres)
            measured = {part: rows + more[part] for part, rows in measured.items()}
        report.save("revoking", measured)

    def slow_postgres(self, seconds: float) -> None:
        """Measure the webhook as a process of its own while PostgreSQL is slow."""
        if self._postgres:
            rows = slow_postgres.measure(WORK / "slow_postgres", seconds, self._postgres)
            report.save("slow_postgres", rows)

    def console(self, seconds: float) -> None:
        """Measure the console's page of a cluster, and other requests while somebody looks at it."""
        measured = console.measure(WORK / "console", seconds, None)
        if self._postgres:
            more = console.measure(WORK / "console", seconds, self._postgres)
            measured = {part: rows + more[part] for part, rows in measured.items()}
        report.save("console", measured)

    def tracing(self, seconds: float) -> None:
        """Measure what traces cost, and draw one."""
        report.save("tracing", tracing.measure(WORK / "tracing", seconds, TRACING_ROUNDS))
        picture = report.ROOT / "docs" / "tracing.svg"
        picture.write_text(tracing.example(WORK / "trace"), encoding="utf-8")

    def audit_log(self, _seconds: float) -> None:
        """Measure sealing and proofs with audit logs of several sizes."""
        sizes = (*audit_log.SIZES, *audit_log.LARGEST) if self._options.full else audit_log.SIZES
        rows = audit_log.measure(WORK / "audit_log", sizes, None)
        # It has gigabytes, and the next store needs the space.
        shutil.rmtree(WORK / "audit_log")
        if self._postgres:
            rows += audit_log.measure(WORK / "audit_log", sizes, self._postgres)
        report.save("audit_log", rows)

    def policy(self, _seconds: float) -> None:
        """Measure decisions of the policy, and the replay of recorded ones."""
        report.save("policy", policy.measure(WORK / "policy"))

    def signers(self, _seconds: float) -> None:
        """Measure the signers, and a PKCS#11 token that fails under load."""
        report.save("signers", signers.measure(WORK / "signers"))

    def cli(self, _seconds: float) -> None:
        """Measure how long commands of the client take to start."""
        report.save("cli", cli.measure(WORK / "cli", CLI_ROUNDS))

    def kills(self, _seconds: float) -> None:
        """Kill the service and stop its database under load, and check that nothing is missing."""
        report.save("kills", kills.measure(WORK / "kills", self._options.kills, self._postgres))

    def soak(self, seconds: float) -> None:
        """Run the same load for a long time."""
        report.save("soak", soak.measure(WORK / "soak", seconds))


def write_documents() -> None:
    """Write the figures into the documentation."""
    measured = report.load()
    text = report.DOCUMENT.read_text(encoding="utf-8")
    report.DOCUMENT.write_text(report.filled(text, report.performance(measured)), encoding="utf-8")
    scaling.main(["--write"])


def machine() -> dict[str, str]:
    """Describe the machine, the date and the versions."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in _lines(Path("/proc/cpuinfo"))
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = {
        "measured": datetime.now(UTC).date().isoformat(),
        "processor": f"{cpu}, {os.cpu_count()} cores, shared by servers and load generator",
        "system": f"Linux {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
        "PostgreSQL": _said([str(postgres.programs() / "postgres"), "--version"]).split()[-1],
        "cfssl": cfssl.version(),
        "load generator": " ".join(_said(["wrk", "-v"]).split()[:2]),
    }
    return versions | ({"django-ca": djangoca.version()} if djangoca.ENVIRONMENT.exists() else {})


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _said(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.stdout + ended.stderr


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description="Measure; see docs/evidence/performance.md."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join((*SECONDS, 'report'))}")
    parser.add_argument("--seconds", type=float, help="of each single measurement")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the comparison with the peers")
    parser.add_argument("--users", type=int, default=short_lived.USERS, help="with certificates of 5 minutes")
    parser.add_argument("--kills", type=int, default=KILLS, help="of the service, on each database")
    parser.add_argument(
        "--full",
        action="store_true",
        help="growth up to 10^7 certificates and 10^6 clusters, 10^5 tries to revoke",
    )
    parser.add_argument("--no-postgres", action="store_true", help="SQLite alone")
    options = parser.parse_args()
    if unknown := set(options.parts) - {*SECONDS, "report"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if "peers" in options.parts and not alternatives.installed():
        parser.exit(1, f"{alternatives.MISSING}\n")
    return options


@contextlib.contextmanager
def _server(options: argparse.Namespace) -> Iterator[Postgres | None]:
    if options.no_postgres:
        yield None
        return
    # Not in the checkout, because the unprivileged user may not enter it. Not in /tmp, which may not be on a disk.
    with (
        tempfile.TemporaryDirectory(prefix="clustercert-bench-", dir="/var/tmp") as folder,
        contextlib.ExitStack() as stack,
    ):
        Path(folder).chmod(0o711)
        yield stack.enter_context(postgres.running(Path(folder, "postgres")))


def main() -> int:
    """Run the requested parts."""
    options = _options()
    # Compile the program at its first start, as an installed one is, unless the environment forbids it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    parts = [part for part in options.parts or USUAL if part != "report"]
    if parts:
        WORK.mkdir(parents=True, exist_ok=True)
        with _server(options) as server:
            bench = Bench(options, server)
            for part in parts:
                print(f"== {part}", flush=True)
                run: Callable[[float], None] = getattr(bench, part)
                run(options.seconds or SECONDS[part])
        # The comparison of peers has a date and versions of its own.
        if parts != ["peers"]:
            report.save("machine", machine())
    write_documents()
    print(f"written into {report.DOCUMENT.relative_to(report.ROOT)} and docs/evidence/scaling.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

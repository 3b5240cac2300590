"""Generates load with wrk, in a separate process, from prepared requests."""

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import processes

_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a run.

    A response time counts from the sending of the request. wrk adds times for requests that a connection did not send
    because it was waiting: for each response that took more than twice the connection's mean interval, it adds those
    that would have been sent in that time (stats_correct in wrk 4.1's src/stats.c). With pauses there are hardly any.

    Attributes:
        rate: successful responses per second.
        mean_ms, p50_ms, p99_ms, max_ms: for all responses.
        cpu_us: processor time of the server and its database for each response, in microseconds.
        database_cpu_us: the database server's part of it, if there is one.
        errors: responses with status 400 or higher, broken and refused connections, time-outs.
    """

    connections: int
    seconds: float
    rate: float
    mean_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: float
    database_cpu_us: float
    errors: int


def run(
    url: str,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    roots: Sequence[int],
    pause_ms: float = 0,
    conversation: Path | None = None,
) -> Load:
    """Send the requests in turn over this number of connections.

    `roots` are the processes whose processor time is counted: the server's, then its database's. `pause_ms` is the mean
    pause before each request on a connection. `conversation` is a script that sends further requests after a response.
    Only its last response counts, with the time of the whole conversation.
    """
    with tempfile.NamedTemporaryFile(prefix="clustercert-bench-") as file:
        file.writelines(b"%d\n%b" % (len(request), request) for request in requests)
        file.flush()
        threads = connections if conversation else 1
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        command += ["--timeout", "10s", "-s", str(_SCRIPT), url, "--", file.name, str(pause_ms)]
        command += [str(conversation)] if conversation else []
        before = [processes.cpu_seconds(root) for root in roots]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        used = [processes.cpu_seconds(root) - start for root, start in zip(roots, before, strict=True)]
    processes.wait_until_quiet(roots)
    lines = [line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("measured ")]
    if len(lines) != 1:
        raise RuntimeError(f"wrk failed: {ended.stderr or ended.stdout}")
    return _load([int(number) for number in lines[0]], connections, used)


def _load(numbers: Sequence[int], connections: int, cpu_seconds: Sequence[float]) -> Load:
    """Convert wrk's numbers, which are microseconds and counts."""
    answers, duration, mean, p50, p99, longest, refused, broken = numbers
    return Load(
        connections=connections,
        seconds=duration / 1e6,
        rate=(answers - refused) / duration * 1e6,
        mean_ms=mean / 1e3,
        p50_ms=p50 / 1e3,
        p99_ms=p99 / 1e3,
        max_ms=longest / 1e3,
        cpu_us=sum(cpu_seconds) / max(answers, 1) * 1e6,
        database_cpu_us=sum(cpu_seconds[1:]) / max(answers, 1) * 1e6,
        errors=refused + broken,
    )

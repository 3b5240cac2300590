"""Load from a process of its own: wrk, with requests that were made ready before."""

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import processes

_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a run.

    Attributes:
        rate: good answers a second.
        p50_ms, p99_ms, max_ms: of all answers.
        cpu_us: processor time of the server and of its database for each answer, in microseconds.
        database_cpu_us: what of it the database's server used, if there is one.
        errors: answers of 400 and above, broken and refused connections, time-outs.
    """

    connections: int
    seconds: float
    rate: float
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
    pause_ms: float | None = None,
) -> Load:
    """Send the requests in turn over so many connections.

    `roots` are the processes whose time is counted, the server's first, then its database's.
    """
    with tempfile.NamedTemporaryFile(prefix="clustercert-bench-") as file:
        file.writelines(b"%d\n%b" % (len(request), request) for request in requests)
        file.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
        command += ["-s", str(_SCRIPT), url, "--", file.name, *([str(pause_ms)] if pause_ms else [])]
        before = [processes.cpu_seconds(root) for root in roots]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        used = [processes.cpu_seconds(root) - start for root, start in zip(roots, before, strict=True)]
    lines = [line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("measured ")]
    if len(lines) != 1:
        raise RuntimeError(f"wrk failed: {ended.stderr or ended.stdout}")
    return _load([int(number) for number in lines[0]], connections, used)


def _load(numbers: Sequence[int], connections: int, cpu_seconds: Sequence[float]) -> Load:
    """From wrk's numbers, which are microseconds and counts."""
    answers, duration, p50, p99, longest, refused, broken = numbers
    return Load(
        connections=connections,
        seconds=duration / 1e6,
        rate=(answers - refused) / duration * 1e6,
        p50_ms=p50 / 1e3,
        p99_ms=p99 / 1e3,
        max_ms=longest / 1e3,
        cpu_us=sum(cpu_seconds) / max(answers, 1) * 1e6,
        database_cpu_us=sum(cpu_seconds[1:]) / max(answers, 1) * 1e6,
        errors=refused + broken,
    )

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

    An answer's time counts from the sending of its request. wrk corrects these for requests that a connection did not
    send because it waited: to an answer that took more than twice the mean time between two of a connection, it adds
    those that would have come meanwhile (stats_correct in wrk 4.1's src/stats.c). With pauses there are hardly any.

    Attributes:
        rate: good answers a second.
        mean_ms, p50_ms, p99_ms, max_ms: of all answers.
        cpu_us: processor time of the server and of its database for each answer, in microseconds.
        database_cpu_us: what of it the database's server used, if there is one.
        errors: answers of 400 and above, broken and refused connections, time-outs.
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
    """Send the requests in turn over so many connections.

    `roots` are the processes whose time is counted, the server's first, then its database's. `pause_ms` is the mean of
    the pauses before each request of a connection. `conversation` is a script that goes on from each answer; an answer
    is then the last of a conversation, and its time that of all of it.
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
    """From wrk's numbers, which are microseconds and counts."""
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

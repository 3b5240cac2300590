"""Checks that the workers' memory does not grow during ten minutes at 64 connections."""

import statistics
import threading
from dataclasses import asdict
from pathlib import Path

from bench import processes, traffic, world

CONNECTIONS = 64
SAMPLES = 120
# By then, a worker has reached its normal size.
SETTLED = 0.2
MEGABYTE = 1_000_000


def measure(folder: Path, seconds: float) -> dict[str, object]:
    """Return the size of the service's largest process over time in megabytes, and the load meanwhile."""
    with world.served(world.prepare(folder)) as served:
        largest = [_largest(served.pid)]
        over = threading.Event()

        def watch() -> None:
            while not over.wait(seconds / SAMPLES):
                largest.append(_largest(served.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            load = served.taking(traffic.with_token(served.who)).load(CONNECTIONS, seconds)
        finally:
            over.set()
            watcher.join()
    settled = largest[int(len(largest) * SETTLED) :]
    half = len(settled) // 2
    return {
        **asdict(load),
        "start_mb": largest[0],
        "most_mb": max(largest),
        "first_half_mb": statistics.median(settled[:half]),
        "second_half_mb": statistics.median(settled[half:]),
    }


def _largest(pid: int) -> float:
    return max(processes.resident_bytes(pid).values()) / MEGABYTE

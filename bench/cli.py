"""Measures how long commands of the client take, as ratios to a bare `python3 -c pass` in the same run.

The service runs on the same machine, so figures with requests contain its time, a few milliseconds.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import world
from clustercert.cli.login.profile import Profile, save

# The most that a command may take, in times of a bare Python.
LIMITS = {
    "credential": 2,
    "--version": 2,
    "--help": 8,
    "status": 15,
    "clusters": 15,
    "kubeconfig get": 15,
    "certificate list": 15,
    "cluster list": 15,
}
# The installed command of this environment, without a shell around it.
PROGRAM = Path(sys.executable).with_name("clustercert")


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Run each command once in each round. Returns the median milliseconds and the ratio of each."""
    store = world.prepare(folder)
    with world.served(store, workers=1) as served:
        who = served.who
        environment = _logged_in(folder, served.url, who.project_id, who.token)
        plugin = ["credential", who.cluster_id, "--profile", "default", "--project", who.project_id]
        commands: dict[str, Sequence[str | Path]] = {
            "python3 -c pass": [sys.executable, "-c", "pass"],
            "credential": [PROGRAM, *plugin],
            "--version": [PROGRAM, "--version"],
            "--help": [PROGRAM, "--help"],
            "status": [PROGRAM, "status"],
            "clusters": [PROGRAM, "clusters"],
            "kubeconfig get": [PROGRAM, "kubeconfig", "get", who.cluster_id],
            "certificate list": [PROGRAM, "certificate", "list"],
            "cluster list": [PROGRAM, "cluster", "list"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        # The first round compiles modules, fills the plugin's cache, and does not count.
        for number in range(rounds + 1):
            for name, command in commands.items():
                seconds = _seconds(command, environment)
                if number:
                    times[name].append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    bare = medians["python3 -c pass"]
    return [
        {"command": name, "ms": median * 1000, "ratio": median / bare, "limit": LIMITS.get(name)}
        for name, median in medians.items()
    ]


def _logged_in(folder: Path, url: str, project_id: str, token: str) -> Mapping[str, str]:
    """Save a login, and return the environment that uses it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLUSTERCERT", "OS_"))}
    home = {"XDG_CONFIG_HOME": str(folder / "config"), "XDG_CACHE_HOME": str(folder / "cache")}
    save("default", Profile(url, "bench", project_id, "bench", token=token), kept | home)
    return kept | home


def _seconds(command: Sequence[str | Path], environment: Mapping[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started

"""`clustercert demo` as a separate process, controlled over HTTP and by signals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from support.wait import SECONDS

COMMAND = (sys.executable, "-m", "clustercert")


@dataclass(frozen=True)
class Demo:
    """A running demo and the report that it printed."""

    process: subprocess.Popen[str]
    data_dir: Path
    said: dict[str, Any]

    def client(self) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.said["url"],
            headers={"X-Auth-Token": self.said["token"]},
            timeout=SECONDS,
            trust_env=False,
        )

    @property
    def clustercert_path(self) -> str:
        return f"/api/v3/projects/{self.said['project_id']}/clusters/{self.said['cluster_id']}/clustercert"

    def cli(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """The command line on the demo's store, from another process."""
        return subprocess.run(
            [*COMMAND, "--data-dir", str(self.data_dir), *arguments],
            env=os.environ | {"CLUSTERCERT_KEK_FILE": str(self.data_dir / "kek")},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def kill(self) -> None:
        """SIGKILL to the server and all its workers at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)


def uncovered(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process without coverage.

    Coverage looks into a weak dictionary at each function call. An exception that a signal handler raises there is
    lost.
    """
    return {name: value for name, value in environment.items() if not name.startswith("COVERAGE_PROCESS_")}


def start(
    data_dir: Path,
    *options: str,
    env: dict[str, str] | None = None,
    command: Sequence[str | Path] = COMMAND,
    cwd: Path | None = None,
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*command, "demo", "--json", "--port", "0", "--data-dir", str(data_dir), *options],
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupted(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Standard output and standard error of a process that gets Ctrl-C.

    Sends Ctrl-C again if nothing happens. The interpreter loses an exception that the handler raises in a
    callback, such as that of a weak reference during an import.
    """
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=60)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=SECONDS)


@contextlib.contextmanager
def demo(
    data_dir: Path,
    *options: str,
    env: dict[str, str] | None = None,
    command: Sequence[str | Path] = COMMAND,
    cwd: Path | None = None,
) -> Iterator[Demo]:
    process = start(data_dir, *options, env=env, command=command, cwd=cwd)
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(process.stderr.read())
    running = Demo(process, data_dir, json.loads(line))
    try:
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(SECONDS)
            finally:
                running.kill()
        process.stdout.close()
        process.stderr.close()

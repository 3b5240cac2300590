"""One process for one worker, uvicorn's supervisor for several, and a socket that a service manager passes on."""

import collections
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from clustercert import __version__
from clustercert.cli.options import UNAVAILABLE
from clustercert.server.supervisor import DRAIN_WORKER
from support import postgres
from support.command_line import new_operator
from support.demo_process import COMMAND, Demo, demo, uncovered
from support.processes import command_line
from support.processes import workers as workers_of
from support.serve_process import environment_of, serving
from support.wait import SECONDS, eventually
from support.world import make

# As systemd passes a socket on: descriptor 3, its count, and the process's own id.
PASS_ON = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""

# A module that notes its import, then loads the installed module of its name, so that the program goes on.
RECORD_IMPORT = """
import importlib, os, pathlib, sys
pathlib.Path(f"{__file__}.imported").touch()
sys.path = [entry for entry in sys.path if os.path.abspath(entry) != os.path.dirname(__file__)]
del sys.modules[__name__]
sys.modules[__name__] = importlib.import_module(__name__)
"""


def children(running: Demo) -> set[int]:
    """The process ids of the workers."""
    return workers_of(running.process.pid)


def asked(running: Demo) -> int:
    """The status of a request over a connection of its own."""
    return httpx2.get(f"{running.said['url']}/healthz", trust_env=False, timeout=SECONDS).status_code


def test_one_worker_is_one_process(tmp_path: Path) -> None:
    with demo(tmp_path / "data") as running:
        pid = running.process.pid
        assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
        assert running.said["pid"] == pid
        assert asked(running) == 200


def test_a_worker_that_died_is_replaced(tmp_path: Path) -> None:
    with demo(tmp_path / "data", "--workers", "2") as running:
        before = children(running)
        assert len(before) == 2
        os.kill(min(before), signal.SIGKILL)
        [added] = eventually(lambda: children(running) - before)
        assert [asked(running) for _ in range(10)] == [200] * 10
        log = running.data_dir / "server.log"
        [line] = eventually(lambda: _lines(log, "worker died and was replaced"))
        assert (line["worker"], line["signal"], line["replacement"]) == (min(before), "SIGKILL", added)
        # The new worker counts it, once it has started.
        eventually(lambda: _series(running, "clustercert_workers_replaced_total") == {"": 1})
        memory = _series(running, "process_resident_memory_bytes")
        assert {str(running.process.pid), str(max(before)), str(added)} <= memory.keys()
        assert str(min(before)) not in memory
        assert all(each > 1_000_000 for each in memory.values())
        assert _series(running, "process_cpu_seconds_total").keys() == memory.keys()


def _series(running: Demo, name: str) -> dict[str, float]:
    """The values of a metric, by process id."""
    said = httpx2.get(f"{running.said['url']}/metrics", trust_env=False, timeout=SECONDS).text
    return {
        sample.labels.get("pid", ""): sample.value
        for family in text_string_to_metric_families(said)
        for sample in family.samples
        if sample.name == name
    }


def test_a_dead_worker_is_replaced_while_another_one_does_not_answer(tmp_path: Path) -> None:
    with demo(tmp_path / "data", "--workers", "2") as running:
        log, before = running.data_dir / "server.log", children(running)
        eventually(lambda: len(_lines(log, "process ready")) == 2)
        os.kill(min(before), signal.SIGSTOP)
        # Meanwhile the supervisor asks the stopped worker.
        threading.Event().wait(1.5)
        os.kill(max(before), signal.SIGKILL)
        [line] = eventually(lambda: _lines(log, "worker died and was replaced"))
        assert line["worker"] == max(before)
        assert _lines(log, "worker did not respond and was replaced") == []
        os.kill(min(before), signal.SIGCONT)
        assert asked(running) == 200


@pytest.mark.parametrize("isolated", [False, True])
def test_the_supervisor_does_not_have_the_application_in_memory(tmp_path: Path, isolated: bool) -> None:
    """Its process is that of the command, and imports nothing from the current folder either."""
    operator = new_operator(tmp_path)
    folder = tmp_path / "current"
    folder.mkdir()
    for name in ("multiprocessing", "json", "clustercert", "uvicorn"):
        (folder / f"{name}.py").write_text(RECORD_IMPORT)
    # The command of the container image runs Python with -I.
    script = Path(sys.executable).parent / "clustercert"
    command = [sys.executable, "-I", script] if isolated else [script]
    log = tmp_path / "log"
    process = subprocess.Popen(
        [*command, "--config", operator.config, "serve", "--port", "0", "--workers", "2"],
        env=uncovered() | {"CLUSTERCERT_LOG__FILE": str(log), "CLUSTERCERT_LOG__FORMAT": "json"},
        cwd=folder,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        assert any(line.startswith(b"Listening on ") for line in process.stderr)
        eventually(lambda: len(_lines(log, "process ready")) == 2)
        [resident] = re.findall(
            r"^Rss:\s+(\d+) kB", Path(f"/proc/{process.pid}/smaps_rollup").read_text(), re.MULTILINE
        )
        assert int(resident) < 40 * 1024
        assert list(folder.glob("*.imported")) == []
        for pid in (process.pid, *workers_of(process.pid)):
            assert (b"-I" in command_line(pid).split(b"\0")) == isolated
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert _lines(log, "service stopped")[0]["pid"] == process.pid
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def test_serve_fails_if_a_worker_can_not_start(tmp_path: Path) -> None:
    world = make(tmp_path)
    with serving(world, "--workers", "2") as serve:
        kek_file = world.settings().kek_file
        assert kek_file is not None
        kek_file.unlink()
        os.kill(min(workers_of(serve.process.pid)), signal.SIGKILL)
        assert serve.process.wait(SECONDS) == 1


def _lines(log: Path, event: str) -> Sequence[dict[str, Any]]:
    """The lines of a log about an event. Each line must be JSON."""
    return [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == event]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_log_says_what_starts_and_when_each_process_is_ready_and_why_it_stops(
    tmp_path: Path, workers: str
) -> None:
    with demo(tmp_path / "data", "--workers", workers) as running:
        log, pid = running.data_dir / "server.log", running.process.pid
        [start] = _lines(log, "service starting")
        assert (start["pid"], start["version"], start["role"]) == (pid, __version__, "all")
        assert start["workers"] == int(workers)
        assert len(start["settings_sha256"]) == 64
        serving = children(running) or {pid}
        eventually(lambda: {line["pid"] for line in _lines(log, "process ready")} == serving)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(SECONDS) == 0
        stops = {line["pid"]: line["signal"] for line in _lines(log, "process stopping")}
        assert stops == dict.fromkeys({pid, *serving}, "SIGTERM")
        assert _lines(log, "service stopped")[0]["pid"] == pid


def test_a_worker_that_a_signal_adds_drains_like_the_others(tmp_path: Path) -> None:
    with demo(tmp_path / "data", "--workers", "2") as running:
        before = children(running)
        running.process.send_signal(signal.SIGTTIN)
        eventually(lambda: len(children(running)) == 3)
        [added] = children(running) - before
        eventually(lambda: handles(added, DRAIN_WORKER))


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal. Source: proc_pid_status(5)."""
    [mask] = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_where_a_worker_can_not_start_all_end_and_the_service_has_failed(tmp_path: Path) -> None:
    with demo(tmp_path / "data", "--workers", "2") as running:
        (tmp_path / "data" / "kek").unlink()
        os.kill(min(children(running)), signal.SIGKILL)
        assert running.process.wait(SECONDS) == 1
        assert running.process.stderr is not None
        assert "Error: A worker could not start. See the log." in running.process.stderr.read()


def test_a_worker_that_starts_while_the_database_is_away_waits_for_it_or_for_the_end(tmp_path: Path) -> None:
    with postgres.server() as server:
        world = make(tmp_path, database_url=server.create())
        log = tmp_path / "log"

        def lines(event: str) -> int:
            return log.read_text().count(f'"event":"{event}"')

        with serving(world, "--workers", "2") as serve:
            eventually(lambda: lines("policy loaded") == 2)
            pid = serve.process.pid
            before = workers_of(pid)
            server.stop()
            os.kill(min(before), signal.SIGKILL)
            eventually(lambda: lines("database not answering: waiting to start") == 1)
            # The other worker still answers, and alone.
            assert httpx2.get(f"{serve.url}/healthz", trust_env=False, timeout=SECONDS).status_code == 200
            server.start()
            eventually(lambda: lines("policy loaded") == 3)
            assert len(workers_of(pid)) == 2
            assert max(before) in workers_of(pid)
            server.stop()
            os.kill(max(before), signal.SIGKILL)
            eventually(lambda: lines("database not answering: waiting to start") == 2)
            serve.process.send_signal(signal.SIGTERM)
            assert serve.process.wait(SECONDS) == 0


def test_an_outage_of_the_database_is_one_line_in_each_process_until_it_ends(tmp_path: Path) -> None:
    with postgres.server() as server:
        world = make(tmp_path, database_url=server.create())
        log = tmp_path / "log"
        with serving(world, "--workers", "2", LOG__LEVEL="debug") as serve:
            eventually(lambda: len(_lines(log, "process ready")) == 2)
            server.stop()
            eventually(lambda: len(_lines(log, "database unavailable")) == 2)
            # Work in the background goes on failing. At the usual level, the log does not contain these lines.
            eventually(lambda: len(_failures(log)) >= 10)
            server.start()
            eventually(lambda: len(_lines(log, "database available again")) == 2)
            eventually(
                lambda: len(_lines(log, "caches enabled again")) == len(_lines(log, "caches disabled"))
            )
            pids = workers_of(serve.process.pid)
    began, ended = _lines(log, "database unavailable"), _lines(log, "database available again")
    assert {line["pid"] for line in began} == {line["pid"] for line in ended} == pids
    assert all(line["seconds"] > 0 for line in (*ended, *_lines(log, "caches enabled again")))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    outage = lines[lines.index(began[-1]) + 1 : lines.index(ended[0])]
    # Interrupted work may say so once in each process, and the caches may be enabled before the end is noticed.
    said = collections.Counter(
        (line["event"], line.get("work"))
        for line in outage
        if line["level"] != "debug" and line["event"] != "database still unavailable"
    )
    assert {what: times for what, times in said.items() if times > len(pids)} == {}


def _failures(log: Path) -> list[dict[str, Any]]:
    """The lines about failures of background work at level debug."""
    events = ("leader election failed", "periodic work failed")
    return [line for event in events for line in _lines(log, event) if line["level"] == "debug"]


def test_serve_and_upgrade_wait_for_a_database_that_is_away_at_the_start(tmp_path: Path) -> None:
    with postgres.server() as server:
        world = make(tmp_path, database_url=server.create())
        server.stop()
        env = environment_of(world)
        upgrade, serve = (
            subprocess.Popen([*COMMAND, *command, "--wait", "1h"], env=env, stderr=subprocess.PIPE, text=True)
            for command in (("db", "upgrade"), ("serve", "--port", "0"))
        )
        try:
            for process in (upgrade, serve):
                assert process.stderr is not None
                assert process.stderr.readline() == "Waiting for the database, for up to 1 hour.\n"
            serve.send_signal(signal.SIGTERM)
            assert serve.wait(SECONDS) == 0
            server.start()
            assert upgrade.wait(SECONDS) == 0
            with serving(world, "--wait", "1h") as running:
                server.stop()
                ready = httpx2.get(f"{running.url}/readyz", trust_env=False, timeout=SECONDS)
                assert ready.status_code == 503
            late = subprocess.run(
                [*COMMAND, "serve", "--wait", "1s"],
                env=env,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            assert late.returncode == UNAVAILABLE
            assert "Error: The database does not answer." in late.stderr
        finally:
            for process in (upgrade, serve):
                process.kill()
                process.communicate(timeout=SECONDS)


def test_child_processes_import_nothing_from_the_current_folder(tmp_path: Path) -> None:
    """The installed command does not look there either. `python -m` does, so this test does not use it."""
    command = Path(sys.executable).parent / "clustercert"
    for name in ("multiprocessing", "json", "clustercert", "cryptography"):
        (tmp_path / f"{name}.py").write_text(RECORD_IMPORT)
    with demo(tmp_path / "data", "--workers", "2", command=[command], cwd=tmp_path) as running:
        assert asked(running) == 200
    assert list(tmp_path.glob("*.imported")) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_reloads_in_each_worker_and_ends_none(tmp_path: Path, workers: str) -> None:
    with demo(tmp_path / "data", "--workers", workers) as running:
        before = children(running)
        # As a terminal sends it.
        os.killpg(running.process.pid, signal.SIGHUP)
        log = running.data_dir / "server.log"
        eventually(lambda: log.read_text().count('"settings reloaded"') >= int(workers))
        assert [asked(running) for _ in range(10)] == [200] * 10
        assert children(running) == before


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [0.0, pytest.param(0.8, marks=pytest.mark.long)])
def test_a_signal_to_all_of_them_and_again_ends_them_without_a_traceback(
    tmp_path: Path, workers: str, number: signal.Signals, moment: float
) -> None:
    """As a terminal and a supervisor of services do it."""
    with demo(tmp_path / "data", "--workers", workers, env=uncovered()) as running:
        told = threading.Event()
        for worker in sorted(children(running))[:1]:
            os.kill(worker, signal.SIGKILL)
        # Meanwhile another one starts.
        told.wait(moment)
        for _ in range(3):
            os.killpg(running.process.pid, number)
            told.wait(0.02)
        assert running.process.stderr is not None
        said = running.process.stderr.read()
        assert running.process.wait(SECONDS) == 0
    assert "Traceback" not in said
    # After it, asyncio may say that the third signal cut off the closing of a connection.
    assert "Stopped.\n" in said


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_inherited_socket_is_served_on(tmp_path: Path, workers: str) -> None:
    operator = new_operator(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as passed:
        port = passed.getsockname()[1]
        serve = [*COMMAND, "--config", str(operator.config), "serve", "--workers", workers]
        process = subprocess.Popen(
            [sys.executable, "-c", PASS_ON, str(passed.fileno()), "1", *serve],
            pass_fds=[passed.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            # Who connects before the service is ready waits.
            answer = httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False, timeout=SECONDS)
            assert answer.json() == {"status": "ready"}
            large = httpx2.get(
                f"http://127.0.0.1:{port}/healthz",
                headers={"X-Large": "a" * 1_000_000},
                trust_env=False,
                timeout=SECONDS,
            )
            assert large.status_code == 431
            assert process.stderr is not None
            listening = f"Listening on http://127.0.0.1:{port}\n"
            assert listening in iter(process.stderr.readline, "")
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
            process.wait(SECONDS)
            assert process.stderr is not None
            process.stderr.close()


@pytest.mark.parametrize(
    ("count", "said"), [("2", "exactly one listening socket"), ("1", "is not a TCP socket")]
)
def test_what_is_inherited_and_can_not_be_served_on_is_refused(tmp_path: Path, count: str, said: str) -> None:
    operator = new_operator(tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as passed:
        serve = [*COMMAND, "--config", str(operator.config), "serve"]
        done = subprocess.run(
            [sys.executable, "-c", PASS_ON, str(passed.fileno()), count, *serve],
            pass_fds=[passed.fileno()],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 1
    assert said in done.stderr

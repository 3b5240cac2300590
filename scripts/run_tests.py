"""Runs the tests and closes with one line that counts them; the tests themselves live in tests/.

`make test` is what a newcomer waits for: every layer in this process on SQLite, and each promise once with its real
part where that part is cheap. `make test-all` decides about a change: every real part. `make test-long` looks for rare
things: every test of the project under coverage, those marked `long` too, with many examples.

Parts run whatever becomes of the others. Some run beside the project's own tests, because tests often wait for servers:
the vendors' clients, in their own environment; the built wheel, in a clean one; and the tests that run a second time,
on PostgreSQL. Their output is shown at the end. The exit status is 0 only if nothing failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
CLIENTS_PYTHON = ROOT / ".venvs" / "clients" / "bin" / "python"

# Promises at their real parts that `make test` can afford: PostgreSQL, servers, the vendors' SDKs for Python, kubectl.
SERVERS = ("tests/e2e/test_postgres.py", "tests/e2e/test_server.py", "tests/e2e/test_tls.py")
SDKS = ("tests/clients/test_huaweicloudsdkcce.py", "tests/clients/test_otcextensions.py")
KUBECTL = ("tests/clients/test_kubernetes.py", "tests/clients/test_exec_plugin.py")

MANY_EXAMPLES = "--hypothesis-profile=full"


@dataclass(frozen=True, slots=True)
class Part:
    """A command of a run.

    Attributes:
        title: what it tests, as a heading and in the list of what failed.
        command: its arguments; for pytest without the option that names its report.
        env: variables added to ours.
        reports: whether it is pytest, which counts its tests.
    """

    title: str
    command: Sequence[str | Path]
    env: Mapping[str, str] = field(default_factory=dict)
    reports: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """What `make NAME` runs: one part after the other, and the others beside them.

    Attributes:
        minutes: a run that takes longer hangs. CI has 90 minutes, and makes environments first.
    """

    name: str
    minutes: int
    parts: Sequence[Part]
    beside: Sequence[Part]


def own_tests(*options: str, workers: int = 3) -> list[str | Path]:
    """The arguments for Python that run tests of the project in its own environment.

    With two workers, two processors are idle for a third of the time, since tests wait for servers. Neighbours run in
    one worker, so that what a module's tests share is made once.
    """
    return ["-m", "pytest", "-q", "-n", str(workers), "--dist=worksteal", "--durations=15", *options]


def on_postgresql(*options: str) -> Part:
    """The tests that run a second time, on PostgreSQL. Without workers, the tests are collected once."""
    command = [BIN / "python", *own_tests("-k", "postgresql", *options, workers=0)]
    return Part("the project's tests on PostgreSQL", command)


def clients(*options: str) -> Part:
    """Tests with the vendors' clients, in the clients' environment."""
    command: list[str | Path] = [CLIENTS_PYTHON, "-m", "pytest", "-q", *options]
    return Part("real clients", command, {"CLUSTERCERT_BIN": str(BIN / "clustercert")})


WHEEL = Part("the built wheel", [sys.executable, "scripts/check_wheel.py"], reports=False)
FOLDERS = [f"tests/{name}" for name in ("unit", "store", "signers", "lint", "api", "cli", "browser")]
OWN = "the project's tests"
ON_SQLITE = ("-k", "not postgresql")
# An absolute path, since servers that tests start in other folders write their coverage too.
COVERED = {"COVERAGE_FILE": str(ROOT / ".coverage")}
COVERAGE = BIN / "coverage"

RUNS = (
    Run(
        "test",
        80,
        [
            Part(
                OWN,
                [BIN / "python", *own_tests("-m", "not full and not long", *ON_SQLITE, *FOLDERS, *SERVERS)],
            )
        ],
        [clients("-m", "not full", *SDKS, *KUBECTL)],
    ),
    Run(
        "test-all",
        80,
        [Part(OWN, [BIN / "python", *own_tests("-m", "not long", *ON_SQLITE)])],
        [clients("tests/clients"), WHEEL, on_postgresql("-m", "not long")],
    ),
    Run(
        "test-long",
        240,
        [
            Part("no coverage of an earlier run", [COVERAGE, "erase"], COVERED, reports=False),
            Part(OWN, [COVERAGE, "run", *own_tests(MANY_EXAMPLES, *ON_SQLITE)], COVERED),
            Part("coverage of all processes", [COVERAGE, "combine", "--quiet"], COVERED, reports=False),
            Part("coverage", [COVERAGE, "report"], COVERED, reports=False),
        ],
        [on_postgresql(MANY_EXAMPLES)],
    ),
)


@dataclass(frozen=True, slots=True)
class Count:
    """How many tests of a run passed, failed (errors too) and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: "Count") -> "Count":
        """Both runs together."""
        return Count(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)


def heading(title: str, output: TextIO | None = None) -> None:
    """Say which part comes."""
    print(f"== {title}", file=output, flush=True)


def execute(
    part: Part, folder: Path, deadline: float, output: TextIO | None = None
) -> tuple[Count, str | None]:
    """What a part counted, and its title if it failed; it writes to `output`, or where we do."""
    heading(part.title, output)
    report = folder / f"{part.title}.xml"
    command = [*part.command, f"--junitxml={report}"] if part.reports else part.command
    status = run(command, part.env, deadline, output)
    counted = count(report) if part.reports else Count()
    return counted, part.title if status or counted.failed else None


def run(command: Sequence[str | Path], env: Mapping[str, str], deadline: float, output: TextIO | None) -> int:
    """The exit status of a command, run at the root with `env` added; it writes to `output`, or where we do."""
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=output,
            stderr=output and subprocess.STDOUT,
            timeout=max(1, deadline - time.monotonic()),
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        print("stopped: it took too long", file=output, flush=True)
        return 1


def count(report: Path) -> Count:
    """What a pytest run counted. A run that died before it wrote its report counts as one failure."""
    if not report.exists():
        return Count(failed=1)
    total = Count()
    for suite in ET.parse(report).getroot().iter("testsuite"):  # noqa: S314 - pytest of this run wrote it
        failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
        skipped = int(suite.get("skipped", "0"))
        total += Count(int(suite.get("tests", "0")) - failed - skipped, failed, skipped)
    return total


def main() -> int:
    """Run them, say what failed, count."""
    parser = argparse.ArgumentParser(description="Run the tests of a target of make.")
    runs = {each.name: each for each in RUNS}
    parser.add_argument("run", choices=runs, help="which target")
    chosen = runs[parser.parse_args().run]
    deadline = time.monotonic() + chosen.minutes * 60
    # Tests start the program hundreds of times: it is compiled once, and not each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="clustercert-tests-") as name:
        folder = Path(name)
        said = folder / "said"

        def run_beside() -> list[tuple[Count, str | None]]:
            with said.open("w", encoding="utf-8") as output:
                return [execute(part, folder, deadline, output) for part in chosen.beside]

        with ThreadPoolExecutor(1) as thread:
            beside = thread.submit(run_beside)
            results = [execute(part, folder, deadline) for part in chosen.parts]
            results += beside.result()
        print(said.read_text(encoding="utf-8"), end="", flush=True)
    total = sum((counted for counted, _ in results), Count())
    failures = [title for _, title in results if title is not None]
    if failures:
        print(f"make {chosen.name}: failed: {', '.join(failures)}")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

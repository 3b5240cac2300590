"""Runs every test and closes with one line that counts them all; the tests themselves live in tests/.

Three parts, each run whatever becomes of the others: the project's own tests under coverage, and beside them the
vendors' clients in their environment and then the built wheel in a clean one, since tests wait for servers as much
as they compute. What is run beside is shown at the end. The exit status is 0 only if nothing failed.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
CLIENTS_PYTHON = ROOT / ".venvs" / "clients" / "bin" / "python"

# A run that hangs has failed; one on a busy machine is slow. The whole is meant to take ten minutes on two quiet cores.
LONGEST_SECONDS = 70 * 60


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


def run(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None, output: TextIO | None = None
) -> int:
    """The exit status of a command, run at the root with `env` added; it writes to `output`, or where we do."""
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=output,
            stderr=output and subprocess.STDOUT,
            timeout=LONGEST_SECONDS,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"stopped after {LONGEST_SECONDS} seconds", file=output, flush=True)
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


def run_own_tests(measured: Path, others: Path) -> list[str]:
    """The names of what failed: the tests, the coverage gate.

    Coverage costs two thirds of the time again, so what runs once more on PostgreSQL runs without it.
    """
    # An absolute path, since servers that tests start in other folders write their coverage too.
    env = {"COVERAGE_FILE": str(ROOT / ".coverage")}
    coverage = BIN / "coverage"
    run([coverage, "erase"], env)
    failures = []
    heading("the project's tests, under coverage")
    if run([coverage, "run", *_pytest(measured, "not postgresql")], env):
        failures.append("the project's tests")
    heading("the project's tests on PostgreSQL")
    if run([BIN / "python", *_pytest(others, "postgresql")]):
        failures.append("the project's tests on PostgreSQL")
    heading("coverage")
    if run([coverage, "combine", "--quiet"], env) or run([coverage, "report"], env):
        failures.append("coverage")
    return failures


def _pytest(report: Path, which: str) -> list[str]:
    options = ["-q", "-n", "2", "--durations=15", "-k", which, f"--junitxml={report}"]
    return ["-m", "pytest", *options]


def run_clients(report: Path, output: TextIO) -> list[str]:
    """The same, for the vendors' clients."""
    heading("real clients", output)
    command: list[str | Path] = [
        CLIENTS_PYTHON,
        "-m",
        "pytest",
        "-q",
        f"--junitxml={report}",
        "tests/clients",
    ]
    env = {"CLUSTERCERT_BIN": str(BIN / "clustercert")}
    return ["real clients"] if run(command, env, output) else []


def check_wheel(output: TextIO) -> list[str]:
    """The same, for the built wheel."""
    heading("the built wheel", output)
    return ["the built wheel"] if run([sys.executable, "scripts/check_wheel.py"], output=output) else []


def run_beside(report: Path, said: Path) -> list[str]:
    """The same, for what needs no coverage; its output goes into the file `said`."""
    with said.open("w", encoding="utf-8") as output:
        return run_clients(report, output) + check_wheel(output)


def main() -> int:
    """Run all, say what failed, count."""
    # Tests start the program hundreds of times: it is compiled once, and not each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="clustercert-tests-") as folder:
        measured, others, clients, said = (
            Path(folder, name) for name in ("measured.xml", "others.xml", "clients.xml", "said")
        )
        with ThreadPoolExecutor(1) as thread:
            beside = thread.submit(run_beside, clients, said)
            failures = run_own_tests(measured, others) + beside.result()
        print(said.read_text(encoding="utf-8"), end="", flush=True)
        total = count(measured) + count(others) + count(clients)
    if failures:
        print(f"make test: failed: {', '.join(failures)}")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped", flush=True)
    return 1 if failures or total.failed else 0


if __name__ == "__main__":
    sys.exit(main())

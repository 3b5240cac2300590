"""Runs the tests and closes with one line that counts them; the tests themselves live in tests/.

Without arguments it runs what `make test` promises: every layer in this process on SQLite, and each promise once with
the real part. With --all it runs every test, the project's own under coverage. Parts run whatever becomes of the
others. These parts run beside the project's own tests, because tests often wait for servers: the vendors' clients, in
their own environment; the built wheel, in a clean one; and, with --all, the tests that run a second time, on
PostgreSQL. Their output is shown at the end. The exit status is 0 only if nothing failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
CLIENTS_PYTHON = ROOT / ".venvs" / "clients" / "bin" / "python"

# A run that hangs has failed; one on a busy machine is slow. CI has 90 minutes, and makes environments first.
DEADLINE = time.monotonic() + 80 * 60

# What `make test` runs: these folders on SQLite and without tests marked `full`, and then the files in which a promise
# meets its real part. Real OIDC issuers are in tests/api.
FOLDERS = ("unit", "store", "signers", "lint", "api", "cli")
POSTGRESQL = ("tests/e2e/test_postgres.py",)
SERVERS = ("tests/e2e/test_server.py", "tests/e2e/test_tls.py")
KEYSTONE = ("tests/clients/test_keystone_tokens.py",)
SDKS = ("tests/clients/test_huaweicloudsdkcce.py", "tests/clients/test_otcextensions.py")
KUBECTL = ("tests/clients/test_kubernetes.py", "tests/clients/test_exec_plugin.py")

# `make test-all` tries more examples.
FULL = "--hypothesis-profile=full"


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
            timeout=max(1, DEADLINE - time.monotonic()),
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


def run_own_tests(report: Path) -> list[str]:
    """The names of what failed: what `make test` runs of the project's own tests, without coverage."""
    heading("the project's tests")
    folders = [f"tests/{folder}" for folder in FOLDERS]
    options = ["-m", "not full", "-k", "not postgresql", *folders, *POSTGRESQL, *SERVERS]
    return ["the project's tests"] if run([BIN / "python", *_pytest(report, *options)]) else []


def run_all_own_tests(report: Path) -> list[str]:
    """The names of what failed: the tests, the coverage gate."""
    # An absolute path, since servers that tests start in other folders write their coverage too.
    env = {"COVERAGE_FILE": str(ROOT / ".coverage")}
    coverage = BIN / "coverage"
    run([coverage, "erase"], env)
    failures = []
    heading("the project's tests, under coverage")
    if run([coverage, "run", *_pytest(report, FULL, "-k", "not postgresql")], env):
        failures.append("the project's tests")
    heading("coverage")
    if run([coverage, "combine", "--quiet"], env) or run([coverage, "report"], env):
        failures.append("coverage")
    return failures


def _pytest(report: Path, *options: str, workers: int = 2) -> list[str | Path]:
    return ["-m", "pytest", "-q", "-n", str(workers), "--durations=15", f"--junitxml={report}", *options]


def run_on_postgresql(report: Path, output: TextIO) -> list[str]:
    """The names of what failed: the tests that run a second time, on PostgreSQL and without coverage."""
    heading("the project's tests on PostgreSQL", output)
    command = [BIN / "python", *_pytest(report, FULL, "-k", "postgresql", workers=1)]
    return ["the project's tests on PostgreSQL"] if run(command, output=output) else []


def run_clients(report: Path, tests: Sequence[str], output: TextIO) -> list[str]:
    """The same, for the vendors' clients."""
    heading("real clients", output)
    command: list[str | Path] = [CLIENTS_PYTHON, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
    env = {"CLUSTERCERT_BIN": str(BIN / "clustercert")}
    return ["real clients"] if run(command, env, output) else []


def check_wheel(output: TextIO) -> list[str]:
    """The same, for the built wheel."""
    heading("the built wheel", output)
    return ["the built wheel"] if run([sys.executable, "scripts/check_wheel.py"], output=output) else []


def main() -> int:
    """Run them, say what failed, count."""
    parser = argparse.ArgumentParser(description="Run the tests of `make test`.")
    parser.add_argument("--all", action="store_true", help="run every test, as `make test-all`")
    everything = parser.parse_args().all
    # Tests start the program hundreds of times: it is compiled once, and not each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="clustercert-tests-") as folder:
        own, postgresql, clients, said = (
            Path(folder, name) for name in ("own.xml", "postgresql.xml", "clients.xml", "said")
        )

        def run_beside() -> list[str]:
            with said.open("w", encoding="utf-8") as output:
                if not everything:
                    return run_clients(clients, [*KEYSTONE, *SDKS, *KUBECTL], output) + check_wheel(output)
                failed = run_clients(clients, ["tests/clients"], output) + check_wheel(output)
                return failed + run_on_postgresql(postgresql, output)

        with ThreadPoolExecutor(1) as thread:
            beside = thread.submit(run_beside)
            failures = run_all_own_tests(own) if everything else run_own_tests(own)
            failures += beside.result()
        print(said.read_text(encoding="utf-8"), end="", flush=True)
        reports = [own, postgresql, clients] if everything else [own, clients]
        total = sum(map(count, reports), Count())
    if failures:
        print(f"make {'test-all' if everything else 'test'}: failed: {', '.join(failures)}")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped", flush=True)
    return 1 if failures or total.failed else 0


if __name__ == "__main__":
    sys.exit(main())

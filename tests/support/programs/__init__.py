"""Programs that tests run in a separate process."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
SECONDS = 300


def command(name: str, *arguments: object) -> list[str]:
    """The command line of `support.programs.<name>`. The working directory must be `TESTS`."""
    return [sys.executable, "-m", f"support.programs.{name}", *(str(each) for each in arguments)]


def run(name: str, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `support.programs.<name>` to its end. The caller checks the exit status."""
    return subprocess.run(
        command(name, *arguments),
        cwd=TESTS,
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

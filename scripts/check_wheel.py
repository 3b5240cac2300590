"""Builds the sdist and from it the wheel, and checks that the wheel alone is the whole service.

What the service does is tested elsewhere; here only that everything it needs is packed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
# For the demo to start and to stop; then it is killed, and its status tells.
LONGEST_SECONDS = 90


def fail(reason: str) -> NoReturn:
    """Stop here."""
    sys.exit(f"check_wheel: {reason}")


def run(command: Sequence[str | Path], folder: Path) -> str:
    """The output of a command, or the end with what it said."""
    done = subprocess.run(
        command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        fail(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def clean_environment() -> dict[str, str]:
    """Ours without what would let the checkout, its settings or a coverage run reach in."""
    ours = ("PYTHON", "COVERAGE", "CLUSTERCERT", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def build(folder: Path) -> Path:
    """The wheel, built from the sdist, so that the sdist is known to be complete too."""
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Every file of the package is in the wheel, whatever its kind, and so is the licence."""
    package = ROOT / "src" / "clustercert"
    expected = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if "__pycache__" not in path.parts and path.is_file()
    }
    packed = set(zipfile.ZipFile(wheel).namelist())
    if missing := sorted(expected - packed):
        fail(f"not in the wheel: {', '.join(missing)}")
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in packed):
        fail("the licence is not in the wheel")


def install(wheel: Path, folder: Path) -> Path:
    """The `clustercert` command of a new environment that has the runtime lock and the wheel alone."""
    run([sys.executable, "-m", "venv", folder / "venv"], folder)
    pip: list[str | Path] = [folder / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--require-hashes", "-r", ROOT / "requirements.lock"], folder)
    run([*pip, "install", "--no-deps", "--no-index", wheel], folder)
    run([*pip, "check"], folder)
    return folder / "venv" / "bin" / "clustercert"


def check_version(command: Path, wheel: Path) -> None:
    """`--version` says the wheel's version."""
    version = wheel.name.split("-")[1]
    said = run([command, "--version"], command.parent)
    if version not in said.split():
        fail(f"--version says {said.strip()!r}, the wheel is {version}")


def check_demo(command: Path, folder: Path) -> None:
    """The demo becomes ready, has issued a kubeconfig, and Ctrl-C stops it cleanly."""
    log = folder / "demo.log"
    arguments: list[str | Path] = ["demo", "--json", "--port", free_port(), "--data-dir", folder / "data"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [command, *arguments],
            cwd=folder,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as demo,
    ):
        watchdog = threading.Timer(LONGEST_SECONDS, demo.kill)
        watchdog.start()
        ready = read_object(demo)
        demo.send_signal(signal.SIGINT)
        status = demo.wait()
        watchdog.cancel()
    said = log.read_text()
    if ready is None:
        fail(f"the demo did not become ready:\n{said}")
    if status or "Traceback" in said:
        fail(f"the demo ended with status {status}, not cleanly:\n{said}")
    if not Path(str(ready["kubeconfig"])).is_file():
        fail("the demo wrote no kubeconfig")


def free_port() -> str:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def read_object(demo: subprocess.Popen[str]) -> dict[str, object] | None:
    """The JSON object that the demo prints when it is ready; None if its output ends without one."""
    said = ""
    for line in demo.stdout or ():
        said += line
        try:
            ready = json.loads(said)
        except ValueError:
            continue
        return ready if isinstance(ready, dict) else None
    return None


def main() -> None:
    """Build, check, install, start, stop."""
    with tempfile.TemporaryDirectory(prefix="clustercert-wheel-") as name:
        folder = Path(name)
        wheel = build(folder)
        check_contents(wheel)
        print(f"{wheel.name} is complete")
        command = install(wheel, folder)
        check_version(command, wheel)
        check_demo(command, folder)
        print("installed from it alone, the demo becomes ready, issues and stops")


if __name__ == "__main__":
    main()

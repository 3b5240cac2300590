"""Builds the sdist and from it the wheel, and checks the wheel in two clean environments.

One has the locked packages of the client, the other those of the service. What they do is tested elsewhere; here only
that everything they need is packed: the client logs in to a demo of the service, and gets a kubeconfig.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
# For the demo to start, to serve and to stop; then it is killed, and its status tells. A busy machine takes its time.
LONGEST_SECONDS = 600
# The index may be away for a minute.
PATIENT_PIP = {"PIP_RETRIES": "8", "PIP_DEFAULT_TIMEOUT": "60"}


def fail(reason: str) -> NoReturn:
    """Stop here."""
    sys.exit(f"check_wheel: {reason}")


def run(command: Sequence[str | Path], folder: Path, **variables: str) -> str:
    """The output of a command, or the end with what it said."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=clean_environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        fail(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def clean_environment() -> dict[str, str]:
    """Ours without what would let the checkout, its settings or a coverage run reach in."""
    ours = ("PYTHON", "COVERAGE", "CLUSTERCERT", "VIRTUAL_ENV", "OS_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return PATIENT_PIP | kept


def build(folder: Path) -> Path:
    """The wheel, built from the sdist, so that the sdist is known to be complete too."""
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Every file of the package is in the wheel, whatever its kind, and so are the licence and the SBOM."""
    package = ROOT / "src" / "clustercert"
    expected = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if "__pycache__" not in path.parts and path.is_file()
    }
    packed = set(zipfile.ZipFile(wheel).namelist())
    if missing := sorted(expected - packed):
        fail(f"not in the wheel: {', '.join(missing)}")
    for file in ("LICENSE", "NOTICE"):
        if not any(name.endswith(f".dist-info/licenses/{file}") for name in packed):
            fail(f"{file} is not in the wheel")
    if not any(name.endswith(".dist-info/sboms/clustercert.cdx.json") for name in packed):
        fail("the SBOM is not in the wheel")


def install(wheel: Path, folder: Path, lock: str) -> Path:
    """The `clustercert` command of a new environment that has the packages of a lock file and the wheel."""
    environment = folder / lock.removesuffix(".lock")
    run([sys.executable, "-m", "venv", environment], folder)
    pip: list[str | Path] = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--require-hashes", "-r", ROOT / lock], folder)
    run([*pip, "install", "--no-deps", "--no-index", wheel], folder)
    run([*pip, "check"], folder)
    return environment / "bin" / "clustercert"


def check_version(command: Path, wheel: Path) -> None:
    """`--version` says the wheel's version."""
    version = wheel.name.split("-")[1]
    said = run([command, "--version"], command.parent)
    if version not in said.split():
        fail(f"--version says {said.strip()!r}, the wheel is {version}")


def check_client(client: Path, folder: Path) -> None:
    """Help is shown without the service's packages, and commands of the service say what to install."""
    if "kubeconfig" not in run([client, "--help"], folder):
        fail("the client's --help does not name `kubeconfig`")
    for command in (["demo"], ["serve"], ["user", "list", "--local"]):
        done = subprocess.run(
            [client, *command],
            cwd=folder,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 1 or "any.whl[server]" not in done.stderr or "Traceback" in done.stderr:
            fail(f"without the service's packages, {command} ended with {done.returncode}:\n{done.stderr}")


def check_login(client: Path, ready: dict[str, object], folder: Path) -> None:
    """The client logs in to the demo, gets a kubeconfig and logs out."""
    password = folder / "password"
    password.write_text(str(ready["password"]))
    # The demo's domain has the name of its user.
    user = str(ready["user_name"])
    login = ["login", str(ready["url"]), "--user", user, "--domain", user, "--password-file", str(password)]
    run([client, *login], folder, HOME=str(folder))
    kubeconfig = run([client, "kubeconfig", "get", str(ready["cluster_id"])], folder, HOME=str(folder))
    if "client-certificate-data" not in kubeconfig:
        fail(f"the client got no kubeconfig:\n{kubeconfig}")
    run([client, "logout"], folder, HOME=str(folder))


def check_demo(command: Path, client: Path, folder: Path) -> None:
    """The demo becomes ready, has issued a kubeconfig, serves the client, and Ctrl-C stops it cleanly."""
    log = folder / "demo.log"
    arguments: list[str | Path] = ["demo", "--json", "--port", "0", "--data-dir", folder / "data"]
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
        if ready is not None:
            check_login(client, ready, folder)
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
    """Build, check, install both, start the demo, log in, stop."""
    with tempfile.TemporaryDirectory(prefix="clustercert-wheel-") as name:
        folder = Path(name)
        wheel = build(folder)
        check_contents(wheel)
        print(f"{wheel.name} is complete")
        client = install(wheel, folder, "requirements-client.lock")
        server = install(wheel, folder, "requirements.lock")
        for command in (client, server):
            check_version(command, wheel)
        check_client(client, folder)
        print("the client starts without the service's packages")
        check_demo(server, client, folder)
        print("the demo becomes ready, serves the client and stops")


if __name__ == "__main__":
    main()

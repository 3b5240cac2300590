"""deploy/*.service and *.socket: how they fit the install page, and how they belong together."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SERVICES = ("clustercert.service", "clustercert-webhook@.service")
UNITS = ("clustercert.socket", "clustercert-webhook.socket", *SERVICES)


def found(pattern: str, page: str) -> str:
    """The only match in a page."""
    [match] = re.findall(pattern, (ROOT / page).read_text(), re.MULTILINE)
    return str(match)


INSTALL = (ROOT / "docs" / "install.md").read_text()
VENV = found(r"^\$ python3 -m venv (\S+)$", "docs/install.md")
USER = found(r"^\$ useradd .* (\S+)$", "docs/install.md")
CONFIG = found(r"^settings=(\S+)$", "deploy/clustercert.sh")


def values(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", (DEPLOY / unit).read_text(), re.MULTILINE)


def test_a_reload_of_the_api_reloads_the_webhooks_too() -> None:
    """Otherwise they would judge by the groups of the former policy."""
    unit, _, _ = (DEPLOY / "clustercert-webhook@.service").read_text().partition("[Service]")
    assert "ReloadPropagatedFrom=clustercert.service" in unit.splitlines()


@pytest.mark.parametrize("unit", SERVICES)
def test_systemd_never_gives_up_starting_a_service(unit: str) -> None:
    """While its database is away, a service ends five times in ten seconds, systemd's limit."""
    [before, _] = (DEPLOY / unit).read_text().split("[Service]")
    assert "StartLimitIntervalSec=0" in before.splitlines()
    assert values(unit, "Restart") == ["always"]


@pytest.mark.parametrize("unit", SERVICES)
def test_systemd_lets_a_service_wait_for_its_database(unit: str) -> None:
    [command] = values(unit, "ExecStart")
    assert command.endswith(" --wait 10m")
    assert values(unit, "TimeoutStartSec") == ["11min"]


@pytest.mark.parametrize("unit", SERVICES)
def test_a_unit_runs_what_the_install_page_installs_with_its_files(unit: str) -> None:
    [toml] = re.findall(r"```toml\n(.*?)```", INSTALL, re.DOTALL)
    settings = tomllib.loads(toml)
    [command] = values(unit, "ExecStart")
    assert command.startswith(f"{VENV}/bin/clustercert --config {CONFIG} serve ")
    assert values(unit, "User") == values(unit, "Group") == [USER]
    assert values(unit, "StateDirectory") == [settings["data_dir"].removeprefix("/var/lib/")]
    private = str(Path(settings["kek_file"]).parent)
    (folders,) = re.findall(rf"^\$ install -d -m 0700 -o {USER} -g {USER} (.*)$", INSTALL, re.MULTILINE)
    assert folders.split() == [settings["data_dir"], private]
    hidden = [f"-{private}"] if "webhook" in unit else []
    assert values(unit, "InaccessiblePaths") == hidden


def test_roots_command_runs_what_the_units_run() -> None:
    script = (DEPLOY / "clustercert.sh").read_text().splitlines()
    assert {f"user={USER}", f"program={VENV}/bin/clustercert", f"settings={CONFIG}"} <= {*script}
    assert "$ install -m 0755 deploy/clustercert.sh /usr/local/sbin/clustercert\n" in INSTALL


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_a_unit_after_the_installation(tmp_path: Path, unit: str) -> None:
    for command in (f"{VENV}/bin/clustercert", "/bin/kill"):
        program = tmp_path / command.removeprefix("/")
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(0o755)
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for each in UNITS:
        shutil.copy(DEPLOY / each, units)
    options = (f"--root={tmp_path}", "--man=no", "--recursive-errors=no")
    path = f"/etc/systemd/system/{unit.replace('@.', '@1.')}"
    done = subprocess.run(
        ["systemd-analyze", "verify", *options, path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""docs/install.md: its commands run as they stand there, with PostgreSQL and a double of kube-apiserver."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.apiserver import ApiServer
from support.installed_demo import program
from support.page_service import TESTS, PageService, environment
from support.page_steps import ROOT, Reader, Step

PAGE = ROOT / "docs" / "install.md"
HOST = "clustercert.example.com"
URL, WEBHOOK_URL = f"https://{HOST}:8443", f"https://{HOST}:8444"
DATABASE = "postgresql+asyncpg://clustercert@db.example.com/clustercert?ssl=verify-full"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def database(stack: ExitStack) -> str:
    """The URL of an empty database on a PostgreSQL server of its own."""
    process = stack.enter_context(
        subprocess.Popen(
            [Path(program()).with_name("python"), "-m", "support.programs.postgres_server"],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    assert process.stdout is not None
    return str(json.loads(process.stdout.readline())["url"])


def test_from_an_empty_machine_to_a_colleagues_kubectl(
    apiserver: ApiServer, database: str, tmp_path: Path, stack: ExitStack
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (settings,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (documents,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (fingerprint,) = set(re.findall(r"\b[0-9a-f]{64}\b", text))
    service, home = PageService(tmp_path / "etc"), tmp_path / "home"
    service.folder.mkdir()
    home.mkdir()
    words = {
        f"DNS:{HOST}": "IP:127.0.0.1",
        DATABASE: database,
        # This machine may lack the user: tests/e2e/test_service_user.py has it, and the folder that it owns.
        "/etc/clustercert/private": str(service.folder),
        "/etc/clustercert": str(service.folder),
        "/var/lib/clustercert": str(tmp_path / "var"),
        # The service chooses its port when it starts.
        "port = 8443": "port = 0",
    }
    # As root's command on the server does.
    env = environment(home) | {"CLUSTERCERT_CONFIG": str(service.folder / "clustercert.toml")}
    reader = Reader(home, words, env)
    apiserver.bind("team:team-blue", "edit")
    (service.folder / "clustercert.toml").write_text(reader.here(settings))
    (home / "site.yaml").write_text(documents)
    (home / "admin.conf").write_text(apiserver.admin_kubeconfig().read_text())
    # A checkout is where the page's first commands run.
    (home / "deploy").symlink_to(ROOT / "deploy")

    def go_to(_step: Step) -> None:
        reader.home = service.folder

    def print_fingerprint(step: Step) -> None:
        reader.follow_step(step)
        shown = json.loads(service.run("fingerprint", "--output", "json"))
        words[fingerprint] = str(shown["fingerprint"])
        # From here on, the page is about other machines.
        reader.home = home

    def chown(step: Step) -> None:
        assert all(Path(each).stat() for each in reader.here(step.command).split()[2:])

    def check_rules(step: Step) -> None:
        if shutil.which("promtool"):
            subprocess.run(step.command.split(), cwd=home, check=True, capture_output=True)

    def log_in(step: Step) -> None:
        # The units run both roles.
        address, webhook = (stack.enter_context(service.serving(role)) for role in ("api", "webhook"))
        words.update({URL: address.url, WEBHOOK_URL: webhook.url})
        (service.folder / "clustercert.toml").write_text(reader.here(settings))
        reader.follow_step(step)

    reader.special = {
        "cd /etc/clustercert": go_to,
        "clustercert fingerprint": print_fingerprint,
        "chown clustercert /etc/clustercert/tls.key": chown,
        "promtool check rules deploy/prometheus-alerts.yaml": check_rules,
        f"clustercert login {URL} --user olga --ca-fingerprint {fingerprint}": log_in,
    }
    operators, colleague = text.split("\n## 10. The colleague\n")
    reader.follow(operators)
    control_plane = tmp_path / "var" / "control-plane"
    apiserver.trust((control_plane / "client-ca.pem").read_bytes())
    config = control_plane / "authorization-config.yaml"
    config.write_text(config.read_text().replace("/etc/kubernetes/clustercert", str(control_plane)))
    apiserver.authorize_with(config)
    apiserver.send_audit_events(control_plane)
    reader.follow_step(Step("clustercert kubernetes verify prod", ("…",)))
    alice = Reader(tmp_path / "alice", words, environment(tmp_path / "alice"))
    alice.home.mkdir()
    alice.follow(colleague)
    # Olga is still logged in.
    administration = (ROOT / "docs" / "administration.md").read_text(encoding="utf-8")
    reader.follow(administration.split("\n### Two customers with the same names\n")[1].split("\n### ")[0])

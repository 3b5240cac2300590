"""The quick starts of docs/quick-starts.md: run as they stand there, with a double of kube-apiserver."""

import re
from pathlib import Path

import pytest
import yaml

from support.apiserver import ApiServer
from support.page_service import PageService, environment, issuer, new_service
from support.page_steps import (
    PASSWORD,
    ROOT,
    Reader,
    blocks_with_output,
    section,
    steps,
)

PAGE = "docs/quick-starts.md"
# Of commands and their output, without the prose around them.
ONE_SCREEN = 45
URL = "https://clustercert.example.com:8443"
FINGERPRINT = re.compile(r"\b[0-9a-f]{64}\b")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with programs that install packages, which are installed already."""
    folder = tmp_path / "home"
    (folder / "bin").mkdir(parents=True)
    for name in ("pip", "pipx"):
        (folder / "bin" / name).write_text("#!/bin/sh\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture
def reader(home: Path, apiserver: ApiServer) -> Reader:
    for group in ("team:team-blue", "ci:deploy"):
        apiserver.bind(group, "edit")
    env = environment(home)
    env["PATH"] = f"{home / 'bin'}:{env['PATH']}"
    return Reader(home, {"https://203.0.113.10:5443": apiserver.url, "/home/alice": str(home)}, env)


@pytest.fixture
def service(apiserver: ApiServer, tmp_path: Path) -> PageService:
    folder = tmp_path / "service"
    folder.mkdir()
    return new_service(folder, apiserver)


def test_developers(service: PageService, reader: Reader) -> None:
    """With the policy of the install page."""
    service.add_user("alice", "member", PASSWORD)
    service.apply({"kind": "Group", "metadata": {"name": "team-blue"}, "spec": {"members": ["alice"]}})
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (settings,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    service.configure(settings[settings.index("[policy]") :])
    text = section(PAGE, "For developers")
    with service.serving() as address:
        reader.words |= {URL: address.url, **dict.fromkeys(FINGERPRINT.findall(text), address.fingerprint)}
        reader.follow(text)


def test_ci_jobs(service: PageService, reader: Reader, tmp_path: Path) -> None:
    text = section(PAGE, "For CI jobs")
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    deploy = reader.home / "deploy"
    deploy.mkdir()
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app"}}
    (deploy / "app.yaml").write_text(yaml.safe_dump(manifest))
    with issuer(tmp_path) as tokens:
        known = toml.replace("audiences =", f'keys_file = "{tokens["keys_file"]}"\naudiences =')
        service.configure(known)
        with service.serving() as address:
            reader.words |= {
                URL: address.url,
                **dict.fromkeys(FINGERPRINT.findall(text), address.fingerprint),
            }
            reader.env["CLUSTERCERT_TOKEN"] = tokens["gitlab"]
            reader.follow(text)
            (reader.home / "kubeconfig").unlink()
            for found in blocks_with_output("docs/login.md", "Jobs"):
                reader.follow_steps(found.steps)


@pytest.mark.parametrize("heading", ["For developers", "For operators", "For CI jobs"])
def test_each_is_one_screen(heading: str) -> None:
    assert sum(1 + len(step.printed) for step in steps(section(PAGE, heading))) <= ONE_SCREEN
    assert f"](#{heading.lower().replace(' ', '-')})" in (ROOT / PAGE).read_text(encoding="utf-8")

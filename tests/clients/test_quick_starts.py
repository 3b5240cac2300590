"""The quick starts of docs/quick-starts.md and the README: run as they stand there, with a double of kube-apiserver."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from support.apiserver import ApiServer
from support.page_service import PageService, environment, issuer, new_service
from support.page_steps import (
    PASSWORD,
    ROOT,
    Reader,
    Step,
    blocks_with_output,
    compare,
    pattern,
    section,
    steps,
)
from support.wait import eventually

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
    """The README's lines. Those of the quick start come after an operator's."""
    service.add_user("alice", "member", PASSWORD)
    service.apply({"kind": "Group", "metadata": {"name": "team-blue"}, "spec": {"members": ["alice"]}})
    settings, *_ = re.findall(r"```toml\n(.*?)```", section(PAGE, "For operators"), re.DOTALL)
    service.configure(settings[settings.index("[policy]") :])
    with service.serving() as address:
        reader.words[URL] = address.url
        reader.follow(section("README.md", "I want to use kubectl now"))


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


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_operators(reader: Reader, apiserver: ApiServer, tmp_path: Path, servers: ExitStack) -> None:
    text = section(PAGE, "For operators")
    (settings,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (documents,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    service = PageService(tmp_path / "etc")
    service.folder.mkdir()
    reader.words |= {
        "/etc/clustercert/private": str(service.folder),
        "/etc/clustercert": str(service.folder),
        "/var/lib/clustercert": str(tmp_path / "var"),
    }
    # As root's command on the server does.
    reader.env["CLUSTERCERT_CONFIG"] = str(service.folder / "clustercert.toml")
    (service.folder / "clustercert.toml").write_text(reader.here(settings))
    (reader.home / "site.yaml").write_text(documents)
    (reader.home / "admin.conf").write_text(apiserver.admin_kubeconfig().read_text())

    def serve(step: Step) -> None:
        address = servers.enter_context(service.serving())
        printed, here = service.folder / "serve", step.here(reader.words)
        # The address comes first, and then more lines.
        eventually(lambda: re.fullmatch(pattern(here.printed), printed.read_text().strip()))
        compare(step, printed.read_text(), reader.words)
        reader.words |= {URL: address.url, **dict.fromkeys(FINGERPRINT.findall(text), address.fingerprint)}
        reader.env["CLUSTERCERT_SERVER__PUBLIC_URL"] = address.url

    reader.special["clustercert serve"] = serve
    reader.follow(text)
    # Alice gets in, with what the page did.
    apiserver.trust((tmp_path / "var" / "control-plane" / "client-ca.pem").read_bytes())
    alice = Reader(tmp_path / "alice", reader.words, environment(tmp_path / "alice"))
    alice.home.mkdir()
    alice.words["/home/alice"] = str(alice.home)
    alice.env["PATH"] = reader.env["PATH"]
    alice.follow(section(PAGE, "For developers"))


@pytest.mark.parametrize("heading", ["For developers", "For operators", "For CI jobs"])
def test_each_is_one_screen(heading: str) -> None:
    blocks: Sequence[Step] = steps(section(PAGE, heading))
    assert sum(1 + len(step.printed) for step in blocks) <= ONE_SCREEN
    assert f"](#{heading.lower().replace(' ', '-')})" in (ROOT / PAGE).read_text(encoding="utf-8")

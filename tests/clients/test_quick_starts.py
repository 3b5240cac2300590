"""The quick starts of docs/quick-starts.md, run as they stand there, against the double of kube-apiserver."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from support.apiserver import ApiServer
from support.page_service import Address, PageService, environment, new_service
from support.page_steps import Step, run, section, steps

PAGE = "docs/quick-starts.md"
ONE_SCREEN = 50
PASSWORD = "correct horse battery staple"


@pytest.fixture
def service(apiserver: ApiServer, tmp_path: Path) -> PageService:
    folder = tmp_path / "service"
    folder.mkdir()
    for group, role in (("clustercert:editors", "edit"), ("ci:deploy", "edit")):
        apiserver.bind(group, role)
    return new_service(folder, apiserver)


def here(steps: Sequence[Step], words: Mapping[str, str | Path]) -> Sequence[Step]:
    """The steps with the addresses and folders of this test instead of the page's."""

    def replaced(text: str) -> str:
        for word, other in words.items():
            text = text.replace(word, str(other))
        return text

    return [Step(replaced(step.command), [replaced(line) for line in step.printed]) for step in steps]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with programs that install packages, which are installed already."""
    folder = tmp_path / "home"
    (folder / "bin").mkdir(parents=True)
    for name in ("pip", "pipx"):
        (folder / "bin" / name).write_text("#!/bin/sh\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


def follow(
    heading: str, home: Path, words: Mapping[str, str | Path], answers: Mapping[str, str], **more: str
) -> None:
    text = section(PAGE, heading)
    assert len(text.strip().splitlines()) <= ONE_SCREEN
    env = environment(home) | more
    env["PATH"] = f"{home / 'bin'}:{env['PATH']}"
    for step in here(steps(text), words):
        run(step, home, env, answers)


def addresses(address: Address, apiserver: ApiServer, home: Path) -> dict[str, str | Path]:
    return {
        "https://clustercert.example.com:8443": address.url,
        "https://203.0.113.10:5443": apiserver.url,
        "/home/alice": home,
    }


def test_developers(service: PageService, apiserver: ApiServer, home: Path) -> None:
    service.add_user("alice", "member", PASSWORD)
    with service.serving() as address:
        words = addresses(address, apiserver, home)
        follow("For developers", home, words, {"[y/N]: ": "y", "Password:": PASSWORD})

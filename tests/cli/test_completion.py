"""Completion in real shells, of commands and of names."""

import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from support.command_line import Operator
from support.operated_cluster import SERVICE_CA
from support.shells import SHELLS, Shell
from support.wait import eventually

pytestmark = pytest.mark.full
MARK = uuid.uuid4().hex[:8]
CLUSTER, PROJECT, USER, ROLE = f"zebra-{MARK}", f"quagga-{MARK}", f"okapi-{MARK}", f"keeper-{MARK}"


@pytest.fixture(scope="module")
def zoo(
    made: tuple[Operator, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Operator, str]]:
    """The service with objects of uncommon names. The user is an operator."""
    operator, _ = made
    password = tmp_path_factory.mktemp("zoo") / "password"
    password.write_text("correct horse")
    ca = operator.folder / SERVICE_CA
    operator.output("project", "create", PROJECT)
    operator.output("user", "create", USER, "--password-file", password)
    operator.create_role(ROLE)
    operator.output("role", "assign", ROLE, "--user", USER, "--project", PROJECT)
    operator.output("role", "assign", "operator", "--user", USER, "--service")
    options = ("--project", PROJECT, "--internal-url", "https://10.0.0.5:6443", "--server-ca", ca)
    operator.output("cluster", "add", CLUSTER, *options)
    yield made
    operator.output("cluster", "remove", CLUSTER, "--yes")
    operator.output("user", "delete", USER, "--yes")
    operator.output("project", "delete", PROJECT, "--yes")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables with which a shell finds this program by its name."""
    program = tmp_path / "bin" / "clustercert"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m clustercert "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLUSTERCERT", "OS_"))}
    return kept | {"PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, home: Path, environment: dict[str, str]) -> Iterator[Shell]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    with Shell(request.param, home, environment) as shell:
        load = f"clustercert completion {shell.name}"
        shell.run(f"{load} | source" if shell.name == "fish" else f"source <({load})")
        yield shell


def is_completed(shell: Shell, line: str, expected: str) -> bool:
    return shell.completed(line) == expected


def test_a_shell_completes_commands_and_names(shell: Shell, zoo: tuple[Operator, str], home: Path) -> None:
    assert shell.completed("clustercert kubeconfig unm") == "clustercert kubeconfig unmerge"
    assert shell.completed("clustercert status --pla") == "clustercert status --plain-http"
    # Without a login there are no names, and no message.
    assert shell.completed("clustercert kubeconfig get zeb") == "clustercert kubeconfig get zeb"

    operator, url = zoo
    trust = ("--ca-file", operator.folder / SERVICE_CA)
    operator.output("login", url, *trust, "--user", USER, "--password-file", home / "password")
    for line, name in {
        "clustercert kubeconfig get zeb": CLUSTER,
        "clustercert kubeconfig get x --project qua": PROJECT,
        "clustercert clusters --project=qua": PROJECT,
        "clustercert user show oka": USER,
        "clustercert role assign kee": ROLE,
        "clustercert status --profile def": "default",
    }.items():
        expected = line[:-3] + name
        # The first answer of the service may come too late for the first key.
        assert eventually(partial(is_completed, shell, line, expected)), shell.screen
    assert "rror" not in shell.screen.replace("2>/dev/null", "")

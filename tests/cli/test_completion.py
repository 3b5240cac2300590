"""Completion in real shells, of commands and of names."""

import os
import pty
import select
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from support.command_line import Operator
from support.operated_cluster import SERVICE_CA
from support.wait import SECONDS

SHELLS = {
    "bash": ("bash", "--norc", "--noprofile", "-i"),
    "zsh": ("zsh", "-f", "-i"),
    "fish": ("fish", "--no-config", "--interactive"),
}
_BASH_SETTINGS = (
    "completion-query-items 0",
    "page-completions off",
    "show-all-if-ambiguous on",
    "bell-style none",
)
_SETUP = {
    "bash": "; ".join(["PS1='ready> '", *(f"bind 'set {each}'" for each in _BASH_SETTINGS)]),
    "zsh": "PS1='ready> '; autoload -U compinit; compinit -u -D; unsetopt zle_bracketed_paste",
    "fish": "function fish_prompt; echo 'ready> '; end",
}


class Shell:
    """An interactive shell with 80 columns. `screen` has all that it wrote."""

    def __init__(self, name: str, home: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.screen = ""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            variables = {**environment, "HOME": str(home), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
            os.chdir(home)
            os.execvpe(SHELLS[name][0], SHELLS[name], variables)  # noqa: S606 - a terminal is what this is about

    def __enter__(self) -> Self:
        self.run(_SETUP[self.name])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._terminal)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def run(self, command: str) -> str:
        """Run a command line, and return what it wrote."""
        mark = f"done-{time.monotonic_ns()}"
        start = len(self.screen)
        # The mark appears in one piece only in the output.
        self.press(f"{command}; echo {mark[:4]}''{mark[4:]}\r")
        self.wait_for(lambda: mark in self.screen[start:])
        return self.screen[start:]

    def completed(self, line: str) -> str:
        """Return what the tabulator key makes of a line."""
        mark, start = f"line-{time.monotonic_ns()}", len(self.screen)
        # The shell reads the other keys when it has completed the line: go to its start, and print it.
        self.press(f"{line}\t\x01echo {mark[:4]}''{mark[4:]} \r")
        self.wait_for(
            lambda: f"{mark} " in (shown := self.screen[start:]) and "\n" in shown.split(f"{mark} ")[1]
        )
        return self.screen[start:].split(f"{mark} ")[1].partition("\r")[0].rstrip()

    def press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def wait_for(self, condition: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Read the screen until the condition holds. Raises AssertionError if it does not."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.screen
            if select.select([self._terminal], [], [], 0.2)[0]:
                self.screen += os.read(self._terminal, 65536).decode(errors="replace")


pytestmark = pytest.mark.full
MARK = uuid.uuid4().hex[:8]
CLUSTER, PROJECT, USER = f"zebra-{MARK}", f"quagga-{MARK}", f"okapi-{MARK}"


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
    operator.output("role", "assign", "member", "--user", USER, "--project", PROJECT)
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


def test_a_shell_completes_commands_and_names(shell: Shell, zoo: tuple[Operator, str], home: Path) -> None:
    assert shell.completed("clustercert kubeconfig unm") == "clustercert kubeconfig unmerge"
    assert shell.completed("clustercert status --pla") == "clustercert status --plain-http"
    # Without a login there are no names, no files instead, and no message.
    (home / "zebfile").touch()
    assert shell.completed("clustercert kubeconfig get zeb") == "clustercert kubeconfig get zeb"

    assert (
        shell.completed("clustercert kubeconfig get x --out zeb")
        == "clustercert kubeconfig get x --out zebfile"
    )

    operator, url = zoo
    trust = ("--ca-file", operator.folder / SERVICE_CA)
    operator.output("login", url, *trust, "--user", USER, "--password-file", home / "password")
    operator.output("clusters")
    for line, name in {
        "clustercert kubeconfig get zeb": CLUSTER,
        "clustercert kubeconfig get x --project qua": PROJECT,
        "clustercert clusters --project=qua": PROJECT,
        "clustercert role assign mem": "member",
        "clustercert status --profile def": "default",
    }.items():
        assert shell.completed(line) == line[:-3] + name, shell.screen
    assert "rror" not in shell.screen.replace("2>/dev/null", "")

"""Commands in an environment that has only the packages of the client."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer

import clustercert
from clustercert.cli.main import app
from clustercert.cli.terminal.output import Output
from support.remote_site import RemoteSite, remote_site

ROOT = Path(__file__).resolve().parents[2]
# Commands that print a list, and are not called `list`.
OTHER_LISTS = (
    "audit tail",
    "certificate access",
    "certificate revocations",
    "cluster ca status",
    "clusters",
    "explain",
    "status",
)
# The options without which a command shows nothing, or fails.
OPTIONS = {
    "access-key list": ["--user", "carol"],
    "certificate access": ["--cluster", "eu-de/prod"],
    "certificate list": ["--all"],
    "certificate revocations": ["--cluster", "eu-de/prod"],
    "explain": ["eu-de/prod"],
    "kubernetes token list": ["eu-de/prod"],
    "role list": ["--names"],
}
# Runs commands in one process, and prints a list of their exit codes and outputs.
DRIVER = """
import contextlib, io, json, sys
from clustercert.__main__ import main
done = []
for command in json.load(sys.stdin):
    sys.argv[1:] = command
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as exit:
            code = exit.code or 0
    for stream in (out, err):
        stream.flush()
    done.append([code, *(stream.buffer.getvalue().decode() for stream in (out, err))])
json.dump(done, sys.stdout)
"""


def lists() -> Iterator[str]:
    """The commands of the client that print a list."""

    def walk(group: Any, path: str) -> Iterator[str]:
        for name, command in getattr(group, "commands", {}).items():
            yield from walk(command, f"{path} {name}")
            if name == "list" and any(each.name == "output" for each in command.params):
                yield f"{path} {name}".strip()

    # The keys of a store are listed by a command of the service.
    yield from sorted({*walk(typer.main.get_command(app), ""), *OTHER_LISTS} - {"keys list"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteSite]:
    with remote_site(tmp_path_factory) as site:
        site.issue(site.alice)
        site.carol.output("certificate", "revoke", "--user", "alice", "--cluster", "eu-de/prod", "--yes")
        site.carol.output("kubernetes", "token", "create", "eu-de/prod")
        site.carol.output("role", "assign", "member", "--user", "carol", "--project", "eu-de")
        yield site


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of the client's lock file, and nothing else."""
    folder = tmp_path_factory.mktemp("client-packages")
    for name in re.findall(r"^([\w-]+)==", (ROOT / "requirements-client.lock").read_text(), re.MULTILINE):
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # A package of another system.
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    (folder / "clustercert").symlink_to(Path(clustercert.__file__).parent)
    return folder


def test_a_client_prints_each_list_in_each_format(site: RemoteSite, packages: Path) -> None:
    commands = [
        [*name.split(), *OPTIONS.get(name, []), "-o", form.value] for name in lists() for form in Output
    ]
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
    # Without -S, Python would find the packages of this environment.
    done = subprocess.run(
        [sys.executable, "-S", "-c", DRIVER],
        env=kept | {"HOME": str(site.carol.home), "PYTHONPATH": str(packages)},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = dict(zip(map(" ".join, commands), json.loads(done.stdout), strict=True))
    assert {line: result for line, result in results.items() if result[0] != 0} == {}
    csv = {line: out for line, (_, out, _) in results.items() if line.endswith("csv")}
    assert len(csv) == len([*lists()])
    assert {line for line, out in csv.items() if not out.endswith("\r\n")} == set()

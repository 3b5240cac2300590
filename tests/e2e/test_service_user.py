"""The commands of pages on a server as docs/install.md sets it up, with its users root, clustercert and postgres.

The key-encryption key is replaced, and the database is backed up, lost and restored.

Processes of the server see copies of /etc, /opt, /root, /run, /srv, /usr/local and /var, and have a network with
loopback alone. What they write is in memory and is lost with the last of these processes. They can't write elsewhere:
the real machine stays as it is.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.backup import commands
from support.installed_demo import program
from support.page_steps import ANSWERS, ROOT, Step, blocks, compare, run, steps
from support.processes import children
from support.wait import SECONDS, eventually, line_with

PAGE = "docs/install.md"
PASSWORD = "secret of the database"
CLUSTERS = Path("/usr/lib/postgresql")
# The service that the test starts instead of systemd.
UNITS = ("clustercert.service", "clustercert-webhook@.service")
ROOTS_PATHS = ("/backup/", "/keys/")
_COPIED = ("etc", "opt", "root", "run", "srv", "usr/local", "var")
# Prints a line when the machine is ready, and ends at the end of standard input.
_START = """
set -eu
mount -t tmpfs own-machine "$1"
shift
for folder; do
    name=$(echo "$folder" | tr / -)
    mkdir -p "$0/$name/upper" "$0/$name/work"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$0/$name/upper,workdir=$0/$name/work" "/$folder"
done
mount -t tmpfs -o mode=1777 own-machine /tmp
# The rest, such as the checkout, is the real machine's.
mount -o remount,bind,ro /
ip link set lo up
echo ready
read -r _ || true
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> str | None:
    """Why this machine can't have such a copy; None if it can."""
    if os.geteuid() != 0:
        return "needs root"
    programs = ("unshare", "nsenter", "runuser", "useradd", "ip")
    if absent := [each for each in programs if shutil.which(each, path=PATH) is None]:
        return f"needs {', '.join(absent)}"
    overlay = "mount -t overlay overlay -o lowerdir=/srv,upperdir=/mnt/u,workdir=/mnt/w /srv"
    tried = ("unshare", "--mount", "sh", "-ec", f"mount -t tmpfs none /mnt; mkdir /mnt/u /mnt/w; {overlay}")
    if subprocess.run(tried, capture_output=True, check=False).returncode != 0:
        return "needs the right to mount overlays"
    return None


pytestmark = pytest.mark.skipif(
    (reason := missing() or ("" if CLUSTERS.exists() else "needs Debian's package postgresql")) != "",
    reason=reason,
)


def typed(heading: str) -> Sequence[Step]:
    """All commands below a heading of the install page, also those that other tests leave out."""
    return [step for block in blocks(PAGE) if block.heading == heading for step in block.steps]


def toml(database: str | None) -> str:
    """The page's settings, for a database on this machine; None: SQLite."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    (settings,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (line,) = re.findall(r"^database_url = .*\n", settings, re.MULTILINE)
    url = f'database_url = "postgresql+asyncpg://clustercert@localhost/{database}"\n' if database else ""
    return str(settings.replace(line, url))


@dataclass
class OwnMachine:
    """A machine at whose shell root types commands.

    Attributes:
        pid: of a process in the machine's namespaces.
        folder: the current folder of the shell.
        variables: environment variables that root set.
    """

    pid: int
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **self.variables}

    def inside(self, *command: str) -> list[str]:
        """The arguments that run a command in the machine, in the current folder."""
        here = f'cd {shlex.quote(str(self.folder))} && exec "$@"'
        return ["nsenter", "--target", str(self.pid), "--mount", "--net", "sh", "-c", here, "sh", *command]

    def type(self, step: Step, answers: Mapping[str, str] | None = None) -> str:
        """Run a command of a page as root. It must succeed, with the output that the page shows."""
        name, exported, value = step.command.removeprefix("export ").partition("=")
        if step.command.startswith("export ") and exported:
            self.variables[name] = value
            return ""
        there = shlex.join(self.inside("bash", "-c", step.command))
        return run(Step(there, step.printed), Path("/"), self.environment, answers)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a program whose standard error the caller reads."""
        return subprocess.Popen(
            self.inside(*command),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def output(self, command: str) -> str:
        """What a command of the test prints."""
        return self.type(Step(command, ()))

    def write(self, path: str, text: str) -> None:
        """Write a file as root, with the default mode."""
        subprocess.run(self.inside("tee", path), input=text, text=True, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def own_machine(folder: Path) -> Iterator[OwnMachine]:
    """A machine that lasts for the block. `folder` is empty, and becomes the place of its files."""
    arguments = ("sh", "-c", _START, str(folder), str(folder), *_COPIED)
    holder = subprocess.Popen(
        ["unshare", "--mount", "--net", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "ready\n"
        yield OwnMachine(holder.pid, Path("/root"))
        holder.communicate()


class Server(OwnMachine):
    """The server of the install page."""

    def set_up(self, database: str | None) -> None:
        self.folder = ROOT
        for step in typed("1. User and packages"):
            # The test's own environment has the packages already.
            if "apt-get " not in step.command and "/opt/clustercert" not in step.command:
                self.type(step)
        self.install_program()
        self.output("mkdir -p /srv/backup /srv/keys && chmod 700 /srv/backup /srv/keys")
        # Root's own settings must not matter.
        self.variables |= {"PYTHONPATH": "/root", "PGPASSFILE": "/root/none", "PGHOST": "nowhere.invalid"}
        self.folder = Path("/root")
        for step in typed("2. TLS certificate with its CA"):
            self.folder = Path("/etc/clustercert") if step.command.startswith("cd ") else self.folder
            self.type(step)
        self.folder = Path("/root")
        if database:
            self.set_up_postgresql()
        self.write("/etc/clustercert/clustercert.toml", toml(database))
        for step in typed("4. Settings and the key-encryption key"):
            if database or ".pgpass" not in step.command:
                self.type(step)
        for step in typed("5. The first operator"):
            self.type(step)

    def install_program(self) -> None:
        self.output("mkdir -p /opt/clustercert/bin")
        self.write("/opt/clustercert/bin/clustercert", f'#!/bin/sh\nexec {program()} "$@"\n')
        self.output("chmod 755 /opt/clustercert/bin/clustercert")

    def error(self, command: str) -> str:
        """What a command prints that fails, on one line."""
        done = subprocess.run(
            self.inside("bash", "-c", command),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0, done.stdout
        return " ".join(done.stderr.split())

    def set_up_postgresql(self) -> None:
        """A new cluster of Debian's PostgreSQL, and step 3 of the page."""
        version = max(CLUSTERS.iterdir(), key=lambda each: float(each.name)).name
        for folder in ("/etc/postgresql", "/var/lib/postgresql", "/var/log/postgresql", "/run/postgresql"):
            self.output(f"mkdir -p {folder} && mount -t tmpfs none {folder} && chown postgres: {folder}")
        self.output(f"pg_createcluster {version} main --port 5432 --start -- --auth-host=scram-sha-256")
        for step in typed("3. PostgreSQL"):
            as_postgres = f"runuser -u postgres -- env -u PGHOST sh -c {shlex.quote(step.command)}"
            prompts = ("Enter password for new role:", "Enter it again:")
            self.type(Step(as_postgres, prompts), dict.fromkeys(prompts, PASSWORD))
        # As the page describes the line.
        self.write("/var/lib/clustercert/.pgpass", f"localhost:5432:*:clustercert:{PASSWORD}\n")

    def type(self, step: Step, answers: Mapping[str, str] | None = ANSWERS) -> str:
        # The machine has no folders /backup and /keys, but others of root.
        said = super().type(step.here({each: f"/srv{each}" for each in ROOTS_PATHS}), answers)
        return compare(step, said)

    def status(self, command: str) -> int:
        """The exit status of a command of root."""
        done = subprocess.run(
            self.inside("bash", "-c", command), env=self.environment, capture_output=True, check=False
        )
        return done.returncode

    @contextmanager
    def serving(self, unit: str) -> Iterator[None]:
        """The service as the unit of systemd runs it."""
        (command,) = re.findall(r"^ExecStart=(.*)$", (ROOT / "deploy" / unit).read_text(), re.MULTILINE)
        clean = (
            "env",
            "-i",
            f"PATH={PATH}",
            "HOME=/var/lib/clustercert",
            "runuser",
            "-u",
            "clustercert",
            "--",
        )
        process = self.start(*clean, *shlex.split(command))
        try:
            line_with(process.stderr, "Listening on")
            yield
        finally:
            for service in children(process.pid):
                os.kill(service, signal.SIGTERM)
            process.communicate(timeout=SECONDS)


@pytest.fixture(params=["clustercert", None], ids=["postgresql", "sqlite"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with own_machine(tmp_path) as machine:
        made = Server(machine.pid, machine.folder)
        try:
            made.set_up(request.param)
            yield made
        finally:
            made.output(
                "pg_ctlcluster $(pg_lsclusters -h | head -1 | cut -d' ' -f1-2) stop -m immediate || true"
            )


def keks(server: Server) -> set[str]:
    """The ids of the keys that wrap something."""
    rows = server.output("clustercert keys list --output json")
    return set(re.findall(r'"wrapped_by": "?\[?"?([0-9a-f]{16})', rows))


def test_root_replaces_the_key_backs_up_and_restores(server: Server, request: pytest.FixtureRequest) -> None:
    database = request.node.callspec.params["server"]
    name = "postgresql" if database else "sqlite"
    before = keks(server)
    for mark in ("rotate kek", "retire kek"):
        for step in section_steps("docs/keys.md", mark):
            server.type(step)
    assert keks(server).isdisjoint(before)

    server.variables |= {
        "DATABASE": "postgresql://clustercert@localhost/clustercert",
        "NEW_DATABASE": "postgresql://clustercert@localhost/restored",
    }
    del server.variables["PGHOST"]
    with server.serving("clustercert.service"):
        # The service seals the first events.
        eventually(lambda: server.status("clustercert audit verify") == 0)
        for step in commands(f"{name} backup"):
            server.type(step)
    server.output("clustercert user create lost --no-password --local")

    for step in commands(f"{name} restore"):
        if step.command.startswith("systemctl stop "):
            server.output("rm -r /etc/clustercert/private")
            if database:
                server.output("runuser -u postgres -- createdb restored --owner clustercert")
                server.write("/etc/clustercert/clustercert.toml", toml("restored"))
            else:
                server.output("rm -r /var/lib/clustercert")
        elif not step.command.startswith("systemctl start "):
            server.type(step)
    # What systemd runs can read everything.
    for unit in UNITS:
        with server.serving(unit):
            pass
    users = server.output("clustercert user list --local --output name").split()
    assert users == ["Default/olga"]


def test_roots_command_says_who_may_run_it_and_which_file_is_out_of_reach(tmp_path: Path) -> None:
    with own_machine(tmp_path) as machine:
        server = Server(machine.pid, ROOT)
        server.output("install -m 0755 deploy/clustercert.sh /usr/local/sbin/clustercert")
        no_user = server.error("clustercert --version")
        assert no_user.startswith("Error: This machine has no user clustercert."), no_user
        server.output("useradd --system --home-dir /var/lib/clustercert clustercert")
        assert "/opt/clustercert/bin/clustercert is not installed" in server.error("clustercert --version")
        server.install_program()
        assert "`sudo clustercert …`" in server.error("runuser -u nobody -- clustercert --version")
        # Nothing of root's environment but what the script names, and no other user.
        server.write("/opt/clustercert/bin/clustercert", "#!/bin/sh\nid -un; env; umask\n")
        server.variables |= {
            "PGPASSWORD": "x",
            "PYTHONPATH": "/root",
            "CLUSTERCERT_KEK_FILE": "a\nPATH=/root",
        }
        said = server.output("clustercert").splitlines()
        assert (said[0], said[-1]) == ("clustercert", "0077")
        names = {line.partition("=")[0] for line in said[1:-1]}
        assert {"PGPASSWORD", "PYTHONPATH"}.isdisjoint(names)
        assert {"HOME=/var/lib/clustercert", "CLUSTERCERT_CONFIG=/etc/clustercert/clustercert.toml"} <= {
            *said
        }
        assert {"CLUSTERCERT_KEK_FILE=a", "LANG=C.UTF-8"} <= {*said}
        server.install_program()
        server.folder = Path("/root")
        server.output(
            "chmod 700 /root; touch policy.toml; mkdir /etc/clustercert; touch /etc/clustercert/clustercert.toml"
        )
        unreadable = server.error("clustercert policy test --policy policy.toml")
        assert "The user clustercert can't enter the folder /root, which belongs to root." in unreadable


def section_steps(page: str, mark: str) -> Sequence[Step]:
    """The commands of a block between two marks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return steps(text.split(f"<!-- begin {mark} -->")[1].split(f"<!-- end {mark} -->")[0])

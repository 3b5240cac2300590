"""A machine of its own for a page that changes the system: users, packages' files, services, ports.

Its processes see copies of /etc, /opt, /root, /run, /srv, /usr/local and /var, and have a network with loopback alone.
What they write is in memory and is lost with the last of these processes. They can't write elsewhere: the real machine
stays as it is.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.page_steps import Step, run

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

"""Runs the container image with podman and runc, as unprivileged as on a hardened cluster."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.wait import SECONDS

# Nothing is writable but what a test mounts: podman would mount a tmpfs at /tmp otherwise.
RESTRICTED = (
    *("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"),
    *("--network=host", "--pull=never"),
)


@dataclass(frozen=True)
class Podman:
    """The image in a storage of its own.

    Attributes:
        image: digest of the image's manifest.
    """

    storage: Path
    image: str

    @property
    def _program(self) -> tuple[str, ...]:
        # podman keeps the exit codes of containers in the folder for temporary files.
        folders = {"--root": "root", "--runroot": "run", "--tmpdir": "tmp"}
        options = (f"{option}={self.storage / name}" for option, name in folders.items())
        return ("podman", *options, "--runtime=runc")

    def command(
        self,
        *,
        mounts: Mapping[Path, str] | None = None,
        variables: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """The command that runs the image, for its arguments to follow. Mounts are read-write."""
        volumes = (f"--volume={host}:{inside}" for host, inside in (mounts or {}).items())
        values = (f"--env={name}={value}" for name, value in (variables or {}).items())
        return (
            *(*self._program, "run", "--rm", *RESTRICTED, *volumes, *values, *options),
            f"localhost/clustercert@{self.image}",
        )

    def python(self, code: str) -> tuple[str, ...]:
        """The command that runs code with the image's Python."""
        return (*self.command(options=["--entrypoint=/usr/bin/python3.13"]), "-I", "-c", code)

    def load(self, archive: Path) -> str | None:
        """Load the image. Returns why containers can't be run here, or None."""
        for missing in ("podman", "runc"):
            if shutil.which(missing) is None:
                return f"{missing} is not installed"
        self._run("load", "--quiet", "--input", str(archive))
        started = run((*self.command(), "--version"))
        return None if started.returncode == 0 else f"podman can't run containers here: {started.stderr}"

    def delete(self) -> None:
        """Delete the image, and unmount what podman has mounted.

        `podman system reset` would also delete what other processes with another storage share.
        """
        self._run("rm", "--all", "--force")
        self._run("rmi", "--all", "--force")
        run(("umount", str(self.storage / "root" / "overlay")))

    def _run(self, *arguments: str) -> None:
        run((*self._program, *arguments)).check_returncode()


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    # podman warns of the cgroups of some machines on standard error.
    env = os.environ | {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)

"""Runs a pod of the Helm chart on this machine: its volumes are folders, and its containers run in bubblewrap.

As with a kubelet, the root file system is read-only, the user is 65532 without capabilities, and files of ConfigMaps
and Secrets are links that are replaced together. The program comes from this checkout instead of from an image.
"""

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.helm_chart import ROOT, Document, Release
from support.kubernetes_volumes import USER, give_to_group, project
from support.processes import children
from support.wait import SECONDS, eventually

_PROGRAM = (sys.executable, "-m", "clustercert")
_UNPRIVILEGED = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all", "--bounding-set=-all"),
)
# The other folders come from volumes, or the container has none.
_NOT_IN_IMAGE = {"dev", "etc", "lost+found", "mnt", "proc", "run", "sys", "tmp", "var"}

# The content of the keys of Secrets and ConfigMaps, by name.
Objects = Mapping[str, Mapping[str, bytes]]


def missing() -> str | None:
    """Why this machine can't run pods, or None."""
    if os.geteuid() != 0:
        return "only root can become another user"
    for program in ("bwrap", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    readable = [*_UNPRIVILEGED, *_PROGRAM, "--version"]
    if subprocess.run(readable, capture_output=True, check=False, cwd="/").returncode != 0:
        return f"the user {USER} can't run the program in {ROOT}"
    return None


@dataclass(frozen=True)
class Running:
    """A container that listens."""

    port: int
    log: Path


class Pod:
    """The pod of a release that has this container. `objects`: what the release only names."""

    def __init__(self, release: Release, container: str, folder: Path, objects: Objects) -> None:
        [self._spec] = (
            pod["spec"]
            for pod in release.pods
            if any(each["name"] == container for each in pod["spec"]["containers"])
        )
        self._folder, self._objects, self._updates = folder, objects, 0
        folder.mkdir(exist_ok=True)
        for above in (folder, *folder.parents):
            # Temporary folders are only for the user who runs the tests.
            if above.stat().st_uid == os.geteuid() and above != Path("/"):
                above.chmod(above.stat().st_mode | 0o011)
        claims = [
            each["metadata"]["name"]
            for one in release.of_kind("StatefulSet")
            for each in one["spec"]["volumeClaimTemplates"]
        ]
        for name in claims + [each["name"] for each in self._spec["volumes"] if "emptyDir" in each]:
            self._folder.joinpath(name).mkdir()
            give_to_group(self._folder / name, 0o2775)
        self.update(release)

    def update(self, release: Release) -> None:
        """Replace the files of all ConfigMaps and Secrets, as a kubelet does after a change."""
        self._updates += 1
        rendered = {
            each["metadata"]["name"]: {name: text.encode() for name, text in each["data"].items()}
            for each in release.of_kind("ConfigMap")
        }
        for volume in self._spec["volumes"]:
            if "configMap" in volume:
                name = volume["configMap"]["name"]
                content = rendered.get(name) or self._objects[name]
                project(self._folder / volume["name"], content, 0o644, self._updates)
            elif "secret" in volume:
                secret = volume["secret"]
                content = self._objects[secret["secretName"]]
                project(self._folder / volume["name"], content, secret["defaultMode"], self._updates)

    def initialise(self) -> None:
        """Run the init containers."""
        for container in self._spec["initContainers"]:
            command = self._command(container, container["args"])
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[Running]:
        """A container, on any free port. It ends with SIGTERM, and must then exit with 0."""
        container, log = self._container(name), self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(container, [*container["args"], "--port", "0"]),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(lambda: process.poll() is not None or "Listening on" in log.read_text())
            listening = re.search(r"Listening on https?://0\.0\.0\.0:(\d+)", log.read_text())
            assert listening, log.read_text()
            yield Running(int(listening[1]), log)
            [child] = children(process.pid)
            os.kill(child, signal.SIGTERM)
            assert process.wait(SECONDS) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()

    def exec_command(self, name: str) -> Sequence[str]:
        """What `kubectl exec POD -c NAME -- clustercert` runs; further arguments follow."""
        return self._command(self._container(name), ())

    def _container(self, name: str) -> Document:
        [found] = (each for each in self._spec["containers"] if each["name"] == name)
        return dict(found)

    def _command(self, container: Document, arguments: Sequence[str]) -> list[str]:
        command = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--clearenv"]
        for top in sorted(Path("/").iterdir()):
            if top.is_symlink():
                command += ["--symlink", str(top.readlink()), str(top)]
            elif top.is_dir() and top.name not in _NOT_IN_IMAGE:
                command += ["--ro-bind", str(top), str(top)]
        command += ["--proc", "/proc", "--dev", "/dev"]
        paths = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        for above in sorted({above for path in paths for above in path.parents} - {Path("/")}):
            command += ["--perms", "0755", "--dir", str(above)]
        for mount in container["volumeMounts"]:
            bind = "--ro-bind" if mount.get("readOnly") else "--bind"
            command += [bind, str(self._folder / mount["name"]), mount["mountPath"]]
        if ROOT.is_relative_to(tempfile.gettempdir()):
            command += ["--ro-bind", str(ROOT), str(ROOT)]
        for variable in container["env"]:
            command += ["--setenv", variable["name"], self._value(variable)]
        command += ["--setenv", "PATH", "/usr/bin:/bin", "--remount-ro", "/", "--chdir", "/"]
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            command += ["--cap-add", capability]
        return [*command, "--", *_UNPRIVILEGED, *_PROGRAM, *arguments]

    def _value(self, variable: Document) -> str:
        if "value" in variable:
            return str(variable["value"])
        reference = variable["valueFrom"]["secretKeyRef"]
        return self._objects[reference["name"]][reference["key"]].decode()


def new_kek() -> bytes:
    """As `openssl rand -base64 32`."""
    return base64.b64encode(os.urandom(32)) + b"\n"

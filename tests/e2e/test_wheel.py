"""`make wheel` in a fresh clone, and the installation of the wheel with hashes, as CI jobs do it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from support.page_steps import ROOT, Step, blocks_with_output, compare, run
from support.wait import SECONDS


@pytest.mark.full
@pytest.mark.skipif(
    not (shutil.which("git") and (ROOT / ".git").exists()), reason="needs git, and a checkout of it"
)
def test_the_wheel_of_a_fresh_clone_is_installed_with_hashes(tmp_path: Path) -> None:
    (page,) = blocks_with_output("docs/recipes.md", "Give jobs the client")
    (making,) = page.steps
    wheels = []
    # Other rights, another time zone and another folder change no byte.
    for name, shell, zone in (("one", "umask 022", "UTC"), ("two", "umask 077", "Pacific/Auckland")):
        subprocess.run(("git", "clone", "--quiet", ROOT, tmp_path / name), check=True)
        here = Step(f"{shell}; {making.command}", making.printed)
        # Under another make, this one would print its folder.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        env = {**kept, "TZ": zone, "HOME": str(tmp_path)}
        said = run(here, tmp_path / name, env).splitlines()[-1]
        digest, file = said.split()
        wheels.append(f"file://{tmp_path / name / file}#sha256={digest}")
    compare(making, said)
    first, second = wheels
    assert first.partition("#")[2] == second.partition("#")[2]

    script = (ROOT / "deploy/ci/gitlab/templates/kubeconfig.yml").read_text().split("\n---\n")[1]
    (installing,) = (
        each for each in yaml.safe_load(script)[".clustercert"]["before_script"] if "pip" in each
    )
    without_hash, wrong = first.partition("#")[0], first[:-1] + ("0" if first[-1] != "0" else "1")
    lock = str(ROOT / "requirements-client.lock")
    for number, (package, requirements, fault) in enumerate(
        (
            (without_hash, lock, "Hashes are required"),
            (wrong, lock, "DO NOT MATCH THE HASHES"),
            (first, "", "Hashes are required|must have their versions pinned"),
            (first, lock, None),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "folder": str(folder), "PACKAGE": package}
        env |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
        done = subprocess.run(
            ["bash", "-e", "-c", f"{installing}\nclustercert --version"],
            env=env | {"REQUIREMENTS": requirements},
            capture_output=True,
            text=True,
            timeout=5 * SECONDS,
            check=False,
        )
        if fault is None:
            assert done.stdout.startswith("clustercert "), done.stderr
        else:
            assert (done.returncode, done.stdout) == (1, "")
            assert re.search(fault, done.stderr), done.stderr

"""Client and service work with the lowest versions of their direct dependencies that pyproject.toml allows."""

import itertools
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.check_wheel import build, check_demo, clean_environment
from scripts.image import UV
from support.page_steps import ROOT

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not UV.exists(), reason="uv is not in .venvs/uv: run `make uv`"),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Migrations run only in Alembic's environment.
IMPORT_ALL = """
import importlib, pkgutil, clustercert
for module in pkgutil.walk_packages(clustercert.__path__, "clustercert."):
    if ".migrations." not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def run(*command: str | Path) -> str:
    """The output of a command that reads nothing from this checkout's environment."""
    env = clean_environment() | {"UV_SYSTEM_CERTS": "true"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def lowest(folder: Path, wheel: Path, requirements: Sequence[str]) -> Path:
    """The programs of a new environment with the lowest versions of these that fit together, and the wheel."""
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    install = (UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python")
    run(*install, "--resolution", "lowest-direct", *requirements)
    run(*install, "--no-deps", "--no-index", wheel)
    run(UV, "pip", "check", "--quiet", "--python", folder / "bin" / "python")
    return folder / "bin"


def versions(programs: Path) -> dict[str, str]:
    lines = run(UV, "pip", "freeze", "--quiet", "--python", programs / "python").splitlines()
    return dict(line.lower().split("==") for line in lines if "==" in line)


def test_the_lowest_client_gets_a_kubeconfig_from_the_lowest_service(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    needs: list[str] = PROJECT["dependencies"]
    client = lowest(tmp_path / "client", wheel, needs)
    installed = versions(client)
    for requirement in map(Requirement, needs):
        (bound,) = (each.version for each in requirement.specifier if each.operator == ">=")
        assert f"{installed[canonicalize_name(requirement.name)]}.".startswith(f"{bound}."), requirement
    service = lowest(tmp_path / "service", wheel, [*needs, *itertools.chain(*EXTRAS.values())])
    run(service / "python", "-c", IMPORT_ALL)
    check_demo(service / "clustercert", client / "clustercert", tmp_path)

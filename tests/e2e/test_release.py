"""A release is made and verified with the commands in SECURITY.md."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from clustercert import __version__
from scripts import image, sbom, site
from support.page_steps import ROOT, Reader, Step, compare, in_a_shell, section, steps
from support.publication import ADDRESSES, write_addresses

pytestmark = pytest.mark.full
ARCHITECTURE = "amd64"
MAINTAINER = "Maintainer <maintainer@example.com>"
# The longest step builds the release again, and makes the environments for it.
SECONDS = 1200
EXPECTED = {
    "SHA256SUMS",
    f"clustercert-{__version__}-{ARCHITECTURE}.cdx.json",
    f"clustercert-{__version__}-{ARCHITECTURE}.oci.tar",
    f"clustercert-{__version__}-docs.tar.gz",
    f"clustercert-{__version__}-py3-none-any.whl",
    f"clustercert-{__version__}.cdx.json",
    f"clustercert-{__version__}.tar.gz",
    f"clustercert-chart-{__version__}.tgz",
}


def shell(command: str, folder: Path, env: Mapping[str, str]) -> str:
    status, said = in_a_shell(command, folder, env, SECONDS)
    assert status == 0, f"{command}\n{said}"
    return said


def keyring(folder: Path) -> dict[str, str]:
    """The variables of somebody with an empty GnuPG home."""
    folder.mkdir(mode=0o700)
    # What the rebuilt source runs must not count as covered: its files are gone when the report is written.
    left_out = ("COVERAGE_PROCESS_", "GIT_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {
        **kept,
        "GNUPGHOME": str(folder),
        "GIT_CONFIG_GLOBAL": str(folder / "gitconfig"),
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture
def keyrings() -> Iterator[Path]:
    """A folder for GnuPG homes with a short path, since it has sockets of agents."""
    with tempfile.TemporaryDirectory(prefix="gnupg-") as folder:
        yield Path(folder)
        for home in Path(folder).iterdir():
            subprocess.run(
                ("gpgconf", "--kill", "all"), env={**os.environ, "GNUPGHOME": str(home)}, check=True
            )


def copy_checkout(repository: Path) -> None:
    """Copy the files of this checkout that Git knows, with their present content."""
    listed = subprocess.run(("git", "ls-files", "-z"), cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().rstrip("\0").split("\0"):
        source, copied = ROOT / name, repository / name
        if source.is_symlink() or source.exists():
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copied, follow_symlinks=False)


@pytest.mark.skipif(
    not (
        image.UV.exists()
        and site.PYTHON.exists()
        and all(map(shutil.which, ("gpg", "git", "apt-get", "dpkg-deb")))
    ),
    reason="needs Git, apt, and what `make gnupg uv site-tools` installs",
)
def test_a_stranger_verifies_and_rebuilds_a_release(tmp_path: Path, keyrings: Path) -> None:
    making, verifying = section("SECURITY.md", "Releases").split("### Verify a release\n")

    # The maintainer, with the environments of this checkout.
    maintainer = keyring(keyrings / "maintainer")
    repository = tmp_path / "maintainer"
    copy_checkout(repository)
    (repository / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n- An entry.\n")
    write_addresses(repository, ADDRESSES)
    (repository / ".venvs").symlink_to(ROOT / ".venvs")
    generate = f"gpg --batch --passphrase '' --quick-generate-key '{MAINTAINER}' ed25519 sign never"
    commit = "git add . && git commit --quiet --message"
    for command in (
        generate,
        "git config --global user.name Maintainer && git config --global user.email maintainer@example.com",
        f"git init --quiet && {commit} 'Prepare the release'",
        f"{sys.executable} -m scripts.release",
        f"{commit} 'Date the release'",
    ):
        shell(command, repository, maintainer)
    for step in steps(making):
        shell(step.command.replace("0.1.0", __version__), repository, maintainer)
    dist = repository / "dist"
    assert {path.name for path in dist.iterdir()} == EXPECTED
    built = json.loads((dist / f"clustercert-{__version__}.cdx.json").read_bytes())
    assert built["components"] == sbom.document(ROOT, __version__)["components"]

    # The stranger, with other rights for new files and in another time zone.
    stranger = keyring(keyrings / "stranger") | {"TZ": "Pacific/Auckland", "HOME": str(tmp_path)}
    downloads = tmp_path / "downloads"
    shutil.copytree(dist, downloads)
    (downloads / "SHA256SUMS").unlink()
    shell(f"gpg --export --armor > {downloads}/maintainers.asc", repository, maintainer)
    shell("git clone --quiet ../maintainer repository", downloads, stranger)

    words = {"0.1.0": __version__, "python3.13": str(Path(sys.executable).resolve())}

    def take_minutes(step: Step) -> None:
        compare(step, shell(f"umask 077; {step.here(words).command}", downloads, stranger), words)

    slow = (each for each in steps(verifying) if " make " in each.command or "pip install" in each.command)
    Reader(downloads, words, stranger, {step.command: take_minutes for step in slow}).follow(verifying)
    rebuilt = downloads / f"clustercert-{__version__}" / "dist"
    assert {path.name for path in rebuilt.iterdir()} == EXPECTED
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in rebuilt.iterdir()}
    assert hashes == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.iterdir()}

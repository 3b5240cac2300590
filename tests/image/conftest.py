"""The image, built once for the same source."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from scripts import image as builder
from support.container import Podman
from support.image_archive import ImageArchive, read_archive

BUILDS = builder.ROOT / "build" / "image"
# What the image is built from, beside Debian's packages.
SOURCES = (
    "pyproject.toml",
    "publication.toml",
    "component-licenses.json",
    "README.md",
    "LICENSE",
    "NOTICE",
    "requirements*.lock",
    "scripts/*.py",
    "src/**/*",
)


def _source_digest() -> str:
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(builder.ROOT.glob(pattern)):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{path.relative_to(builder.ROOT)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def archive() -> ImageArchive:
    """The archive that `make image` builds, from this source."""
    for program in ("apt-get", "dpkg-deb", str(builder.UV)):
        if shutil.which(program) is None:
            pytest.skip(f"the image can't be built without {program}")
    folder = BUILDS / _source_digest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (BUILDS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not any(folder.glob("*.tar")):
            for old in BUILDS.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            subprocess.run(
                (sys.executable, "-m", "scripts.image", "--out", folder), cwd=builder.ROOT, check=True
            )
    (path,) = folder.glob("*.tar")
    return read_archive(path)


@pytest.fixture(scope="session")
def podman(archive: ImageArchive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """podman, with the image loaded. Skips the test where podman can't run containers."""
    loaded = Podman(tmp_path_factory.mktemp("podman"), archive.digest)
    reason = loaded.load(archive.path)
    try:
        if reason is not None:
            pytest.skip(reason)
        yield loaded
    finally:
        if reason is None:
            loaded.delete()

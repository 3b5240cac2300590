"""Builds the sdist, the wheel and the SBOM. The same source and the same time stamp give the same files."""

import os
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path

from scripts.build_error import BuildError


def build(source: Path, out: Path, moment: datetime) -> None:
    """Build `source` into the folder `out`, with `moment` as time stamp of all files.

    Raises BuildError with the messages of the build if it fails.
    """
    done = subprocess.run(
        # Without isolation, the build uses the locked packages. The wheel is built from the sdist.
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        env=os.environ | {"SOURCE_DATE_EPOCH": str(int(moment.timestamp()))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"The sdist and the wheel can't be built:\n{done.stdout.rstrip()}")
    (wheel,) = out.glob("*.whl")
    name, version, *_ = wheel.name.split("-")
    with zipfile.ZipFile(wheel) as archive:
        sbom = archive.read(f"{name}-{version}.dist-info/sboms/{name}.cdx.json")
    (out / f"{name}-{version}.cdx.json").write_bytes(sbom)

"""Builds a release into dist/: sdist, wheel, SBOM and checksums. Publishes nothing. `make release` runs it.

The first run for a version also gives the entries under Unreleased in CHANGELOG.md a heading with that version and
today's date. All time stamps in the files are that date, so the same source gives the same files at any time.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, date, datetime, time
from pathlib import Path

from clustercert import __version__

ROOT = Path(__file__).resolve().parent.parent
CHANGELOG = "CHANGELOG.md"
UNRELEASED = "## [Unreleased]\n"
CHECKSUMS = "SHA256SUMS"


class ReleaseError(Exception):
    """The release cannot be built from this source."""


def add_section(changelog: str, version: str, day: date) -> str:
    """Return the change log with all entries under Unreleased moved to a section for `version`."""
    if UNRELEASED not in changelog:
        raise ReleaseError(
            f"{CHANGELOG} has no line {UNRELEASED.strip()!r}. Add it above the latest version."
        )
    if not _unreleased(changelog):
        raise ReleaseError(f"{CHANGELOG} has no entries for {version}. Add them under Unreleased.")
    return changelog.replace(UNRELEASED, f"{UNRELEASED}\n## [{version}] - {day}\n", 1)


def release_day(changelog: str, version: str) -> date | None:
    """Return the date of the section for `version`, or `None` if there is no such section yet."""
    heading = re.search(rf"^## \[{re.escape(version)}\] - (\S+)$", changelog, re.MULTILINE)
    if heading is None:
        return None
    if _unreleased(changelog):
        raise ReleaseError(
            f"{CHANGELOG} already has a section for {version}, and entries under Unreleased. "
            "Raise __version__ in src/clustercert/__init__.py."
        )
    return date.fromisoformat(heading[1])


def _unreleased(changelog: str) -> str:
    return changelog.partition(UNRELEASED)[2].partition("\n## ")[0].strip()


def prepare(root: Path, version: str, today: date) -> date:
    """Add the section for `version` to the change log unless it is there. Returns its date."""
    path = root / CHANGELOG
    changelog = path.read_text(encoding="utf-8")
    if day := release_day(changelog, version):
        return day
    path.write_text(add_section(changelog, version, today), encoding="utf-8")
    print(f"{CHANGELOG} now has a section for {version}")
    return today


def midnight(day: date) -> datetime:
    """Return the time stamp of all files of a release of that day."""
    return datetime.combine(day, time(tzinfo=UTC))


def build(source: Path, out: Path, moment: datetime) -> list[Path]:
    """Build the files of a release into `out`, with `moment` as time stamp. Returns their paths, sorted by name."""
    subprocess.run(
        # Without isolation, the build uses the locked packages. The wheel is built from the sdist.
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        env=os.environ | {"SOURCE_DATE_EPOCH": str(int(moment.timestamp()))},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    (wheel,) = out.glob("*.whl")
    name, version, *_ = wheel.name.split("-")
    with zipfile.ZipFile(wheel) as archive:
        sbom = archive.read(f"{name}-{version}.dist-info/sboms/{name}.cdx.json")
    (out / f"{name}-{version}.cdx.json").write_bytes(sbom)
    files = sorted(out.iterdir())
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (out / CHECKSUMS).write_text(sums, encoding="utf-8")
    return sorted(out.iterdir())


def check_committed(root: Path) -> None:
    """Raise ReleaseError if the source differs from the last commit. Only the change log may differ."""
    if not (root / ".git").exists():  # an unpacked sdist
        return
    command = ("git", "status", "--porcelain")
    status = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    if changed := [line for line in status.splitlines() if not line.endswith(f" {CHANGELOG}")]:
        raise ReleaseError("These files differ from the last commit. Commit them:\n" + "\n".join(changed))


def main() -> None:
    """Check, prepare, build."""
    out = ROOT / "dist"
    try:
        check_committed(ROOT)
        day = prepare(ROOT, __version__, datetime.now(UTC).date())
    except ReleaseError as error:
        sys.exit(f"make release: {error}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for path in build(ROOT, out, midnight(day)):
        print(path.relative_to(ROOT))
    print(f"Nothing is published. SECURITY.md lists the next steps for version {__version__} of {day}.")


if __name__ == "__main__":
    main()

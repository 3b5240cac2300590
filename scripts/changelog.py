"""The sections of CHANGELOG.md, and the day of a release."""

import re
from datetime import UTC, date, datetime, time
from pathlib import Path

from scripts.build_error import BuildError

CHANGELOG = "CHANGELOG.md"
UNRELEASED = "## [Unreleased]\n"


class ReleaseError(BuildError):
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


def release_day(root: Path, version: str) -> date | None:
    """Return the date of the section for `version`, or `None` if there is no such section yet.

    Raises ReleaseError if there are later entries, or if the date is not one.
    """
    changelog = (root / CHANGELOG).read_text(encoding="utf-8")
    heading = re.search(rf"^## \[{re.escape(version)}\] - (\S+)$", changelog, re.MULTILINE)
    if heading is None:
        return None
    if _unreleased(changelog):
        raise ReleaseError(
            f"{CHANGELOG} already has a section for {version}, and entries under Unreleased. "
            "Raise __version__ in src/clustercert/__init__.py."
        )
    try:
        return date.fromisoformat(heading[1])
    except ValueError:
        raise ReleaseError(
            f"{CHANGELOG}: the date of {version} is {heading[1]!r}. Write it as YYYY-MM-DD."
        ) from None


def _unreleased(changelog: str) -> str:
    return changelog.partition(UNRELEASED)[2].partition("\n## ")[0].strip()


def prepare(root: Path, version: str, today: date) -> date:
    """Add the section for `version` to the change log unless it is there. Returns its date."""
    if day := release_day(root, version):
        return day
    path = root / CHANGELOG
    path.write_text(add_section(path.read_text(encoding="utf-8"), version, today), encoding="utf-8")
    print(f"{CHANGELOG} now has a section for {version}")
    return today


def midnight(day: date) -> datetime:
    """Return the time stamp of all files of a release of that day."""
    return datetime.combine(day, time(tzinfo=UTC))

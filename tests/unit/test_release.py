"""What `make release` does before it builds: the change log and the state of the source."""

import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from scripts import changelog, release

DAY = date(2026, 12, 1)
BEFORE = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [0.0.9] - 2026-01-01\n\n- Old.\n"
AFTER = BEFORE.replace("## [Unreleased]\n", "## [Unreleased]\n\n## [0.1.0] - 2026-12-01\n")


def test_unreleased_entries_get_a_heading_with_version_and_date(tmp_path: Path) -> None:
    path = tmp_path / "CHANGELOG.md"
    path.write_text(BEFORE)
    assert changelog.prepare(tmp_path, "0.1.0", DAY) == DAY
    assert path.read_text() == AFTER


def test_building_a_version_again_keeps_its_date(tmp_path: Path) -> None:
    path = tmp_path / "CHANGELOG.md"
    path.write_text(AFTER)
    assert changelog.prepare(tmp_path, "0.1.0", date(2027, 1, 1)) == DAY
    assert path.read_text() == AFTER


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# Changelog\n", "has no line"),
        ("# Changelog\n\n## [Unreleased]\n\n## [0.0.9] - 2026-01-01\n\n- Old.\n", "has no entries for 0.1.0"),
        (AFTER.replace("## [Unreleased]\n", "## [Unreleased]\n\n- Another thing.\n"), "Raise __version__"),
    ],
)
def test_a_change_log_that_does_not_fit_the_version_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "CHANGELOG.md").write_text(text)
    with pytest.raises(changelog.ReleaseError, match=said):
        changelog.prepare(tmp_path, "0.1.0", DAY)
    assert (tmp_path / "CHANGELOG.md").read_text() == text


def test_without_sphinx_nothing_is_built(tmp_path: Path) -> None:
    release.check_sphinx(Path(sys.executable))
    with pytest.raises(changelog.ReleaseError, match="make site-tools"):
        release.check_sphinx(tmp_path / "python")


def test_only_the_change_log_may_differ_from_the_last_commit(tmp_path: Path) -> None:
    release.check_committed(tmp_path)  # without Git
    subprocess.run(("git", "init", "--quiet", tmp_path), check=True)
    (tmp_path / "CHANGELOG.md").write_text(BEFORE)
    release.check_committed(tmp_path)
    (tmp_path / "module.py").touch()
    with pytest.raises(changelog.ReleaseError, match=r"\?\? module.py"):
        release.check_committed(tmp_path)

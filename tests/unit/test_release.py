"""What `make release` checks before it builds, and what it says if a build fails."""

import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from scripts import changelog, chart_archive, python_packages, release, site
from scripts.build_error import BuildError

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
        (AFTER.replace("2026-12-01", "soon"), "the date of 0.1.0 is 'soon'"),
    ],
)
def test_a_change_log_that_does_not_fit_the_version_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "CHANGELOG.md").write_text(text)
    with pytest.raises(changelog.ReleaseError, match=said):
        changelog.prepare(tmp_path, "0.1.0", DAY)
    assert (tmp_path / "CHANGELOG.md").read_text() == text


def test_without_sphinx_nothing_is_built(tmp_path: Path) -> None:
    site.check_sphinx(Path(sys.executable))
    with pytest.raises(BuildError, match="make site-tools"):
        site.check_sphinx(tmp_path / "python")


def test_only_the_change_log_may_differ_from_the_last_commit(tmp_path: Path) -> None:
    release.check_committed(tmp_path)  # without Git
    subprocess.run(("git", "init", "--quiet", tmp_path), check=True)
    (tmp_path / "CHANGELOG.md").write_text(BEFORE)
    release.check_committed(tmp_path)
    (tmp_path / "module.py").touch()
    with pytest.raises(changelog.ReleaseError, match=r"\?\? module.py"):
        release.check_committed(tmp_path)


def test_a_checkout_that_git_can_not_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    with pytest.raises(BuildError, match="not a git repository"):
        release.check_committed(tmp_path)


def test_a_failing_build_of_the_packages_is_refused_with_its_messages(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"(?s)can't be built:.*pyproject\.toml"):
        python_packages.build(tmp_path, tmp_path, datetime(2026, 12, 1, tzinfo=UTC))


def test_a_chart_with_another_version_is_refused(tmp_path: Path) -> None:
    chart = tmp_path / "deploy" / "chart"
    chart.mkdir(parents=True)
    (chart / "Chart.yaml").write_text("version: 0.0.9\nappVersion: 0.1.0\n")
    with pytest.raises(
        BuildError, match=r"Chart.yaml has version 0.0.9 and appVersion 0.1.0. Make both 0.1.0"
    ):
        chart_archive.build(tmp_path, tmp_path, "0.1.0", datetime.now(UTC))


def sphinx_that(code: str, folder: Path) -> Path:
    """An interpreter that runs a line of shell instead of Sphinx."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{code}\n")
    python.chmod(0o755)
    return python


def test_a_warning_of_sphinx_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sphinx = sphinx_that("echo 'index.md:1: WARNING: unknown document' >&2; exit 1", tmp_path)
    with pytest.raises(BuildError, match="Sphinx can't build the documentation"):
        site.run_sphinx(sphinx, tmp_path, tmp_path, None)
    assert "unknown document" in capfd.readouterr().err


def test_only_sphinx_gets_the_day_of_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    sphinx = sphinx_that(f"echo $SOURCE_DATE_EPOCH > {tmp_path}/given", tmp_path)
    site.run_sphinx(sphinx, tmp_path, tmp_path, datetime(2026, 12, 1, tzinfo=UTC))
    assert (tmp_path / "given").read_text() == "1796083200\n"
    assert "SOURCE_DATE_EPOCH" not in os.environ

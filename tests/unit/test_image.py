"""Which time stamp and commit the container image gets."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scripts import image

UNRELEASED = "# Changelog\n\n## [Unreleased]\n\n- A thing.\n"
RELEASED = "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-12-01\n\n- A thing.\n"
COMMITTED = "2026-12-05T10:00:00+00:00"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a commit after the release."""
    for name, value in (("EMAIL", "a@example.com"), ("NAME", "a"), ("DATE", COMMITTED)):
        for role in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{role}_{name}", value)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    (tmp_path / "CHANGELOG.md").write_text(RELEASED)
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "first")):
        subprocess.run(("git", *command), cwd=tmp_path, check=True)
    return tmp_path


def test_a_release_has_the_day_of_the_release_with_and_without_git(checkout: Path, tmp_path: Path) -> None:
    sdist = tmp_path / "sdist"
    sdist.mkdir()
    (sdist / "CHANGELOG.md").write_text(RELEASED)
    for root in (checkout, sdist):
        assert image.source_moment(root, "0.1.0") == datetime(2026, 12, 1, tzinfo=UTC)
        assert image.revision(root, "0.1.0") is None


@pytest.mark.parametrize("changelog", [UNRELEASED, RELEASED.replace("## [0.1.0]", "- More.\n\n## [0.1.0]")])
def test_a_build_between_releases_has_time_and_name_of_the_commit(checkout: Path, changelog: str) -> None:
    (checkout / "CHANGELOG.md").write_text(changelog)
    head = subprocess.run(
        ("git", "rev-parse", "HEAD"), cwd=checkout, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert image.source_moment(checkout, "0.1.0") == datetime.fromisoformat(COMMITTED)
    assert image.revision(checkout, "0.1.0") == f"{head}-dirty"
    subprocess.run(("git", "commit", "--quiet", "--all", "--message", "second"), cwd=checkout, check=True)
    assert str(image.revision(checkout, "0.1.0")).isalnum()


def test_source_date_epoch_overrides_the_release(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    assert image.source_moment(checkout, "0.1.0") == datetime.fromtimestamp(5, UTC)


def test_a_source_without_release_and_git_needs_a_time(tmp_path: Path) -> None:
    (tmp_path / "CHANGELOG.md").write_text(UNRELEASED)
    with pytest.raises(image.ImageError, match="Set SOURCE_DATE_EPOCH"):
        image.source_moment(tmp_path, "0.1.0")


def test_a_time_that_is_no_number_is_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    with pytest.raises(image.ImageError, match="SOURCE_DATE_EPOCH is 'today'"):
        image.source_moment(checkout, "0.1.0")


def test_missing_apt_sources_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBIAN_SOURCES", str(tmp_path / "debian.sources"))
    with pytest.raises(image.ImageError, match=r"DEBIAN_SOURCES names .*, which is not a file"):
        image.debian_sources(tmp_path)


COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
License: LGPL-2.1+

Files: a
License: BSD-2-clause or GPL-2

License: LGPL-2.1+
 The text of the license.
"""


def test_licenses_of_debian_packages_come_from_their_copyright_files() -> None:
    names = ("BSD-2-clause or GPL-2", "LGPL-2.1+")
    assert image.debian_licenses("glibc", COPYRIGHT) == [{"license": {"name": name}} for name in names]
    free_form = "The license:\n\n  PYTHON SOFTWARE FOUNDATION LICENSE\n  VERSION 2\n"
    assert image.debian_licenses("python3.13", free_form) == [{"expression": "PSF-2.0"}]


@pytest.mark.parametrize(
    ("source", "text"),
    [("python3.13", "License: other\n"), ("a", "License: MIT\n"), ("a", COPYRIGHT.partition("Files")[0])],
)
def test_a_copyright_file_that_names_no_known_license_is_refused(source: str, text: str) -> None:
    with pytest.raises(image.ImageError, match=f"copyright file of {source} names no known license"):
        image.debian_licenses(source, text)

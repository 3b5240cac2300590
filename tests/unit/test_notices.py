"""Notices that are shown once."""

from pathlib import Path
from unittest.mock import patch

import pytest

from clustercert import __version__
from clustercert.cli.terminal.notices import recommend_version

URL = "https://clustercert.example.com"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def said(capsys: pytest.CaptureFixture[str], version: str, *, at_terminal: bool = True) -> str:
    with patch("sys.stderr.isatty", lambda: at_terminal):
        recommend_version(URL, version)
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_a_newer_version_is_recommended_once_a_day(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert said(capsys, "99.0.0") == (
        f"{URL} recommends version 99.0.0 of clustercert; this is {__version__}. Get the wheel from the operator of "
        "the service, and install it, for example with\n`pipx install --force "
        "./clustercert-99.0.0-py3-none-any.whl`.\n"
    )
    assert said(capsys, "99.0.0") == ""
    (tmp_path / "clustercert" / "notices" / "version").write_text("2026-01-01")
    assert said(capsys, "100.0.0") != ""


@pytest.mark.parametrize(
    "version", [__version__, "0.0.9", "99", "99.0.0\n", "\x1b[2J99.0.0", "9" * 7 + ".0.0"]
)
def test_what_is_not_a_newer_version_is_not_recommended(
    capsys: pytest.CaptureFixture[str], version: str
) -> None:
    assert said(capsys, version) == ""


@pytest.mark.parametrize("reason", ["no folder", "job", "no terminal"])
def test_nothing_is_recommended_where_it_would_be_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reason: str
) -> None:
    if reason == "no folder":
        (tmp_path / "clustercert").write_text("a file")
    elif reason == "job":
        monkeypatch.setenv("CLUSTERCERT_TOKEN", "t")
    assert said(capsys, "99.0.0", at_terminal=reason != "no terminal") == ""
    assert not (tmp_path / "clustercert" / "notices").exists()

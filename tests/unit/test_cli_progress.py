import contextlib

import pytest

from clustercert.cli.terminal import output
from clustercert.cli.terminal.output import Progress


def be_a_terminal(monkeypatch: pytest.MonkeyPatch, first_seconds: float = 0) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(output, "FIRST_SECONDS", first_seconds)
    monkeypatch.setattr(output, "_SECONDS_BETWEEN", 0)


def test_a_bar_shows_how_much_of_a_total_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_a_terminal(monkeypatch)
    with Progress("changes", 2) as bar:
        bar.print("one\n")
        bar.print("two\n")
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n"
    *_, half, _, whole, end = err.split("\r\x1b[K")
    assert (half, whole, end) == (f"[{'#' * 15}{'-' * 15}] 1/2 changes", f"[{'#' * 30}] 2/2 changes", "")


def test_a_number_is_shown_if_the_total_is_not_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_a_terminal(monkeypatch)
    with Progress("events read") as counted:
        counted.advance(1200)
        counted.reach(1300, 2600)
    assert capsys.readouterr().err.split("\r\x1b[K") == [
        "",
        "1,200 events read",
        f"[{'#' * 15}{'-' * 15}] 1,300/2,600 events read",
        "",
    ]


def test_an_error_clears_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_a_terminal(monkeypatch)
    with contextlib.suppress(ValueError), Progress("changes", 2) as bar:
        bar.advance()
        raise ValueError
    assert capsys.readouterr().err.endswith("\r\x1b[K")


def test_short_commands_show_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_a_terminal(monkeypatch, first_seconds=1000)
    with Progress("changes", 1) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""
    with Progress("migrations", at_once=True) as bar:
        bar.reach(0, 4)
    assert f"[{'-' * 30}] 0/4 migrations" in capsys.readouterr().err


def test_nothing_is_shown_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "FIRST_SECONDS", 0)
    with Progress("changes", 1) as bar:
        bar.print("one\n")
    assert capsys.readouterr() == ("one\n", "")

from datetime import UTC, datetime, timedelta

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from clustercert.cli.options import InvalidOption, LifetimeOptions
from clustercert.client import IssueOptions
from clustercert.policy.lifetime import lifetime_text


def test_the_default_is_8_hours_or_less() -> None:
    options = LifetimeOptions(None, None, None).issue_options()
    assert options == IssueOptions(expires_in=timedelta(hours=8), shorten=True)
    assert options.body() == {"expires_in": 28800, "shorten": True}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("15m", 900), ("1h30m", 5400), ("1d", 86400), ("24h", 86400), ("1825d", 1825 * 86400)],
)
def test_a_lifetime_is_sent_in_seconds_and_not_shortened(text: str, seconds: int) -> None:
    assert LifetimeOptions(None, text, None).issue_options().body() == {"expires_in": seconds}


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-16T11:30:05+01:00",
        "2026-01-16T10:30:05Z",
        "2026-01-16 10:30:05 +0000 UTC",
        "2026-01-16T10:30:05.5Z",
    ],
)
def test_a_time_of_expiry_is_parsed(text: str) -> None:
    expiry = datetime(2026, 1, 16, 10, 30, 5, tzinfo=UTC)
    assert LifetimeOptions(None, None, text).issue_options() == IssueOptions(expire_at=expiry)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1 second"),
        (59, "59 seconds"),
        (3557, "59 minutes 17 seconds"),
        (5400, "90 minutes"),
        (7200, "2 hours"),
        (86400, "1 day"),
        (90061, "1 day 1 hour 1 minute 1 second"),
        (86401, "1 day 1 second"),
    ],
)
def test_a_lifetime_is_written_exactly_and_readably(seconds: int, text: str) -> None:
    assert lifetime_text(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize("text", ["299s", "4m59s", "0s"])
def test_a_lifetime_of_less_than_5_minutes_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="between 5m and 1825d"):
        LifetimeOptions(None, text, None).issue_options()


@pytest.mark.parametrize("days", [-1, 1, 1825])
def test_days_are_kept(days: int) -> None:
    assert LifetimeOptions(days, None, None).issue_options() == IssueOptions(duration=days)


@pytest.mark.parametrize(
    "options",
    [
        (0, None, None),
        (1, "1h", None),
        (None, "1h", "2026-01-16T10:30:05Z"),
        (None, "4m", None),
        (None, "1826d", None),
        (None, "8", None),
        (None, "", None),
        (None, "999999999w", None),
        (None, None, "tomorrow"),
        (None, None, "2026-01-16T10:30:05"),
    ],
)
def test_invalid_lifetimes_are_wrong_usage(options: tuple[int | None, str | None, str | None]) -> None:
    with pytest.raises(typer.BadParameter):
        LifetimeOptions(*options).issue_options()


@given(st.text())
def test_arbitrary_text_is_wrong_usage_or_a_lifetime(text: str) -> None:
    for expires_in, expire_at in ((text, None), (None, text)):
        try:
            options = LifetimeOptions(None, expires_in, expire_at).issue_options()
        except typer.BadParameter:
            continue
        assert (options.expires_in is None) != (options.expire_at is None)

from datetime import UTC, datetime, timedelta

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from clustercert.cli.lifetime import Lifetime, wished

NOW = datetime(2026, 1, 15, 10, 30, 5, 999, tzinfo=UTC)
SECOND = NOW.replace(microsecond=0)


def test_unsaid_it_is_a_working_day_or_less() -> None:
    hours = timedelta(hours=8)
    assert wished(None, None, None, NOW) == Lifetime(expire_at=SECOND + hours, may_lose=hours)


@pytest.mark.parametrize(("text", "days"), [("1d", 1), ("24h", 1), ("2w", 14), ("1825d", 1825)])
def test_whole_days_are_left_to_the_clock_of_the_service(text: str, days: int) -> None:
    assert wished(None, text, None, NOW) == Lifetime(duration=days)


def test_hours_are_a_point_in_time_which_may_be_a_little_early() -> None:
    wish = wished(None, "1h30m", None, NOW)
    assert wish == Lifetime(expire_at=SECOND + timedelta(minutes=90), may_lose=timedelta(minutes=5))


def test_the_least_that_the_api_takes_is_still_enough_on_arrival() -> None:
    wish = wished(None, "15m", None, NOW)
    assert wish.expire_at is not None
    assert timedelta(minutes=15) < wish.expire_at - NOW < timedelta(minutes=16)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-16T11:30:05+01:00",
        "2026-01-16T10:30:05Z",
        "2026-01-16 10:30:05 +0000 UTC",
        "2026-01-16T10:30:05.5Z",
    ],
)
def test_a_point_in_time_is_taken_as_said(text: str) -> None:
    assert wished(None, None, text, NOW) == Lifetime(expire_at=SECOND + timedelta(days=1))


@pytest.mark.parametrize("days", [-1, 1, 1825])
def test_days_are_taken_as_said(days: int) -> None:
    assert wished(days, None, None, NOW) == Lifetime(duration=days)


@pytest.mark.parametrize(
    "options",
    [
        (0, None, None),
        (1, "1h", None),
        (None, "1h", "2026-01-16T10:30:05Z"),
        (None, "14m", None),
        (None, "1826d", None),
        (None, "8", None),
        (None, "", None),
        (None, "999999999w", None),
        (None, None, "tomorrow"),
        (None, None, "2026-01-16T10:30:05"),
    ],
)
def test_anything_else_is_wrong_usage(options: tuple[int | None, str | None, str | None]) -> None:
    with pytest.raises(typer.BadParameter):
        wished(*options, NOW)


@given(st.text())
def test_no_text_is_more_than_wrong_usage(text: str) -> None:
    for expires_in, expire_at in ((text, None), (None, text)):
        try:
            wish = wished(None, expires_in, expire_at, NOW)
        except typer.BadParameter:
            continue
        assert (wish.duration is None) != (wish.expire_at is None)

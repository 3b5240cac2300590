from datetime import UTC, datetime, timedelta

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from clustercert.cli.options import Lifetime, LifetimeOptions

NOW = datetime(2026, 1, 15, 10, 30, 5, 999, tzinfo=UTC)
SECOND = NOW.replace(microsecond=0)


def test_the_default_is_8_hours_or_less() -> None:
    hours = timedelta(hours=8)
    assert LifetimeOptions(None, None, None).lifetime(NOW) == Lifetime(
        expire_at=SECOND + hours, tolerance=hours
    )


@pytest.mark.parametrize(("text", "days"), [("1d", 1), ("24h", 1), ("2w", 14), ("1825d", 1825)])
def test_whole_days_are_sent_as_days(text: str, days: int) -> None:
    assert LifetimeOptions(None, text, None).lifetime(NOW) == Lifetime(duration=days)


def test_hours_become_a_time_with_a_tolerance() -> None:
    lifetime = LifetimeOptions(None, "1h30m", None).lifetime(NOW)
    assert lifetime == Lifetime(expire_at=SECOND + timedelta(minutes=90), tolerance=timedelta(minutes=5))


def test_the_minimum_is_extended_for_the_transfer() -> None:
    lifetime = LifetimeOptions(None, "15m", None).lifetime(NOW)
    assert lifetime.expire_at is not None
    assert timedelta(minutes=15) < lifetime.expire_at - NOW < timedelta(minutes=16)


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
    assert LifetimeOptions(None, None, text).lifetime(NOW) == Lifetime(expire_at=SECOND + timedelta(days=1))


@pytest.mark.parametrize("days", [-1, 1, 1825])
def test_days_are_kept(days: int) -> None:
    assert LifetimeOptions(days, None, None).lifetime(NOW) == Lifetime(duration=days)


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
def test_invalid_lifetimes_are_wrong_usage(options: tuple[int | None, str | None, str | None]) -> None:
    with pytest.raises(typer.BadParameter):
        LifetimeOptions(*options).lifetime(NOW)


@given(st.text())
def test_arbitrary_text_is_wrong_usage_or_a_lifetime(text: str) -> None:
    for expires_in, expire_at in ((text, None), (None, text)):
        try:
            lifetime = LifetimeOptions(None, expires_in, expire_at).lifetime(NOW)
        except typer.BadParameter:
            continue
        assert (lifetime.duration is None) != (lifetime.expire_at is None)

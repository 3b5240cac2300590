"""How long a certificate shall live, from the options to what the API takes.

The API counts whole days, or takes a point in time; hours have to be turned into one by this machine's clock.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import typer

# Long enough for a working day, short enough to be lost with little harm.
DEFAULT = timedelta(hours=8)
# CCE API reference: expire_at is at least 15 minutes ahead, at the moment when the service reads it.
LEAST = timedelta(minutes=15)
_ON_THE_WAY = timedelta(seconds=30)
# By how much this machine's clock may be ahead, so that the longest lifetime of the policy is a little too long.
_CLOCKS_DIFFER = timedelta(minutes=5)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A wish.

    Attributes:
        duration: whole days, or -1 for the longest allowed.
        expire_at: whole seconds; one of the two is None.
        may_lose: by how much it may be shorter, where the policy doesn't allow it.
    """

    duration: int | None = None
    expire_at: datetime | None = None
    may_lose: timedelta = timedelta(0)


def wished(duration: int | None, expires_in: str | None, expire_at: str | None, now: datetime) -> Lifetime:
    """The lifetime that the options say. Raises typer.BadParameter."""
    if sum(option is not None for option in (duration, expires_in, expire_at)) > 1:
        raise typer.BadParameter("say one of --duration, --expires-in and --expire-at.")
    if duration is not None:
        if duration == 0:
            raise typer.BadParameter(
                "say 1 to 1825 days, or -1 for the longest allowed.", param_hint="--duration"
            )
        return Lifetime(duration=duration)
    if expire_at is not None:
        return Lifetime(expire_at=_time(expire_at))
    if expires_in is None:
        return Lifetime(expire_at=_after(DEFAULT, now), may_lose=DEFAULT)
    lifetime = _parsed(expires_in)
    if lifetime % _DAY == timedelta(0):
        return Lifetime(duration=lifetime // _DAY)
    return Lifetime(expire_at=_after(lifetime, now), may_lose=_CLOCKS_DIFFER)


def _parsed(text: str) -> timedelta:
    from clustercert.policy import MAX_LIFETIME, parse_lifetime

    try:
        lifetime = parse_lifetime(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter("write it like 15m, 8h, 30d or 1h30m.", param_hint="--expires-in") from None
    if not LEAST <= lifetime <= MAX_LIFETIME:
        raise typer.BadParameter("say 15m to 1825d.", param_hint="--expires-in")
    return lifetime


def _after(lifetime: timedelta, now: datetime) -> datetime:
    # Asked for to the second, the least that the API takes would be too little on arrival.
    longer = max(lifetime, LEAST + _ON_THE_WAY)
    return now.replace(microsecond=0) + longer


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text.strip().removesuffix(" UTC"))
        if time.tzinfo is None:
            raise ValueError("no offset")
        return time.astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            "write it with its offset, like 2027-01-31T18:00:00Z or 2027-01-31T18:00:00+01:00.",
            param_hint="--expire-at",
        ) from None

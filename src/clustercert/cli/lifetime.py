"""Converts the options for a certificate's lifetime to the API's fields.

The API accepts whole days or a point in time. Hours are converted to a point in time by this machine's clock.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

import typer

from clustercert.model.times import parse_rfc3339

# The default lifetime is one working day, so that a lost certificate expires soon.
DEFAULT_LIFETIME = timedelta(hours=8)
# CCE API reference: expire_at must be at least 15 minutes ahead when the service reads it.
MINIMUM_LIFETIME = timedelta(minutes=15)
_TRANSFER_TIME = timedelta(seconds=30)
# If this machine's clock is ahead, the service sees a longer lifetime and may reject it. So accept this much less.
_CLOCK_DIFFERENCE = timedelta(minutes=5)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A requested lifetime. Either `duration` or `expire_at` is `None`.

    Attributes:
        duration: whole days, or -1 for the longest allowed.
        expire_at: whole seconds.
        tolerance: how much shorter the certificate may be, if the policy does not allow the whole lifetime.
    """

    duration: int | None = None
    expire_at: datetime | None = None
    tolerance: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class LifetimeOptions:
    """The options for the lifetime of a new certificate."""

    duration: Annotated[
        int | None,
        typer.Option(metavar="DAYS", min=-1, max=1825, help="Whole days, or -1 for the longest allowed."),
    ] = None
    expires_in: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Lifetime such as 30m or 8h. [default: 8h, or the policy's limit]"),
    ] = None
    expire_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time of expiry, such as 2027-01-31T18:00:00Z.")
    ] = None

    def lifetime(self, now: datetime) -> Lifetime:
        """Return the requested lifetime. Raises typer.BadParameter."""
        given = [each for each in (self.duration, self.expires_in, self.expire_at) if each is not None]
        if len(given) > 1:
            raise typer.BadParameter("Give only one of --duration, --expires-in and --expire-at.")
        if self.duration is not None:
            if self.duration == 0:
                raise typer.BadParameter(
                    "0 is out of range. Give 1 to 1825 days, or -1 for the longest allowed.",
                    param_hint="--duration",
                )
            return Lifetime(duration=self.duration)
        if self.expire_at is not None:
            return Lifetime(expire_at=_parse_time(self.expire_at))
        if self.expires_in is None:
            return Lifetime(expire_at=_expiry(DEFAULT_LIFETIME, now), tolerance=DEFAULT_LIFETIME)
        lifetime = _parse_lifetime(self.expires_in)
        if lifetime % _DAY == timedelta(0):
            return Lifetime(duration=lifetime // _DAY)
        return Lifetime(expire_at=_expiry(lifetime, now), tolerance=_CLOCK_DIFFERENCE)


def _parse_lifetime(text: str) -> timedelta:
    from clustercert.policy.lifetime import MAX_LIFETIME, parse_lifetime

    try:
        lifetime = parse_lifetime(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a duration. Write it like 15m, 8h, 30d or 1h30m.", param_hint="--expires-in"
        ) from None
    if not MINIMUM_LIFETIME <= lifetime <= MAX_LIFETIME:
        raise typer.BadParameter(
            f"{text!r} is out of range. The lifetime must be between 15m and 1825d.",
            param_hint="--expires-in",
        )
    return lifetime


def _expiry(lifetime: timedelta, now: datetime) -> datetime:
    # Add a margin, so that the minimum is still met when the service reads the request.
    return now.replace(microsecond=0) + max(lifetime, MINIMUM_LIFETIME + _TRANSFER_TIME)


def _parse_time(text: str) -> datetime:
    try:
        return parse_rfc3339(text.strip().removesuffix(" UTC")).replace(microsecond=0)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time with an offset. Write it like 2027-01-31T18:00:00Z or 2027-01-31T18:00:00+01:00.",
            param_hint="--expire-at",
        ) from None

"""The difference between this machine's clock and the clock of a service or an OIDC issuer."""

from datetime import datetime, timedelta

# A smaller difference does not matter for logins and certificates.
NOTICED = timedelta(minutes=1)
_UNITS = ((timedelta(days=2), timedelta(days=1), "days"), (timedelta(hours=2), timedelta(hours=1), "h"))


def described(here: datetime, there: datetime, whose: str) -> str:
    """Return sentences that say how far this machine's clock is ahead or behind, and what to do.

    Args:
        here: what this machine's clock said when the other clock said `there`.
        whose: the other clock, such as `the service's`.
    """
    apart = abs(here - there)
    unit, name = next(
        ((unit, name) for least, unit, name in _UNITS if apart >= least), (timedelta(minutes=1), "min")
    )
    direction = "ahead of" if here > there else "behind"
    return (
        f"The clock of this machine is {round(apart / unit)} {name} {direction} {whose}. Correct the clock, "
        "for example with `timedatectl set-ntp true`. With a wrong clock, logins and certificates seem to "
        "have expired, or not to be valid yet."
    )

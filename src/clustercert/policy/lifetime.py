"""Limits for lifetimes of certificates, and conversion of lifetimes from and to text such as `8h` and `30 days`."""

import re
from datetime import timedelta

# Huawei's other clouds document a duration of up to 1826 or 1827 days: five years have one or two leap days.
MOST_DAYS = 1827
# CCE API reference, cce_02_0248: 1 to 1825 days, or -1 for the longest lifetime.
MAX_DAYS = 1825
LONGEST = -1
MAX_LIFETIME = timedelta(days=MAX_DAYS)
# Certificates with a shorter lifetime would often expire too early: clocks of clients differ, and a renewal can fail
# once.
MIN_LIFETIME = timedelta(minutes=5)
# cce_02_0248: expire_at must be 15 minutes to 5 years in the future.
MIN_EXPIRE_AT = timedelta(minutes=15)
# The start of validity is back-dated by this time, as in kube-controller-manager, because kube-apiserver's clock may be
# slow.
# Source: kubernetes/pkg/controller/certificates/authority/policies.go.
BACKDATE = timedelta(minutes=5)
# The last sentence of the message about a lifetime that is too long. The command line replaces this sentence, because
# command-line options differ from API fields.
SHORTEN = "Request a shorter lifetime, or duration -1 for the longest allowed."

# The name of the setting that limits the lifetimes of all certificates, for messages.
MAX_LIFETIME_SETTING = "policy.max_lifetime"

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_OPTION_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def parse_lifetime(text: str) -> timedelta:
    """Parse a lifetime such as `90s`, `15m`, `8h`, `30d`, `2w` or `1h30m`. Raises ValueError."""
    parts = re.findall(r"([0-9]{1,9})([smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise ValueError(f"{text!r} is not a lifetime; write it like 90s, 15m, 8h, 30d or 1h30m")
    return sum((timedelta(**{_UNITS[unit]: int(number)}) for number, unit in parts), timedelta())


def lifetime_option(lifetime: timedelta) -> str:
    """Format a lifetime for an option of a command, in the largest unit that divides the time evenly, such as `8h`."""
    seconds = int(lifetime.total_seconds())
    unit, size = next((unit, size) for unit, size in _OPTION_UNITS if seconds % size == 0)
    return f"{seconds // size}{unit}"


def waiting_time(seconds: int) -> str:
    """Format a waiting time, such as `20 minutes`. Rounds a long time up to minutes or hours."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{-(-seconds // size)} {unit}"
    return f"{seconds} second{'s' if seconds != 1 else ''}"


def lifetime_text(lifetime: timedelta) -> str:
    """Format a lifetime in the largest unit that divides the lifetime evenly, such as `30 days`.

    Uses several units if only seconds divide the lifetime evenly, such as `59 minutes 17 seconds`.
    """
    left = int(lifetime.total_seconds())
    is_odd = left % 60 != 0
    parts = []
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if left >= size and (is_odd or left % size == 0):
            count, left = divmod(left, size)
            parts.append(f"{count} {unit}{'s' if count != 1 else ''}")
    return " ".join(parts) or "0 seconds"

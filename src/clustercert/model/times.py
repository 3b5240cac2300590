"""Times in UTC, their RFC 3339 format, and validation of labels."""

import functools
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from clustercert.model.errors import InvalidRequest

RECENT = timedelta(days=1)
"""An API server that contacted this service within this time is considered correctly configured.

API servers call the webhook only while one of our certificates is in use, so a few hours without a call are normal.
"""


def utc_now() -> datetime:
    """Return the current time. Code that needs the time takes a clock function as an argument, for tests."""
    return datetime.now(UTC)


def is_recent(time: datetime | None, now: datetime) -> bool:
    """Whether the time is not None, and at most a day ago."""
    return time is not None and now - time <= RECENT


# Cached, because certificates issued in the same second with the same lifetime have the same times.
@functools.lru_cache(maxsize=1024)
def rfc3339(time: datetime) -> str:
    """Format an aware time in UTC, without fractions of a second: `2027-01-31T18:00:00Z`."""
    return f"{time.astimezone(UTC).isoformat(timespec='seconds').removesuffix('+00:00')}Z"


def parse_rfc3339(text: str) -> datetime:
    """Parse a time, and convert it to UTC. Raises ValueError if the text is malformed or has no UTC offset."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("no offset")
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the time has no equivalent in UTC") from error


MAX_LABELS = 64

_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


def checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return the labels if they are valid Kubernetes labels, else raise InvalidRequest."""
    if len(labels) > MAX_LABELS:
        raise InvalidRequest(f"labels: at most {MAX_LABELS} labels are allowed.")
    for key, value in labels.items():
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            raise InvalidRequest(f"{key!r}={value!r} is not a valid Kubernetes label.")
    return labels

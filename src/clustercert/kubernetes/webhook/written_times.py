"""Caches the times of use that were written to the store lately, so that they are not written again."""

import time
from datetime import datetime, timedelta

from clustercert.store.credential_usage import RESOLUTION

# The number of keys is limited, because a certificate holder can create any number of hashes.
MAX_KEYS = 200_000


class WrittenTimes:
    """For each key, the time that was last written to the store. A key is dropped after one to two minutes."""

    def __init__(self) -> None:
        self._recent: dict[object, datetime] = {}
        self._older: dict[object, datetime] = {}
        self._rotated_at = time.monotonic()

    def has(self, key: object, first: datetime, last: datetime) -> bool:
        """Whether the written time is exact enough: not after `first`, and less than RESOLUTION before `last`."""
        written = self._recent.get(key) or self._older.get(key)
        return written is not None and written <= first and last < written + RESOLUTION

    def add(self, key: object, at: datetime) -> None:
        if len(self._recent) < MAX_KEYS:
            self._recent[key] = at

    def rotate(self) -> None:
        """Drop the older keys once a minute."""
        if time.monotonic() - self._rotated_at >= RESOLUTION / timedelta(seconds=1):
            self._recent, self._older = {}, self._recent
            self._rotated_at = time.monotonic()

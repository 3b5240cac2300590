"""Locks an access key for a source address after wrong signatures, like the vendors' API gateways."""

import time
from collections.abc import Callable

from cachetools import TTLCache

from clustercert.model import Origin

# Source: Open Telekom Cloud, API Gateway, "Authentication": five failures in a row, five minutes.
WRONG_SIGNATURES = 5
LOCK_SECONDS = 300
# The maximum number of counted pairs, a few megabytes. Beyond that, the least recently used pairs are dropped.
MAX_PAIRS = 20_000


class SignatureLock:
    """Counts wrong signatures in a row by access key and source, in the memory of each worker.

    Other sources are not affected, so nobody can lock out an owner who has another address. Unknown access keys are
    locked too: a lock does not reveal whether a key exists.
    """

    def __init__(self, max_pairs: int = MAX_PAIRS, clock: Callable[[], float] = time.monotonic) -> None:
        self._wrong: TTLCache[tuple[str, str], int] = TTLCache(max_pairs, LOCK_SECONDS, clock)

    def is_locked(self, access_key_id: str, origin: Origin) -> bool:
        # Most workers count no failures at all, so check first whether there are any.
        return bool(self._wrong) and self._wrong.get((access_key_id, origin.network), 0) >= WRONG_SIGNATURES

    def wrong(self, access_key_id: str, origin: Origin) -> None:
        """Count a wrong signature. The fifth one in a row locks the access key for this source."""
        pair = access_key_id, origin.network
        self._wrong[pair] = self._wrong.get(pair, 0) + 1

    def right(self, access_key_id: str, origin: Origin) -> None:
        """Forget the earlier wrong signatures, because this one is right."""
        if self._wrong:
            self._wrong.pop((access_key_id, origin.network), None)

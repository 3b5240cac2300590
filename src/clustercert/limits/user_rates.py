"""Limits how often a user creates tokens and temporary access keys, and changes the password.

Each worker keeps its own counts in memory.
"""

import time
from collections.abc import Callable
from typing import Literal

from clustercert.limits.rates import Rate, TokenBuckets
from clustercert.model import User
from clustercert.model.errors import TooManyRequests
from clustercert.observability import metrics

CredentialKind = Literal["tokens", "temporary_keys", "passwords"]

# 60 tokens and 20 keys a minute, after the first 300. A pipeline may log in once for each of its jobs.
TOKENS = Rate(300, 300)
TEMPORARY_KEYS = Rate(300, 900)
# A change takes as much of the processor as three logins.
PASSWORDS = Rate(10, 600)

_PROBLEMS: dict[CredentialKind, str] = {
    "tokens": "You created too many tokens. Use the same one for several requests, or try",
    "temporary_keys": "You created too many temporary access keys. Use the same one for several requests, or try",
    "passwords": "You changed your password too often. Try",
}


class UserRates:
    """Token buckets for each user."""

    def __init__(
        self,
        tokens: Rate = TOKENS,
        temporary_keys: Rate = TEMPORARY_KEYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._buckets: dict[CredentialKind, TokenBuckets] = {
            "tokens": TokenBuckets(tokens, clock=clock),
            "temporary_keys": TokenBuckets(temporary_keys, clock=clock),
            "passwords": TokenBuckets(PASSWORDS, clock=clock),
        }

    def count(self, kind: CredentialKind, user: User) -> None:
        """Count a credential that an authenticated user creates or changes. Raises TooManyRequests."""
        buckets = self._buckets[kind]
        if seconds := buckets.seconds_until_token(user.id):
            metrics.LIMITED.labels(kind).inc()
            raise TooManyRequests(
                f"{_PROBLEMS[kind]} again in {seconds} seconds.",
                retry_after=seconds,
                user=user,
            )
        buckets.add(user.id, -1)

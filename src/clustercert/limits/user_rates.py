"""Limits how many tokens and temporary access keys a user creates. Each worker keeps its own counts in memory."""

import time
from collections.abc import Callable
from typing import Literal

from clustercert.limits.rates import Rate, TokenBuckets
from clustercert.model import User
from clustercert.model.errors import TooManyRequests
from clustercert.observability import metrics

CredentialKind = Literal["tokens", "temporary_keys"]

# 60 tokens and 20 keys a minute, after the first 300. A pipeline may log in once for each of its jobs.
TOKENS = Rate(300, 300)
TEMPORARY_KEYS = Rate(300, 900)

_NAMES: dict[CredentialKind, str] = {"tokens": "tokens", "temporary_keys": "temporary access keys"}


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
        }

    def count(self, kind: CredentialKind, user: User) -> None:
        """Count a credential that an authenticated user creates. Raises TooManyRequests."""
        buckets = self._buckets[kind]
        if seconds := buckets.seconds_until_token(user.id):
            metrics.LIMITED.labels(kind).inc()
            raise TooManyRequests(
                f"You created too many {_NAMES[kind]}. Use the same one for several requests, or try again in"
                f" {seconds} seconds.",
                retry_after=seconds,
                user=user,
            )
        buckets.add(user.id, -1)

"""Loads values in batches: concurrent requests share one query."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BatchLoader(Generic[K, V]):
    """Loads values by key. Keys that are requested while a query runs share the next query.

    The first request starts a query at once. A key that is already being loaded is not loaded again. A query continues
    even if all requests that wait for it are cancelled.
    """

    def __init__(self, load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], max_batch: int) -> None:
        self._load = load
        self._max_batch = max_batch
        self._results: dict[K, asyncio.Future[V | None]] = {}
        self._waiting: list[K] = []
        self._loading: asyncio.Task[None] | None = None

    async def __call__(self, key: K) -> V | None:
        """Return the key's value, or None if the query found no value.

        If a query fails, every request that waits for the query fails.
        """
        result = self._results.get(key)
        if result is None:
            result = self._results[key] = asyncio.get_running_loop().create_future()
            self._waiting.append(key)
            if self._loading is None:
                self._loading = asyncio.create_task(self._load_waiting())
        return await asyncio.shield(result)

    async def _load_waiting(self) -> None:
        """Load one batch after another until no keys are waiting."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
                await self._load_batch(batch)
        finally:
            self._loading = None

    async def _load_batch(self, batch: Sequence[K]) -> None:
        try:
            found = await self._load(batch)
        except Exception as failure:  # noqa: BLE001 - every error is passed to the requests
            for key in batch:
                result = self._results.pop(key)
                result.set_exception(failure)
                # Mark the error as retrieved, so that asyncio logs no error if all requests were cancelled.
                result.exception()
        else:
            for key in batch:
                self._results.pop(key).set_result(found.get(key))

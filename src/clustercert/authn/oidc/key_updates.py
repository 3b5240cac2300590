"""The tasks that keep the keys of issuers up to date. A reload of the settings can add and remove issuers."""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    # The import takes 5 MB of memory, which a service without issuers does not need.
    from clustercert.authn.oidc.verification import KeyLookup


class KeyUpdates:
    """Runs a task for the keys of each issuer in use."""

    def __init__(self) -> None:
        self._running: dict[KeyLookup, tuple[asyncio.Event, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def use(self, lookups: "Iterable[KeyLookup]") -> None:
        """Keep these keys up to date from now on, and no others."""
        wanted = set(lookups)
        for lookup in self._running.keys() - wanted:
            stop, task = self._running.pop(lookup)
            stop.set()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        for lookup in wanted - self._running.keys():
            stop = asyncio.Event()
            self._running[lookup] = stop, asyncio.create_task(lookup.watch(stop))

    async def close(self) -> None:
        """End all tasks."""
        self.use(())
        await asyncio.gather(*self._ending)

"""The interface of logs that `verification` checks: the log in the store, or an exported folder."""

from collections.abc import Mapping
from typing import Protocol

from clustercert.store.audit import StoredCheckpoint, StoredEvent
from clustercert.store.evidence import LogHead, UnsealedEvent

# Raised when a row has values of the wrong type, because SQLite accepts any type in any column.
READ_ERRORS = (ValueError, TypeError, AttributeError)


class LogSource(Protocol):
    """A log that is read in chunks. Ranges include `first` and exclude `last`."""

    async def head(self) -> LogHead: ...

    async def tiles(self, level: int, first: int, last: int) -> Mapping[int, bytes]:
        """The stored tiles of a level, by index. They may be partial."""

    async def events(self, first: int, last: int) -> list[StoredEvent]:
        """The events at these leaf indexes, in the order in which they are stored."""

    async def checkpoints(self, first: int, last: int) -> list[StoredCheckpoint]:
        """The stored checkpoints for these sizes."""

    async def markers(self, first: int) -> list[StoredEvent]:
        """The deletion events from leaf index `first` on, and those that are not sealed yet."""

    async def unsealed(self, after: int | None) -> list[UnsealedEvent]:
        """A batch of waiting events in the order of row ids, by default the first one. Empty at the end."""

    async def outside(self) -> list[int]:
        """Row ids of events that have no leaf index and do not wait to be sealed, or some of them."""


async def readable_tiles(source: LogSource, level: int, first: int, last: int) -> Mapping[int, bytes]:
    """Like `LogSource.tiles`, but returns no tiles if one can't be read."""
    try:
        return await source.tiles(level, first, last)
    except READ_ERRORS:
        return {}

"""Where key-encryption keys come from. Each kind of source is one module, and several sources can be used at once."""

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import structlog

from clustercert.model.errors import CustodyError
from clustercert.pki.envelope import WrappingKey

logger = structlog.get_logger()


class KekSource(Protocol):
    """A source of key-encryption keys, such as a file. Every data key is wrapped by the first key of each source.

    Attributes:
        name: the name of the source in messages, such as `the file /etc/clustercert/kek`.
    """

    @property
    def name(self) -> str: ...

    async def keks(self) -> tuple[WrappingKey, ...]:
        """Return the keys. The first key wraps data keys, the others only unwrap. Raises CustodyError."""

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Prevent other processes from changing the keys, and from wrapping data keys. Raises CustodyError."""

    async def add(self) -> WrappingKey:
        """Create a key and make it the first one, durably. The caller must hold the lock. Raises CustodyError.

        Returns the present key if the key management service replaces its keys itself.
        """

    async def remove(self, kek_ids: Collection[str]) -> None:
        """Delete keys, durably. The caller must hold the lock. Raises CustodyError."""

    async def close(self) -> None:
        """Close all connections."""


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source, and its keys as they are now. `problem` says why the keys can't be read."""

    source: KekSource
    keks: tuple[WrappingKey, ...] = ()
    problem: CustodyError | None = None


async def open_source(source: KekSource) -> OpenSource:
    """Read the keys of a source."""
    try:
        return OpenSource(source, await source.keks())
    except CustodyError as problem:
        return OpenSource(source, problem=problem)


async def open_sources(sources: Sequence[KekSource]) -> tuple[OpenSource, ...]:
    """Read the keys of all sources. Raises CustodyError if no source can be read."""
    if not sources:
        raise CustodyError("This process has no key-encryption keys, because its role needs none.")
    opened = [await open_source(source) for source in sources]
    problems = [each.problem for each in opened if each.problem is not None]
    if len(problems) == len(opened):
        raise problems[0]
    for problem in problems:
        logger.warning("key-encryption keys not readable", reason=problem.message)
    return tuple(opened)


@contextlib.asynccontextmanager
async def locked(sources: Sequence[KekSource]) -> AsyncIterator[None]:
    """Hold the locks of all sources."""
    async with contextlib.AsyncExitStack() as stack:
        for source in sources:
            await stack.enter_async_context(source.lock())
        yield


def names(sources: Sequence[KekSource]) -> str:
    return " and ".join(source.name for source in sources)

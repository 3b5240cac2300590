"""Authenticates the sender of a request, and detects when the result may be out of date."""

from collections.abc import Awaitable, Callable

from clustercert.model import Caller
from clustercert.store.engine.generation import Generation


class RepeatableAuthentication:
    """Authenticates the sender of one request, as often as needed. Implements `CallerAuthentication`.

    While the generation is fresh and unchanged, the caller, their rights, and clusters read since `authenticate` began
    are up to date.
    """

    def __init__(self, generation: Generation, authenticate: Callable[[], Awaitable[Caller]]) -> None:
        self._generation = generation
        self._authenticate = authenticate
        self._state: tuple[int, int] | None = None

    def is_current(self) -> bool:
        return self._generation.fresh() and self._generation.state == self._state

    async def authenticate(self) -> Caller:
        # The first authentication needs no fresh generation: if the generation is not fresh, no cache is used.
        if self._state is not None and not self._generation.fresh():
            await self._generation.refresh()
        # Read the state before the caches, so that a change during the authentication counts.
        self._state = self._generation.state
        return await self._authenticate()

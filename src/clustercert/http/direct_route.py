"""Routes that bypass FastAPI's middleware, whose overhead is a tenth of the time to issue a certificate."""

from starlette.routing import Match, Route
from starlette.types import Scope


class DirectRoute(Route):
    """Handles some methods of a path. FastAPI handles the path's other methods."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match only if path and method match."""
        match, child_scope = super().matches(scope)
        return (match, child_scope) if match is Match.FULL else (Match.NONE, {})

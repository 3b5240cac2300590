"""Routes before the framework: its middleware would take a tenth of the time of an issuance."""

from starlette.routing import Match, Route
from starlette.types import Scope


class DirectRoute(Route):
    """One path and its methods; any other method is left to the framework."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As the base class, without partial matches."""
        match, child_scope = super().matches(scope)
        return (match, child_scope) if match is Match.FULL else (Match.NONE, {})

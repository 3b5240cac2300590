"""Interface for rate limits and quotas. Each request is checked once, except on operations endpoints."""

from typing import Literal, Protocol

from clustercert.model import Caller

RouteClass = Literal["cce", "keystone", "api", "webhook"]


class Limiter(Protocol):
    """Decides whether a request is within its limits."""

    async def check(self, route: RouteClass, address: str, caller: Caller | None) -> None:
        """Raise TooManyRequests if the request exceeds a limit.

        Args:
            route: the API that the request is for.
            address: the client's IP address.
            caller: the authenticated caller; `None` if the route needs no authentication, or authentication failed.
        """


class Unlimited:
    """The default: no limits."""

    async def check(self, _route: RouteClass, _address: str, _caller: Caller | None) -> None:
        return

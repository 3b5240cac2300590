"""The busiest routes, answered without the framework's routing and dependencies, which cost as much as the work does.

What they answer is documented by the routes of the same paths, and is the same functions.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from clustercert.web.deps import Services


@dataclass(frozen=True, slots=True)
class DirectRoute:
    """A POST.

    Attributes:
        path: as the framework's route has it.
        answer: takes the request, the services and what stands in the path's places, in order.
    """

    path: str
    answer: Callable[..., Awaitable[Response]]
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", re.compile(re.sub(r"\{\w+\}", "([^/]+)", self.path)))

    async def respond(self, request: Request, services: Services, places: Sequence[str]) -> Response:
        return await self.answer(request, services, *places)


class Direct:
    """Answers its routes itself and hands everything else to the framework."""

    def __init__(self, app: FastAPI, *routes: DirectRoute) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            for route in self._routes:
                if match := route.pattern.fullmatch(scope["path"]):
                    scope["clustercert.route"] = route.path
                    request = Request(scope, receive)
                    response = await route.respond(request, self._app.state.services, match.groups())
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)

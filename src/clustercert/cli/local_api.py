"""Calls the administration API on the store, in this process, as this machine's user."""

import asyncio
import http.client
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from clustercert.cli.session import Operator, operate
from clustercert.client.administration import AdministrationClient
from clustercert.client.transport import Reply, Request

if TYPE_CHECKING:
    from clustercert.server.local_application import LocalApplication

T = TypeVar("T")

# Only for messages: nothing is sent to it.
_URL = "http://localhost"


def run_on_store(context: typer.Context, work: Callable[[AdministrationClient], T]) -> T:
    """Call a function with a client of the API on the opened store. Raises ClustercertError."""

    async def on_store(operator: Operator) -> T:
        from clustercert.server.local_application import LocalApplication

        application = LocalApplication(operator.parts, operator.actor, await operator.domain(None))
        client = AdministrationClient(_URL, transport=_InProcess(application, asyncio.get_running_loop()))
        return await asyncio.to_thread(work, client)

    return operate(context, on_store)


class _InProcess:
    """Hands requests to an application that runs in the event loop of another thread."""

    def __init__(self, application: "LocalApplication", loop: asyncio.AbstractEventLoop) -> None:
        self._application = application
        self._loop = loop

    def open(self) -> None:
        """Nothing has to be opened."""

    def send(self, request: Request) -> Reply:
        answered = self._application.answer(request.method, request.target, request.headers, request.content)
        status, headers, body = asyncio.run_coroutine_threadsafe(answered, self._loop).result()
        message = http.client.HTTPMessage()
        for name, value in headers:
            message[name] = value
        return Reply(status, message, io.BytesIO(body).read)

    def close(self) -> None:
        """Nothing is open."""

"""Runs the administration API in this process, on the local store, as this machine's user."""

import http.client
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from anyio.from_thread import BlockingPortal, start_blocking_portal

from clustercert.cli.session import actor, default_domain, store_settings
from clustercert.cli.terminal.output import print_note
from clustercert.client.administration import AdministrationClient
from clustercert.client.connection import HttpRequest, Reply
from clustercert.observability import log
from clustercert.server.application import LocalApplication
from clustercert.wiring import open_components

if TYPE_CHECKING:
    from clustercert.wiring import Components

# The address that the client shows in messages. No requests are sent to this address.
_URL = "http://localhost"


@contextmanager
def local_client(context: typer.Context, policy: Path | None = None) -> Iterator[AdministrationClient]:
    """Open the store, and return a client whose requests work on this store. Raises ClustercertError.

    The store's event loop runs in another thread, because prompts need this thread.
    """
    loaded = store_settings(context, policy)
    log.configure_command()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_components(loaded)) as opened,
    ):
        application = portal.call(_application, opened)
        yield _LocalClient(_URL, transport=_InProcess(application, portal))


class _LocalClient(AdministrationClient):
    """The client for a user account of this machine. A user account of a machine owns no certificates."""

    is_user = False
    # The maximum size of a response, enough for the access report of a large cluster.
    max_response = 1024 * 1024 * 1024


async def _application(opened: "Components") -> LocalApplication:
    domain = await default_domain(opened.identity.directory)
    return LocalApplication(opened, actor(), domain, print_note)


class _InProcess:
    """Passes requests to an application that runs in the event loop of another thread."""

    def __init__(self, application: LocalApplication, portal: BlockingPortal) -> None:
        self._application = application
        self._portal = portal

    def open(self) -> None:
        """Do nothing, because there is no connection."""

    def send(self, request: HttpRequest) -> Reply:
        status, headers, body = self._portal.call(
            self._application.answer, request.method, request.target, request.headers, request.content
        )
        message = http.client.HTTPMessage()
        for name, value in headers:
            message[name] = value
        return Reply(status, message, io.BytesIO(body).read)

    def close(self) -> None:
        """Do nothing, because there is no connection."""

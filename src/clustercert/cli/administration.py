"""The client of the administration API for commands: with the saved login, or on the store."""

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from clustercert.cli.login.options import LoginOptions
from clustercert.cli.options import NotLoggedIn
from clustercert.cli.output import note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clustercert.client.administration import AdministrationClient


@contextmanager
def administration_client(
    context: typer.Context, login: LoginOptions, *, local: bool
) -> "Iterator[AdministrationClient]":
    """Return a client that uses the login, or that works on the store in this process. Raises ClustercertError."""
    if local:
        from clustercert.cli.local_api import local_client

        with local_client(context) as client:
            client.warn = note
            yield client
        return
    try:
        chosen = login.profile()
    except NotLoggedIn as error:
        raise NotLoggedIn(f"{error.message} Or add --local, to work on this machine's store.") from error
    with chosen.explain_rejection(), chosen.administration_client() as client:
        client.warn = note
        yield client

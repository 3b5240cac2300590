"""`clustercert serve`: everything is checked here, in one process, before workers are started."""

import socket
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.output import note
from clustercert.cli.session import require_database, settings

if TYPE_CHECKING:
    # The command loads what serves only when it is run.
    from clustercert.server import Tls
    from clustercert.settings import Settings

_INTERVAL = 0.05


def serve(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on; wins over the settings.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port; wins over the settings. 0 takes any free one."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="How many processes serve; wins over the settings.")
    ] = None,
) -> None:
    """Serve until interrupted. Requests in flight are finished."""
    from clustercert import server
    from clustercert.settings import SettingsError

    given = {"host": host, "port": port, "workers": workers}
    loaded = settings(context, server={name: value for name, value in given.items() if value is not None})
    if loaded.demo:
        raise SettingsError(
            f"The folder {loaded.data_dir} is a demo's, whose secrets lie beside its data: it is not served. Choose "
            "another with --data-dir."
        )
    require_database(loaded)
    server.run_interruptible(_check(loaded))
    listener = server.listener(loaded.server.host, loaded.server.port)
    address, actual_port = listener.getsockname()[:2]
    files = server.tls(loaded, address)
    watch = threading.Thread(target=_tell_when_it_listens, args=(address, actual_port, files), daemon=True)
    server.run(loaded, listener, files, on_start=watch.start)


async def _check(loaded: "Settings") -> None:
    """Open everything once. Raises ClustercertError with what every worker would only say to its log."""
    from clustercert.app.wiring import components

    async with components(loaded):
        pass


def _tell_when_it_listens(host: str, port: int, files: "Tls | None") -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what the settings may say
    while True:
        try:
            socket.create_connection((reachable, port), timeout=1).close()
        except OSError:
            time.sleep(_INTERVAL)
        else:
            break
    address = f"[{host}]" if ":" in host else host
    note(f"Listening on {'https' if files else 'http'}://{address}:{port}")
    if files is not None:
        note(f"The certificate's SHA-256 fingerprint is {files.fingerprint}")
        if files.ca is not None:
            note(f"It is self-signed, for {', '.join(files.names)}. Give its CA to clients: {files.ca}")

"""`clustercert serve`: checks the settings and the store in one process, then starts the workers."""

import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.output import note
from clustercert.cli.session import require_database, settings_loader
from clustercert.model.choices import ServerRole

if TYPE_CHECKING:
    from clustercert.server import Tls
    from clustercert.settings import Settings

_INTERVAL = 0.05


def serve(
    context: typer.Context,
    role: Annotated[
        ServerRole,
        typer.Option(
            help="Which requests this process serves: all, those from clients, or those from API servers. With "
            "`webhook`, the settings in [webhook] say where it listens."
        ),
    ] = "all",
    host: Annotated[str | None, typer.Option(help="Address to listen on. Overrides the settings.")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to listen on, 0 for any free one. Overrides the settings."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Number of worker processes. Overrides the settings.")
    ] = None,
) -> None:
    """Run the service until it is interrupted. Finishes requests in progress."""
    from clustercert import server
    from clustercert.settings import SettingsError

    # Until the service can reload, SIGHUP must not end it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    given = {"host": host, "port": port, "workers": workers}
    table = "webhook" if role == "webhook" else "server"
    overrides = {table: {name: value for name, value in given.items() if value is not None}}
    # A local function would not work, because `load` is pickled for the workers.
    load = partial(_load_for_role, settings_loader(context, **overrides), role)
    watch = server.FileWatch(context.obj.config)
    loaded = load()
    if loaded.demo:
        raise SettingsError(
            f"The folder {loaded.data_dir} belongs to a demo, which keeps its key with its data, so it can't "
            "be served. Choose another folder with --data-dir."
        )
    loaded.check_examples()
    require_database(loaded)
    server.run_interruptible(_check(loaded, role))
    listener = server.listener(loaded.server.host, loaded.server.port)
    address, actual_port = listener.address
    files = server.tls(loaded, address, role)
    announce = threading.Thread(target=_print_address, args=(address, actual_port, files), daemon=True)
    server.run(loaded, listener, files, role, load=load, watch=watch, on_start=announce.start)


def _load_for_role(load: Callable[[], "Settings"], role: ServerRole) -> "Settings":
    return load().for_role(role)


async def _check(loaded: "Settings", role: ServerRole) -> None:
    """Open the store once, to raise errors here that the workers would only log. Shows warnings."""
    from clustercert.cli.deployment_warnings import show_warnings
    from clustercert.wiring import components

    async with components(loaded, with_keys=role != "webhook") as parts:
        if role != "webhook":
            await parts.identity.directory.require_free(loaded.identity.authority_names)
        await show_warnings(parts, serves_users=role != "webhook")


def _print_address(host: str, port: int, files: "Tls | None") -> None:
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - addresses in the settings
    while True:
        try:
            socket.create_connection((target, port), timeout=1).close()
        except OSError:
            time.sleep(_INTERVAL)
        else:
            break
    address = f"[{host}]" if ":" in host else host
    note(f"Listening on {'https' if files else 'http'}://{address}:{port}")
    if files is not None:
        note(f"The certificate's SHA-256 fingerprint is {files.fingerprint}")
        if files.issuer_fingerprint is not None:
            note(
                f"Users compare the fingerprint of its issuer at their first login: {files.compared_fingerprint}"
            )
        if files.ca is not None:
            note(f"The service created it for {', '.join(files.names)}. Give its CA to clients: {files.ca}")

"""Commands that start a service, and print the fingerprint of its certificate."""

import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.options import CommandError
from clustercert.cli.output import Output, OutputOption, note, show_one
from clustercert.cli.session import require_database, settings, settings_loader
from clustercert.model.choices import ServerRole

if TYPE_CHECKING:
    from clustercert.cli.session import RootOptions
    from clustercert.server.tls_files import Tls
    from clustercert.settings import Settings


def demo(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback, 0 for any free one.")] = 8080,
    data_dir: Annotated[Path | None, typer.Option(help="Data folder. [default: clustercert-data]")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Number of worker processes.")] = 1,
    with_eip: Annotated[
        bool, typer.Option("--with-eip", help="Add an external address to the cluster.")
    ] = False,
    tenants: Annotated[
        int, typer.Option(min=0, max=1000, help="Create this many more projects, users and clusters.")
    ] = 0,
    tls: Annotated[
        bool, typer.Option("--tls", help="Serve https with a new certificate, as API servers require.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object when ready, everything else to standard error."),
    ] = False,
) -> None:
    """Start a demo service on loopback, and get a kubeconfig.

    It creates everything that it needs in the data folder, and reuses that folder in later runs.
    """
    from clustercert.demo import run

    root: RootOptions = context.obj
    folder = data_dir or root.data_dir or Path("clustercert-data")
    run(folder, port, workers=workers, with_eip=with_eip, tenants=tenants, tls=tls, as_json=as_json)


def fingerprint(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Print the fingerprint of the service's certificate that users compare at their first login.

    Reads the file that the settings name, as `serve` does. It is the fingerprint of the last certificate in the file:
    that of the CA, if the file has one. `-o name` prints nothing else.
    """
    from clustercert.server.tls_files import present_tls

    files = present_tls(settings(context))
    if files is None:
        raise CommandError(
            "The service has no certificate: it uses plain HTTP, or has not created its own certificate yet. Set "
            "server.tls_certificate, start the service once, or ask the operator of the proxy that terminates TLS."
        )
    row = {
        "fingerprint": files.compared_fingerprint,
        "certificate_fingerprint": files.fingerprint,
        "not_after": files.not_after,
        "file": str(files.certificate),
    }
    show_one(row, output, name="fingerprint")


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
    from clustercert.server import serving, tls_files
    from clustercert.server.file_watch import FileWatch
    from clustercert.settings import SettingsError

    # Until the service can reload, SIGHUP must not end it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    given = {"host": host, "port": port, "workers": workers}
    table = "webhook" if role == "webhook" else "server"
    overrides = {table: {name: value for name, value in given.items() if value is not None}}
    # A local function would not work, because `load` is pickled for the workers.
    load = partial(_load_for_role, settings_loader(context, **overrides), role)
    watch = FileWatch(context.obj.config)
    loaded = load()
    if loaded.demo:
        raise SettingsError(
            f"The folder {loaded.data_dir} belongs to a demo, which keeps its key with its data, so it can't "
            "be served. Choose another folder with --data-dir."
        )
    loaded.check_examples()
    require_database(loaded)
    serving.run_interruptible(_check(loaded, role))
    listener = serving.listener(loaded.server.host, loaded.server.port)
    address, actual_port = listener.address
    files = tls_files.tls(loaded, address, role)
    announce = threading.Thread(target=_print_address, args=(address, actual_port, files), daemon=True)
    serving.run(loaded, listener, files, role, load=load, watch=watch, on_start=announce.start)


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

"""`clustercert demo`: starts a service for trying things out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clustercert.cli.session import RootOptions


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

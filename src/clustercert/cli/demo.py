"""`clustercert demo`: the options of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clustercert.cli.session import Where


TlsOption = Annotated[
    bool, typer.Option("--tls", help="Serve https with a certificate made here: API servers need it.")
]


def demo(
    context: typer.Context,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where to listen on loopback; 0 takes any free port.")
    ] = 8080,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where to keep everything. [default: clustercert-data]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="How many processes serve.")] = 1,
    with_eip: Annotated[
        bool, typer.Option("--with-eip", help="Give the cluster an external address too.")
    ] = False,
    tenants: Annotated[
        int, typer.Option(min=0, max=1000, help="Make so many more projects, users and clusters.")
    ] = 0,
    tls: TlsOption = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object when ready; everything else goes to standard error."
        ),
    ] = False,
) -> None:
    """Try it: start a service on loopback and get a kubeconfig from it.

    Everything that it needs is made in the data folder, and used again by the next run.
    """
    from clustercert.demo import DemoOptions, run

    where: Where = context.obj
    folder = data_dir or where.data_dir or Path("clustercert-data")
    run(
        DemoOptions(
            folder, port, workers=workers, with_eip=with_eip, tenants=tenants, tls=tls, as_json=as_json
        )
    )

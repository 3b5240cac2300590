"""`clustercert fingerprint`: the fingerprint that users compare at their first login."""

import typer

from clustercert.cli.options import CommandError
from clustercert.cli.output import Output, OutputOption, show_one
from clustercert.cli.session import settings


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

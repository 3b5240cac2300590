"""`clustercert refresh`: renews the files that `kubeconfig merge --files` wrote."""

import os
import shlex
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from clustercert.cli.credential.certificate_files import CertificateFile, certificate_files
from clustercert.cli.credential.needed_login import merged_cluster
from clustercert.cli.credential.request import CredentialRequest
from clustercert.cli.credential.service_requests import Failure, obtain, renew_login
from clustercert.cli.kubeconfig.entries import plugin_command
from clustercert.cli.options import InvalidOption, LifetimeOptions
from clustercert.cli.session import warn_in_client
from clustercert.cli.terminal.output import print_note, write_out

_WATCH_SECONDS = 60
# A certificate is renewed in the second half of its lifetime. A timer must run in this half, even if the timer is late.
_MIN_WITH_TIMER = timedelta(minutes=15)
_UNITS = """\
# ~/.config/systemd/user/clustercert-refresh.service
[Unit]
Description=Renew the certificate files of clustercert

[Service]
Type=oneshot
ExecStart={command}

# ~/.config/systemd/user/clustercert-refresh.timer
[Unit]
Description=Renew the certificate files of clustercert

[Timer]
OnStartupSec=1min
OnUnitActiveSec=5min

[Install]
WantedBy=timers.target

# Then: systemctl --user enable --now clustercert-refresh.timer
"""


def refresh(
    expires_in: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Lifetime such as 30m or 8h. [default: 8h, or the policy's limit if it is shorter]",
        ),
    ] = None,
    service_key: Annotated[
        bool, typer.Option("--service-key", help="Let the service create the private keys.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Run until interrupted, and check every minute.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Renew all files, not only those that expire soon.")
    ] = False,
    print_timer: Annotated[
        bool, typer.Option("--print-timer", help="Print a systemd user timer that runs this command.")
    ] = False,
) -> None:
    """Renew the certificate files of `kubeconfig merge --files`.

    A certificate is renewed when less than a fifth of its lifetime, or less than 10 minutes, is left, but never in the
    first half of its lifetime. Its file is replaced atomically.

    Examples:
        clustercert refresh
        clustercert refresh --watch
    """
    warn_in_client(os.environ)
    requested = LifetimeOptions(expires_in=expires_in).issue_options().expires_in
    if print_timer:
        if requested is not None and requested < _MIN_WITH_TIMER:
            raise InvalidOption(
                f"The timer runs every 5 minutes, which is not often enough for {expires_in}. Give at least 15m, or"
                " run `clustercert refresh --watch`, which checks every minute.",
                param_hint="--expires-in",
            )
        options = ["--expires-in", expires_in] if expires_in else []
        options += ["--service-key"] if service_key else []
        write_out(_UNITS.format(command=shlex.join([*plugin_command(), "refresh", *options])))
        return
    if not list(certificate_files()):
        print_note(
            "There are no certificate files. Run `clustercert kubeconfig merge --files` to write them."
        )
    while True:
        exit_code = _refresh(expires_in, service_key=service_key, every=every)
        if not watch:
            raise typer.Exit(exit_code)
        every = False
        time.sleep(_WATCH_SECONDS)


def _refresh(expires_in: str | None, *, service_key: bool, every: bool) -> int:
    """Renew the certificate files that are due. Returns the exit code of the last failure, or 0 if none failed."""
    exit_code = 0
    for file in certificate_files():
        if every or file.is_due(datetime.now(UTC)):
            failure = _renew(file, expires_in, service_key=service_key)
            exit_code = failure.exit_code if failure else exit_code
            print_note(f"{file.path}: {failure.message}" if failure else f"Renewed {file.path}")
    return exit_code


def _renew(file: CertificateFile, expires_in: str | None, *, service_key: bool) -> Failure | None:
    request = CredentialRequest()
    request.profile, request.project, request.cluster = file.profile, file.project_id, file.cluster_id
    request.expires_in, request.service_key, request.kind = expires_in, service_key, file.kind
    if (ref := merged_cluster(request)) is not None:
        request.user = ref.login
    result = renew_login(request) or obtain(request)
    if isinstance(result, Failure):
        return result
    file.write(result)
    for note in result.notes:
        print_note(f"{file.path}: {note}")
    return None

"""Decides which CA to trust for a service, at the first login."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from clustercert.cli.login_flow import read_ca
from clustercert.cli.options import CommandError
from clustercert.cli.output import note
from clustercert.cli.prompts import confirm

_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class TrustOptions:
    """The options that name the CA of the service's certificate."""

    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CA of the service's certificate (PEM).")
    ] = None
    ca_fingerprint: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256",
            help="Trust the certificate or CA that the service sends, if it has this fingerprint.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.ca_file is not None and self.ca_fingerprint is not None:
            raise typer.BadParameter("Give only one of --ca-file and --ca-fingerprint.")
        if self.ca_fingerprint is not None and not _FINGERPRINT.fullmatch(
            self.ca_fingerprint.replace(":", "")
        ):
            raise typer.BadParameter("--ca-fingerprint must be a SHA-256 fingerprint: 64 hex digits.")

    def ca_pem(self, url: str, remembered: str | None) -> str | None:
        """Return the CAs to trust, `None` for this machine's. Asks if the certificate is not trusted yet.

        Args:
            remembered: the CA from the last login.
        """
        from clustercert.client import trust

        given = read_ca(self.ca_file) if self.ca_file is not None else None
        if self.ca_fingerprint is None:
            reason = trust.rejection(url, given or remembered)
            if reason is None:
                return given or remembered
            if given is not None:
                raise CommandError(
                    f"The CA file {self.ca_file} does not fit the certificate of {url} ({reason}). Name the CA that "
                    "signed it, and use an address that the certificate names."
                )
            return _confirmed(url, changed=remembered is not None)
        certificate = trust.chosen_certificate(url, self.ca_fingerprint)
        if certificate is None:
            sent = ", ".join(each.fingerprint for each in trust.presented_chain(url))
            raise CommandError(
                f"{url} sends no certificate with the fingerprint {self.ca_fingerprint}. It sends: {sent}. Ask the "
                "operator of the service for its fingerprint."
            )
        return _checked(url, certificate.pem)


def _confirmed(url: str, *, changed: bool) -> str:
    """Show the last certificate of the service's chain, and return it if the user trusts it."""
    from clustercert.client import trust

    *_, certificate = trust.presented_chain(url)
    ca_pem = _checked(url, certificate.pem)
    if changed:
        note(f"The certificate of {url} is not the one of the last login.")
    else:
        note(f"This machine does not trust the certificate of {url} yet.")
    note(f"SHA-256 fingerprint of its issuer, or of itself: {certificate.fingerprint}")
    note("Compare it with the fingerprint that the operator of the service gives you.")
    confirm(
        "Trust it from now on?",
        yes=False,
        instead=f"add --ca-fingerprint {certificate.fingerprint} after you compared it, or --ca-file FILE",
    )
    return ca_pem


def _checked(url: str, ca_pem: str) -> str:
    from clustercert.client import trust

    if (reason := trust.rejection(url, ca_pem)) is not None:
        raise CommandError(
            f"The certificate of {url} is not valid for this address, or has expired ({reason}). Use an address that it"
            " names."
        )
    return ca_pem

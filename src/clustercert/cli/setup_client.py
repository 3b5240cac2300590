"""Reads the client certificate with which an API server connects to the webhook."""

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from clustercert.kubernetes.setup.authorization import WebhookClient


def read_client(certificate: Path, key: Path) -> "WebhookClient":
    """Read the PEM files. Raises OSError, or typer.BadParameter if they are not a certificate and its key."""
    from clustercert.kubernetes.setup.authorization import WebhookClient

    client = WebhookClient(certificate.read_bytes(), key.read_bytes())
    try:
        # With an empty password, an encrypted key causes an error instead of a prompt.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise typer.BadParameter(
            f"{certificate} and {key} are not a certificate and its unencrypted key (PEM).",
            param_hint="--webhook-client-certificate",
        ) from error
    return client

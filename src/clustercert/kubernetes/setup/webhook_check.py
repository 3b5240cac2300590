"""Checks, before an API server does, whether the webhook's address has a trusted certificate and the webhook."""

import http.client
import socket
import ssl
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from cryptography import x509

from clustercert.kubernetes.setup.values import AUTHORIZE, WebhookClient, webhook_path
from clustercert.model.times import rfc3339
from clustercert.secure_file import write_private

TIMEOUT_SECONDS = 5


class HandshakeError(Exception):
    """The TLS handshake failed, or no HTTP response followed.

    Attributes:
        untrusted: whether the handshake failed because the certificate is not trusted.
    """

    def __init__(self, reason: str, *, untrusted: bool = False) -> None:
        super().__init__(reason)
        self.untrusted = untrusted


class NoWebhook(Exception):
    """The service answers 404 for the webhook, as a process with `serve --role api` does."""


NO_WEBHOOK = (
    "{url} has no webhook: it answers 404, like a process of `clustercert serve --role api`. Set "
    "webhook.public_url to the address of a process with the role webhook or all, and write the files "
    "again with `clustercert kubernetes setup --force`. If --webhook-url was given before, give this "
    "option again."
)


def check_webhook(url: str, ca_pem: str | None, cluster_id: str, client: WebhookClient | None = None) -> str:
    """Send a request to the webhook, and describe its certificate in a sentence.

    Checks the certificate by the rules of kube-apiserver. The request has no token and the method GET, and no effect.
    Raises HandshakeError or NoWebhook.

    Args:
        ca_pem: the CAs to trust; `None` for the CAs of this machine's operating system.
        client: the certificate to present; `None` to present no certificate.
    """
    try:
        der, status = _request(url, ca_pem, webhook_path(cluster_id, AUTHORIZE), client)
        leaf = x509.load_der_x509_certificate(der)
    except ssl.SSLCertVerificationError as error:
        raise HandshakeError(
            f"its certificate is not trusted ({error.verify_message})", untrusted=True
        ) from error
    except ssl.SSLError as error:
        raise HandshakeError(f"it does not speak TLS ({error.reason or error})") from error
    except socket.gaierror as error:
        raise HandshakeError(f"its name can't be resolved ({error.strerror})") from error
    except TimeoutError as error:
        raise HandshakeError(f"no response within {TIMEOUT_SECONDS} seconds") from error
    except http.client.HTTPException as error:
        raise HandshakeError("it does not speak HTTP") from error
    except OSError as error:
        raise HandshakeError((error.strerror or str(error)).lower()) from error
    except ValueError as error:
        raise HandshakeError(f"its name or its certificate can't be parsed ({error})") from error
    if status == HTTPStatus.NOT_FOUND:
        raise NoWebhook(NO_WEBHOOK.format(url=url))
    return (
        f"{url} presented a certificate for {leaf.subject.rfc4514_string() or 'no name'}, issued by "
        f"{leaf.issuer.rfc4514_string()}, valid until {rfc3339(leaf.not_valid_after_utc)}."
    )


def _request(url: str, ca_pem: str | None, path: str, client: WebhookClient | None) -> tuple[bytes, int]:
    """Return the service's certificate (DER), and the status of its response to GET."""
    parts = urlsplit(url)
    context = ssl.create_default_context(cadata=ca_pem)
    # Like Go, accept every trusted CA as a trust anchor, even an intermediate CA, and turn off checks that Go does not
    # make.
    context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False
    if client is not None:
        _load(context, client)
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS, context=context
    )
    try:
        connection.connect()
        der = connection.sock.getpeercert(binary_form=True) or b""
        connection.request("GET", path)
        # In TLS 1.3, the server rejects a client certificate only after the handshake.
        return der, connection.getresponse().status
    finally:
        connection.close()


def _load(context: ssl.SSLContext, client: WebhookClient) -> None:
    """Load a key pair through a temporary file, because Python reads key pairs only from files."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "client.pem"
        write_private(path, client.certificate_pem + b"\n" + client.key_pem)
        context.load_cert_chain(path)

"""Checks the webhook's TLS certificate in a handshake, by the rules of kube-apiserver."""

import socket
import ssl
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from cryptography import x509

from clustercert.kubernetes.setup.values import WebhookClient
from clustercert.model.times import rfc3339
from clustercert.secure_file import write_private

HTTPS_PORT = 443
TIMEOUT_SECONDS = 5


class HandshakeError(Exception):
    """The handshake failed.

    Attributes:
        untrusted: whether the handshake failed because the certificate is not trusted.
    """

    def __init__(self, reason: str, *, untrusted: bool = False) -> None:
        super().__init__(reason)
        self.untrusted = untrusted


def check_handshake(url: str, ca_pem: str | None, client: WebhookClient | None = None) -> str:
    """Connect to the service and describe its certificate in a sentence. Raises HandshakeError.

    Args:
        ca_pem: the CAs to trust; `None` for the CAs of this machine's operating system.
        client: the certificate to present; `None` to present no certificate.
    """
    try:
        der = _peer_certificate(url, ca_pem, client)
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
    except OSError as error:
        raise HandshakeError((error.strerror or str(error)).lower()) from error
    except ValueError as error:
        raise HandshakeError(f"its name or its certificate can't be parsed ({error})") from error
    return (
        f"{url} presented a certificate for {leaf.subject.rfc4514_string() or 'no name'}, issued by "
        f"{leaf.issuer.rfc4514_string()}, valid until {rfc3339(leaf.not_valid_after_utc)}."
    )


def _peer_certificate(url: str, ca_pem: str | None, client: WebhookClient | None) -> bytes:
    parts = urlsplit(url)
    host = parts.hostname or ""
    context = ssl.create_default_context(cadata=ca_pem)
    # Like Go, accept every trusted CA as a trust anchor, even an intermediate CA, and turn off checks that Go does not
    # make.
    context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False
    if client is not None:
        _load(context, client)
    with (
        socket.create_connection((host, parts.port or HTTPS_PORT), timeout=TIMEOUT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        if client is not None:
            # In TLS 1.3 the server rejects a client certificate only after the handshake, so send a request to find
            # out.
            connection.sendall(f"HEAD /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            connection.recv(1)
        return connection.getpeercert(binary_form=True) or b""


def _load(context: ssl.SSLContext, client: WebhookClient) -> None:
    """Load a key pair through a temporary file, because Python reads key pairs only from files."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "client.pem"
        write_private(path, client.certificate_pem + b"\n" + client.key_pem)
        context.load_cert_chain(path)

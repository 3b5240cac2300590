"""A TLS handshake with the webhook's address, judged as a kube-apiserver judges it."""

import socket
import ssl
from urllib.parse import urlsplit

HTTPS_PORT = 443
TIMEOUT_SECONDS = 5


class HandshakeError(Exception):
    """The handshake failed.

    Attributes:
        untrusted: whether the certificate is the reason.
    """

    def __init__(self, reason: str, *, untrusted: bool = False) -> None:
        super().__init__(reason)
        self.untrusted = untrusted


def shake_hands(url: str, ca_pem: bytes | None) -> str:
    """What the service shows, as a sentence. Raises HandshakeError.

    Attributes:
        ca_pem: the only CAs to trust; None for those of this machine's operating system.
    """
    from cryptography import x509

    try:
        der = _certificate_shown(url, ca_pem)
        leaf = x509.load_der_x509_certificate(der)
    except ssl.SSLCertVerificationError as error:
        raise HandshakeError(
            f"its certificate is not trusted ({error.verify_message})", untrusted=True
        ) from error
    except ssl.SSLError as error:
        raise HandshakeError(f"it does not answer with TLS ({error.reason or error})") from error
    except socket.gaierror as error:
        raise HandshakeError(f"its name can't be resolved ({error.strerror})") from error
    except TimeoutError as error:
        raise HandshakeError(f"no answer within {TIMEOUT_SECONDS} seconds") from error
    except OSError as error:
        raise HandshakeError((error.strerror or str(error)).lower()) from error
    except ValueError as error:
        raise HandshakeError(f"its name or its certificate can't be parsed ({error})") from error
    return (
        f"{url} answered with a certificate of {leaf.subject.rfc4514_string() or 'no name'}, issued by "
        f"{leaf.issuer.rfc4514_string()}, valid until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC."
    )


def _certificate_shown(url: str, ca_pem: bytes | None) -> bytes:
    parts = urlsplit(url)
    host = parts.hostname or ""
    context = ssl.create_default_context(cadata=ca_pem.decode() if ca_pem is not None else None)
    # As Go does: any CA in the list is an anchor, and a certificate may lack what RFC 5280 asks for besides.
    context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False
    with (
        socket.create_connection((host, parts.port or HTTPS_PORT), timeout=TIMEOUT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        return connection.getpeercert(binary_form=True) or b""

"""The first contact with a service: checks its certificate, or reads it for confirmation by a person."""

import _ssl
import hashlib
import ssl
import sys
from dataclasses import dataclass

from clustercert.client.connection import Connection, UntrustedCertificate
from clustercert.client.transport import HttpTransport


@dataclass(frozen=True, slots=True)
class PresentedCertificate:
    """A certificate that a service sent. Nothing about it is verified.

    Attributes:
        fingerprint: SHA-256 of the DER, lower-case hex.
    """

    pem: str
    fingerprint: str


def rejection(url: str, ca_pem: str | None) -> str | None:
    """Return why OpenSSL rejects the service's certificate, or None if it is valid and signed by these CAs.

    Raises ClientError if the service can't be reached.
    """
    try:
        with Connection(url, ca_pem=ca_pem) as connection:
            connection.open()
    except UntrustedCertificate as error:
        return error.rejection
    return None


def presented_chain(url: str) -> tuple[PresentedCertificate, ...]:
    """Return the certificates that the service sends, leaf first.

    Sends nothing over the unverified connection. Raises ClientError.
    """
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    with Connection(url, transport=(transport := HttpTransport(url, unverified))) as connection:
        connection.open()
        return tuple(
            PresentedCertificate(ssl.DER_cert_to_PEM_cert(der), hashlib.sha256(der).hexdigest())
            for der in _chain(transport.tls_socket)
        )


def chosen_certificate(url: str, fingerprint: str) -> PresentedCertificate | None:
    """Return the certificate of the service's chain that has this fingerprint, with or without colons."""
    wanted = fingerprint.replace(":", "").lower()
    return next((each for each in presented_chain(url) if each.fingerprint == wanted), None)


def _chain(connection: ssl.SSLSocket) -> list[bytes]:
    if sys.version_info >= (3, 13):
        return connection.get_unverified_chain()
    else:  # noqa: RET505 - mypy checks only the branch of its Python
        return _private_chain(connection)


def _private_chain(connection: ssl.SSLSocket) -> list[bytes]:
    """Return what `get_unverified_chain` of Python 3.13 returns, for Python 3.11 and 3.12.

    Their public API gives only the leaf, so users could not compare the fingerprint of its CA.
    """
    chain = connection._sslobj.get_unverified_chain()  # type: ignore[attr-defined] # noqa: SLF001 - see above
    return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in chain or ()]

"""The TLS files that are served: those given, or a pair made here."""

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clustercert.certificate import (
    authority_key_identifier,
    chain_pem,
    digest_for,
    fingerprint,
    key_usage,
    new_client_ca,
)
from clustercert.keypair import key_pem, new_key
from clustercert.model import PrivateKey
from clustercert.private_file import write_private
from clustercert.settings import Settings, SettingsError

SELF_SIGNED_LIFETIME = timedelta(days=825)


@dataclass(frozen=True, slots=True)
class Tls:
    """What the server shows.

    Attributes:
        certificate, key: PEM files, chain leaf first.
        ca: the file to give to clients, where the pair was made here; else None.
        fingerprint: SHA-256 of the leaf's DER, lower-case hex.
        names: what the pair made here is good for.
    """

    certificate: Path
    key: Path
    ca: Path | None
    fingerprint: str
    names: tuple[str, ...] = ()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return False


def tls(settings: Settings, host: str) -> Tls | None:
    """The TLS files that the settings ask for, made where they ask for none off loopback; None for plain HTTP.

    `host` is the address that is listened on. Raises SettingsError.
    """
    server = settings.server
    if server.tls_certificate is not None and server.tls_key is not None:
        return _given(server.tls_certificate, server.tls_key)
    if server.plain_http or is_loopback(host):
        return None
    if settings.shared_database:
        raise SettingsError(
            f"Listening on {host} needs TLS: set server.tls_certificate and server.tls_key, or"
            " server.plain_http = true behind a proxy. A self-signed certificate is made only for a single server"
            " with its own SQLite database."
        )
    return self_signed(settings.data_dir, _own_names({server.host, host}, server.public_url))


def _given(certificate: Path, key: Path) -> Tls:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"The TLS files {certificate} and {key} can't be used: {error}.") from error
    return Tls(certificate=certificate, key=key, ca=None, fingerprint=fingerprint(leaf).hex())


def _own_names(hosts: set[str], public_url: str | None) -> set[str]:
    """Every name and address by which clients may know this machine."""
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn(), *_own_addresses()}
    # These two are no address of any machine.
    names |= hosts - {"0.0.0.0", "::"}  # noqa: S104
    if public_url is not None and (hostname := urlsplit(public_url).hostname):
        names.add(hostname)
    return names


def _own_addresses() -> Iterator[str]:
    """The addresses from which this machine would reach the rest of the world. Nothing is sent."""
    # RFC 5737 and RFC 3849: addresses for documentation, which only the routing table is asked about.
    for family, somewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((somewhere, 9))
            yield str(probe.getsockname()[0])


def self_signed(folder: Path, names: set[str]) -> Tls:
    """The pair in the data folder; made at the first start, and again when it has expired or lacks a name.

    The CA's key is thrown away once it has signed the one certificate: nobody can sign another.
    """
    certificate, key_file, ca_file = (
        folder / f"tls-{name}" for name in ("server.pem", "server.key", "ca.pem")
    )
    now = datetime.now(UTC).replace(microsecond=0)
    leaf = _readable(certificate) if key_file.exists() and ca_file.exists() else None
    if leaf is None or leaf.not_valid_after_utc < now + timedelta(days=1) or not names <= _names_in(leaf):
        key = new_key("ec-p256")
        leaf, ca = new_server_certificate(key, sorted(names), now, SELF_SIGNED_LIFETIME)
        # Where the database lies elsewhere, nobody has needed it before.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(key_file, key_pem(key))
        write_private(ca_file, chain_pem((ca,)))
        write_private(certificate, chain_pem((leaf,)))
    return Tls(certificate, key_file, ca_file, fingerprint(leaf).hex(), tuple(sorted(names)))


def new_server_certificate(
    key: PrivateKey, names: list[str], not_before: datetime, lifetime: timedelta
) -> tuple[x509.Certificate, x509.Certificate]:
    """(leaf, CA) for this service's own TLS: host names and IP addresses, and a CA whose key is forgotten at once."""
    ca_key = new_key("ec-p256")
    ca = new_client_ca(f"clustercert TLS {os.urandom(4).hex()}", ca_key, not_before, lifetime)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clustercert")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_before + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(authority_key_identifier(ca), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(ca_key, digest_for(ca_key))
    )
    return leaf, ca


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_in(leaf: x509.Certificate) -> set[str]:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return {*names.get_values_for_type(x509.DNSName), *map(str, addresses)}


def _readable(path: Path) -> x509.Certificate | None:
    with contextlib.suppress(OSError, ValueError):
        return x509.load_pem_x509_certificate(path.read_bytes())
    return None

"""The server's TLS files: the files named in the settings, or a self-signed pair."""

import contextlib
import fcntl
import os
import socket
import ssl
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clustercert.model import PrivateKey
from clustercert.model.choices import ServerRole
from clustercert.model.requests import is_loopback
from clustercert.pki.certificates import chain_pem, fingerprint
from clustercert.pki.client_ca import authority_key_identifier, key_usage, new_client_ca, signature_digest
from clustercert.pki.keys import key_pem, new_key
from clustercert.secure_file import write_private
from clustercert.settings import Settings, SettingsError

SELF_SIGNED_LIFETIME = timedelta(days=825)
# Certificates are valid from a day ago, for clients whose clock is behind.
_BACKDATE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Tls:
    """The TLS files that the server uses.

    Attributes:
        certificate, key: PEM files; the chain begins with the leaf.
        ca: the CA file that clients need to trust a self-signed pair; otherwise `None`.
        fingerprint: the fingerprint that users compare at their first login: SHA-256 of the DER of the last certificate
            in the file, in lower-case hex.
        certificate_fingerprint: SHA-256 of the DER of the leaf, in lower-case hex.
        names: host names and IP addresses in a self-signed certificate; otherwise empty.
        client_ca: PEM file of the CAs from which clients must have a certificate. `None` if clients need none.
        not_before, not_after: the period in which all certificates in the file are valid.
    """

    certificate: Path
    key: Path
    ca: Path | None
    fingerprint: str
    certificate_fingerprint: str
    not_before: datetime
    not_after: datetime
    names: tuple[str, ...] = ()
    client_ca: Path | None = None

    @property
    def has_issuer(self) -> bool:
        """Whether the file contains more certificates than the leaf."""
        return self.fingerprint != self.certificate_fingerprint

    @classmethod
    def from_files(
        cls, certificate: Path, key: Path, ca: Path | None = None, names: tuple[str, ...] = ()
    ) -> "Tls":
        """Describe the files. Raises OSError or ValueError."""
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
        return cls(
            certificate=certificate,
            key=key,
            ca=ca,
            fingerprint=fingerprint(chain[-1]).hex(),
            certificate_fingerprint=fingerprint(chain[0]).hex(),
            not_before=max(each.not_valid_before_utc for each in chain),
            not_after=min(each.not_valid_after_utc for each in chain),
            names=names,
        )


def tls(settings: Settings, host: str, role: ServerRole = "all") -> Tls | None:
    """Return the TLS files for listening on `host`, or `None` for plain HTTP. Raises SettingsError.

    If the settings name no files, creates a self-signed pair for addresses other than loopback.

    Args:
        settings: the result of `Settings.for_role` for this role.
    """
    files, client_ca = _server_files(settings, host), settings.webhook.client_ca
    if role != "webhook" or client_ca is None:
        return files
    if files is None:
        raise SettingsError(
            "webhook.client_ca needs TLS. Set webhook.tls_certificate and webhook.tls_key. If a proxy "
            "terminates TLS, remove webhook.client_ca, and let the proxy check client certificates."
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(client_ca)
    except OSError as error:
        raise SettingsError(
            f"webhook.client_ca: can't use {client_ca}: {error}. Name a PEM file of CA "
            "certificates that the service can read."
        ) from error
    return replace(files, client_ca=client_ca)


def _server_files(settings: Settings, host: str) -> Tls | None:
    server = settings.server
    if server.tls_certificate is not None and server.tls_key is not None:
        return _given(server.tls_certificate, server.tls_key)
    if not uses_own_pair(settings, host):
        return None
    if settings.shared_database:
        raise SettingsError(
            f"Listening on {host} needs TLS. Set server.tls_certificate and server.tls_key, or server.plain_http ="
            " true behind a proxy. Self-signed certificates are only for a single server with an SQLite database."
        )
    # Both server roles may use the pair, so the certificate has the host names of both roles.
    hosts, urls = {server.host, settings.webhook.host, host}, (server.public_url, settings.webhook.public_url)
    names, of_machine = _configured_names(hosts, urls), _names_of_machine()
    if not any(urls):
        names, of_machine = names | of_machine, set()
    return self_signed(settings.data_dir, names, of_machine)


def _given(certificate: Path, key: Path) -> Tls:
    for file in (certificate, key):
        try:
            # Open each file first, because the errors of `ssl` do not name the file.
            file.open("rb").close()
        except OSError as error:
            raise SettingsError(
                f"Can't read the TLS file {file}: {error.strerror}. Name a file that the user {os.geteuid()} can read."
            ) from error
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        return Tls.from_files(certificate, key)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"Can't use the TLS files {certificate} and {key}: {error}. Name PEM files with "
            "a certificate chain, leaf first, and its unencrypted key."
        ) from error


def _configured_names(hosts: set[str], public_urls: Iterable[str | None]) -> set[str]:
    """Return loopback, and all names and addresses in the settings at which clients may reach the service."""
    # 0.0.0.0 and :: mean "all addresses", so clients can't use them.
    names = {"localhost", "127.0.0.1", "::1"} | hosts - {"0.0.0.0", "::"}  # noqa: S104
    hostnames = (urlsplit(url).hostname for url in public_urls if url is not None)
    return names | {name for name in hostnames if name}


def _names_of_machine() -> set[str]:
    """Return this machine's names and addresses, which may change: a new pod has another address."""
    return {socket.gethostname(), socket.getfqdn(), *_own_addresses()}


def _own_addresses() -> Iterator[str]:
    """Yield this machine's source addresses for traffic to other networks. Sends nothing."""
    # These addresses are reserved for documentation (RFC 5737, RFC 3849). Connecting a UDP socket only looks up a
    # route, and sends nothing.
    for family, somewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((somewhere, 9))
            yield str(probe.getsockname()[0])


def self_signed(folder: Path, names: set[str], more_names: Collection[str] = ()) -> Tls:
    """Return the self-signed pair in the data folder.

    Creates a new pair if there is none, or if the existing pair expires soon or lacks a name.

    Args:
        names: names and addresses that the certificate must have.
        more_names: names that only a new certificate gets. An existing pair without them stays in use.
    """
    certificate, key_file, ca_file = _own_files(folder)
    now = datetime.now(UTC).replace(microsecond=0)
    # The data folder may not exist yet if the database is stored in a different place.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The processes of both roles may start at the same time.
    with _locked(folder):
        leaf = _readable(certificate) if key_file.exists() and ca_file.exists() else None
        if leaf is None or leaf.not_valid_after_utc < now + timedelta(days=1) or not names <= _names_in(leaf):
            key = new_key("ec-p256")
            named = sorted(names.union(more_names))
            leaf, ca = new_server_certificate(key, named, now - _BACKDATE, SELF_SIGNED_LIFETIME)
            write_private(key_file, key_pem(key))
            write_private(ca_file, chain_pem((ca,)))
            write_private(certificate, chain_pem((leaf,)))
        return Tls.from_files(certificate, key_file, ca_file, tuple(sorted(_names_in(leaf))))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for the folder's lock, and hold it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _own_files(folder: Path) -> tuple[Path, Path, Path]:
    """Return the paths of a self-signed pair: certificate, key and CA."""
    return folder / "tls-server.pem", folder / "tls-server.key", folder / "tls-ca.pem"


def uses_own_pair(settings: Settings, host: str) -> bool:
    """Whether the service creates its certificate itself to listen on `host`."""
    server = settings.server
    return server.tls_certificate is None and not (server.plain_http or is_loopback(host))


def present_tls(settings: Settings) -> Tls | None:
    """Return the TLS files for users, or `None` for plain HTTP or a self-signed pair that does not exist yet.

    Reads only certificates, and creates nothing. Raises SettingsError.
    """
    certificate, key, ca = settings.server.tls_certificate, settings.server.tls_key, None
    if certificate is None or key is None:
        certificate, key, ca = _own_files(settings.data_dir)
        if not uses_own_pair(settings, settings.server.host) or not certificate.exists():
            return None
    try:
        return Tls.from_files(certificate, key, ca)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"Can't read the certificate {certificate}: {error}. Name a PEM file that this "
            "user can read, in server.tls_certificate."
        ) from error


def new_server_certificate(
    key: PrivateKey, names: list[str], not_before: datetime, lifetime: timedelta
) -> tuple[x509.Certificate, x509.Certificate]:
    """Create a TLS leaf and its CA for this service. The CA's key is discarded, so the CA can't sign anything else."""
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
        .sign(ca_key, signature_digest(ca_key))
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

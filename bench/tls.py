"""Creates a TLS certificate for servers on loopback, the same kind for this service and its peers."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clustercert.pki.certificates import chain_pem
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate

LIFETIME = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files: the leaf, its P-256 key, and the CA."""

    certificate: Path
    key: Path
    ca: Path

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of a client that trusts the CA."""
        return ssl.create_default_context(cafile=self.ca)


def new_files(folder: Path) -> Files:
    """Create the files in a folder."""
    key = new_key("ec-p256")
    now = datetime.now(UTC).replace(microsecond=0)
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, LIFETIME)
    files = Files(folder / "tls.pem", folder / "tls.key", folder / "tls-ca.pem")
    files.certificate.write_bytes(chain_pem((leaf,)))
    files.key.write_bytes(key_pem(key))
    files.ca.write_bytes(chain_pem((ca,)))
    return files

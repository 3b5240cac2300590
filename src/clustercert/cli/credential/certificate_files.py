"""Certificate files for programs that can't run an exec plugin. Each file has the certificate and key for a cluster."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli import clock
from clustercert.cli.credential.certificate import Credential
from clustercert.cli.options import CommandError, home_folder
from clustercert.file_names import is_plain
from clustercert.policy.lifetime import BACKDATE
from clustercert.secure_file import make_private_folder, read_regular_file, write_private

if TYPE_CHECKING:
    from cryptography import x509

# The maximum size of a certificate with its chain. Five certificates with RSA keys of 4096 bits take 10 KiB.
MAX_CERTIFICATE_BYTES = 64 * 1024
_SUFFIX = ".pem"
# Renew a file at least this long before its certificate expires. The timer for renewals runs every 5 minutes.
_MIN_LEFT = timedelta(minutes=10)
# The suffix of the file that has `clock.boot_time` of the write.
_CLOCK_SUFFIX = ".clock"
_MAX_DIGITS = 20
# A file that was written further in the future than this is not used.
_CLOCK_STEP = timedelta(seconds=clock.STEP_SECONDS)


@dataclass(frozen=True, slots=True)
class CertificateFile:
    """A file that contains a certificate and its private key, so that one write replaces both.

    Raises ValueError if an attribute is not safe in a file name.
    """

    profile: str
    project_id: str
    cluster_id: str

    def __post_init__(self) -> None:
        if not all(map(is_plain, (self.profile, self.project_id, self.cluster_id))):
            raise ValueError("a part of the file's name has unexpected characters")

    @property
    def path(self) -> Path:
        return _folder() / f"{self.profile},{self.project_id},{self.cluster_id}{_SUFFIX}"

    @property
    def _clock_path(self) -> Path:
        return self.path.with_suffix(_CLOCK_SUFFIX)

    def write(self, credential: Credential) -> None:
        """Write the certificate and the key. Raises CommandError."""
        try:
            for folder in (self.path.parent.parent, self.path.parent):
                make_private_folder(folder)
            # Without this file, `is_due` compares the certificate's own times with this machine's clock.
            self._clock_path.unlink(missing_ok=True)
            write_private(self.path, credential.certificate_pem + credential.key_pem)
            write_private(self._clock_path, str(clock.boot_time()))
        except OSError as error:
            raise CommandError(f"The file {self.path} can't be written: {error.strerror}.") from error

    def is_due(self, now: datetime) -> bool:
        """Whether to renew the certificate in this file.

        The certificate is due if less than a fifth of its lifetime or less than 10 minutes is left, but never in the
        first half of its lifetime. A damaged file is due.
        """
        from cryptography import x509

        try:
            leaf = x509.load_pem_x509_certificate(read_regular_file(self.path, MAX_CERTIFICATE_BYTES))
            written = datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
        except (OSError, ValueError):
            return True
        lifetime = lifetime_of(leaf)
        # The file was written when the certificate was issued. `written` and `now` are both from this machine's clock,
        # so the result is right even if this clock differs from the service's clock, unless the clock was set.
        issued = written if self._is_same_clock() else leaf.not_valid_after_utc - lifetime
        left = min(max(lifetime / 5, _MIN_LEFT), lifetime / 2)
        return not -_CLOCK_STEP <= now - issued < lifetime - left

    def _is_same_clock(self) -> bool:
        """Whether this machine's clock was not set since the file was written."""
        try:
            return clock.is_unchanged_since(int(read_regular_file(self._clock_path, _MAX_DIGITS)))
        except (OSError, ValueError):
            return False

    def delete(self) -> None:
        for path in (self.path, self._clock_path):
            with contextlib.suppress(OSError):
                path.unlink()


def lifetime_of(leaf: "x509.Certificate") -> timedelta:
    """Return the lifetime of a certificate, from its issue to its expiry. Does not use this machine's clock."""
    return leaf.not_valid_after_utc - leaf.not_valid_before_utc - BACKDATE


def certificate_files() -> Iterator[CertificateFile]:
    """Yield the certificate files that `kubeconfig merge --files` wrote."""
    for path in sorted(_folder().glob(f"*{_SUFFIX}")):
        parts = path.name.removesuffix(_SUFFIX).split(",")
        if len(parts) == len(CertificateFile.__slots__) and all(map(is_plain, parts)):
            yield CertificateFile(*parts)


def _folder() -> Path:
    folder = Path(os.environ.get("XDG_DATA_HOME") or "")
    # Ignore a relative path in XDG_DATA_HOME, as the XDG Base Directory Specification requires.
    if not folder.is_absolute():
        folder = home_folder("XDG_DATA_HOME") / ".local" / "share"
    return folder / "clustercert" / "certificates"

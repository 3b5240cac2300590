"""Files for programs that can't run an exec plugin. Each file contains a certificate with its key, or a token."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
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

    from clustercert.model.choices import CredentialKind

# The maximum size of a certificate with its chain. Five certificates with RSA keys of 4096 bits take 10 KiB.
MAX_CERTIFICATE_BYTES = 64 * 1024
_SUFFIXES: "dict[CredentialKind, str]" = {"certificate": ".pem", "token": ".token"}
# Renew a file at least this long before its certificate expires. The timer for renewals runs every 5 minutes.
_MIN_LEFT = timedelta(minutes=10)
# The suffix of the file with the `clock.boot_time` of the write. For a token, the file also has the lifetime and the
# end, because the token itself may expire later.
_CLOCK_SUFFIX = ".clock"
_MAX_DIGITS = 64
# A file is named by profile, project and cluster.
_NAME_PARTS = 3
# A file that was written further in the future than this is not used.
_CLOCK_STEP = timedelta(seconds=clock.STEP_SECONDS)


@dataclass(frozen=True, slots=True)
class CertificateFile:
    """A file that contains a token, or a certificate and its private key, so that one write replaces both.

    Raises ValueError if an attribute is not safe in a file name.
    """

    profile: str
    project_id: str
    cluster_id: str
    kind: "CredentialKind" = field(default="certificate", kw_only=True)

    def __post_init__(self) -> None:
        if not all(map(is_plain, (self.profile, self.project_id, self.cluster_id))):
            raise ValueError("a part of the file's name has unexpected characters")

    @property
    def path(self) -> Path:
        return _folder() / f"{self.profile},{self.project_id},{self.cluster_id}{_SUFFIXES[self.kind]}"

    @property
    def _clock_path(self) -> Path:
        return self.path.with_suffix(_CLOCK_SUFFIX)

    def write(self, credential: Credential) -> None:
        """Write the credential, which is of this file's kind. Raises CommandError."""
        text, times = credential.certificate_pem + credential.key_pem, [clock.boot_time()]
        if credential.token is not None:
            text = credential.token
            times += [int(credential.lifetime.total_seconds()), int(credential.not_after.timestamp())]
        try:
            for folder in (self.path.parent.parent, self.path.parent):
                make_private_folder(folder)
            # Without this file, `is_due` compares the certificate's own times with this machine's clock.
            self._clock_path.unlink(missing_ok=True)
            write_private(self.path, text)
            write_private(self._clock_path, " ".join(map(str, times)))
        except OSError as error:
            raise CommandError(f"The file {self.path} can't be written: {error.strerror}.") from error

    def is_due(self, now: datetime) -> bool:
        """Whether to renew the credential in this file.

        The credential is due if less than a fifth of its lifetime or less than 10 minutes is left, but never in the
        first half of its lifetime. A damaged file is due.
        """
        try:
            lifetime, not_after = self._times()
            written = datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
        except (OSError, ValueError, OverflowError):
            return True
        # The file was written when the certificate was issued. `written` and `now` are both from this machine's clock,
        # so the result is right even if this clock differs from the service's clock, unless the clock was set.
        issued = written if self._is_same_clock() else not_after - lifetime
        left = min(max(lifetime / 5, _MIN_LEFT), lifetime / 2)
        return not -_CLOCK_STEP <= now - issued < lifetime - left

    def ends_at(self) -> datetime | None:
        """Return the credential's end by the service's clock, or None if its files are missing or damaged."""
        with contextlib.suppress(OSError, ValueError, OverflowError):
            return self._times()[1]
        return None

    def _times(self) -> tuple[timedelta, datetime]:
        """Return the credential's lifetime and its end by the service's clock. Raises OSError or ValueError."""
        if self.kind == "token":
            _, lifetime, not_after = map(int, read_regular_file(self._clock_path, _MAX_DIGITS).split())
            return timedelta(seconds=lifetime), datetime.fromtimestamp(not_after, UTC)
        from cryptography import x509

        leaf = x509.load_pem_x509_certificate(read_regular_file(self.path, MAX_CERTIFICATE_BYTES))
        return lifetime_of(leaf), leaf.not_valid_after_utc

    def _is_same_clock(self) -> bool:
        """Whether this machine's clock was not set since the file was written."""
        try:
            boot_time, *_ = map(int, read_regular_file(self._clock_path, _MAX_DIGITS).split())
            return clock.is_unchanged_since(boot_time)
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
    """Yield the files that `kubeconfig merge --files` wrote."""
    for kind, suffix in _SUFFIXES.items():
        for path in sorted(_folder().glob(f"*{suffix}")):
            parts = path.name.removesuffix(suffix).split(",")
            if len(parts) == _NAME_PARTS and all(map(is_plain, parts)):
                profile, project_id, cluster_id = parts
                yield CertificateFile(profile, project_id, cluster_id, kind=kind)


def _folder() -> Path:
    folder = Path(os.environ.get("XDG_DATA_HOME") or "")
    # Ignore a relative path in XDG_DATA_HOME, as the XDG Base Directory Specification requires.
    if not folder.is_absolute():
        folder = home_folder("XDG_DATA_HOME") / ".local" / "share"
    return folder / "clustercert" / "certificates"

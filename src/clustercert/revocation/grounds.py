"""Why something is revoked, and what follows from that: whether it can be undone, and what it can be named by."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from clustercert.certificate import MAX_NAME
from clustercert.errors import InvalidRequest
from clustercert.model import Revocation, RevocationReason
from clustercert.policy import is_plain_text
from clustercert.store.revocations import NO_END

MAX_NOTE = 512
# RFC 5280, 4.1.2.2: at most 20 bytes.
MAX_SERIAL = 40
FINGERPRINT_DIGITS = 64
_HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Grounds:
    """Why something is revoked.

    Attributes:
        note: for the audit and the inventory; printable text of at most 512 characters.
    """

    reason: RevocationReason = "unspecified"
    note: str | None = None

    def checked(self) -> "Grounds":
        """The same. Raises InvalidRequest where the note is out of its bounds."""
        if self.note is not None and (len(self.note) > MAX_NOTE or not is_plain_text(self.note)):
            raise InvalidRequest(
                f"note: must have at most {MAX_NOTE} characters, none of them control or bidirectional ones."
            )
        return self


def as_strong(standing: Revocation, grounds: Grounds, *, proved: bool) -> bool:
    """Whether a revocation would outlast whatever outlasts the one that is asked for."""
    compromised = standing.reason == "keyCompromise" or grounds.reason != "keyCompromise"
    return compromised and (standing.proved or not proved)


def why_not_undo(revocation: Revocation, undo_window: timedelta, now: datetime) -> str | None:
    """A sentence on why a revocation can't be undone, or None."""
    if revocation.undone_at is not None:
        return "This revocation was undone already."
    if revocation.proved or revocation.reason == "keyCompromise":
        return "What a compromised key or its holder revoked stays revoked. Issue a new certificate."
    if revocation.epoch == NO_END:
        return "This revocation holds for as long as its user is disabled. Enable the user first."
    if now - revocation.at > undo_window:
        minutes = undo_window.total_seconds() / 60
        return (
            f"Undoing is possible for {minutes:g} minutes (revocation.undo_window). Issue a new certificate."
        )
    return None


def checked_id(user_id: str) -> str:
    """A user id as it stands in a certificate's CN. Raises InvalidRequest."""
    if not 1 <= len(user_id.encode(errors="replace")) <= MAX_NAME or not is_plain_text(user_id):
        raise InvalidRequest(f"A user id has 1 to {MAX_NAME} bytes in UTF-8 and no control characters.")
    return user_id


def is_hex(text: str) -> bool:
    """Whether this could be a fingerprint or a serial, lower-case hex."""
    return is_fingerprint(text) or (1 <= len(text) <= MAX_SERIAL and not set(text) - _HEX_DIGITS)


def is_fingerprint(text: str) -> bool:
    return len(text) == FINGERPRINT_DIGITS and not set(text) - _HEX_DIGITS

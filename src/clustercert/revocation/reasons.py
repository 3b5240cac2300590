"""Reasons for revocations."""

from dataclasses import dataclass

from clustercert.model import RevocationReason
from clustercert.model.errors import InvalidRequest
from clustercert.policy.names import is_plain_text

MAX_NOTE = 512


@dataclass(frozen=True, slots=True)
class Reason:
    """Why certificates are revoked.

    Attributes:
        note: free text for the audit log and the inventory; at most 512 printable characters.
    """

    code: RevocationReason = "unspecified"
    note: str | None = None

    def validate(self) -> None:
        """Raise InvalidRequest if the note is too long or has control or bidirectional characters."""
        if self.note is not None and (len(self.note) > MAX_NOTE or not is_plain_text(self.note)):
            raise InvalidRequest(
                f"note: must have at most {MAX_NOTE} characters, without control or bidirectional ones."
            )

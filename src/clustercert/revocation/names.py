"""Checks the format of the certificate names and user ids in revocations, not whether they exist."""

from clustercert.model.errors import InvalidRequest
from clustercert.pki.subject import MAX_NAME
from clustercert.policy.names import is_plain_text

# A serial has at most 20 bytes. Source: RFC 5280, 4.1.2.2.
MAX_SERIAL_DIGITS = 40
FINGERPRINT_DIGITS = 64
_HEX_DIGITS = frozenset("0123456789abcdef")


def checked_user_id(user_id: str) -> str:
    """Return the user id if it can be a certificate's CN. Raises InvalidRequest otherwise."""
    if not 1 <= len(user_id.encode(errors="replace")) <= MAX_NAME or not is_plain_text(user_id):
        raise InvalidRequest(f"A user id must have 1 to {MAX_NAME} bytes in UTF-8 and no control characters.")
    return user_id


def certificate_name(text: str, *, abbreviated: bool = False) -> str | None:
    """Normalize a fingerprint, credential number or serial to lower-case hex. Returns None for any other string.

    Args:
        abbreviated: whether to accept the first digits of a fingerprint.
    """
    name = text.replace(":", "").lower()
    longest = FINGERPRINT_DIGITS if abbreviated else MAX_SERIAL_DIGITS
    has_length = 1 <= len(name) <= longest or len(name) == FINGERPRINT_DIGITS
    return name if has_length and _HEX_DIGITS.issuperset(name) else None


def is_fingerprint(text: str) -> bool:
    """Whether the string is a SHA-256 in lower-case hex."""
    return len(text) == FINGERPRINT_DIGITS and _HEX_DIGITS.issuperset(text)

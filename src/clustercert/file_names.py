"""Checks ids and names that become part of a file name. Imports nothing, to keep the exec plugin fast."""

_MAX_LENGTH = 64


def is_plain(part: str) -> bool:
    """Whether `part` consists of at most 64 ASCII letters, digits, `-`, `_` and `.`, and does not start with a dot."""
    plain = part.replace("-", "").replace("_", "").replace(".", "")
    return plain.isascii() and plain.isalnum() and not part.startswith(".") and len(part) <= _MAX_LENGTH

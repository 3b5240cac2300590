"""Ids and names that can be parts of a file's name. Imports nothing, because each call of the exec plugin needs it."""

_MAX_LENGTH = 64


def is_plain(part: str) -> bool:
    """Whether a part is safe: ASCII letters, digits, `-`, `_` and `.`, at most 64, and no dot at the start."""
    plain = part.replace("-", "").replace("_", "").replace(".", "")
    return plain.isascii() and plain.isalnum() and not part.startswith(".") and len(part) <= _MAX_LENGTH

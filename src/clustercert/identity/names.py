"""The format of names and ids in the built-in identity service."""

import unicodedata

from clustercert.model.errors import InvalidRequest
from clustercert.model.ids import is_id

# The same limits as Keystone's, except for roles: Keystone allows 255 characters in the name of a role.
MAX_NAME = {"domain": 64, "project": 64, "group": 64, "role": 64, "user": 255}
MAX_DESCRIPTION = 255


def checked_name(text: str, noun: str) -> str:
    """Remove surrounding spaces from a name, and convert it to Unicode NFC. Raises InvalidRequest.

    `noun` is domain, project, group, role or user.
    """
    name, longest = searchable(text.strip()), MAX_NAME[noun]
    if name is None or not 1 <= len(name) <= longest:
        raise InvalidRequest(
            f"The name of a {noun} must have 1 to {longest} printable characters, without control,"
            " bidirectional or invisible characters."
        )
    return name


def checked_new_name(text: str, noun: str) -> str:
    """Like `checked_name`, for a new object. Also raises InvalidRequest if the name has a slash or looks like an id."""
    name = checked_name(text, noun)
    if "/" in name:
        raise InvalidRequest(
            f"name: {name} has a slash, which separates a domain from a name. Choose another name for the {noun}."
        )
    if is_id(name.lower()):
        raise InvalidRequest(f"name: {name} looks like an id. Choose another name for the {noun}.")
    return name


def checked_description(text: str) -> str:
    """Return the description if it is valid, else raise InvalidRequest."""
    if len(text) > MAX_DESCRIPTION or not text.isprintable():
        raise InvalidRequest(f"A description can have at most {MAX_DESCRIPTION} printable characters.")
    return text


def searchable(text: str) -> str | None:
    """Normalize a string in the same way as stored names. Returns None if the string can't be a name."""
    # `isprintable` excludes control, format (including bidirectional), surrogate and private-use characters.
    if not text.isprintable() or len(text) > max(MAX_NAME.values()):
        return None
    return unicodedata.normalize("NFC", text)


def matches_name(stored: str, requested: str | None) -> bool:
    """Whether a stored name equals the requested name after normalization. Always true if `requested` is None."""
    return requested is None or searchable(requested) == stored

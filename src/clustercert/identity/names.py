"""What names and ids of the built-in identity look like; which ones exist is the store's business."""

import re
import unicodedata

from clustercert.errors import InvalidRequest

# Keystone's own bounds, except for roles (255 there).
MAX_NAME = {"domain": 64, "project": 64, "group": 64, "role": 64, "user": 255}
MAX_DESCRIPTION = 255

_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


def checked_name(text: str, noun: str) -> str:
    """The name as it is kept: without spaces around it, in one Unicode form. Raises InvalidRequest.

    `noun` is domain, project, group, role or user.
    """
    name = searchable(text.strip())
    longest = MAX_NAME[noun]
    if name is None or not 1 <= len(name) <= longest:
        raise InvalidRequest(
            f"The name of a {noun} has 1 to {longest} printable characters,"
            " none of them a control, bidirectional or invisible one."
        )
    return name


def checked_description(text: str) -> str:
    """Raises InvalidRequest."""
    if len(text) > MAX_DESCRIPTION or not text.isprintable():
        raise InvalidRequest(f"A description has at most {MAX_DESCRIPTION} printable characters.")
    return text


def searchable(text: str) -> str | None:
    """Text in the form in which names are kept, or None where no name can be like it."""
    # `isprintable` refuses control, format (the bidirectional ones too), surrogate and private characters.
    if not text.isprintable() or len(text) > max(MAX_NAME.values()):
        return None
    return unicodedata.normalize("NFC", text)


def is_called(kept: str, wanted: str | None) -> bool:
    """Whether a kept name is the wanted one, however that is spelled; None wants any."""
    return wanted is None or searchable(wanted) == kept


def is_id(text: str) -> bool:
    """Whether text has the form of an id: 32 lower-case hex digits."""
    return _ID.fullmatch(text) is not None

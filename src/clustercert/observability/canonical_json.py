"""JSON in ASCII without spaces, for the log and for audit events.

Control characters in strings are escaped, so they can't affect a terminal.
"""

import json
from collections.abc import Callable
from typing import Any

import orjson

# Pass dataclasses and times to `default`, as `json` does.
_LIKE_JSON = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def dumps(value: object, *, sort_names: bool = False, default: Callable[[Any], Any] | None = None) -> bytes:
    """Serialize like `json.dumps`, except that a float may be written differently, such as 1e16 instead of 1e+16.

    Raises TypeError for a value that JSON can't represent and `default` does not convert.
    """
    try:
        text = orjson.dumps(value, default, _LIKE_JSON | (orjson.OPT_SORT_KEYS if sort_names else 0))
    except TypeError:
        # orjson also rejects integers of more than 64 bits and lone surrogates, which `json` accepts.
        text = None
    if text is not None and text.isascii():
        return text
    return json.dumps(value, sort_keys=sort_names, separators=(",", ":"), default=default).encode()

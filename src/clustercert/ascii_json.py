"""JSON in ASCII without spaces: what the log writes, and what an audit event is.

A line of it does nothing to the terminal that shows it, whatever stands in its strings.
"""

import json
from collections.abc import Callable
from typing import Any

import orjson

# What `json` doesn't know by itself is left to `default` here as well.
_LIKE_JSON = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def dumps(value: object, *, sort_names: bool = False, default: Callable[[Any], Any] | None = None) -> bytes:
    """A value as `json.dumps` writes it, but for floats, whose shortest form may be another.

    Raises TypeError for what is no JSON and `default` makes none of.
    """
    try:
        text = orjson.dumps(value, default, _LIKE_JSON | (orjson.OPT_SORT_KEYS if sort_names else 0))
    except TypeError:
        # Numbers of more than 64 bits and halves of surrogate pairs are nothing to it either.
        text = None
    if text is not None and text.isascii():
        return text
    return json.dumps(value, sort_keys=sort_names, separators=(",", ":"), default=default).encode()

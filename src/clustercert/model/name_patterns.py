"""Names and patterns in the policy's conditions, and the values that are compared with them."""

import re
from collections.abc import Iterable, Sequence

# No name in the policy or in the directory contains this character. In other values, it is replaced.
_SEPARATOR = "\0"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Values:
    """The values of one kind in a decision's input, such as the caller's groups, prepared for many comparisons.

    Attributes:
        joined: all values in one string, in which a pattern is found faster than in each value. Empty until `join`.
    """

    __slots__ = ("_given", "joined", "names")

    def __init__(self, values: Sequence[str]) -> None:
        self.names = frozenset(values)
        self.joined = ""
        self._given = values

    def join(self) -> str:
        """Set and return `joined`: the values with a separator before, between and after them."""
        joined = "".join((_SEPARATOR, *(f"{_escape(value)}{_SEPARATOR}" for value in self._given)))
        self.joined = joined
        return joined


class Names:
    """Names, and patterns in which `*` stands for any characters and `?` for one."""

    __slots__ = ("_exact", "_parts", "_pattern", "text")

    def __init__(self, names: Iterable[str], *, wildcards: bool = True) -> None:
        given = tuple(names)
        patterns = {name for name in given if wildcards and ("*" in name or "?" in name)}
        parts = {name: part for name in patterns if (part := _only_part(name)) is not None}
        expressions = sorted(map(_regular_expression, patterns - parts.keys()))
        self.text = " or ".join(given)
        self._exact = frozenset(given) - patterns
        self._parts = tuple(sorted(parts.values()))
        self._pattern = re.compile("|".join(expressions)) if expressions else None

    def match(self, values: Sequence[str]) -> bool:
        """Whether one of the values matches one of the names."""
        if not self._exact.isdisjoint(values):
            return True
        return (bool(self._parts) or self._pattern is not None) and self.match_prepared(Values(values))

    def match_prepared(self, values: Values) -> bool:
        """Whether one of the values matches one of the names. Faster than `match` if many names are compared."""
        if not self._exact.isdisjoint(values.names):
            return True
        if not self._parts and self._pattern is None:
            return False
        joined = values.joined or values.join()
        for part in self._parts:
            if part in joined:
                return True
        return self._pattern is not None and self._pattern.search(joined) is not None


def _escape(text: str) -> str:
    return text.replace(_SEPARATOR, _REPLACEMENT)


def _only_part(pattern: str) -> str | None:
    """Return the string by which a pattern such as `team-*` is found in joined values, or None for other patterns."""
    text = pattern.strip("*")
    if not text or "*" in text or "?" in text:
        return None
    start = "" if pattern.startswith("*") else _SEPARATOR
    end = "" if pattern.endswith("*") else _SEPARATOR
    return f"{start}{_escape(text)}{end}"


def _regular_expression(pattern: str) -> str:
    """Return the regular expression by which a pattern is found in joined values."""
    escaped = re.escape(_escape(pattern))
    inside = escaped.replace(r"\*", f"[^{_SEPARATOR}]*").replace(r"\?", f"[^{_SEPARATOR}]")
    return f"{_SEPARATOR}{inside}{_SEPARATOR}"

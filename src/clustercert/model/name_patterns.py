"""Names and patterns in the policy's conditions, and the values that are compared with them."""

import re
from collections.abc import Iterable, Sequence

# No name in the policy or in the directory contains the separator. In other values, the separator is replaced.
_SEPARATOR = "\0"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_ANY = f"[^{_SEPARATOR}]"


class Values:
    """The names and ids of one kind in the input of a policy decision, such as the caller's groups.

    An instance can be compared with many rules.

    Attributes:
        exact: names and ids, which are compared with entries without wildcards.
        joined: all names in one string, because searching a pattern in one string is faster than in each name. Empty
            until `join` is called. Contains no ids, because a pattern such as `fe*` could match an id by chance.
    """

    __slots__ = ("_names", "exact", "joined")

    def __init__(self, names: Sequence[str], ids: Iterable[str] = ()) -> None:
        self.exact = frozenset((*names, *ids))
        self.joined = ""
        self._names = names

    def join(self) -> str:
        """Set and return `joined`: the names with a separator before, between and after them."""
        joined = "".join((_SEPARATOR, *(f"{_escape(name)}{_SEPARATOR}" for name in self._names)))
        self.joined = joined
        return joined


class Names:
    """Entries of a list in the policy: names, ids, and patterns (`*` stands for any characters, `?` for one)."""

    __slots__ = ("_exact", "_parts", "_pattern", "text")

    def __init__(self, names: Iterable[str]) -> None:
        given = tuple(names)
        patterns = {name for name in given if is_pattern(name)}
        parts = {name: part for name in patterns if (part := _only_part(name)) is not None}
        expressions = sorted(map(_regular_expression, patterns - parts.keys()))
        self.text = " or ".join(given)
        self._exact = frozenset(given) - patterns
        self._parts = tuple(sorted(parts.values()))
        self._pattern = re.compile("|".join(expressions)) if expressions else None

    def match(self, names: Sequence[str], ids: Iterable[str] = ()) -> bool:
        """Whether an entry matches one of the names, or is one of the ids."""
        if not (self._exact.isdisjoint(names) and self._exact.isdisjoint(ids)):
            return True
        return (bool(self._parts) or self._pattern is not None) and self.match_prepared(Values(names))

    def match_prepared(self, values: Values) -> bool:
        """Like `match`, but faster if many entries are compared with the same values."""
        if not self._exact.isdisjoint(values.exact):
            return True
        if not self._parts and self._pattern is None:
            return False
        joined = values.joined or values.join()
        for part in self._parts:
            if part in joined:
                return True
        return self._pattern is not None and self._pattern.search(joined) is not None


def is_pattern(name: str) -> bool:
    """Whether an entry has wildcards. An entry with wildcards is compared with names, but not with ids."""
    return "*" in name or "?" in name


def _escape(text: str) -> str:
    return text.replace(_SEPARATOR, _REPLACEMENT)


def _only_part(pattern: str) -> str | None:
    """Return the string to search for in `Values.joined` if the pattern is simple, such as `team-*`; else None."""
    text = pattern.strip("*")
    if not text or is_pattern(text):
        return None
    start = "" if pattern.startswith("*") else _SEPARATOR
    end = "" if pattern.endswith("*") else _SEPARATOR
    return f"{start}{_escape(text)}{end}"


def _regular_expression(pattern: str) -> str:
    """Return a regular expression that finds, in `Values.joined`, a name that matches the pattern.

    The search takes time linear in the length of the values: parts between two `*` are searched from left to right,
    without backtracking. An atomic group keeps the first occurrence of a part, because a later occurrence never helps
    the following parts to match.
    """
    first, *others = [_literal(part) for part in re.split(r"\*+", _escape(pattern))]
    if not others:
        return f"{_SEPARATOR}{first}{_SEPARATOR}"
    *inner, last = others
    found = "".join(f"(?>{_ANY}*?{part})" for part in inner)
    return f"{_SEPARATOR}{first}{found}{_ANY}*{last}{_SEPARATOR}"


def _literal(part: str) -> str:
    return re.escape(part).replace(r"\?", _ANY)

"""Reads and checks claims of tokens, and evaluates expressions over claims."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from clustercert.model import JsonObject, rfc3339
from clustercert.model.errors import Unauthenticated
from clustercert.model.name_patterns import Names
from clustercert.policy.expressions import MAX_LISTED, compile_expression

if TYPE_CHECKING:
    from cel.cel import Program


# Values from unverified tokens can be long, so only their first characters are logged.
MAX_SHOWN = 120


class TokenRefused(Unauthenticated):
    """A token failed a check. As for any failed authentication, the caller does not learn which check failed.

    Attributes:
        check: the name of the check, such as `signature` or `aud`.
        came: the value in the token, shortened; empty if the token has no value, or if the value would not help to
            understand the error.
        expected: the values that the check accepts.
    """

    def __init__(self, check: str, came: object, expected: str) -> None:
        self.check = check
        self.came = shown(came)
        self.expected = expected
        super().__init__(f"{check}: the token has {self.came or 'nothing'}; expected: {expected}")


def shown(value: object) -> str:
    """Return a printable ASCII form of a value from a token, shortened. Formats a time as in RFC 3339."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return rfc3339(value)
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


# The maximum length of a value in a comparison, in characters. Longer values match nothing.
MAX_COMPARED = 1024


def claim_path(claim: str) -> tuple[str, ...]:
    """Return the member names on the path to a claim, outermost first.

    A claim that begins with a slash is a JSON pointer, such as `/kubernetes.io/namespace` (RFC 6901). Any other
    claim is the name of a top-level claim.
    """
    if not claim.startswith("/"):
        return (claim,)
    return tuple(name.replace("~1", "/").replace("~0", "~") for name in claim[1:].split("/"))


def claim_value(claims: JsonObject, claim: str) -> object:
    """Return a claim, or None if the token does not have it. See `claim_path`."""
    value: object = claims
    for name in claim_path(claim):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def claim_texts(value: object) -> tuple[str, ...] | None:
    """Return a claim's value, or each entry of a list, as a string. Returns None for objects and other types."""
    values = value if isinstance(value, list) else [value]
    texts = tuple(map(_text, values))
    return None if None in texts else tuple(text for text in texts if text is not None)


def _text(value: object) -> str | None:
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int():
            # Python refuses to convert integers with thousands of digits.
            return str(value) if value.bit_length() <= 64 else None  # noqa: PLR2004 - no id is larger
        case _:
            return None


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """A claim that must have one of the values or match one of the patterns.

    If the claim is a list, one entry must match. The check fails if any value of the claim is longer than
    `MAX_COMPARED`.
    """

    claim: str
    values: Names

    def is_met(self, claims: JsonObject) -> bool:
        value = claim_value(claims, self.claim)
        texts = claim_texts(value) if value is not None else None
        return texts is not None and not _is_long(texts) and self.values.match(texts)

    def failure(self, claims: JsonObject) -> TokenRefused:
        """Return the error for claims that do not pass the check."""
        value = claim_value(claims, self.claim)
        bound = f", in at most {MAX_COMPARED} characters" if _is_long(claim_texts(value) or ()) else ""
        return TokenRefused(self.claim, value, f"{self.values.text}{bound}")

    def require(self, claims: JsonObject) -> None:
        """Raise TokenRefused if the claim does not pass the check."""
        if not self.is_met(claims):
            raise self.failure(claims)


def _is_long(texts: Iterable[str]) -> bool:
    return any(len(text) > MAX_COMPARED for text in texts)


@dataclass(frozen=True, slots=True)
class ClaimExpression:
    """An expression in CEL, compiled when the settings are loaded. The variable `claims` holds the token's claims.

    Attributes:
        setting: the name of the setting, for error messages.
    """

    source: str
    setting: str
    _program: "Program" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the expression. Raises ValueError."""
        object.__setattr__(self, "_program", compile_expression(self.source, frozenset({"claims"})))

    def value(self, claims: JsonObject) -> Any:
        """Evaluate the expression. Raises TokenRefused if evaluation fails, for example because a claim is missing.

        The error lists the names of the token's claims.
        """
        from cel import cel  # noqa: PLC0415 - an optional dependency that compile_expression has imported

        if (longest := _longest_list(claims)) > MAX_LISTED:
            # Evaluation time grows with the square of a list's length. The longest list that fits into a token would
            # take two seconds.
            expected = f"lists of at most {MAX_LISTED} entries, because the setting is an expression"
            raise TokenRefused(self.setting, f"a list of {longest}", expected)
        try:
            return self._program.execute(cel.Context({"claims": claims}))
        except BaseException as error:
            # The library raises exceptions of many types, and its panics don't derive from Exception.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            expected = (
                f"the claim or member {error}, which the expression reads: {self.source}"
                if isinstance(error, KeyError)
                else f"claims for which the expression has a value ({str(error)[:100]}): {self.source}"
            )
            raise TokenRefused(self.setting, sorted(claims), expected) from None


def _longest_list(value: object) -> int:
    """Return the length of the longest list or object within a claim."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return max(len(value), *map(_longest_list, inner), 0)

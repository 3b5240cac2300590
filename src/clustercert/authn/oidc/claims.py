"""Reads claims by name or path, and compares them with the settings."""

from collections.abc import Iterable
from dataclasses import dataclass

from clustercert.authn.oidc.refusal import TokenRefused
from clustercert.model import JsonObject
from clustercert.model.name_patterns import Names

# The maximum length of a value that is compared, in characters. Longer ones match nothing.
MAX_COMPARED = 1024


def claim_path(claim: str) -> tuple[str, ...]:
    """Return the names that lead to a claim, from the outermost.

    A claim that begins with a slash is a JSON pointer, such as `/kubernetes.io/namespace`; any other is a name.
    Source: RFC 6901.
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
    """Return a claim as strings: one for a single value, or one for each entry of a list. None for another type."""
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
            # Python refuses to convert numbers of thousands of digits.
            return str(value) if value.bit_length() <= 64 else None  # noqa: PLR2004 - no id is larger
        case _:
            return None


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """A claim that must have one of the values or match one of the patterns. Of a list, one entry is enough.

    A claim with a value that is longer than `MAX_COMPARED` never meets the check.
    """

    claim: str
    values: Names

    def is_met(self, claims: JsonObject) -> bool:
        value = claim_value(claims, self.claim)
        texts = claim_texts(value) if value is not None else None
        return texts is not None and not _is_long(texts) and self.values.match(texts)

    def require(self, claims: JsonObject) -> None:
        """Raise TokenRefused unless the claim has one of the values."""
        if self.is_met(claims):
            return
        value = claim_value(claims, self.claim)
        bound = f", in at most {MAX_COMPARED} characters" if _is_long(claim_texts(value) or ()) else ""
        raise TokenRefused(self.claim, value, f"{self.values.text}{bound}")


def _is_long(texts: Iterable[str]) -> bool:
    return any(len(text) > MAX_COMPARED for text in texts)

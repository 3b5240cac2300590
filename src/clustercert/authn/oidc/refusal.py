"""Why a token is refused: the failed check, what the token has, and what was expected."""

from clustercert.model.errors import Unauthenticated

# Tokens choose these strings, so only their beginning is logged.
MAX_SHOWN = 120


class TokenRefused(Unauthenticated):
    """A token failed a check. As for any failed authentication, the caller does not learn which check failed.

    Attributes:
        check: the name of the check, such as `signature` or `aud`.
        came: what the token has, shortened; empty if that says nothing.
        expected: what the check accepts.
    """

    def __init__(self, check: str, came: object, expected: str) -> None:
        self.check = check
        self.came = shown(came)
        self.expected = expected
        super().__init__(f"{check}: the token has {self.came or 'nothing'}; expected: {expected}")


def shown(value: object) -> str:
    """Return a printable ASCII form of a value from a token, shortened."""
    if value is None:
        return ""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"

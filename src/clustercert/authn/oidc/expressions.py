"""Expressions in CEL over the claims of a token."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clustercert.authn.oidc.refusal import TokenRefused
from clustercert.model import JsonObject
from clustercert.policy.expressions import MAX_LISTED, compile_expression

if TYPE_CHECKING:
    from cel.cel import Program


@dataclass(frozen=True, slots=True)
class ClaimExpression:
    """An expression in CEL, compiled when the settings are loaded. Its variable `claims` has the token's claims.

    Attributes:
        setting: the name of the setting, for refusals.
    """

    source: str
    setting: str
    _program: "Program" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the expression. Raises ValueError."""
        object.__setattr__(self, "_program", compile_expression(self.source, frozenset({"claims"})))

    def value(self, claims: JsonObject) -> Any:
        """Evaluate the expression. Raises TokenRefused if that fails, for example because a claim is missing.

        The refusal has the names of the token's claims.
        """
        from cel import cel  # noqa: PLC0415 - an optional dependency that compile_expression has imported

        if (longest := _longest_list(claims)) > MAX_LISTED:
            # The time of an expression grows with the square of a list's length: two seconds for a full token.
            expected = f"lists of at most {MAX_LISTED} entries, because the setting is an expression"
            raise TokenRefused(self.setting, f"a list of {longest}", expected)
        try:
            return self._program.execute(cel.Context({"claims": claims}))
        except BaseException as error:
            # The library raises many types, and its panics don't derive from Exception.
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

"""Conditions in the Common Expression Language (CEL), compiled once when the policy is loaded.

The library has no cost limit, so only operators may write expressions, and their cost is limited when they are loaded.
Source: https://github.com/google/cel-spec/blob/master/doc/langdef.md.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from clustercert.model.policy import ConditionFailed, DecisionInput
from clustercert.policy.expression_checks import (
    Token,
    check_calls,
    check_condition,
    check_cost,
    constant_calls,
    tokens,
)

if TYPE_CHECKING:
    from cel.cel import Context, Program

MAX_EXPRESSION = 4096

# As many as a token may have. The cost of an expression grows with them.
MAX_LISTED = 500

FIELDS: Mapping[str, tuple[str, ...]] = {
    "user": ("id", "name", "domain", "roles", "service_roles", "groups", "group_ids"),
    "cluster": ("id", "name", "project_id", "labels"),
    "request": ("auth_method", "issuer", "source", "csr", "key_type", "reason"),
}
"""The fields of the variables. The variable `now` has none."""
_VARIABLES = frozenset({*FIELDS, "now"})
_TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "string", "uint"})
_MACRO_VARIABLE = re.compile(r"\.\s*(?:all|exists|exists_one|filter|map)\s*\(\s*([A-Za-z_]\w*)\s*,")
# Operators are not listed: their names have other characters, such as `_&&_` and `@in`.
_FUNCTIONS = frozenset(
    {"size", "contains", "startsWith", "endsWith", "matches", "type", "timestamp", "duration"}
    | {"bytes", "double", "int", "string", "uint"}
    | {"getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"}
    | {"getHours", "getMinutes", "getSeconds"}
)


# A call that takes no other variable than `now` is tried with this time.
_SOME_TIME = datetime(2026, 1, 1, tzinfo=UTC)
# The library has no time zones: such a call would fail whenever it is evaluated.
_ZONED = re.compile(r"\.\s*(get[A-Z]\w*)\s*\(\s*[^\s)]")


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition in CEL. It is met if the expression is true."""

    source: str
    _program: "Program" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile and check the expression. Raises ValueError."""
        object.__setattr__(self, "_program", compile_expression(self.source))
        check_condition(tokens(self.source), FIELDS)

    @property
    def clause(self) -> str:
        return f"cel: {self.source}"

    @property
    def depends_on_request(self) -> bool:
        """Whether the result can differ between requests of one user for one cluster."""
        return not {"request", "now"}.isdisjoint(self._program.variables())

    def first_false(self, said: DecisionInput) -> str | None:
        try:
            if len(said.caller.groups) > MAX_LISTED:
                raise ValueError(f"the user has more than {MAX_LISTED} groups")
            if said.cel_context is None:
                said.cel_context = _context(said)
            result = self._program.execute(cast("Context", said.cel_context))
        except BaseException as error:
            # The library raises many types, and its panics don't derive from Exception.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ConditionFailed(f"the CEL expression failed: {str(error)[:100]}: {self.source}") from None
        if not isinstance(result, bool):
            raise ConditionFailed(f"cel is neither true nor false: {self.source}")
        return None if result else self.clause

    def found(self, _: DecisionInput) -> str:
        return ""


def compile_expression(source: str, known: frozenset[str] = _VARIABLES) -> "Program":
    """Compile an expression that uses only these variables, and whose cost is bounded. Raises ValueError."""
    if len(source.encode()) > MAX_EXPRESSION:
        raise ValueError(f"an expression must have at most {MAX_EXPRESSION} bytes")
    try:
        from cel import cel  # noqa: PLC0415 - an optional dependency that takes 0.2 s to import
    except ImportError as error:
        raise ValueError("expressions need the package clustercert[policy]") from error
    try:
        program = cel.compile(source)
    except ValueError as error:
        raise ValueError(_syntax_error(str(error))) from error
    bound = {match.group(1) for match in _MACRO_VARIABLE.finditer(source)}
    for name in program.variables():
        if name not in known | _TYPES | bound:
            raise ValueError(f"unknown variable {name}; valid variables are {', '.join(sorted(known))}")
    for name in program.functions():
        if name.isidentifier() and not name.startswith("_") and name not in _FUNCTIONS:
            raise ValueError(f"unknown function {name}")
    if zoned := _ZONED.search(source):
        raise ValueError(f"{zoned[1]} takes no time zone here; times are in UTC")
    parsed = tokens(source)
    check_calls(parsed)
    check_cost(parsed)
    _try_constant_calls(parsed, known & {"now"})
    return program


def _try_constant_calls(parsed: Sequence[Token], read: frozenset[str]) -> None:
    from cel import cel  # noqa: PLC0415 - imported by compile_expression

    for call in constant_calls(parsed, read):
        try:
            cel.compile(call).execute(cel.Context({"now": _SOME_TIME}))
        except BaseException as error:
            # The library's panics don't derive from Exception.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            shown = call.removeprefix('"".')[:100]
            raise ValueError(f"{shown} fails for every request; correct the value") from None


def _syntax_error(text: str) -> str:
    """Shorten the library's message, and add the line and column in the expression."""
    if found := re.search(r"<input>:(\d+):(\d+): (.*)", text):
        line, column, problem = found.groups()
        if "<EOF>" in problem:
            return f"the expression is not complete: it ends in line {line}, column {column}"
        problem = problem.partition(" expecting ")[0]
        return f"syntax error in line {line}, column {column} of the expression: {problem[:100]}"
    return f"syntax error: {text[:100]}"


def _context(said: DecisionInput) -> "Context":
    from cel import cel  # noqa: PLC0415 - imported by compile_expression

    return cel.Context(variables(said))


def variables(said: DecisionInput) -> dict[str, Any]:
    """Return the variables that expressions can read."""
    caller, cluster, request = said.caller, said.cluster, said.request
    return {
        "user": {
            "id": caller.user.id,
            "name": caller.user.name,
            "domain": caller.user.domain.name,
            "roles": list(said.roles),
            "service_roles": list(caller.service_roles),
            "groups": [group.name for group in caller.groups],
            "group_ids": [group.id for group in caller.groups],
        },
        "cluster": {
            "id": cluster.id,
            "name": cluster.name,
            "project_id": cluster.project_id,
            "labels": dict(cluster.labels),
        },
        "request": {
            "auth_method": caller.method,
            "issuer": caller.issuer,
            "source": caller.origin.address,
            "csr": request.public_key is not None,
            "key_type": said.key_type,
            "reason": request.reason or "",
        },
        "now": said.at,
    }

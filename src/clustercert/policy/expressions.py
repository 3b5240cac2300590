"""Conditions in CEL. This module also checks expressions for errors that the CEL library does not detect."""

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from clustercert.model.wheel import wheel_file
from clustercert.policy.conditions import ConditionFailed, DecisionInput

if TYPE_CHECKING:
    from cel.cel import Context, Program


# The maximum number of loops in an expression. Each loop takes up to 35 ms for a caller with 500 groups.
MAX_LOOPS = 10

_MACROS = frozenset({"all", "exists", "exists_one", "filter", "map"})
_BOOL_FUNCTIONS = frozenset(
    {"has", "startsWith", "endsWith", "contains", "matches", "all", "exists", "exists_one"}
)
_COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">=", "in"})
_CONSTANTS = frozenset({"true", "false", "null"})
_METHODS = frozenset({"startsWith", "endsWith", "contains", "matches"})
_CONVERSIONS = frozenset({"bytes", "double", "duration", "int", "string", "timestamp", "type", "uint"})
# The types of fields that are not strings.
FIELD_TYPES: Mapping[str, str] = {
    "user.roles": "list",
    "user.service_roles": "list",
    "user.groups": "list",
    "user.group_ids": "list",
    "cluster.labels": "map",
    "request.csr": "bool",
}
_LITERAL_TYPES = {"true": "bool", "false": "bool", "null": "null"}
# If a value begins after one of these tokens, or at the start of the expression, no operator before the value binds
# tighter than `==`.
_BEFORE_OPERAND = frozenset({"", "(", "[", "{", ",", "&&", "||", "?", ":"})
# If one of these tokens follows a value, the value is only the beginning of an operand.
_GOES_ON = frozenset({".", "[", "(", "+", "-", "*", "/", "%"})
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
_TOKEN = re.compile(
    r"""
      (?P<space> \s+ | //[^\n]* )
    # Only some parsers end a raw string at a quote after a backslash, so reject raw strings with such a quote.
    | (?P<string> [bB]?[rR] (?: \"{3}(?:[^"\\]|\\[^"])*?\"{3} | '{3}(?:[^'\\]|\\[^'])*?'{3} )
        | [bB]?[rR] (?: "(?:[^"\\\n]|\\[^"\n])*" | '(?:[^'\\\n]|\\[^'\n])*' )
        | [bB]? (?: \"{3}(?:[^\\]|\\.)*?\"{3} | '{3}(?:[^\\]|\\.)*?'{3} )
        | [bB]? (?: "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' ) )
    | (?P<number> 0x[0-9a-fA-F]+[uU]? | [0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?[uU]? )
    | (?P<name> [A-Za-z_][A-Za-z0-9_]* )
    | (?P<sign> && | \|\| | [=!<>]= | [-+*/%!<>?:.,()\[\]{}] )
    """,
    re.VERBOSE | re.DOTALL,
)


class ExpressionToken(NamedTuple):
    """A string, number, name or sign of an expression."""

    kind: str
    text: str


def tokens(source: str) -> list[ExpressionToken]:
    """Split an expression into tokens. Raises ValueError for syntax that the checks in this module don't support."""
    found, position = [], 0
    while position < len(source):
        match = _TOKEN.match(source, position)
        if match is None:
            raise ValueError(f"unsupported syntax: {source[position : position + 20]}")
        position = match.end()
        if match.lastgroup != "space":
            found.append(ExpressionToken(str(match.lastgroup), match[0]))
    for number, token in enumerate(found):
        if token.text == "." and not (number and _ends_operand(found[number - 1])):
            raise ValueError("a name must not begin with a dot")
    return found


def check_cost(parsed: Sequence[ExpressionToken]) -> None:
    """Raise ValueError for an expression whose evaluation could take long for many groups or claims."""
    loops = list(_loops(parsed))
    if len(loops) > MAX_LOOPS:
        raise ValueError(f"an expression can have at most {MAX_LOOPS} calls of {', '.join(sorted(_MACROS))}")
    if sum(name == "map" for name, _, _ in loops) > 1:
        raise ValueError("an expression can call map only once")
    for name, variable, body in loops:
        called = [each.text for each in _called(body)]
        for function in called:
            if function in _MACROS or function == "matches":
                raise ValueError(
                    f"{function} can't be called inside {name}: it would take too long for long lists"
                )
        if name == "map" and (others := [each for each in _read(body) if each != variable]):
            raise ValueError(f"inside map, only {variable} can be read, not {others[0]}")


def check_calls(parsed: Sequence[ExpressionToken]) -> None:
    """Raise ValueError for a call that always fails, because the library does not support the call."""
    for number, token in enumerate(parsed):
        if token.kind != "name" or _text(parsed, number + 1) != "(":
            continue
        is_method, count = _text(parsed, number - 1) == ".", _argument_count(parsed, number + 1)
        name = token.text
        if name in _METHODS and not (is_method and count == 1):
            raise ValueError(
                f'{name} must be called on a text, with one value, as in request.reason.{name}("a")'
            )
        if name in _CONVERSIONS and (is_method or count != 1):
            raise ValueError(f"{name} is called with one value, as in {name}(a)")
        if name == "size" and count != (0 if is_method else 1):
            raise ValueError("size must be called as size(user.groups) or user.groups.size()")
        if name.startswith("get") and not (is_method and count == 0):
            raise ValueError(f"{name} must be called on a time, without a value, as in now.{name}()")


def constant_calls(parsed: Sequence[ExpressionToken], variables: Collection[str]) -> Iterator[str]:
    """Yield each call whose only argument is a constant or one of these variables, as CEL that can be evaluated."""
    for number, token in enumerate(parsed):
        name, value = token.text, parsed[number + 2 : number + 4]
        is_call = _text(parsed, number + 1) == "(" and len(value) == 2 and value[1].text == ")"  # noqa: PLR2004 - a value and a bracket
        if token.kind != "name" or not is_call or name not in _METHODS | _CONVERSIONS:
            continue
        if value[0].kind in ("string", "number") or value[0].text in _CONSTANTS | set(variables):
            receiver = '"".' if name in _METHODS else ""
            yield f"{receiver}{name}({value[0].text})"


def check_condition(parsed: Sequence[ExpressionToken], fields: Mapping[str, Collection[str]]) -> None:
    """Raise ValueError for unknown fields of variables, or for a result that is not a bool.

    Args:
        fields: the field names of each variable.
    """
    for name, variable, _ in _loops(parsed):
        if name == "map":
            raise ValueError("map gives no bool; use exists or all")
        if variable in {*fields, "now"}:
            raise ValueError(f"{variable} is a variable already; choose another name in {name}")
    for number, token in enumerate(parsed):
        if token.text in fields and token.kind == "name" and _text(parsed, number - 1) != ".":
            _check_field(token.text, parsed[number + 1 : number + 3], fields[token.text])
        if token.kind == "name" and _text(parsed, number - 1) != "." and token.text in {*fields, "now"}:
            _check_value(parsed, number)
    try:
        is_bool = _is_bool(parsed)
    except RecursionError:
        raise ValueError("the expression is nested too deeply") from None
    if not is_bool:
        raise ValueError("the result is not a bool; write a comparison, such as request.reason != ''")


def _check_field(variable: str, after: Sequence[ExpressionToken], known: Collection[str]) -> None:
    listed = ", ".join(f"{variable}.{each}" for each in known)
    if len(after) < 2 or after[0].text != "." or after[1].kind != "name":  # noqa: PLR2004 - a dot and a name
        raise ValueError(f"{variable} can only be read by field: {listed}")
    if after[1].text not in known:
        raise ValueError(f"unknown field {variable}.{after[1].text}; valid fields are {listed}")


def _check_value(parsed: Sequence[ExpressionToken], start: int) -> None:
    """Raise ValueError if a field is read from a value without fields, or if values of different types are compared."""
    value, end = _value_at(parsed, start)
    kind = _type_of(value)
    if kind != "map" and _text(parsed, end) == "." and _text(parsed, end + 2) != "(":
        raise ValueError(f"{value} is a {kind} and has no field {_text(parsed, end + 1)}")
    other = ""
    if _text(parsed, end) in ("==", "!=") and _text(parsed, start - 1) in _BEFORE_OPERAND:
        first = end + 2 if _text(parsed, end + 1) == "-" else end + 1
        other = _literal_type(parsed, first) if _text(parsed, first + 1) not in _GOES_ON else ""
    elif _text(parsed, start - 1) in ("==", "!=") and _text(parsed, end) not in _GOES_ON:
        before = start - 3 if _text(parsed, start - 3) == "-" else start - 2
        is_operand = before <= 0 or (
            parsed[before - 1].kind == "sign" and _text(parsed, before - 1) in _BEFORE_OPERAND
        )
        other = _literal_type(parsed, start - 2) if is_operand else ""
    if other and other != kind:
        raise ValueError(f"{value} is a {kind}, which never equals a {other}; compare it with a {kind}")


def _value_at(parsed: Sequence[ExpressionToken], start: int) -> tuple[str, int]:
    """Return the text of the variable, field or label that begins at `start`, and the position of the next token."""
    end = start + 1
    if parsed[start].text != "now":
        end += 2
        if [each.text for each in parsed[start:end]] == ["cluster", ".", "labels"]:
            if _text(parsed, end) == "." and _text(parsed, end + 2) != "(":
                end += 2
            elif _text(parsed, end) == "[":
                end = _closing(parsed, end) + 1
    return "".join(each.text for each in parsed[start:end]), end


def _type_of(value: str) -> str:
    return "timestamp" if value == "now" else FIELD_TYPES.get(value, "string")


def _literal_type(parsed: Sequence[ExpressionToken], number: int) -> str:
    """Return the type of a constant; empty for other tokens."""
    if not 0 <= number < len(parsed):
        return ""
    token = parsed[number]
    if token.kind == "string":
        return "bytes" if "b" in re.split("[\"']", token.text.lower())[0] else "string"
    return "number" if token.kind == "number" else _LITERAL_TYPES.get(_text(parsed, number), "")


def _argument_count(parsed: Sequence[ExpressionToken], opening: int) -> int:
    inside, count = parsed[opening + 1 : _closing(parsed, opening)], 0
    while inside:
        count += 1
        comma = _first(inside, {","})
        inside = inside[comma + 1 :] if comma is not None else []
    return count


def _is_bool(parsed: Sequence[ExpressionToken]) -> bool:
    """Whether each successful evaluation certainly returns a bool."""
    if (question := _first(parsed, {"?"})) is not None:
        colon = _else_of(parsed, question)
        return _is_bool(parsed[question + 1 : colon]) and _is_bool(parsed[colon + 1 :])
    for operator in ("||", "&&"):
        if (at := _first(parsed, {operator})) is not None:
            return _is_bool(parsed[:at]) and _is_bool(parsed[at + 1 :])
    if parsed and parsed[0].text == "!" and _first(parsed, _COMPARISONS) is None:
        return _is_bool(parsed[1:])
    if parsed and parsed[0].text == "(" and _closing(parsed, 0) == len(parsed) - 1:
        return _is_bool(parsed[1:-1])
    return _first(parsed, _COMPARISONS) is not None or _is_bool_operand(parsed)


def _is_bool_operand(parsed: Sequence[ExpressionToken]) -> bool:
    """Whether an operand without operators is a bool: a constant, `request.csr` or a call."""
    texts = [each.text for each in parsed]
    if texts in (["true"], ["false"], ["request", ".", "csr"]):
        return True
    opening = _last_opening(parsed)
    return opening > 0 and parsed[opening].text == "(" and texts[opening - 1] in _BOOL_FUNCTIONS


def _loops(parsed: Sequence[ExpressionToken]) -> Iterator[tuple[str, str, Sequence[ExpressionToken]]]:
    """Yield the name, the variable and the body of each macro that iterates over a list or map."""
    for number, token in enumerate(parsed):
        if token.text in _MACROS and _text(parsed, number - 1) == "." and _text(parsed, number + 1) == "(":
            inside = parsed[number + 2 : _closing(parsed, number + 1)]
            comma = _first(inside, {","}) or 0
            yield token.text, _text(inside, 0), inside[comma + 1 :]


def _called(parsed: Sequence[ExpressionToken]) -> Iterator[ExpressionToken]:
    for number, token in enumerate(parsed):
        if token.kind == "name" and _text(parsed, number + 1) == "(":
            yield token


def _read(parsed: Sequence[ExpressionToken]) -> Iterator[str]:
    """Yield the names of all variables in the expression."""
    for number, token in enumerate(parsed):
        is_field, is_call = _text(parsed, number - 1) == ".", _text(parsed, number + 1) == "("
        if token.kind == "name" and not (is_field or is_call or token.text in {*_CONSTANTS, "in"}):
            yield token.text


def _first(parsed: Sequence[ExpressionToken], signs: Collection[str]) -> int | None:
    """Return the position of the first of these operators outside of brackets."""
    depth = 0
    for number, token in enumerate(parsed):
        if token.kind == "sign":
            depth += (token.text in _OPEN) - (token.text in _CLOSE)
        is_operator = token.kind == "sign" or (token.text == "in" and _text(parsed, number - 1) != ".")
        if depth == 0 and is_operator and token.text in signs:
            return number
    return None


def _else_of(parsed: Sequence[ExpressionToken], question: int) -> int:
    """Return the position of the colon that belongs to a question mark."""
    depth = pending = 0
    for number in range(question, len(parsed)):
        token = parsed[number]
        if token.kind != "sign":
            continue
        depth += (token.text in _OPEN) - (token.text in _CLOSE)
        if depth == 0:
            pending += (token.text == "?") - (token.text == ":")
            if pending == 0:
                return number
    return len(parsed)


def _closing(parsed: Sequence[ExpressionToken], opening: int) -> int:
    """Return the position of the bracket that closes the bracket at `opening`; -1 if there is no such bracket."""
    if parsed[opening].kind != "sign" or parsed[opening].text not in _OPEN:
        return -1
    depth = 0
    for number in range(opening, len(parsed)):
        token = parsed[number]
        if token.kind == "sign":
            depth += (token.text in _OPEN) - (token.text in _CLOSE)
            if depth == 0:
                return number
    return -1


def _last_opening(parsed: Sequence[ExpressionToken]) -> int:
    """Return the position of the bracket that the last token closes; 0 if the last token is not a bracket."""
    depth = 0
    for number in reversed(range(len(parsed))):
        token = parsed[number]
        if token.kind == "sign":
            depth += (token.text in _CLOSE) - (token.text in _OPEN)
        if depth == 0:
            return number if number < len(parsed) - 1 else 0
    return 0


def _text(parsed: Sequence[ExpressionToken], number: int) -> str:
    """Return the text of the token at this position if it is a sign or a name; else an empty string."""
    if not 0 <= number < len(parsed) or parsed[number].kind not in ("sign", "name"):
        return ""
    return parsed[number].text


def _ends_operand(token: ExpressionToken) -> bool:
    return token.kind in ("name", "string", "number") or token.text in _CLOSE


MAX_EXPRESSION = 4096

# The maximum length of lists that an expression reads, because the cost of the expression grows with their length. A
# token's groups have the same limit.
MAX_LISTED = 500

FIELDS: Mapping[str, tuple[str, ...]] = {
    "user": ("id", "name", "domain", "roles", "service_roles", "groups", "group_ids"),
    "cluster": ("id", "name", "project_id", "labels"),
    "request": ("auth_method", "issuer", "source", "csr", "key_type", "reason"),
}
"""The fields of the variables. The variable `now` has no fields."""
_VARIABLES = frozenset({*FIELDS, "now"})
_TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "string", "uint"})
_MACRO_VARIABLE = re.compile(r"\.\s*(?:all|exists|exists_one|filter|map)\s*\(\s*([A-Za-z_]\w*)\s*,")
# The allowed functions. Operators are not listed: their names contain other characters, such as `_&&_` and `@in`.
_FUNCTIONS = frozenset(
    {"size", "contains", "startsWith", "endsWith", "matches", "type", "timestamp", "duration"}
    | {"bytes", "double", "int", "string", "uint"}
    | {"getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"}
    | {"getHours", "getMinutes", "getSeconds"}
)


# The value of `now` when calls with constant arguments are tried.
_SOME_TIME = datetime(2026, 1, 1, tzinfo=UTC)
# A call with a time zone. The library does not support time zones, so each evaluation would fail.
_ZONED = re.compile(r"\.\s*(get[A-Z]\w*)\s*\(\s*[^\s)]")


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition in CEL, which is met if the expression is true."""

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
        """Whether the result can differ between two requests from the same user for the same cluster."""
        return not {"request", "now"}.isdisjoint(self._program.variables())

    def first_false(self, decision_input: DecisionInput) -> str | None:
        try:
            if len(decision_input.caller.groups) > MAX_LISTED:
                raise ValueError(f"the user has more than {MAX_LISTED} groups")
            if decision_input.cel_context is None:
                decision_input.cel_context = _context(decision_input)
            result = self._program.execute(cast("Context", decision_input.cel_context))
        except BaseException as error:
            # The library raises exceptions of many types. The library's panics don't derive from Exception.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ConditionFailed(f"the CEL expression failed: {str(error)[:100]}: {self.source}") from None
        if not isinstance(result, bool):
            raise ConditionFailed(f"cel is neither true nor false: {self.source}")
        return None if result else self.clause

    def found(self, _: DecisionInput) -> str:
        return ""


def compile_expression(source: str, known: frozenset[str] = _VARIABLES) -> "Program":
    """Compile and check an expression. Raises ValueError for errors, unknown variables, or an unbounded cost."""
    if len(source.encode()) > MAX_EXPRESSION:
        raise ValueError(f"an expression must have at most {MAX_EXPRESSION} bytes")
    _leave_out_terminal()
    try:
        from cel import cel  # noqa: PLC0415 - an optional dependency that takes 0.2 s to import
    except ImportError as error:
        raise ValueError(
            f"expressions need further packages: run pip install {wheel_file(extra='policy')}"
        ) from error
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


def _try_constant_calls(parsed: Sequence[ExpressionToken], read: frozenset[str]) -> None:
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


def _context(decision_input: DecisionInput) -> "Context":
    from cel import cel  # noqa: PLC0415 - imported by compile_expression

    return cel.Context(variables(decision_input))


def _leave_out_terminal() -> None:
    """Keep the CEL library from importing its interactive terminal, whose packages the image does not have."""
    sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))


def variables(decision_input: DecisionInput) -> dict[str, Any]:
    """Return the variables that expressions can read."""
    caller, cluster, request = decision_input.caller, decision_input.cluster, decision_input.request
    return {
        "user": {
            "id": caller.user.id,
            "name": caller.user.name,
            "domain": caller.user.domain.name,
            "roles": list(decision_input.roles),
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
            "key_type": decision_input.key_type,
            "reason": request.reason or "",
        },
        "now": decision_input.at,
    }

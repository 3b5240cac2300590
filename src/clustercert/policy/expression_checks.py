"""Checks of expressions in CEL that the library does not make: unknown fields, results that are not a bool, and cost.

The library has no public syntax tree, so the checks read the tokens of expressions that it has accepted. They refuse
what they can't tell. The library has no cost limit either: nested loops over lists that the caller chooses are
quadratic, and `matches` compiles its pattern each time, which takes up to 50 ms.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

# More than any condition needs. Each loop takes up to 35 ms for a caller with 500 groups.
MAX_LOOPS = 10

_MACROS = frozenset({"all", "exists", "exists_one", "filter", "map"})
_BOOL_FUNCTIONS = frozenset(
    {"has", "startsWith", "endsWith", "contains", "matches", "all", "exists", "exists_one"}
)
_COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">=", "in"})
_CONSTANTS = frozenset({"true", "false", "null"})
_METHODS = frozenset({"startsWith", "endsWith", "contains", "matches"})
_CONVERSIONS = frozenset({"bytes", "double", "duration", "int", "string", "timestamp", "type", "uint"})
# The fields that are not strings.
FIELD_TYPES: Mapping[str, str] = {
    "user.roles": "list",
    "user.service_roles": "list",
    "user.groups": "list",
    "user.group_ids": "list",
    "cluster.labels": "map",
    "request.csr": "bool",
}
_LITERAL_TYPES = {"true": "bool", "false": "bool", "null": "null"}
# After one of these, or at the start, an operand begins that no operator of higher precedence takes.
_BEFORE_OPERAND = frozenset({"", "(", "[", "{", ",", "&&", "||", "?", ":"})
# After one of these, an operand goes on.
_GOES_ON = frozenset({".", "[", "(", "+", "-", "*", "/", "%"})
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
_TOKEN = re.compile(
    r"""
      (?P<space> \s+ | //[^\n]* )
    # A quote after a backslash ends a raw string for some parsers only, so there is none in a raw string here.
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


class Token(NamedTuple):
    """A string, number, name or sign of an expression."""

    kind: str
    text: str


def tokens(source: str) -> list[Token]:
    """Split an expression that the library accepts. Raises ValueError for a form that these checks don't know."""
    found, position = [], 0
    while position < len(source):
        match = _TOKEN.match(source, position)
        if match is None:
            raise ValueError(f"unsupported syntax: {source[position : position + 20]}")
        position = match.end()
        if match.lastgroup != "space":
            found.append(Token(str(match.lastgroup), match[0]))
    for number, token in enumerate(found):
        if token.text == "." and not (number and _ends_operand(found[number - 1])):
            raise ValueError("a name must not begin with a dot")
    return found


def check_cost(parsed: Sequence[Token]) -> None:
    """Raise ValueError for an expression that could take long for a caller with many groups or claims."""
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


def check_calls(parsed: Sequence[Token]) -> None:
    """Raise ValueError for a call in a form that the library lacks, so that it would fail at each evaluation."""
    for number, token in enumerate(parsed):
        if token.kind != "name" or _text(parsed, number + 1) != "(":
            continue
        is_method, count = _text(parsed, number - 1) == ".", _argument_count(parsed, number + 1)
        name = token.text
        if name in _METHODS and not (is_method and count == 1):
            raise ValueError(f'{name} is called as in request.reason.{name}("a")')
        if name in _CONVERSIONS and (is_method or count != 1):
            raise ValueError(f"{name} is called with one value, as in {name}(a)")
        if name == "size" and count != (0 if is_method else 1):
            raise ValueError("size is called as in size(user.groups) or user.groups.size()")
        if name.startswith("get") and not (is_method and count == 0):
            raise ValueError(f"{name} is called as in now.{name}()")


def constant_calls(parsed: Sequence[Token], variables: Collection[str]) -> Iterator[str]:
    """Yield the calls with one constant, or one of these variables, as CEL. They can be tried at once."""
    for number, token in enumerate(parsed):
        name, value = token.text, parsed[number + 2 : number + 4]
        is_call = _text(parsed, number + 1) == "(" and len(value) == 2 and value[1].text == ")"  # noqa: PLR2004 - a value and a bracket
        if token.kind != "name" or not is_call or name not in _METHODS | _CONVERSIONS:
            continue
        if value[0].kind in ("string", "number") or value[0].text in _CONSTANTS | set(variables):
            receiver = '"".' if name in _METHODS else ""
            yield f"{receiver}{name}({value[0].text})"


def check_condition(parsed: Sequence[Token], fields: Mapping[str, Collection[str]]) -> None:
    """Raise ValueError for unknown fields of the variables, and for a result that is not a bool.

    Args:
        fields: the fields of each variable that has some.
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


def _check_field(variable: str, after: Sequence[Token], known: Collection[str]) -> None:
    listed = ", ".join(f"{variable}.{each}" for each in known)
    if len(after) < 2 or after[0].text != "." or after[1].kind != "name":  # noqa: PLR2004 - a dot and a name
        raise ValueError(f"{variable} can only be read by field: {listed}")
    if after[1].text not in known:
        raise ValueError(f"unknown field {variable}.{after[1].text}; valid fields are {listed}")


def _check_value(parsed: Sequence[Token], start: int) -> None:
    """Raise ValueError for a field of a value without fields, and for a comparison that is never true."""
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


def _value_at(parsed: Sequence[Token], start: int) -> tuple[str, int]:
    """Return a variable's field or a label, as in the expression, and the position after it."""
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


def _literal_type(parsed: Sequence[Token], number: int) -> str:
    """Return the type of a constant; empty for other tokens."""
    if not 0 <= number < len(parsed):
        return ""
    token = parsed[number]
    if token.kind == "string":
        return "bytes" if "b" in re.split("[\"']", token.text.lower())[0] else "string"
    return "number" if token.kind == "number" else _LITERAL_TYPES.get(_text(parsed, number), "")


def _argument_count(parsed: Sequence[Token], opening: int) -> int:
    inside, count = parsed[opening + 1 : _closing(parsed, opening)], 0
    while inside:
        count += 1
        comma = _first(inside, {","})
        inside = inside[comma + 1 :] if comma is not None else []
    return count


def _is_bool(parsed: Sequence[Token]) -> bool:
    """Whether the result is certainly a bool, if the evaluation does not fail."""
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


def _is_bool_operand(parsed: Sequence[Token]) -> bool:
    """Whether an operand without operators is a bool: a constant, `request.csr` or a call."""
    texts = [each.text for each in parsed]
    if texts in (["true"], ["false"], ["request", ".", "csr"]):
        return True
    opening = _last_opening(parsed)
    return opening > 0 and parsed[opening].text == "(" and texts[opening - 1] in _BOOL_FUNCTIONS


def _loops(parsed: Sequence[Token]) -> Iterator[tuple[str, str, Sequence[Token]]]:
    """Yield the name, the variable and the body of each macro that goes through a list or map."""
    for number, token in enumerate(parsed):
        if token.text in _MACROS and _text(parsed, number - 1) == "." and _text(parsed, number + 1) == "(":
            inside = parsed[number + 2 : _closing(parsed, number + 1)]
            comma = _first(inside, {","}) or 0
            yield token.text, _text(inside, 0), inside[comma + 1 :]


def _called(parsed: Sequence[Token]) -> Iterator[Token]:
    for number, token in enumerate(parsed):
        if token.kind == "name" and _text(parsed, number + 1) == "(":
            yield token


def _read(parsed: Sequence[Token]) -> Iterator[str]:
    """Yield the variables that are read."""
    for number, token in enumerate(parsed):
        is_field, is_call = _text(parsed, number - 1) == ".", _text(parsed, number + 1) == "("
        if token.kind == "name" and not (is_field or is_call or token.text in {*_CONSTANTS, "in"}):
            yield token.text


def _first(parsed: Sequence[Token], signs: Collection[str]) -> int | None:
    """Return the position of the first of these operators outside of brackets."""
    depth = 0
    for number, token in enumerate(parsed):
        if token.kind == "sign":
            depth += (token.text in _OPEN) - (token.text in _CLOSE)
        is_operator = token.kind == "sign" or (token.text == "in" and _text(parsed, number - 1) != ".")
        if depth == 0 and is_operator and token.text in signs:
            return number
    return None


def _else_of(parsed: Sequence[Token], question: int) -> int:
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


def _closing(parsed: Sequence[Token], opening: int) -> int:
    """Return the position of the bracket that closes the one at `opening`; -1 if there is none there."""
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


def _last_opening(parsed: Sequence[Token]) -> int:
    """Return the position of the bracket that the last token closes; 0 if that is no bracket."""
    depth = 0
    for number in reversed(range(len(parsed))):
        token = parsed[number]
        if token.kind == "sign":
            depth += (token.text in _CLOSE) - (token.text in _OPEN)
        if depth == 0:
            return number if number < len(parsed) - 1 else 0
    return 0


def _text(parsed: Sequence[Token], number: int) -> str:
    """Return the text of a sign or a name; empty if there is none, or another kind of token."""
    if not 0 <= number < len(parsed) or parsed[number].kind not in ("sign", "name"):
        return ""
    return parsed[number].text


def _ends_operand(token: Token) -> bool:
    return token.kind in ("name", "string", "number") or token.text in _CLOSE

"""CEL as kube-apiserver evaluates it in match conditions and admission policies."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

import cel


def _substring(text: str, start: int, end: int | None = None) -> str:
    return text[start:end]


def _char_at(text: str, index: int) -> str:
    if not 0 <= index <= len(text):
        raise ValueError(f"no character {index} in a text of {len(text)} characters")
    return text[index : index + 1]


# Functions beyond the language's, as far as anything here uses them. Take none that Kubernetes lacks, such as
# base64.decode. Source: k8s.io/apiserver/pkg/cel/environment/base.go.
_FUNCTIONS: dict[str, Callable[..., object]] = {
    "substring": _substring,
    "replace": lambda text, old, new: text.replace(old, new),
    "charAt": _char_at,
    "indexOf": lambda text, searched: text.find(searched),
    "findAll": lambda text, pattern: re.findall(pattern, text),
    "join": "".join,
}


class ExpressionError(Exception):
    """An expression that can't be compiled, has no value or has one of another type."""


@lru_cache(maxsize=256)
def _program(expression: str) -> cel.Program:
    return cel.compile(expression)


def value(
    expression: str,
    variables: Mapping[str, object],
    functions: Mapping[str, Callable[..., object]] | None = None,
) -> object:
    """The value of an expression, with functions beside those that every expression has. Raises ExpressionError."""
    try:
        return _program(expression).execute(cel.Context(dict(variables), {**_FUNCTIONS, **(functions or {})}))
    except Exception as error:
        # The library raises whatever Python has for what went wrong: KeyError, TypeError, RuntimeError.
        raise ExpressionError(f"{expression}: {error!r}") from error


def holds(
    expression: str,
    variables: Mapping[str, object],
    functions: Mapping[str, Callable[..., object]] | None = None,
) -> bool:
    """The truth of a condition. Raises ExpressionError."""
    result = value(expression, variables, functions)
    if not isinstance(result, bool):
        raise ExpressionError(f"{expression}: {result!r} is neither true nor false")
    return result


def check(expression: str) -> None:
    """Raises ExpressionError if it does not parse."""
    try:
        _program(expression)
    except Exception as error:
        raise ExpressionError(f"{expression}: {error}") from error

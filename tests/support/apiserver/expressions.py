"""CEL as kube-apiserver evaluates it in match conditions and admission policies."""

import base64
from collections.abc import Callable, Mapping
from functools import lru_cache

import cel


def _substring(text: str, start: int, end: int | None = None) -> str:
    return text[start:end]


# Kubernetes' own functions beyond the language's, as far as anything here uses them.
_FUNCTIONS: dict[str, Callable[..., object]] = {
    "substring": _substring,
    "replace": lambda text, old, new: text.replace(old, new),
    "base64.decode": lambda text: base64.b64decode(text, validate=True),
}


class ExpressionError(Exception):
    """An expression that can't be compiled, has no value or has one of another type."""


@lru_cache(maxsize=256)
def _program(expression: str) -> cel.Program:
    return cel.compile(expression)


def value(expression: str, variables: Mapping[str, object]) -> object:
    """The value of an expression. Raises ExpressionError."""
    try:
        return _program(expression).execute(cel.Context(dict(variables), _FUNCTIONS))
    except Exception as error:
        # The library raises whatever Python has for what went wrong: KeyError, TypeError, RuntimeError.
        raise ExpressionError(f"{expression}: {error!r}") from error


def holds(expression: str, variables: Mapping[str, object]) -> bool:
    """The truth of a condition. Raises ExpressionError."""
    result = value(expression, variables)
    if not isinstance(result, bool):
        raise ExpressionError(f"{expression}: {result!r} is neither true nor false")
    return result


def check(expression: str) -> None:
    """Raises ExpressionError if it does not parse."""
    try:
        _program(expression)
    except Exception as error:
        raise ExpressionError(f"{expression}: {error}") from error

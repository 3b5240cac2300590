"""Decorators for commands: options grouped in dataclasses, and the opened store."""

import dataclasses
import inspect
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial, wraps
from typing import Annotated, TypeVar, get_origin

import typer

from clustercert.cli.session import operate

T = TypeVar("T")
StoreCommand = Callable[..., Coroutine[object, object, None]]

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_CONTEXT = inspect.Parameter("context", _KEYWORD, annotation=typer.Context)


def expand_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command one option for each field of its dataclass parameters.

    Typer sees the fields, which are annotated with `typer.Option`. The command receives the dataclasses.
    """
    parameters = list(inspect.signature(command).parameters.values())

    @wraps(command)
    def run(**values: object) -> T:
        return command(**_grouped(parameters, values))

    return _with_signature(run, parameters)


def on_store(command: StoreCommand) -> Callable[..., None]:
    """Turn an async function that takes an `operator` into a command that opens the store. See `expand_options`."""
    parameters = [
        each
        for each in inspect.signature(command).parameters.values()
        if each.name != "operator" and each.kind is not _KEYWORD
    ]

    @wraps(command)
    def run(context: typer.Context, **values: object) -> None:
        arguments = _grouped(parameters, values)
        operate(context, lambda operator: command(operator=operator, **arguments))

    return _with_signature(run, [_CONTEXT, *parameters])


def enable_and_disable(
    app: typer.Typer, enable_help: str, disable_help: str
) -> Callable[[StoreCommand], None]:
    """Register a function with the parameter `enabled` as the commands `enable` and `disable`."""

    def register(command: StoreCommand) -> None:
        for enabled, name, text in ((True, "enable", enable_help), (False, "disable", disable_help)):
            app.command(name, help=text)(on_store(partial(command, enabled=enabled)))

    return register


def _with_signature(run: Callable[..., T], parameters: Sequence[inspect.Parameter]) -> Callable[..., T]:
    expanded = [option for each in parameters for option in _expanded(each)]
    run.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined] # typer reads it
    return run


def _grouped(parameters: Sequence[inspect.Parameter], values: dict[str, object]) -> dict[str, object]:
    """Convert the values of options to the command's arguments: combine fields of a dataclass into an instance."""
    arguments = dict(values)
    for each in parameters:
        if _is_group(each.annotation):
            names = [field.name for field in dataclasses.fields(each.annotation)]
            arguments[each.name] = each.annotation(**{name: arguments.pop(name) for name in names})
    return arguments


def _is_group(annotation: object) -> bool:
    """Whether a parameter's type is a dataclass of options and arguments."""
    if not (isinstance(annotation, type) and dataclasses.is_dataclass(annotation)):
        return False
    return all(get_origin(field.type) is Annotated for field in dataclasses.fields(annotation))


def _expanded(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    if not _is_group(parameter.annotation):
        yield parameter.replace(kind=_KEYWORD)
        return
    for field in dataclasses.fields(parameter.annotation):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield inspect.Parameter(field.name, _KEYWORD, default=default, annotation=field.type)

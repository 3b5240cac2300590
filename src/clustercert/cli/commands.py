"""Decorators for commands: they expand options grouped in dataclasses, and open the API or the store."""

import dataclasses
import inspect
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, cast, get_origin

import typer

from clustercert.cli.login.options import LoginOptions
from clustercert.cli.options import LocalOption, NotLoggedIn, PolicyFileOption, UsageError
from clustercert.cli.session import operate
from clustercert.cli.terminal.output import print_note

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient

T = TypeVar("T")
ServiceCommand = Callable[..., None]
StoreCommand = Callable[..., Coroutine[object, object, None]]

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_CONTEXT = inspect.Parameter("context", _KEYWORD, annotation=typer.Context)
_LOGIN = inspect.Parameter("login", _KEYWORD, annotation=LoginOptions)
_LOCAL = inspect.Parameter("local", _KEYWORD, annotation=LocalOption, default=False)
_POLICY = inspect.Parameter("policy", _KEYWORD, annotation=PolicyFileOption, default=None)


def expand_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command one option for each field of its dataclass parameters.

    Typer sees the fields, which are annotated with `typer.Option`. The command receives the dataclasses.
    """
    parameters = list(inspect.signature(command).parameters.values())

    @wraps(command)
    def run(**values: object) -> T:
        return command(**_grouped(parameters, values))

    return _with_signature(run, parameters)


def on_service(command: ServiceCommand) -> Callable[..., None]:
    """Turn a function that takes a `client` into a command that calls the administration API. See `expand_options`.

    The command gets the options that choose a login, and `--local`.
    """
    return new_service_command(command, _own_parameters(command, "client"))


def on_policy(command: ServiceCommand) -> Callable[..., None]:
    """Like `on_service`, but the command also gets the option `--policy`, which needs `--local`."""
    return new_service_command(command, _own_parameters(command, "client"), _POLICY)


def new_service_command(
    command: ServiceCommand, parameters: Sequence[inspect.Parameter], *more: inspect.Parameter
) -> Callable[..., None]:
    """Like `on_service`, for a function that takes `parameters` in addition to `client`.

    Args:
        more: options that are not passed to the function `command`.
    """

    @wraps(command)
    def run(context: typer.Context, *, local: bool, policy: Path | None = None, **values: object) -> None:
        arguments = _grouped([*parameters, _LOGIN], values)
        login = cast("LoginOptions", arguments.pop("login"))
        with administration_client(context, login, local=local, policy=policy) as client:
            command(client=client, **arguments)

    return _with_signature(run, [_CONTEXT, *parameters, *more, _LOGIN, _LOCAL])


def on_store(command: StoreCommand) -> Callable[..., None]:
    """Turn an async function that takes an `operator` into a command that opens the store. See `expand_options`."""
    parameters = _own_parameters(command, "operator")

    @wraps(command)
    def run(context: typer.Context, **values: object) -> None:
        arguments = _grouped(parameters, values)
        operate(context, lambda operator: command(operator=operator, **arguments))

    return _with_signature(run, [_CONTEXT, *parameters])


@contextmanager
def administration_client(
    context: typer.Context, login: LoginOptions, *, local: bool, policy: Path | None = None
) -> "Iterator[AdministrationClient]":
    """Yield a client that uses the login or, if `local`, works on the store itself. Raises ClustercertError.

    Args:
        policy: a file that replaces the policy in the settings. Allowed only if `local` is set.
    """
    if local:
        from clustercert.cli.local_api import local_client

        with local_client(context, policy) as client:
            client.warn = print_note
            yield client
        return
    if policy is not None:
        raise UsageError(
            "--policy needs --local, because a service explains only the policy in its own settings. To try a policy"
            " from another machine, use `clustercert policy replay`."
        )
    try:
        chosen = login.profile()
    except NotLoggedIn as error:
        raise NotLoggedIn(f"{error.message} Or add --local, to work on this machine's store.") from error
    with chosen.explain_rejection(), chosen.administration_client() as client:
        client.warn = print_note
        yield client


def _own_parameters(command: Callable[..., object], given: str) -> list[inspect.Parameter]:
    """Return the parameters of a command, except the parameter named `given` and keyword-only parameters."""
    return [
        each
        for each in inspect.signature(command).parameters.values()
        if each.name != given and each.kind is not _KEYWORD
    ]


def _with_signature(run: Callable[..., T], parameters: Sequence[inspect.Parameter]) -> Callable[..., T]:
    expanded = [option for each in parameters for option in _expanded(each)]
    # Typer reads the signature and the annotations. Replace both, because the command's own annotations may name types
    # that only type checkers import.
    run.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in expanded}
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

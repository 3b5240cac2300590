"""The root command: global options, error messages and exit codes.

Exit codes: see `exit_codes`.
"""

import gc
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from clustercert import __version__
from clustercert.cli.command_table import COMPLETION_VARIABLE, RootGroup
from clustercert.cli.exit_codes import FAILED, USAGE, exit_code
from clustercert.cli.output import note, write_out
from clustercert.cli.session import RootOptions
from clustercert.model.errors import ClustercertError, StoreFault, Unavailable

_NO_WRAPPING = "10000"
_ROOT_OPTIONS, _ROOT_FLAG = ("--config", "--data-dir"), "--verbose"

app = typer.Typer(
    name="clustercert",
    cls=RootGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # No rich formatting: plain output loads fast, and looks the same in a terminal, a pipe and a log.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        write_out(f"clustercert {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="CLUSTERCERT_CONFIG",
            help="Settings file (TOML). CLUSTERCERT_… variables override it.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder. Overrides the settings and CLUSTERCERT_DATA_DIR.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show each request to the service, without secrets.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - only the option's callback uses it
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Issue short-lived, audited client credentials for Kubernetes clusters, as kubeconfig files.

    login, logout, password, status, profile, clusters and kubeconfig call a running service as one of its users.
    domain, project, user, group, role, access-key, cluster, certificate, apply, diff and export call it too, most of
    them as an operator; with --local, they work on the store. The other commands work directly on the store that the
    settings name.
    """
    context.obj = RootOptions(config, data_dir)
    if verbose:
        from clustercert.client.connection import Connection

        Connection.trace = note


def main() -> NoReturn:
    """Run the command given by the process's arguments, then exit."""
    code = run()
    # Otherwise the interpreter, before it ends, looks for cycles among all objects. That takes a command on the store a
    # quarter of its processor time.
    gc.freeze()
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command given by the arguments, by default this process's. Returns the exit code."""
    # A shell may close these streams. Reopen them, so that no other file takes their descriptors.
    sys.stdin = sys.stdin or Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - stays open
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - stays open
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):
        # Escape characters that the terminal can't show, instead of failing.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # both are text files here
    given = sys.argv[1:] if arguments is None else arguments
    if COMPLETION_VARIABLE in os.environ:
        # If the package rich is installed, Typer wraps help texts at this width. A shell reads a value from each line.
        os.environ["TERMINAL_WIDTH"] = _NO_WRAPPING
    try:
        app(_root_options_first(given), prog_name="clustercert")
    except SystemExit as end:
        return _flush_output(end.code if isinstance(end.code, int) else 0)
    except ClustercertError as error:
        _print_traceback()
        note(f"Error: {_message(error)}")
        return _flush_output(exit_code(error))
    except OSError as error:
        _print_traceback()
        _print_os_error(error)
    except ModuleNotFoundError as error:
        _print_traceback()
        note(f"Error: {_missing_package(error)}")
    except Exception as error:  # noqa: BLE001 - the last resort of a program that shows no tracebacks
        _print_traceback()
        if isinstance(error, UnicodeEncodeError) and (wrong := _not_utf_8(given)):
            note(f"Error: The argument {wrong} is not valid UTF-8. Write it in UTF-8.")
            return _flush_output(USAGE)
        note(
            f"Error: Unexpected error ({type(error).__name__}). Run the command again with CLUSTERCERT_DEBUG=1 "
            "for a traceback, and report it."
        )
    return _flush_output(FAILED)


def _root_options_first(arguments: Sequence[str]) -> list[str]:
    """Move the root command's options to the front of the arguments, since people often type them last.

    `demo` defines its own --data-dir, which is not moved.
    """
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
        elif argument == _ROOT_FLAG:
            front.append(argument)
        elif argument in _ROOT_OPTIONS:
            front += [argument, *itertools.islice(remaining, 1)]
        else:
            (front if argument.startswith(tuple(f"{option}=" for option in _ROOT_OPTIONS)) else rest).append(
                argument
            )
    command = next((argument for argument in rest if not argument.startswith("-")), None)
    return list(arguments) if command == "demo" else [*front, *rest]


def _not_utf_8(arguments: Sequence[str]) -> str:
    """Return the first argument that is not UTF-8, escaped, or an empty text.

    Names of files may be of any bytes, so arguments are not checked before the command runs.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            return ascii(argument)
    return ""


def _print_os_error(error: OSError) -> None:
    """Print an operating-system error, unless it is a broken pipe: then the reader has closed its end."""
    if not isinstance(error, BrokenPipeError):
        note(f"Error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.")


def _missing_package(error: ModuleNotFoundError) -> str:
    """Name the package to install. Only the service's packages are optional."""
    return (
        f"This command needs the packages of the service, and {error.name} is not installed. Install them with "
        "`pip install 'clustercert[server]'`."
    )


def _message(error: ClustercertError) -> str:
    """Return the message with its reason, which only local commands may show, not the API."""
    if isinstance(error, StoreFault):
        return error.reason
    detail = getattr(error, "reason", None)
    cause = error.__cause__
    # If the database can't be reached, the driver raises a plain OSError.
    if isinstance(error, Unavailable) and isinstance(cause, OSError) and cause.errno:
        detail = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror
    return f"{error.message} ({detail})" if detail else error.message


def _print_traceback() -> None:
    if os.environ.get("CLUSTERCERT_DEBUG"):
        import traceback

        traceback.print_exc()


def _flush_output(code: int) -> int:
    """Flush standard output here, because an error at exit could not be handled. Returns the exit code."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _print_os_error(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or 1
    return code

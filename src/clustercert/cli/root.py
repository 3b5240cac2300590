"""The root command: what holds for all commands, and how each of them ends.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.
"""

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from clustercert import __version__
from clustercert.cli import (
    access_key,
    audit,
    certificate,
    cluster,
    db,
    demo,
    domain,
    group,
    keys,
    kubeconfig,
    kubernetes,
    login,
    project,
    role,
    serve,
    user,
)
from clustercert.cli.output import answer, note
from clustercert.cli.session import Where
from clustercert.errors import ClustercertError, Unavailable

_ANYWHERE = ("--config", "--data-dir")

app = typer.Typer(
    name="clustercert",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Plain help and plain errors: they read the same in a terminal, a pipe and a log, and come at once.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
_groups = (db, keys, domain, project, user, group, role, access_key, cluster, certificate, kubernetes, audit)
for group_of_commands in _groups:
    app.add_typer(group_of_commands.app)
app.command("login")(login.login)
app.command("logout")(login.logout)
app.add_typer(kubeconfig.app)


def _version(wanted: bool) -> None:
    if wanted:
        answer(f"clustercert {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="CLUSTERCERT_CONFIG",
            help="The settings, a TOML file. CLUSTERCERT_… variables win over it.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The data folder; wins over the settings and CLUSTERCERT_DATA_DIR.")
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback has answered by now
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Short-lived, audited client credentials for Kubernetes clusters, as kubeconfig files.

    Commands work on the store of the settings, as operator. Only login, logout and kubeconfig talk to a running
    service, as one of its users.
    """
    context.obj = Where(config, data_dir)


def main() -> NoReturn:
    """Do what this process's arguments say, and end it."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say, or else those of this process; the exit code."""
    # Where the shell closed them, what is written there goes nowhere: not into a file that is given their number.
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - the same
    for stream in (sys.stdout, sys.stderr):
        # A terminal that can't show a character must not keep the rest of the answer from being shown.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # both are text files here
    try:
        app(_hoisted(sys.argv[1:] if arguments is None else arguments), prog_name="clustercert")
    except SystemExit as end:
        return _flushed(end.code if isinstance(end.code, int) else 0)
    except ClustercertError as error:
        _debug()
        note(f"Error: {_sentence(error)}")
    except OSError as error:
        _debug()
        _tell(error)
    except Exception as error:  # noqa: BLE001 - the last resort of a program that shows no tracebacks
        _debug()
        note(
            f"Error: Something unforeseen went wrong ({type(error).__name__}). Run it again with CLUSTERCERT_DEBUG=1 "
            "to see where, and report it."
        )
    return _flushed(1)


def _hoisted(arguments: Sequence[str]) -> list[str]:
    """The arguments with the root command's options in front, wherever they were given: people put them last.

    `demo` has a --data-dir of its own.
    """
    front: list[str] = []
    rest: list[str] = []
    coming = iter(arguments)
    for argument in coming:
        if argument == "--":
            rest += [argument, *coming]
        elif argument in _ANYWHERE:
            front += [argument, *itertools.islice(coming, 1)]
        else:
            (front if argument.startswith(tuple(f"{option}=" for option in _ANYWHERE)) else rest).append(
                argument
            )
    command = next((argument for argument in rest if not argument.startswith("-")), None)
    return list(arguments) if command == "demo" else [*front, *rest]


def _tell(error: OSError) -> None:
    """What the operating system refused; nothing where the reader of our output has gone."""
    if not isinstance(error, BrokenPipeError):
        note(f"Error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.")


def _sentence(error: ClustercertError) -> str:
    """What the operator is told: also what a remote caller would not be."""
    reason = getattr(error, "reason", None)
    cause = error.__cause__
    driver_error = getattr(cause, "orig", None)
    # The driver leaves it as it is where there is no connection at all.
    unreached = cause if isinstance(error, Unavailable) and isinstance(cause, OSError) else None
    more = reason or driver_error or unreached
    return f"{error.message} ({more})" if more else error.message


def _debug() -> None:
    if os.environ.get("CLUSTERCERT_DEBUG"):
        import traceback

        traceback.print_exc()


def _flushed(code: int) -> int:
    """The code, once nothing is left that the interpreter would try to write at its end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _tell(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or 1
    return code

"""The root command: its subcommands, global options, error messages and exit codes."""

import gc
import importlib
import itertools
import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from clustercert import __version__
from clustercert.cli.administration.resources import RESOURCES
from clustercert.cli.options import FAILED, USAGE, InvalidOption, error_text, exit_code
from clustercert.cli.session import RootOptions
from clustercert.cli.terminal import command_help
from clustercert.cli.terminal.output import print_note, write_out
from clustercert.model.errors import ClustercertError

# The environment variable that the completion script sets while the shell completes a command line.
COMPLETION_VARIABLE = "_CLUSTERCERT_COMPLETE"
_TYPER_COMPLETION = {"install_completion", "show_completion"}


class CommandEntry(NamedTuple):
    """A command or a group of commands.

    Attributes:
        module: the module's name below `clustercert.cli`. The module defines a group named `app`, or a group or
            function with the entry's name.
        help: help text of one sentence.
    """

    name: str
    module: str
    help: str


# The commands in each section of `--help`, in the order in which a new user needs the commands.
PANELS = {
    "Every day": (
        CommandEntry("login", "login.command", "Log in to a running service."),
        CommandEntry("logout", "login.logout", "Log out: revoke and delete the token."),
        CommandEntry("password", "login.account", "Change your password."),
        CommandEntry("status", "login.account", "Show who is logged in, where and until when."),
        CommandEntry("profile", "login.account", "Manage saved logins at several services."),
        CommandEntry(
            "clusters",
            "cluster.command",
            "List the clusters in all your projects, with the Kubernetes groups and the longest lifetime that you"
            " get.",
        ),
        CommandEntry(
            "kubeconfig", "kubeconfig.command", "Merge clusters into your kubeconfig, or get separate files."
        ),
        CommandEntry(
            "explain",
            "policy.explanation",
            "Explain which access you would get in a cluster, and what limits the access.",
        ),
        CommandEntry(
            "request", "request", "Request access for a limited time, and decide about other users' requests."
        ),
        CommandEntry(
            "certificate",
            "certificate.command",
            "List, show and revoke certificates, and see who has access.",
        ),
        CommandEntry(
            "refresh", "credential.refresh", "Renew the certificate files of `kubeconfig merge --files`."
        ),
        CommandEntry(
            "credential", "credential.command", "Print a client certificate, as an exec plugin of kubectl."
        ),
        CommandEntry("completion", "completion", "Print a completion script for bash, zsh or fish."),
    ),
    "Administration, mostly by operators": (
        *(
            CommandEntry(noun, "administration.commands", RESOURCES[noun].help)
            for noun in ("domain", "project", "user", "group")
        ),
        CommandEntry("role", "administration.roles", RESOURCES["role"].help),
        CommandEntry("access-key", "administration.commands", RESOURCES["access-key"].help),
        CommandEntry("cluster", "cluster.command", RESOURCES["cluster"].help),
        CommandEntry(
            "kubernetes", "kubernetes.command", "Set up clusters for issued certificates and revocation."
        ),
        CommandEntry(
            "apply",
            "apply.command",
            "Create and change domains, projects, users, groups, roles and clusters, as described in YAML documents.",
        ),
        CommandEntry("diff", "apply.command", "Show what `apply` would change with the same options."),
        CommandEntry(
            "export",
            "apply.command",
            "Print all domains, projects, users, groups, roles and clusters as documents for `apply`.",
        ),
        CommandEntry("identity", "administration.identity", "Check tokens from OIDC issuers."),
        CommandEntry("policy", "policy.command", "Check the policy, and explain what it decides."),
        CommandEntry("audit", "audit.command", "Read, verify, export and prune the audit log."),
    ),
    "Server, with its settings and database": (
        CommandEntry("demo", "operate", "Start a demo service on loopback, and get a kubeconfig."),
        CommandEntry("serve", "operate", "Run the service until it is interrupted."),
        CommandEntry(
            "fingerprint",
            "operate",
            "Print the fingerprint that users compare with the service's certificate at their first login.",
        ),
        CommandEntry("db", "operate", "Manage the database and its schema."),
        CommandEntry("keys", "operate", "Manage the keys that encrypt secrets at rest."),
    ),
}
COMMANDS = {entry.name: entry for entries in PANELS.values() for entry in entries}


class _Commands(MutableMapping[str, Any]):
    """Maps names to commands. Looking up a command imports the command's module."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(COMMANDS[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class RootGroup(TyperGroup):
    """The root command, which imports only the chosen command."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override] # private base
        first = args[0].partition("=")[0] if args else ""
        options = [name for each in self.get_params(ctx) for name in each.opts]
        if first.startswith("-") and first not in ("-", "--", "-h", "--help", *options):
            similar = [name for name in options if name.startswith(f"--{first.lstrip('-')}")]
            hint = f"Did you mean {' or '.join(similar)}?" if similar else "Write it after the command."
            raise InvalidOption(f"There is no option {first} before a command. {hint}", ctx)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override] # private base
        name = args[0]
        if name not in COMMANDS and (paths := [path for path in _paths(self) if path[-1] == name]):
            listed = " or ".join(f"`clustercert {' '.join(path)}`" for path in paths[:_MAX_SUGGESTED])
            raise InvalidOption(f"There is no command {name}. Did you mean {listed}?", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override] # private base
        del ctx
        return list(COMMANDS)

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override] # private base
        # Typer supports completion only if Typer adds its own options. Hide these options, because users run
        # `clustercert completion` instead.
        return [each for each in super().get_params(ctx) if each.name not in _TYPER_COMPLETION]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override] # private base
        # Print the first panel directly after the introduction, so that the panel is visible in a terminal of 24 lines.
        self._format_panels(formatter, 0, 1)
        # The base class formats the options, and then calls `format_commands`.
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override] # private base
        del ctx
        self._format_panels(formatter, 1, len(PANELS))

    @staticmethod
    def _format_panels(formatter: Any, start: int, end: int) -> None:
        for name, entries in itertools.islice(PANELS.items(), start, end):
            with formatter.section(name):
                formatter.write_dl([(entry.name, entry.help) for entry in entries])


def _paths(group: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the names of all commands below a group, such as `("kubeconfig", "merge")`."""
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name)
        yield from _paths(command, *path, name)


def _load(entry: CommandEntry) -> Any:
    """Import a command and build it with Typer."""
    module = importlib.import_module(f"clustercert.cli.{entry.module}")
    # Typer builds a group for a single command only if there is a callback.
    parent = typer.Typer(rich_markup_mode=None, add_completion=False, callback=lambda: None)
    found = getattr(module, "app", None) or getattr(module, entry.name.replace("-", "_"))
    if isinstance(found, typer.Typer):
        parent.add_typer(found)
    else:
        parent.command(entry.name)(found)
    command_help.use_in(parent)
    if COMPLETION_VARIABLE in os.environ:
        from clustercert.cli import completion

        completion.add_to(parent)
    built: Any = typer.main.get_command(parent)
    command = built.commands[entry.name]
    _keep_first_sentences(command)
    return command


def _keep_first_sentences(command: Any) -> None:
    """Make help texts show the whole first sentence of each command, which Typer would truncate."""
    for each in getattr(command, "commands", {}).values():
        sentence, end, _ = " ".join((each.help or "").split()).partition(". ")
        each.short_help = sentence + end.rstrip()
        _keep_first_sentences(each)


_NO_WRAPPING = "10000"
_MAX_SUGGESTED = 3
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
            metavar="FILE",
            help="Settings file (TOML). Variables CLUSTERCERT_… override the file.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Data folder. Overrides the settings and CLUSTERCERT_DATA_DIR."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show each request to the service, without secrets.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - only the option's callback uses it
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Issue short-lived, audited client credentials for Kubernetes clusters, as kubeconfig files."""
    context.obj = RootOptions(config, data_dir)
    if verbose:
        from clustercert.client.connection import ServiceClient

        ServiceClient.trace = print_note


def main() -> NoReturn:
    """Run the command given by the process's arguments, then exit."""
    code = run()
    # Skip the garbage collection at exit, which takes a quarter of the CPU time of a command on the store.
    gc.freeze()
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command given by the arguments, by default those of this process. Returns the exit code."""
    # A shell may have closed the standard streams. Reopen the streams, so that no other file gets their descriptors.
    sys.stdin = sys.stdin or Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - stays open
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - stays open
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):
        # Escape characters that the terminal can't show, instead of failing.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # both are text files here
    given = sys.argv[1:] if arguments is None else arguments
    if COMPLETION_VARIABLE in os.environ:
        # If the package rich is installed, Typer wraps help texts at this width. The completion scripts need each
        # value and its help text on one line.
        os.environ["TERMINAL_WIDTH"] = _NO_WRAPPING
    try:
        app(_root_options_first(given), prog_name="clustercert")
    except SystemExit as end:
        return _flush_output(end.code if isinstance(end.code, int) else 0)
    except ClustercertError as error:
        _print_traceback()
        print_note(f"Error: {error_text(error)}")
        return _flush_output(exit_code(error))
    except OSError as error:
        _print_traceback()
        _print_os_error(error)
    except ModuleNotFoundError as error:
        _print_traceback()
        print_note(f"Error: {_missing_package(error)}")
    except Exception as error:  # noqa: BLE001 - the last resort of a program that shows no tracebacks
        _print_traceback()
        if isinstance(error, UnicodeEncodeError) and (wrong := _not_utf_8(given)):
            print_note(f"Error: The argument {wrong} is not valid UTF-8. Write the argument in UTF-8.")
            return _flush_output(USAGE)
        print_note(
            f"Error: Unexpected error ({type(error).__name__}). Run the command again with CLUSTERCERT_DEBUG=1 "
            "for a traceback, and report the traceback."
        )
    return _flush_output(FAILED)


def _root_options_first(arguments: Sequence[str]) -> list[str]:
    """Move the root command's options to the front of the arguments, since people often type them last.

    Moves nothing if the command is `demo`, which has a --data-dir of its own.
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
    return list(arguments) if command == "demo" else [*front, *_with_own_commands(rest)]


def _with_own_commands(arguments: list[str]) -> list[str]:
    """Replace `version`, `whoami` and `help`, which are commands of other programs, by their counterparts."""
    match arguments:
        case ["version"]:
            return ["--version"]
        case ["help", *command]:
            return [*command, "--help"]
        case ["whoami", *options]:
            return ["status", *options]
        case _:
            return arguments


def _not_utf_8(arguments: Sequence[str]) -> str:
    """Return the first argument that is not UTF-8, escaped, or an empty string.

    Called only after a command failed, because an argument can be a file name, and file names may contain any bytes.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            return ascii(argument)
    return ""


def _print_os_error(error: OSError) -> None:
    """Print an operating-system error. Ignores a broken pipe, because the reader closed the pipe on purpose."""
    if not isinstance(error, BrokenPipeError):
        print_note(f"Error: {error_text(error)}")


def _missing_package(error: ModuleNotFoundError) -> str:
    """Return a message that says what to install. Only the packages of the service can be missing."""
    from clustercert.model.wheel import wheel_file

    return (
        f"This command needs the packages of the service, and {error.name} is not installed. Install them from the "
        f"wheel of clustercert: `pip install {wheel_file(extra='server')}`."
    )


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

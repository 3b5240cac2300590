"""The commands below the root command, each imported only when it is used.

The table repeats the first sentence of each help text, so that `--help` needs no import.
"""

import importlib
import os
from collections.abc import Iterator, MutableMapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from clustercert.cli.resources import RESOURCES

# The variable that the shell sets while it completes a line.
COMPLETION_VARIABLE = "_CLUSTERCERT_COMPLETE"
_TYPER_COMPLETION = {"install_completion", "show_completion"}


class CommandEntry(NamedTuple):
    """A command or a group of commands.

    Attributes:
        module: below `clustercert.cli`. Its attribute `app` is the group, or its attribute with the entry's name is the
            group or the function of the command.
        help: one sentence.
    """

    name: str
    module: str
    help: str


COMMANDS = {
    entry.name: entry
    for entry in (
        CommandEntry(
            "login", "login.command", "Log in to a running service, for `clusters`, `kubeconfig` and kubectl."
        ),
        CommandEntry("logout", "login.command", "Log out: revoke the token and delete it."),
        CommandEntry("password", "login.password", "Change your password."),
        CommandEntry("status", "login.status", "Show who is logged in, where, until when, and in which projects."),
        CommandEntry("profile", "login.profiles", "Manage saved logins at several services."),
        CommandEntry("clusters", "clusters", "List the clusters in all your projects."),
        CommandEntry(
            "kubeconfig",
            "kubeconfig.command",
            "Get kubeconfigs from a running service, or merge clusters into yours.",
        ),
        CommandEntry(
            "refresh",
            "credential.refresh",
            "Renew the certificate files that `kubeconfig merge --files` wrote.",
        ),
        CommandEntry(
            "credential",
            "credential.command",
            "Print a client certificate for kubectl, which runs this command.",
        ),
        CommandEntry(
            "completion",
            "completion",
            "Print a script for bash, zsh or fish that completes commands, options and names.",
        ),
        CommandEntry("demo", "serve", "Start a demo service on loopback, and get a kubeconfig."),
        CommandEntry("serve", "serve", "Run the service until it is interrupted."),
        CommandEntry(
            "fingerprint",
            "serve",
            "Print the fingerprint of the service's certificate that users compare at their first login.",
        ),
        CommandEntry("db", "db", "Manage the database and its schema."),
        CommandEntry("keys", "keys", "Manage the keys that encrypt secrets at rest."),
        *(
            CommandEntry(noun, "administration", RESOURCES[noun].help)
            for noun in ("domain", "project", "user", "group")
        ),
        CommandEntry("role", "role", RESOURCES["role"].help),
        CommandEntry("access-key", "administration", RESOURCES["access-key"].help),
        CommandEntry("identity", "identity", "Check tokens from OIDC issuers."),
        CommandEntry("keystone", "keystone", "Register the service in Keystone's catalog."),
        CommandEntry("cluster", "cluster", RESOURCES["cluster"].help),
        CommandEntry(
            "apply",
            "apply.command",
            "Create and change projects, users, groups, role bindings and clusters, as YAML documents say.",
        ),
        CommandEntry("diff", "apply.command", "Show what `apply` would change with the same options."),
        CommandEntry(
            "export",
            "apply.command",
            "Print all projects, users, groups, role bindings and clusters as documents for `apply`.",
        ),
        CommandEntry("certificate", "certificate", "List, show and revoke certificates, and see who has access."),
        CommandEntry("kubernetes", "kubernetes", "Set up clusters for issued certificates and revocation."),
        CommandEntry("policy", "policy", "Check the policy, and explain what it decides."),
        CommandEntry("audit", "audit", "Read, verify, export and prune the audit log."),
    )
}


class _Commands(MutableMapping[str, Any]):
    """Commands by name. Reading one imports its module."""

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

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override] # its base class is private
        del ctx
        return list(COMMANDS)

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override] # the same
        # Typer answers the shells only if it adds these options. `clustercert completion` replaces them.
        return [each for each in super().get_params(ctx) if each.name not in _TYPER_COMPLETION]

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override] # the same
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(entry.name, entry.help) for entry in COMMANDS.values()])


def _load(entry: CommandEntry) -> Any:
    """Import a command and build it with Typer."""
    module = importlib.import_module(f"clustercert.cli.{entry.module}")
    # A callback, because Typer builds no group for a single command.
    parent = typer.Typer(rich_markup_mode=None, add_completion=False, callback=lambda: None)
    found = getattr(module, "app", None) or getattr(module, entry.name.replace("-", "_"))
    if isinstance(found, typer.Typer):
        parent.add_typer(found)
    else:
        parent.command(entry.name)(found)
    if COMPLETION_VARIABLE in os.environ:
        from clustercert.cli import name_completion

        name_completion.add_to(parent)
    built: Any = typer.main.get_command(parent)
    command = built.commands[entry.name]
    _keep_first_sentences(command)
    return command


def _keep_first_sentences(command: Any) -> None:
    """Show the whole first sentence of each command in help texts. By default, it is cut."""
    for each in getattr(command, "commands", {}).values():
        sentence, end, _ = " ".join((each.help or "").split()).partition(". ")
        each.short_help = sentence + end.rstrip()
        _keep_first_sentences(each)

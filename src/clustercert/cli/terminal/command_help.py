"""The form of the help texts of commands."""

from typing import Any

import typer
from typer.core import TyperCommand

from clustercert.cli.options import InvalidOption

_LOGIN_OPTIONS = {"profile_name", "from_env", "plain_http", "local"}


class Command(TyperCommand):
    """A command whose help text lists its own options before the options that choose a login.

    The lines after `Examples:` in the command's docstring are shown as they are.
    """

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        # This mark makes Typer keep the lines of a paragraph.
        self.help = (self.help or "").replace("\n\nExamples:\n", "\n\n\b\nExamples:\n")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            # Typer writes the message about a missing option or argument only when it shows the error.
            if not error.message:
                raise
            # Typer would not break the lines of the message.
            raise InvalidOption(error.message, error.ctx, error.param, error.param_hint) from None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        # Typer puts a required argument into braces, which readers take for a choice.
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Login": []}
        parameters = self.get_params(ctx)
        chooses_login = "from_env" in {each.name for each in parameters}
        for each in parameters:
            if each.param_type_name == "argument":
                name = "Arguments"
            else:
                name = "Login" if chooses_login and each.name in _LOGIN_OPTIONS else "Options"
            if (record := each.get_help_record(ctx)) is not None:
                sections[name].append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def use_in(app: typer.Typer) -> None:
    """Give this form to the help texts of all commands in a group."""
    for command in app.registered_commands:
        command.cls = Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            use_in(group.typer_instance)

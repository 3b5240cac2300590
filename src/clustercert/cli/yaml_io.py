"""Reads YAML from untrusted files, with limits."""

import sys
from pathlib import Path
from typing import Any

from clustercert import yaml_text
from clustercert.cli.options import CommandError, UsageError
from clustercert.secure_file import read_regular_file

STANDARD_INPUT = Path("-")


class MalformedYaml(CommandError):
    """The text is not acceptable YAML. The message does not quote the text, which may contain secrets."""


def in_messages(path: Path) -> Path:
    """Return the path to show in messages: `standard input` for `-`, otherwise the path itself.

    Relative paths in the file stay valid, because `-` and `standard input` have the same parent folder.
    """
    return Path("standard input") if path == STANDARD_INPUT else path


def read_input(path: Path, limit: int) -> bytes:
    """Read a regular file, or standard input for `-`, of at most `limit` bytes. Raises CommandError."""
    if path != STANDARD_INPUT:
        return read_regular(path, limit)
    content = sys.stdin.buffer.read(limit + 1)
    if len(content) > limit:
        raise CommandError(f"Standard input is larger than {limit // 1024} KiB.")
    return content


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes. Raises CommandError."""
    try:
        content = read_regular_file(path, limit + 1)
    except FileNotFoundError as error:
        raise UsageError(f"The file {path} does not exist.") from error
    except OSError as error:
        raise CommandError(f"The file {path} can't be read: {error.strerror}.") from error
    if len(content) > limit:
        raise CommandError(f"The file {path} is larger than {limit // 1024} KiB.")
    return content


def parse(content: bytes, subject: str, *, aliases: bool = False) -> list[Any]:
    """Return the values of the YAML documents; see `yaml_text.parse`. Raises MalformedYaml."""
    try:
        return yaml_text.parse(content, subject, aliases=aliases)
    except yaml_text.MalformedYaml as error:
        raise MalformedYaml(str(error)) from None

"""What is asked for on a terminal; and secrets, which may also come from a file, but never from the arguments.

The arguments of a process can be read by every user of the machine.
"""

import sys
from pathlib import Path

import typer

from clustercert.errors import ClustercertError

_STANDARD_INPUT = Path("-")
# More than a password or a secret key has, and little enough to read at once.
_MAX_CHARACTERS = 8192


class AskingError(ClustercertError):
    """There is no secret to be had; the message says where one was looked for."""


def read_secret(prompt: str, file: Path | None, instead: str, *, confirm: bool = False) -> str:
    """The secret in a file, or else the one that is typed.

    Attributes:
        instead: what to do where nobody can be asked, the end of a sentence.
        confirm: ask twice.
    """
    if file is not None:
        return _first_line(file)
    if not sys.stdin.isatty():
        raise AskingError(f"There is no terminal on which to ask for the {prompt.lower()}: {instead}.")
    return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True))


def asked(prompt: str, instead: str) -> str:
    """What is typed, and may be seen."""
    if not sys.stdin.isatty():
        raise AskingError(f"There is no terminal on which to ask for the {prompt.lower()}: {instead}.")
    return str(typer.prompt(prompt, err=True))


def agreed(question: str, *, yes: bool) -> None:
    """Go on where the operator agrees, or has said so beforehand. Raises typer.Abort or AskingError."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise AskingError("There is no terminal on which to ask whether this is meant: add --yes.")
    typer.confirm(question, abort=True, err=True)


def _first_line(file: Path) -> str:
    try:
        if file == _STANDARD_INPUT:
            line = sys.stdin.readline(_MAX_CHARACTERS + 1)
        else:
            with file.open(encoding="utf-8") as opened:
                line = opened.readline(_MAX_CHARACTERS + 1)
    except OSError as error:
        raise AskingError(f"The file {file} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise AskingError(f"The file {file} is not text in UTF-8.") from None
    secret = line.removesuffix("\n").removesuffix("\r")
    if not secret or len(line) > _MAX_CHARACTERS:
        raise AskingError(f"The first line of {file} is empty or too long to be a secret.")
    return secret

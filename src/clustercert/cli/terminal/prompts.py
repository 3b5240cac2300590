"""Prompts on a terminal.

Secrets are read from the terminal or a file, never from arguments, because all users of a machine can see the arguments
of running processes.
"""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import typer

from clustercert.cli.options import INTERRUPTED, CommandError, UsageError
from clustercert.cli.terminal.output import note_text, print_note
from clustercert.secure_file import access_advice

# The number of times that a user can try to type a password at a prompt.
PASSWORD_ATTEMPTS = 3
_STANDARD_INPUT = Path("-")
# The maximum length of a secret, longer than any password or secret key.
_MAX_CHARACTERS = 8192


def read_secret(
    prompt: str, file: Path | None, instead: str, *, confirm: bool = False, longest: int = _MAX_CHARACTERS
) -> str:
    """Read a secret from `file` or, if `file` is `None`, from the terminal.

    Args:
        instead: the advice at the end of the error message if there is no terminal.
        confirm: whether to ask twice.
        longest: maximum number of characters in the file's first line.
    """
    if file is not None:
        return _first_line(file, longest)
    _require_terminal(f"ask for the {prompt.partition(' (')[0].lower()}", instead)
    with _interruptible():
        return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True))


def prompt_text(prompt: str, instead: str) -> str:
    """Ask for a value that is visible while it is typed."""
    _require_terminal(f"ask for the {prompt.lower()}", instead)
    with _interruptible():
        return str(typer.prompt(prompt, err=True))


def confirm(question: str | Callable[[], str], *, yes: bool, instead: str = "add --yes") -> None:
    """Ask for confirmation unless `yes` is set. Raises typer.Exit on no, or UsageError without a terminal.

    The question should contain the stored names of the objects, so that users notice a wrong name.

    Args:
        question: the text, or a function that sends requests to build the text. The function is not called if
            `yes` is set.
        instead: the advice at the end of the error message if there is no terminal.
    """
    if yes:
        return
    if callable(question):
        question = question()
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask for confirmation: {instead}.")
    if not ask(question):
        print_note("Aborted.")
        raise typer.Exit(1)


def ask(question: str) -> bool:
    """Ask a yes-or-no question on the terminal. The default is no."""
    with _interruptible():
        return typer.confirm(note_text(f"{question} [y/N]"), show_default=False, err=True)


def choose(options: Sequence[str], problem: str) -> int:
    """Ask the user to choose an option, and return the index of the option.

    Without a terminal, raises CommandError with the message `problem`.
    """
    if not sys.stdin.isatty():
        raise CommandError(problem)
    for number, option in enumerate(options, 1):
        print_note(f"{number:3}  {option}")
    with _interruptible():
        while True:
            text = str(typer.prompt(f"Number [1-{len(options)}]", err=True)).strip()
            if text in map(str, range(1, len(options) + 1)):
                return int(text) - 1
            print_note(f"{text!r} is not in the list. Type a number from 1 to {len(options)}.")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Exit with status 130 if Ctrl-C is pressed at the prompt in the `with` block."""
    # In an event loop, asyncio's handler would delay Ctrl-C until the prompt is answered.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except typer.Abort:
        print_note("")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, previous)


def _require_terminal(purpose: str, instead: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"There is no terminal to {purpose}: {instead}.")


def _first_line(file: Path, longest: int) -> str:
    try:
        with nullcontext(sys.stdin) if file == _STANDARD_INPUT else file.open(encoding="utf-8") as opened:
            line = opened.readline(longest + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"The file {file} can't be read: {error.strerror}.") from error
    except OSError as error:
        advice = access_advice(error, file)
        raise CommandError(f"The file {file} can't be read: {error.strerror}.{advice}") from error
    except UnicodeDecodeError:
        raise CommandError(f"The file {file} is not text in UTF-8.") from None
    secret = line.removesuffix("\n").removesuffix("\r")
    if not secret or len(line) > longest:
        raise CommandError(
            f"The first line of {file} is empty or longer than {longest} characters. Write the secret in the first "
            "line."
        )
    return secret

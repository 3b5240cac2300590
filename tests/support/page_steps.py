"""Commands and output in the documentation: read from a page, run in a shell, and compared."""

import codecs
import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 180
PASSWORD = "correct horse battery staple"
ANSWERS = {
    "[y/N]: ": "y",
    "Password:": PASSWORD,
    "Password (at least 8 characters):": PASSWORD,
    "Repeat for confirmation:": PASSWORD,
}
# What differs in each run. Here and on the page, each matches its own pattern.
_VARYING = (
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",  # an id of a cluster
    r"\b[0-9A-Za-z]{4}…[0-9A-Za-z]{4}\b",  # the short form of an id
    r"\b[0-9a-f]{8}\b|\b[0-9a-f]{16,64}\b",  # another id, a fingerprint, a hash
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?Z?",
    r"\bAK[0-9A-Z]+|\b[A-Z0-9]{20}\b",  # an access key
    r"\d+\.\d+\.\d+\.\d+(?::\d+)?",
    r"\(in [^)]*\)|in (?:\d+[a-z]+)+",
    r"\b(?:\d+[smhd])+ ago",
    r":\d{4,5}\b",  # a port
    r"\b\d+\.\d{1,2}\b",  # seconds
)
_ANY = r"(?:^|\n)…(?:\n|$)|…"


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and the lines that it prints."""

    command: str
    printed: tuple[str, ...]

    def here(self, words: Mapping[str, str]) -> "Step":
        """The step with other words."""
        return Step(_replaced(self.command, words), tuple(_replaced(line, words) for line in self.printed))


def _replaced(text: str, words: Mapping[str, str]) -> str:
    for word, other in words.items():
        text = text.replace(word, other)
    return text


def section(page: str, heading: str) -> str:
    """The text below a heading of the second level, up to the next one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


@dataclass(frozen=True, slots=True)
class Block:
    """A console block of a page.

    Attributes:
        heading: the last one above the block.
        illustration: the reason why no test runs the block; None if one does.
    """

    page: str
    heading: str
    steps: tuple[Step, ...]
    illustration: str | None

    @property
    def has_output(self) -> bool:
        return any(step.printed for step in self.steps)


_BLOCK = re.compile(
    r"^(?P<heading>#+ [^\n]*)$"
    r"|^(?: *<!-- illustration: (?P<reason>[^\n]+) -->\n)? *```(?P<kind>\w*)\n(?P<lines>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: str, text: str | None = None) -> Sequence[Block]:
    """The console blocks of a page, or of a part of its text."""
    found, heading = [], ""
    for each in _BLOCK.finditer(text or (ROOT / page).read_text(encoding="utf-8")):
        if each["heading"]:
            heading = each["heading"].lstrip("# ")
        elif each["kind"] == "console":
            # Blocks in a list are indented.
            lines = textwrap.dedent(each["lines"])
            found.append(Block(page, heading, tuple(_steps(lines)), each["reason"]))
    return found


def _steps(lines: str) -> Iterator[Step]:
    for command in re.split(r"^\$ ", lines, flags=re.MULTILINE)[1:]:
        first, *printed = command.splitlines()
        # A line goes on after a backslash, and in quotes.
        while printed and (first.endswith("\\") or first.count("'") % 2):
            first = f"{first}\n{printed.pop(0)}"
        yield Step(first, tuple(line for line in printed if line))


def steps(text: str) -> Sequence[Step]:
    """The steps of all console blocks in a text, except illustrations."""
    return [step for block in blocks("", text) if block.illustration is None for step in block.steps]


def blocks_with_output(page: str, heading: str) -> Sequence[Block]:
    """The blocks below a heading that a test must run."""
    return [
        block
        for block in blocks(page)
        if block.heading == heading and block.has_output and block.illustration is None
    ]


def steps_below(page: str, heading: str) -> Sequence[Sequence[Step]]:
    """The steps of each block with output below a heading."""
    return [block.steps for block in blocks_with_output(page, heading)]


def block(page: str, mark: str) -> str:
    """The code block after `<!-- recipe: MARK -->`, or another kind of mark."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split(f"<!-- {mark} -->\n", 1)[1].split("\n", 1)[1].split("\n```", 1)[0] + "\n"


def pattern(lines: Sequence[str]) -> str:
    """A regular expression for output like these lines. A line with only an ellipsis stands for several.

    Lines may be broken at other places, since terminals have different widths.
    """
    return "".join(_alike("\n".join(lines).strip()))


def _alike(text: str) -> Iterator[str]:
    """Regular expressions for the fixed and the varying parts of a text, by turns."""
    for index, part in enumerate(re.split(f"({'|'.join((_ANY, *_VARYING))})", text)):
        if index % 2:
            yield next((f"(?:{each})" for each in _VARYING if re.fullmatch(each, part)), r"[\s\S]*?")
        else:
            yield re.sub(r"(?:\\?\s)+", r"\\s+", re.escape(part))


# The steps that the current test has run.
_followed: set[Step] = set()
# Output of commands that exit with another status than 0.
_FAILURE = re.compile(r"^(?:Error|Refused)|\bfailed\b|is not intact", re.MULTILINE)


def run(
    step: Step,
    folder: Path,
    env: Mapping[str, str],
    answers: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
    columns: int | None = None,
) -> str:
    """Run a command, and return its output. It must print what the page shows; where that is nothing, anything.

    Args:
        answers: what to type at prompts. Steps with prompts run in a terminal.
        words: texts of the page, and what stands for them here.
        columns: the width of a terminal in which the command runs; None: it needs none, unless it has prompts.
    """
    here = step.here(words or {})
    asks = [prompt for prompt in answers or {} if prompt in "\n".join(here.printed)]
    if asks or columns:
        typed = [(ask, (answers or {})[ask]) for ask in asks]
        status, said = _at_a_terminal(here.command, folder, env, typed, columns or 300)
    else:
        status, said = in_a_shell(here.command, folder, env)
    fails = _FAILURE.search("\n".join(here.printed)) is not None
    assert (status != 0) == fails, f"{here.command}\n{said}"
    return compare(step, said, words)


def compare(step: Step, said: str, words: Mapping[str, str] | None = None) -> str:
    """Compare what a step printed with the page, and return it without colors and spaces at ends."""
    here = step.here(words or {})
    plain = re.sub(r"\x1b\[[\d;]*m", "", said)
    said = "\n".join(line.rstrip() for line in plain.strip().splitlines())
    if here.printed:
        assert re.fullmatch(pattern(here.printed), said), f"{here.command}\n{said}"
    _followed.add(step)
    return said


@contextlib.contextmanager
def following(expected: Sequence[Step]) -> Iterator[None]:
    """Fail if the test in the `with` block passes without running each of these steps."""
    _followed.clear()
    yield
    left_out = [step.command for step in expected if step not in _followed]
    assert not left_out, f"This test is named in support/page_tests.py, but does not run {left_out}."


def in_a_shell(
    command: str, folder: Path, env: Mapping[str, str], seconds: float = SECONDS
) -> tuple[int, str]:
    """Run a command for at most `seconds`. Returns its exit status and its output, with that on standard error."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    return done.returncode, done.stdout


def _at_a_terminal(
    command: str, folder: Path, env: Mapping[str, str], answers: Sequence[tuple[str, str]], columns: int
) -> tuple[int, str]:
    """Type each answer after its prompt, in their order."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe("bash", ["bash", "-c", command], {**env, "TERM": "dumb", "COLUMNS": str(columns)})  # noqa: S606
    screen, waiting = "", list(answers)
    # A character may come in two parts.
    decoder = codecs.getincrementaldecoder("utf-8")()
    overdue = threading.Timer(SECONDS, os.kill, (pid, signal.SIGKILL))
    overdue.start()
    with contextlib.suppress(OSError):  # EIO when the other end is closed
        while chunk := os.read(terminal, 65536):
            screen += decoder.decode(chunk)
            if waiting and waiting[0][0] in screen:
                ask, text = waiting.pop(0)
                if (
                    "[y/N]" not in ask
                ):  # Input before the terminal stops echoing would be shown and discarded.
                    eventually(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO)
                os.write(terminal, f"{text}\n".encode())
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    overdue.cancel()
    # What was overwritten, such as a progress bar, is gone.
    shown = re.sub(r"[^\n]*\r\x1b\[K", "", screen.replace("\r\n", "\n"))
    return os.waitstatus_to_exitcode(status), shown


@dataclass
class Reader:
    """Somebody who follows a page in their home.

    Attributes:
        words: what the page calls otherwise.
        special: what happens instead of a command. It compares the output itself, if the page shows any.
        columns: the width of their terminal; None: only commands with prompts run in a terminal.
    """

    home: Path
    words: dict[str, str]
    env: dict[str, str]
    special: dict[str, Callable[[Step], object]] = field(default_factory=dict)
    columns: int | None = None

    def here(self, text: str) -> str:
        return _replaced(text, self.words)

    def follow(self, text: str) -> dict[str, str]:
        """Run the steps of a text. Returns what each command printed, except commands in `special`."""
        return self.follow_steps(steps(text))

    def follow_steps(self, found: Sequence[Step]) -> dict[str, str]:
        printed = {}
        for step in found:
            if step.command in self.special:
                self.special[step.command](step)
                if not step.printed:
                    _followed.add(step)
            else:
                printed[step.command] = self.follow_step(step)
        return printed

    def follow_step(self, step: Step) -> str:
        """Run a step, and return what it printed."""
        if not step.command.startswith("export "):
            return run(step, self.home, self.env, ANSWERS, self.words, self.columns)
        name, _, value = self.here(step.command).removeprefix("export ").partition("=")
        self.env[name] = value
        return compare(step, "", self.words)


def new_reader(home: Path, **variables: str) -> Reader:
    """Somebody with a new home and these variables, who types this environment's programs at a wide terminal."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "COVERAGE"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return Reader(home, {}, {**kept, "PATH": path, "HOME": str(home), **variables}, columns=100)

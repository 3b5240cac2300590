"""Commands and output in the documentation: read from a page, run in a shell, and compared."""

import codecs
import contextlib
import os
import pty
import re
import signal
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
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
# What differs in each run. An ellipsis stands for anything.
_VARYING = (
    "…",
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",  # an id of a cluster
    r"\b[0-9a-f]{16,64}\b",  # another id, a fingerprint, a hash
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?Z?",
    r"\bAK[0-9A-Z]+|\b[A-Z0-9]{20}\b",  # an access key
    r"\d+\.\d+\.\d+\.\d+(?::\d+)?",
    r"\(in [^)]*\)|in \d+[a-z]+",
    r"(?<=:)\d{4,5}\b",
    r" {2,}",
)


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and the lines that it prints."""

    command: str
    printed: Sequence[str]


def section(page: str, heading: str) -> str:
    """The text below a heading of the second level, up to the next one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def steps(text: str) -> Sequence[Step]:
    """The steps of all console blocks in a text, except blocks after `<!-- not run -->`."""
    found = []
    text = re.sub(r"<!-- not run -->\n```console\n.*?```", "", text, flags=re.DOTALL)
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            first, *lines = command.splitlines()
            while first.endswith("\\"):
                first = f"{first}\n{lines.pop(0)}"
            found.append(Step(first, [line for line in lines if line]))
    return found


def block(page: str, mark: str) -> str:
    """The code block after `<!-- recipe: MARK -->`, or another kind of mark."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split(f"<!-- {mark} -->\n", 1)[1].split("\n", 1)[1].split("\n```", 1)[0] + "\n"


def pattern(lines: Sequence[str]) -> str:
    """A regular expression for output like these lines. A line with only an ellipsis stands for several."""
    return "\n".join(
        r"[\s\S]*"
        if line == "…"
        else "".join(".*" if index % 2 else re.escape(part) for index, part in enumerate(_split(line)))
        for line in lines
    )


def _split(line: str) -> Sequence[str]:
    """Fixed and varying parts of a line, by turns."""
    return re.split(f"({'|'.join(_VARYING)})", line)


def run(step: Step, folder: Path, env: Mapping[str, str], answers: Mapping[str, str] | None = None) -> str:
    """Run a command, and return its output. It must print what the page shows; where that is nothing, anything.

    Args:
        answers: what to type at prompts. Steps with prompts run in a terminal.
    """
    asks = [prompt for prompt in answers or {} if prompt in "\n".join(step.printed)]
    if asks:
        status, said = _at_a_terminal(
            step.command, folder, env, [(ask, (answers or {})[ask]) for ask in asks]
        )
    else:
        status, said = _in_a_shell(step.command, folder, env)
    said = "\n".join(line.rstrip() for line in said.strip().splitlines())
    fails = any(line.startswith("Error") for line in step.printed)
    assert (status != 0) == fails, f"{step.command}\n{said}"
    if step.printed:
        assert re.fullmatch(pattern(step.printed), said), f"{step.command}\n{said}"
    return said


def _in_a_shell(command: str, folder: Path, env: Mapping[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


def _at_a_terminal(
    command: str, folder: Path, env: Mapping[str, str], answers: Sequence[tuple[str, str]]
) -> tuple[int, str]:
    """Type each answer after its prompt, in their order."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe("bash", ["bash", "-c", command], {**env, "TERM": "dumb", "COLUMNS": "300"})  # noqa: S606
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
    return os.waitstatus_to_exitcode(status), screen.replace("\r\n", "\n")


@dataclass
class Reader:
    """Somebody who follows a page in their home.

    Attributes:
        words: what the page calls otherwise.
        special: what happens instead of a command.
    """

    home: Path
    words: dict[str, str]
    env: dict[str, str]
    special: dict[str, Callable[[Step], object]] = field(default_factory=dict)

    def here(self, text: str) -> str:
        for word, other in self.words.items():
            text = text.replace(word, other)
        return text

    def follow(self, text: str) -> None:
        """Run the steps of a text."""
        for step in steps(text):
            own = Step(self.here(step.command), [self.here(line) for line in step.printed])
            if step.command in self.special:
                self.special[step.command](own)
            else:
                self.follow_step(own)

    def follow_step(self, step: Step) -> None:
        """Run a step whose words are those of the reader."""
        if step.command.startswith("export "):
            name, _, value = step.command.removeprefix("export ").partition("=")
            self.env[name] = value
        else:
            run(step, self.home, self.env, ANSWERS)

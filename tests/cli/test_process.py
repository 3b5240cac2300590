"""The command as a process: what it loads, what it prints where, how it ends."""

import base64
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from clustercert import __version__
from operating import Operator
from waiting import eventually

KEK = base64.b64encode(bytes(32)).decode()
COMMAND = (sys.executable, "-m", "clustercert")
# What a command that does not open the store has no use for. (typer itself brings pydantic.)
SERVER = {"fastapi", "starlette", "sqlalchemy", "alembic", "uvicorn", "pydantic_settings"}
HEAVY = SERVER | {"httpx", "cryptography", "asyncio", "rich"}


def clean_environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CLUSTERCERT", "OS_", "XDG_"))
    }
    return kept | more


def run(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(**environment),
        check=False,
    )


def loaded_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "clustercert", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(XDG_CONFIG_HOME="/nowhere"),
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def in_a_terminal(arguments: list[str], typed: dict[str, str], **environment: str) -> tuple[int, str]:
    """The exit code and the screen of a command in a terminal; `typed` answers what it asks."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = clean_environment(TERM="xterm", COLUMNS="200", **environment)
        os.execve(COMMAND[0], [*COMMAND, *arguments], environment)  # noqa: S606 - a terminal is what this is about
    screen, waiting = "", dict(typed)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        screen += chunk.decode()
        for question in [question for question in waiting if question in screen]:
            if question.startswith("["):
                os.write(terminal, waiting.pop(question).encode())
                continue
            # What is typed before the terminal stops echoing would be seen, and thrown away.
            eventually(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO)
            os.write(terminal, waiting.pop(question).encode())
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), screen


def test_the_version_is_said_and_little_is_loaded_for_it() -> None:
    assert run("--version").stdout == f"clustercert {__version__}\n"
    assert loaded_by("--version").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["cluster", "add", "--help"], ["--show-completion", "bash"]]
)
def test_help_loads_little(arguments: list[str]) -> None:
    assert loaded_by(*arguments).isdisjoint(HEAVY)


def test_a_client_does_not_load_the_server() -> None:
    loaded = loaded_by("kubeconfig", "get", "prod")
    assert "clustercert.cli.kubeconfig" in loaded
    assert loaded.isdisjoint(SERVER)


def test_completion_knows_the_commands() -> None:
    words = {"_CLUSTERCERT_COMPLETE": "complete_bash", "COMP_WORDS": "clustercert kube", "COMP_CWORD": "1"}
    assert run(**words).stdout.split() == ["kubernetes", "kubeconfig"]


def test_a_shell_can_be_shown_its_completion() -> None:
    # It is found among the parents. With a second command, bash stays one.
    done = subprocess.run(
        ["bash", "-c", '"$@"; exit "$?"', "bash", *COMMAND, "--show-completion"],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
        check=True,
    )
    assert "_CLUSTERCERT_COMPLETE" in done.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["user", "create"], ["serve", "--port", "70000"]])
def test_wrong_usage_is_two_and_says_where_help_is(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert "--help" in done.stderr or " -h" in done.stderr


def test_errors_are_sentences_on_standard_error(tmp_path: Path) -> None:
    done = run("--config", tmp_path / "missing", "user", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: The configuration file")
    assert done.stderr.count("\n") == 1
    debugged = run("--config", tmp_path / "missing", "user", "list", CLUSTERCERT_DEBUG="1")
    assert "Traceback" in debugged.stderr


def test_a_closed_pipe_ends_it_quietly(operator: Operator) -> None:
    with subprocess.Popen(
        [*COMMAND, "--config", operator.config, "user", "list", "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_a_closed_standard_output_is_no_crash(operator: Operator) -> None:
    operator.gets("user", "create", "alice", "--no-password")
    command = [*COMMAND, "--config", str(operator.config), "user", "list"]

    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env=clean_environment(),
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_why_a_database_does_not_answer_is_said_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"postgresql+asyncpg://u:hidden@127.0.0.1:{nobody_listens.getsockname()[1]}/d"
        done = run("--data-dir", tmp_path, "user", "list", CLUSTERCERT_DATABASE_URL=url, CLUSTERCERT_KEK=KEK)

    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "Connect call failed" in done.stderr
    assert "hidden" not in done.stderr


def test_a_full_disk_is_said(operator: Operator) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "--config", operator.config, "user", "list", "-o", "json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device.\n")


def test_no_option_takes_a_secret() -> None:
    groups = {"user": ("create", "set-password"), "access-key": ("create",), "keys": ("generate", "rotate")}
    pages = [
        run(group, command, "--help").stdout for group, commands in groups.items() for command in commands
    ]
    pages.append(run("login", "--help", CLUSTERCERT_PASSWORD="pa55", CLUSTERCERT_SECRET_KEY="s3cret").stdout)
    for page in pages:
        assert "--password " not in page
        assert "--secret-key" not in page
        assert "pa55" not in page
        assert "s3cret" not in page


def test_the_environment_is_below_the_options_and_above_the_file(operator: Operator, tmp_path: Path) -> None:
    config = ("--config", operator.config)
    elsewhere = str(tmp_path / "elsewhere")
    assert elsewhere in run(*config, "user", "list", CLUSTERCERT_DATA_DIR=elsewhere).stderr
    done = run(*config, "--data-dir", tmp_path / "data", "user", "list", CLUSTERCERT_DATA_DIR=elsewhere)
    assert done.returncode == 0, done.stderr


def test_what_is_called_demo_is_no_demo(operator: Operator, tmp_path: Path) -> None:
    config = ("--config", operator.config)
    shown = run("cluster", "show", "demo", *config, "--data-dir", tmp_path / "data")
    assert "no such option" not in shown.stderr.lower()
    assert "demo" in shown.stderr


def test_an_event_beyond_all_numbers_is_wrong_usage(operator: Operator) -> None:
    done = run("--config", operator.config, "audit", "show", "9" * 20)
    assert done.returncode == 2
    assert "unforeseen" not in done.stderr


def test_a_password_is_typed_twice_and_not_shown(operator: Operator) -> None:
    answers = {"Password:": "correct horse\n", "Repeat for confirmation:": "correct horse\n"}
    arguments = ["--config", str(operator.config), "user", "create", "alice"]
    code, screen = in_a_terminal(arguments, answers)
    assert code == 0, screen
    assert "horse" not in screen
    assert "alice" in screen


def test_a_table_in_a_terminal_shows_data_as_data(operator: Operator) -> None:
    operator.gets("user", "create", "[red]:warning:[/]", "--no-password")
    code, screen = in_a_terminal(["--config", str(operator.config), "user", "list"], {}, NO_COLOR="1")
    assert code == 0
    assert "[red]:warning:[/]" in screen
    assert "\x1b[3" not in screen


def test_ctrl_c_at_a_question_is_no_error(operator: Operator) -> None:
    code, screen = in_a_terminal(
        ["--config", str(operator.config), "user", "create", "alice"], {"Password:": "\x03"}
    )
    assert code in (1, 130)
    assert "Traceback" not in screen


def test_what_is_not_agreed_to_is_not_done(operator: Operator) -> None:
    (kek, _) = operator.gets_json("keys", "list")
    operator.gets("keys", "rotate")
    retire = ["--config", str(operator.config), "keys", "retire"]
    assert in_a_terminal(retire, {"[y/N]": "n\n"})[0] == 1
    assert len(operator.gets_json("keys", "list")) == 3
    code, screen = in_a_terminal(retire, {"[y/N]": "y\n"})
    assert code == 0
    assert kek["id"] in screen


def test_a_served_folder_stops_on_ctrl_c_and_says_where_it_listens(operator: Operator) -> None:
    with subprocess.Popen(
        [*COMMAND, "--config", operator.config, "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Listening on http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()

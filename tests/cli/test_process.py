"""The command as a process: loaded modules, output streams, exit codes."""

import base64
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import typer

from clustercert import __version__
from clustercert.cli.main import COMMANDS, app
from clustercert.cli.main import run as cli_run
from support import terminal
from support.command_line import CommandResult, Operator, run_command, run_in_terminal
from support.processes import children
from support.wait import SECONDS, eventually, line_with

KEK = base64.b64encode(bytes(32)).decode()
COMMAND = (sys.executable, "-m", "clustercert")
# Modules that only commands on the store need.
SERVER = {"fastapi", "starlette", "sqlalchemy", "alembic", "uvicorn", "pydantic", "pydantic_settings"}
HEAVY = SERVER | {"httpx2", "cryptography", "asyncio", "rich"}


def clean_environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CLUSTERCERT", "OS_", "XDG_"))
    }
    return kept | more


def run_here(*arguments: str | Path, **environment: str) -> CommandResult:
    """Run a command in this process."""
    with patch.dict(os.environ, clean_environment(**environment), clear=True):
        return run_command(*map(str, arguments))


def loaded_by(*arguments: str) -> set[str]:
    return loaded(importing(*arguments))


def importing(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command that lists its imports on standard error."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "clustercert", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=clean_environment(XDG_CONFIG_HOME="/nowhere"),
        check=False,
    )


def loaded(done: "subprocess.CompletedProcess[str]") -> set[str]:
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def in_a_terminal(arguments: list[str], typed: dict[str, str]) -> tuple[int, str]:
    return terminal.in_a_terminal(arguments, typed, clean_environment())


def in_a_terminal_here(operator: Operator, *arguments: str, typed: str = "") -> tuple[int, str]:
    """The same in this process."""
    return run_in_terminal(["--config", str(operator.config), *arguments], typed, columns=200)


def test_printing_the_version_loads_little() -> None:
    done = importing("--version")
    assert done.stdout == f"clustercert {__version__}\n"
    assert loaded(done).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--help"], marks=pytest.mark.full),
        ["cluster", "add", "--help"],
        pytest.param(["completion", "bash"], marks=pytest.mark.full),
    ],
)
def test_help_loads_little(arguments: list[str]) -> None:
    assert loaded_by(*arguments).isdisjoint(HEAVY)


def test_the_root_help_repeats_the_help_of_each_command() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined] # Typer's groups have no public type
    for entry in COMMANDS.values():
        sentence = str(commands[entry.name].help).split(". ")[0].split(".\n")[0].rstrip(".")
        assert f"{sentence}." == entry.help


def test_a_client_does_not_load_the_server() -> None:
    loaded = loaded_by("kubeconfig", "get", "prod")
    assert "clustercert.cli.kubeconfig.validation" in loaded
    assert loaded.isdisjoint(SERVER)


def test_a_command_of_the_service_names_the_package_to_install(tmp_path: Path) -> None:
    commands = [["serve"], ["demo"], ["user", "list", "--local"], ["keys", "list"]]
    without_packages = (
        "import sys; sys.modules |= dict.fromkeys(('sqlalchemy', 'pydantic_settings', 'structlog'));"
        f"from clustercert.cli.main import run; print([run(each) for each in {commands}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", without_packages],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=tmp_path,
        env=clean_environment(),
        check=False,
    )
    assert done.stdout == "[1, 1, 1, 1]\n", done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(commands)
    for each in said:
        assert each.startswith("Error: This command needs the packages of the service")
        assert f"pip install './clustercert-{__version__}-py3-none-any.whl[server]'" in each
    assert list(tmp_path.iterdir()) == []


def test_completion_knows_the_commands() -> None:
    words = {"_CLUSTERCERT_COMPLETE": "complete_bash", "COMP_WORDS": "clustercert kube", "COMP_CWORD": "1"}
    assert run_here(**words).out.split() == ["kubeconfig", "kubernetes"]


@pytest.mark.parametrize("line", ["clustercert kubeconfig unm", "clustercert kubeconfig get --con"])
def test_each_line_of_a_completion_is_a_value_with_its_whole_help(line: str) -> None:
    # With the package rich, which is installed here, Typer wraps long help texts.
    action = {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_ARGS": line}
    lines = run_here(_CLUSTERCERT_COMPLETE="complete_fish", **action).out.splitlines()
    assert lines
    for value, tab, text in (each.partition("\t") for each in lines):
        assert value.startswith(line.rsplit(maxsplit=1)[-1])
        assert tab
        assert text


def test_the_completion_command_is_the_only_way_to_completion() -> None:
    assert "-completion" not in run_here("--help").out
    words = {"_CLUSTERCERT_COMPLETE": "complete_bash", "COMP_WORDS": "clustercert --", "COMP_CWORD": "1"}
    offered = run_here(**words).out.split()
    assert "--verbose" in offered
    assert not [option for option in offered if "completion" in option]


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["user", "create"], ["serve", "--port", "70000"], ["--show-completion", "bash"]],
)
def test_wrong_usage_exits_with_2_and_names_the_help(arguments: list[str]) -> None:
    done = run_here(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err
    assert "--help" in done.err or " -h" in done.err


def test_errors_are_sentences_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_here("--config", tmp_path / "missing", "user", "list", "--local")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: Can't read the configuration file")
    assert done.err.count("\n") == 1
    with patch.dict(os.environ, clean_environment(CLUSTERCERT_DEBUG="1"), clear=True):
        assert cli_run(["--config", str(tmp_path / "missing"), "user", "list", "--local"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, "--version"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            env=clean_environment(),
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_password_file_that_others_can_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pgpass"
    file.write_text("*:*:*:*:hidden\n")
    file.chmod(0o644)
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"postgresql+asyncpg://u@127.0.0.1:{nobody_listens.getsockname()[1]}/d"
        variables = {"CLUSTERCERT_DATABASE_URL": url, "CLUSTERCERT_KEK": KEK, "PGPASSFILE": str(file)}
        command = [*COMMAND, "--data-dir", str(tmp_path), "user", "list", "--local"]
        done = subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, check=False
        )

    assert done.stderr == (
        f"The password file {file} is ignored, because others can read it. Run `chmod 600 {file}`.\n"
        "Error: The database does not answer. Try again later. (Connection refused)\n"
    )


def test_closed_standard_output_is_no_error(operator: Operator) -> None:
    operator.output("user", "create", "alice", "--no-password")
    # If the output stayed closed, the first file that is opened, the database, would take its place.
    command = [*COMMAND, "--config", str(operator.config), "user", "list", "--local"]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        env=clean_environment(),
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_closed_standard_input_is_no_terminal(operator: Operator) -> None:
    command = [*COMMAND, "--config", str(operator.config), "user", "create", "alice", "--local"]
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *command],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=clean_environment(),
        check=False,
    )
    assert done.returncode == 2
    assert "There is no terminal" in done.stderr


def test_a_missing_database_is_named_where_the_settings_say(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.db"
    command = ("--data-dir", tmp_path / "data", "user", "list", "--local")
    done = run_here(*command, CLUSTERCERT_DATABASE_URL=f"sqlite+aiosqlite:///{file}", CLUSTERCERT_KEK=KEK)
    assert done.err == (
        f"Error: There is no database at {file}. Run this command on the server, change database_url in the settings "
        "or CLUSTERCERT_DATABASE_URL, or create a database with `clustercert db upgrade`.\n"
    )
    done = run_here(*command, CLUSTERCERT_KEK=KEK)
    assert done.err == (
        f"Error: There is no database in {tmp_path / 'data'}. Run this command on the server, name its folder with "
        "--data-dir or --config, or create a database with `clustercert db upgrade`.\n"
    )


def test_a_missing_database_names_the_installed_settings_that_were_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    installed = tmp_path / "clustercert.toml"
    monkeypatch.setattr("clustercert.cli.session._INSTALLED_CONFIG", installed)
    command, create = ("user", "list", "--local"), "create a database with `clustercert db upgrade`"
    assert create in run_here(*command, CLUSTERCERT_KEK=KEK).err
    installed.write_text("")
    assert run_here(*command, CLUSTERCERT_KEK=KEK).err == (
        f"Error: There is no database in {tmp_path / 'clustercert-data'}. {installed} exists: name it with --config "
        "or CLUSTERCERT_CONFIG.\n"
    )
    assert create in run_here("--config", installed, *command, CLUSTERCERT_KEK=KEK).err
    assert create in run_here("--data-dir", tmp_path / "data", *command, CLUSTERCERT_KEK=KEK).err


def test_a_database_error_is_shown_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"postgresql+asyncpg://u:hidden@127.0.0.1:{nobody_listens.getsockname()[1]}/d"
        done = run_here(
            "--data-dir",
            tmp_path,
            "user",
            "list",
            "--local",
            CLUSTERCERT_DATABASE_URL=url,
            CLUSTERCERT_KEK=KEK,
        )

    assert done.code == 6
    assert "does not answer" in done.err
    assert "(Connection refused)" in done.err
    assert "hidden" not in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [pytest.param(["user", "list", "--local", "-o", "json"], marks=pytest.mark.full), ["--version"]],
)
def test_a_full_disk_is_reported(operator: Operator, arguments: list[str]) -> None:
    config: list[str | Path] = [] if arguments == ["--version"] else ["--config", operator.config]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *config, *arguments],
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
        run_here(group, command, "--help").out for group, commands in groups.items() for command in commands
    ]
    pages.append(
        run_here("login", "--help", CLUSTERCERT_PASSWORD="pa55", CLUSTERCERT_SECRET_KEY="s3cret").out
    )
    for page in pages:
        assert "--password " not in page
        assert "--secret-key" not in page
        assert "pa55" not in page
        assert "s3cret" not in page


def test_options_override_variables_and_variables_the_file(operator: Operator, tmp_path: Path) -> None:
    config = ("--config", operator.config)
    elsewhere = str(tmp_path / "elsewhere")
    assert elsewhere in run_here(*config, "user", "list", "--local", CLUSTERCERT_DATA_DIR=elsewhere).err
    done = run_here(
        *config, "--data-dir", tmp_path / "data", "user", "list", "--local", CLUSTERCERT_DATA_DIR=elsewhere
    )
    assert done.code == 0, done.err


def test_an_argument_demo_is_not_the_demo_command(operator: Operator, tmp_path: Path) -> None:
    config = ("--config", operator.config)
    shown = run_here("cluster", "show", "demo", "--local", *config, "--data-dir", tmp_path / "data")
    assert "no such option" not in shown.err.lower()
    assert "demo" in shown.err


def test_an_event_id_out_of_range_is_wrong_usage(operator: Operator) -> None:
    done = run_here("--config", operator.config, "audit", "show", "9" * 20)
    assert done.code == 2
    assert "Unexpected error" not in done.err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("create", "alice"),
        pytest.param("set-password", "Changed the password of the user alice.", marks=pytest.mark.full),
    ],
)
def test_a_password_is_prompted_for_twice_and_not_shown(
    operator: Operator, command: str, message: str
) -> None:
    """A short password can be typed again."""
    if command == "set-password":
        operator.output("user", "create", "alice", "--no-password")
    prompt, again = "Password (at least 8 characters): ", "Repeat for confirmation: "
    # Only the first prompt is not after a refusal.
    refusal = "Type another password, or press Ctrl-C to leave.\r\n"
    answers = {
        prompt: "horse\n",
        again: "horse\n",
        f"{refusal}{prompt}": "correct horse\n",
        f"{refusal}{prompt}\r\n{again}": "correct horse\n",
    }
    arguments = ["--config", str(operator.config), "user", command, "alice", "--local"]
    code, screen = in_a_terminal(arguments, answers)
    assert code == 0, screen
    assert "horse" not in screen
    assert screen.count("it must have at least 8 characters") == 1
    assert message in screen.rpartition(again)[2]


@pytest.mark.parametrize("wrong", [("bob", "--domain", "acm"), ("alice",)])
def test_a_user_who_cannot_be_created_is_reported_before_the_password(
    operator: Operator, wrong: tuple[str, ...]
) -> None:
    operator.output("user", "create", "alice", "--no-password")
    code, screen = in_a_terminal_here(operator, "user", "create", *wrong, "--local")
    assert code != 0
    assert "There is " in screen
    assert "Password" not in screen


def test_a_table_in_a_terminal_shows_data_as_data(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.output("user", "create", "[red]:warning:[b]", "--no-password")
    monkeypatch.setenv("NO_COLOR", "1")
    code, screen = in_a_terminal_here(operator, "user", "list", "--local")
    assert code == 0
    assert "[red]:warning:[b]" in screen
    assert "\x1b[3" not in screen


def test_ctrl_c_at_a_prompt_prints_no_traceback(operator: Operator) -> None:
    code, screen = in_a_terminal(
        ["--config", str(operator.config), "user", "create", "alice", "--local"],
        {"Password (at least 8 characters):": terminal.CTRL_C},
    )
    assert code == 130
    assert "Traceback" not in screen


@pytest.mark.parametrize("arguments", [["clusters"], ["credential", "prod"]])
def test_ctrl_c_while_modules_are_imported_prints_no_traceback(arguments: list[str]) -> None:
    interrupting = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name.startswith('clustercert.cli.'):\n"
        "            raise KeyboardInterrupt\n"
        "from clustercert.__main__ import main\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", interrupting, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=clean_environment(),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_argument_that_is_not_utf_8_is_wrong_usage(operator: Operator) -> None:
    # Python reads the byte 0xff of an argument as this character.
    done = run_here("--config", operator.config, "project", "show", "eu-\udcff", "--local")
    assert done.code == 2
    assert done.err == "Error: The argument 'eu-\\udcff' is not valid UTF-8. Write the argument in UTF-8.\n"


def test_a_declined_confirmation_changes_nothing(operator: Operator) -> None:
    (kek, _) = operator.output_json("keys", "list")
    operator.output("keys", "rotate")
    assert in_a_terminal_here(operator, "keys", "retire", typed="n\n")[0] == 1
    assert len(operator.output_json("keys", "list")) == 3
    code, screen = in_a_terminal_here(operator, "keys", "retire", typed="y\n")
    assert code == 0
    assert kek["id"] in screen


def test_ctrl_c_at_a_confirmation_ends_the_command(operator: Operator) -> None:
    operator.output("keys", "rotate")
    code, screen = in_a_terminal_here(operator, "keys", "retire", typed=terminal.CTRL_C)
    assert code == 130
    assert "[y/N]" in screen
    assert len(operator.output_json("keys", "list")) == 3


def test_serve_prints_its_address_and_stops_on_ctrl_c(operator: Operator) -> None:
    with subprocess.Popen(
        [*COMMAND, "--config", operator.config, "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    ) as process:
        assert process.stderr is not None
        assert line_with(process.stderr, "Listening on").startswith("Listening on http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.fixture
def namespaces() -> Sequence[str]:
    """The command whose child has the process ID 1. Skips the test where that is not allowed."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ("unshare", *user, "--pid", "--fork", "--kill-child")
    if shutil.which(command[0]) is None:
        pytest.skip("unshare is not installed")
    attempt = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if attempt.returncode:
        pytest.skip(f"PID namespaces are not allowed here: {attempt.stderr}")
    return command


@pytest.mark.parametrize("command", [["serve"], pytest.param(["db", "upgrade"], marks=pytest.mark.full)])
def test_sigterm_ends_process_1_before_it_serves(
    command: list[str], namespaces: Sequence[str], tmp_path: Path
) -> None:
    # A process that reads its settings from a pipe waits until somebody writes them.
    settings = tmp_path / "clustercert.toml"
    os.mkfifo(settings)
    arguments = [*namespaces, *COMMAND, "--config", str(settings), *command]
    with subprocess.Popen(arguments, env=clean_environment()) as unshare:
        try:
            writer = eventually(lambda: open_for_writing(settings))
            [process_1] = children(unshare.pid)

            os.kill(process_1, signal.SIGTERM)

            assert unshare.wait(SECONDS) == 128 + signal.SIGTERM
            assert writer is not None
            os.close(writer)
        finally:
            unshare.kill()


def open_for_writing(pipe: Path) -> int | None:
    """The descriptor of a pipe, or None if no process reads it."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None

"""`clustercert serve` on a world's store, as a separate process."""

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from support.demo_process import COMMAND
from support.wait import SECONDS
from support.world import World


@dataclass(frozen=True)
class Serving:
    """A `serve` process and the address on which it listens."""

    process: "subprocess.Popen[str]"
    url: str


def environment_of(world: World, **more: str | Path | None) -> dict[str, str]:
    """The settings of a world's store as environment variables, and these. None leaves out a variable."""
    settings = world.settings()
    variables = {
        "CLUSTERCERT_DATA_DIR": settings.data_dir,
        "CLUSTERCERT_KEK_FILE": settings.kek_file,
        "CLUSTERCERT_LOG__FILE": world.folder / "log",
        "CLUSTERCERT_METRICS__LOOPBACK": "true",
        **({"CLUSTERCERT_DATABASE_URL": settings.database_url} if settings.database_url else {}),
        **{f"CLUSTERCERT_{name}": value for name, value in more.items()},
    }
    return os.environ | {name: str(value) for name, value in variables.items() if value is not None}


def start(
    options: Sequence[str], env: Mapping[str, str], inherited: Sequence[int] = ()
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, "serve", *options],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=inherited,
        start_new_session=True,
    )


@contextlib.contextmanager
def serving(world: World, *options: str, **more: str | Path | None) -> Iterator[Serving]:
    """A process on a world's store that listens on a free port. It ends with the block."""
    with listening(options, environment_of(world, **more)) as running:
        yield running


@contextlib.contextmanager
def listening(options: Sequence[str], env: Mapping[str, str]) -> Iterator[Serving]:
    """A process with these settings that listens on a free port. It ends with the block."""
    process = start((*options, "--port", "0"), env)
    assert process.stderr is not None
    try:
        said = ""
        while (listening := re.search(r"Listening on (\S+)", said)) is None:
            line = process.stderr.readline()
            assert line, said
            said += line
        # Read what it writes to standard error, so that it never waits for a reader.
        reader = threading.Thread(target=_read_all, args=(process.stderr,))
        reader.start()
        try:
            yield Serving(process, listening[1])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SECONDS)
            finally:
                process.kill()
                reader.join(SECONDS)
    finally:
        end(process)


def _read_all(stream: IO[str]) -> None:
    for _ in stream:
        pass


def end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=SECONDS)
    finally:
        process.kill()

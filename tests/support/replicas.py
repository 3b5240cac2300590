"""`serve` processes on one PostgreSQL, and requests to them."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2

from support.demo_process import COMMAND
from support.wait import SECONDS
from support.world import World


@dataclass
class Replica:
    """A `serve` process."""

    process: "subprocess.Popen[str]"
    url: str

    def client(self, token: str) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.url, headers={"X-Auth-Token": token}, timeout=SECONDS, trust_env=False
        )


@contextlib.contextmanager
def started(world: World) -> Iterator["subprocess.Popen[str]"]:
    settings = world.settings()
    assert settings.database_url is not None
    environment = {
        "CLUSTERCERT_DATA_DIR": str(settings.data_dir),
        "CLUSTERCERT_KEK_FILE": str(settings.kek_file),
        "CLUSTERCERT_DATABASE_URL": settings.database_url,
        "CLUSTERCERT_LOG__FILE": str(world.folder / "log"),
    }
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0"],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(SECONDS)
        assert process.stderr is not None
        process.stderr.close()


@contextlib.contextmanager
def listening(process: "subprocess.Popen[str]") -> Iterator[Replica]:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Listening on "):
            yield Replica(process, line.split()[-1])
            return
    raise AssertionError("it ended before it listened")


def issue(client: httpx2.Client, world: World) -> httpx2.Response:
    return client.post(world.path(), json={"duration": 1})


def assert_not_now(answer: httpx2.Response) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json()["errorCode"] == "CCE.01503001"

"""docs/backup.md, command by command: a backup of a running service, a disaster, and the restore."""

import contextlib
import re
import shlex
import shutil
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from support import postgres
from support.backup import Machine, commands, machine

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = (".service", ".socket")


def restore(running: Machine, name: str, new_url: str | None = None) -> None:
    """Lose all data when the service has stopped, and follow the page."""
    for step in commands(name):
        if step.command.startswith("systemctl stop "):
            running.stop()
            # The service creates no data folder with PostgreSQL.
            if (data := running.folder / "data").exists():
                shutil.rmtree(data)
            (running.folder / "kek").unlink()
            running.configure(new_url)
        elif step.command.startswith("systemctl start "):
            running.start()
        else:
            running.type(step)


@contextlib.contextmanager
def issuing(running: Machine) -> Iterator[None]:
    """Issue certificates without a pause during the `with` block."""
    stop = threading.Event()

    def issue() -> None:
        while not stop.is_set():
            running.issue()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(issue)
        try:
            yield
        finally:
            stop.set()
        writer.result()


def assert_restored(running: Machine, name: str, new_url: str | None = None) -> None:
    revoked, live = running.issue(), running.issue()
    running.revoke(revoked)
    # Twice, because the files of the first backup must not be in the way.
    for _ in range(2):
        with issuing(running):
            for step in commands(f"{name} backup"):
                running.type(step)
    lost = running.issue()
    restore(running, f"{name} restore", new_url)
    assert [running.state(each) for each in (revoked, live, lost)] == ["revoked", "live", "unknown"]
    assert running.state(running.issue()) == "live"
    assert stat.S_IMODE((running.folder / "kek").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["sqlite restore", "postgresql restore"])
def test_a_restore_stops_and_starts_every_unit(name: str) -> None:
    units = [unit.name.removesuffix(".service") for unit in DEPLOY.iterdir() if unit.suffix in UNITS]
    typed = [step.command for step in commands(name) if step.command.startswith("systemctl ")]
    assert [command.split()[1] for command in typed] == ["stop", "start"]
    for command in typed:
        named = {re.sub(r"@.+", "@", word) for word in shlex.split(command)[2:]}
        assert named == set(units)


def test_a_restored_sqlite_file_has_what_was_backed_up(tmp_path: Path) -> None:
    with machine(tmp_path) as running:
        assert_restored(running, "sqlite")
        for file in (running.world.database, tmp_path / "backup" / "clustercert.db"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_restored_postgresql_database_has_what_was_backed_up(
    tmp_path: Path, server: postgres.Server
) -> None:
    old, new = make_url(server.create()), make_url(server.create())
    with machine(tmp_path, old.render_as_string(hide_password=False)) as running:
        running.variables |= {
            "PROGRAMS": str(server.programs),
            "PGPASSWORD": str(old.password),
            "DATABASE": f"postgresql://{old.username}@{old.host}:{old.port}/{old.database}",
            "NEW_DATABASE": f"postgresql://{new.username}@{new.host}:{new.port}/{new.database}",
        }
        assert_restored(running, "postgresql", new.render_as_string(hide_password=False))
        assert stat.S_IMODE((tmp_path / "backup" / "clustercert.dump").stat().st_mode) == 0o600

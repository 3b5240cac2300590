"""The commands in docs/evidence/audit-log-by-hand.md that check an export without our software."""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.sealed_log import new_log
from support.stores import patient, sqlite_url
from support.wait import SECONDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "evidence" / "audit-log-by-hand.md"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("openssl", "jq", "xxd"))), reason="openssl, jq or xxd is not installed"
)


def run(name: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the commands from one block of the document in a folder."""
    text = DOCUMENT.read_text(encoding="utf-8")
    [block] = re.findall(rf"<!-- by hand: {name} -->\n```sh\n(.*?)```", text, re.DOTALL)
    return subprocess.run(
        ["/bin/sh", "-ec", str(block)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Path:
    into = tmp_path_factory.mktemp("by-hand")
    asyncio.run(_export(Path(shutil.copy(migrated_file, into / "store.db")), into / "log"))
    return into / "log"


async def _export(file: Path, folder: Path, events: int = 300) -> None:
    database = patient(sqlite_url(file))
    log = await new_log(database)
    await log.grow(events)
    await log.exporter.export(folder)
    await database.close()


def test_the_signature_is_verified_and_another_is_not(folder: Path, tmp_path: Path) -> None:
    done = run("signature", folder)
    assert "Signature Verified Successfully" in done.stdout, done.stderr
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    (changed / "checkpoint").write_text((changed / "checkpoint").read_text().replace("\n301\n", "\n302\n"))
    done = run("signature", changed)
    assert "Signature Verification Failure" in done.stdout
    assert done.returncode != 0


@pytest.mark.parametrize("name", ["event", "leaf"])
def test_both_commands_print_the_same_unless_the_log_was_changed(
    folder: Path, tmp_path: Path, name: str
) -> None:
    first, second = run(name, folder).stdout.splitlines()
    assert first == second
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    bundle = bytearray((changed / "tile/entries/000").read_bytes())
    bundle[34 * 5 + 2] ^= 1
    (changed / "tile/entries/000").write_bytes(bundle)
    first, second = run(name, changed).stdout.splitlines()
    assert first != second


@pytest.mark.parametrize("name", ["event", "leaf"])
def test_the_commands_work_for_a_log_smaller_than_a_tile(
    migrated_file: Path, tmp_path: Path, name: str
) -> None:
    asyncio.run(_export(Path(shutil.copy(migrated_file, tmp_path / "store.db")), tmp_path / "log", events=20))

    first, second = run(name, tmp_path / "log").stdout.splitlines()

    assert first == second
    assert re.fullmatch(r"[0-9a-f]{64}", first)

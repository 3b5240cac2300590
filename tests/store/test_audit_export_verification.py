"""`audit verify --log` finds what was changed in an exported log."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from clustercert.audit.export import ExportedLog
from clustercert.audit.findings import VerificationReport
from clustercert.audit.verification import verify
from clustercert.merkle.notes import Checkpoint, NoteError, VerifierKey, sign_note
from clustercert.model.errors import LogDamaged
from support.sealed_log import new_log
from support.stores import Store, execute, patient, sqlite_url
from support.tampered_log import SIZE, rewritten


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Path:
    """An export of a log that has grown since."""
    into = tmp_path_factory.mktemp("exported")
    asyncio.run(_export(Path(shutil.copy(migrated_file, into / "store.db")), into / "log"))
    return into / "log"


async def _export(file: Path, folder: Path) -> None:
    database = patient(sqlite_url(file))
    log = await new_log(database)
    await log.grow(SIZE - 71)
    first = await log.exporter.export(folder)
    assert (first.size, first.events) == (SIZE - 70, SIZE - 70)
    again = await log.exporter.export(folder)
    assert (again.size, again.tiles, again.events) == (SIZE - 70, 0, 0)
    await log.grow(70)
    grown = await log.exporter.export(folder)
    assert (grown.size, grown.events) == (SIZE, SIZE)
    assert (folder / "verifier-key").read_text() == f"{await log.key()}\n"
    await database.close()


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


async def check(folder: Path) -> VerificationReport:
    """Verify the export with only the public key."""
    key = VerifierKey.parse((folder / "verifier-key").read_text())
    return await verify(ExportedLog(folder), key)


async def test_an_export_verifies_alone(folder: Path) -> None:
    report = await check(folder)
    assert (report.size, report.events, report.findings) == (SIZE, SIZE, [])
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "checkpoint",
        "events/000000000000000.jsonl",
        "tile/0/000",
        "tile/0/001",
        "tile/0/002.p/188",
        "tile/1/000.p/2",
        "tile/entries/000",
        "tile/entries/001",
        "tile/entries/002.p/188",
        "verifier-key",
    ]


Lines = list[bytes]

CHANGES: dict[str, tuple[Callable[[Lines], Lines], list[tuple[str, int]]]] = {
    "changed": (
        lambda lines: [line.replace(b"thing 8", b"thing 9") for line in lines[:20]] + lines[20:],
        [("changed", 9)],
    ),
    "removed": (lambda lines: lines[:30] + lines[32:], [("removed", 30)]),
    "last removed": (lambda lines: lines[:-1], [("removed", SIZE - 1)]),
    "twice": (lambda lines: [*lines[:5], lines[4], *lines[5:]], [("inserted", 4)]),
    "lines exchanged": (lambda lines: [lines[1], lines[0], *lines[2:]], [("inserted", 0), ("removed", 0)]),
    "inserted": (lambda lines: [*lines, lines[4].replace(b'"place":4', b'"place":700')], [("inserted", 700)]),
    "no json": (lambda lines: [*lines[:5], b"{]\n", *lines[6:]], [("changed", 0), ("removed", 5)]),
    "places exchanged": (
        lambda lines: [
            *lines[:4],
            lines[5].replace(b'"place":5', b'"place":4'),
            lines[4].replace(b'"place":4', b'"place":5'),
            *lines[6:],
        ],
        [("reordered", 4), ("reordered", 5)],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_changed_events_of_an_export_are_reported(copied: Path, name: str) -> None:
    change, expected = CHANGES[name]
    file = copied / "events" / "000000000000000.jsonl"
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    report = await check(copied)
    assert [(finding.kind.problem, finding.place) for finding in report.findings] == expected


@pytest.mark.parametrize("path", ["tile/0/001", "tile/1/000.p/2", "tile/entries/001", "checkpoint"])
@pytest.mark.parametrize("how", ["flipped", "cut off", "gone"])
async def test_a_changed_tree_of_an_export_is_found(copied: Path, path: str, how: str) -> None:
    file = copied / path
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content if how == "flipped" else content[:-1])
    try:
        report = await check(copied)
    except NoteError:
        assert path == "checkpoint"
    else:
        assert {finding.kind.problem for finding in report.findings} & {"tree", "checkpoint"}


async def test_a_log_that_does_not_extend_the_export_leaves_the_export_unchanged(
    file: Path, folder: Path, tmp_path: Path
) -> None:
    """Another log with the same name and a different key, and the same log with a different tree."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    database = patient(sqlite_url(file))
    other = await new_log(database)
    await other.grow(SIZE)
    with pytest.raises(LogDamaged, match="as evidence"):
        await other.exporter.export(folder)
    mine = tmp_path / "mine"
    await other.exporter.export(mine)
    kept = await other.head()
    rewritten(Store(sqlite_url(file)), 650, -1, 0)
    # Nothing is sealed after the tree was changed, and the next checkpoint would not match the old tree.
    with pytest.raises(LogDamaged):
        await other.grow(1)
    execute(file, "UPDATE audit_checkpoint SET size = size - 1, root = ?", bytes(32))
    note = sign_note(
        Checkpoint("audit.test", SIZE, bytes(32)).text(), "audit.test", await other.private_key()
    )
    execute(file, "UPDATE audit_checkpoint SET note = ?", note)
    with pytest.raises(LogDamaged, match="as evidence"):
        await other.exporter.export(mine)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert (await check(mine)).root == kept.root.hex()
    await database.close()

"""`audit verify` finds and names every manipulation of the stored log."""

import hashlib
import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert

from clustercert.audit.findings import Finding, FindingKind
from clustercert.audit.verification import TrustedHead, verify
from clustercert.merkle.notes import NoteError, VerifierKey
from clustercert.model import Actor
from clustercert.model.events.administration import EventsDeleted
from clustercert.store import tables
from clustercert.store.audit.events import commitment, event_row
from clustercert.store.audit.evidence import EvidenceQueries
from clustercert.store.engine.database import Database
from support.sealed_log import SEALED_AT, SealedLog, briefly, new_log
from support.stores import NOW, Store, event, execute, patient, sqlite_url
from support.tampered_log import SIZE, event_id, rewritten

# What these tests ask is decided in Python. Other files read and write the same tables on PostgreSQL.
pytestmark = pytest.mark.long_on_server

LATER = NOW + timedelta(days=1)


@pytest.fixture
async def log(database: Database) -> SealedLog:
    log = await new_log(database)
    # The first event is from the creation of the log.
    await log.grow(SIZE - 1)
    return log


async def test_an_unchanged_log_has_no_findings(log: SealedLog) -> None:
    earlier = await log.head()
    await log.grow(40)
    report = await log.verified(earlier, TrustedHead("nothing", 0, hashlib.sha256().digest()))
    assert (report.findings, report.found) == ([], 0)
    assert (report.size, report.events, report.deleted, report.unsealed) == (SIZE + 40, SIZE + 40, 0, 0)
    assert report.trusted == 3
    assert report.root == (await log.head()).root.hex()


async def test_issued_certificates_verify(log: SealedLog) -> None:
    body = (Path(__file__).parents[1] / "golden" / "certificate_issued_v1.json").read_bytes()
    said = json.loads(body)
    row = event_row(event()) | {name: said[name] for name in ("kind", "project_id", "actor", "subject")}
    row |= {"at": datetime.fromisoformat(said["at"]), "body": body, "salt": bytes(16)}
    row["commitment"] = commitment(bytes(16), body)
    async with log.database.transaction() as connection:
        await connection.execute(insert(tables.audit_event), [row])
    await log.sealer.seal_all()
    report = await log.verified()
    assert (report.events, report.findings) == (SIZE + 1, [])


@pytest.mark.parametrize("count", [0, 1, 255, 256])
async def test_logs_of_all_sizes_verify(database: Database, count: int) -> None:
    log = await new_log(database)
    await log.grow(count)
    report = await log.verified(await log.head())
    assert (report.size, report.findings) == (count + 1, [])


async def test_events_without_a_place_are_counted_and_no_finding(log: SealedLog, database: Database) -> None:

    waiting = replace(event(), at=SEALED_AT)
    async with database.transaction(waiting, waiting):
        pass
    report = await log.verified()
    assert (report.unsealed, report.findings) == (2, [])


async def test_changed_events_are_reported(log: SealedLog, store: Store) -> None:
    changed = {0: "body", 255: "salt", 256: "body", SIZE - 1: "salt"}
    for place, column in changed.items():
        store.execute(
            f"UPDATE audit_event SET {column} = ? WHERE id = ?",
            b"0" * 16,
            event_id(store, place),
        )
    report = await log.verified()
    assert briefly(report.findings) == [("changed", place, event_id(store, place)) for place in changed]
    assert {finding.kind for finding in report.findings} == {FindingKind.EVENT_CHANGED}


async def test_a_column_that_differs_from_its_event_is_reported(log: SealedLog, store: Store) -> None:
    changed = {3: "kind", 4: "actor", 5: "subject", 6: "project_id"}
    for place, column in changed.items():
        store.execute(
            f"UPDATE audit_event SET {column} = 'another' WHERE id = ?",
            event_id(store, place),
        )
    store.execute(
        "UPDATE audit_event SET at = ? WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index = 7)",
        store.time(LATER),
    )
    report = await log.verified()
    assert briefly(report.findings) == [("changed", place, event_id(store, place)) for place in range(3, 8)]
    for finding, column in zip(report.findings, [*changed.values(), "at"], strict=True):
        assert finding.facts == {"columns": column}


async def test_removed_events_are_reported_by_their_places(log: SealedLog, store: Store) -> None:
    store.execute(
        "DELETE FROM audit_event WHERE id IN"
        " (SELECT event_id FROM audit_place WHERE leaf_index IN (0, 255, 256, 257, 699))"
    )
    report = await log.verified()
    assert briefly(report.findings) == [
        ("removed", 0, None),
        ("removed", 255, None),
        ("removed", 699, None),
    ]
    assert report.findings[1].facts == {"first": 255, "last": 257}
    assert report.events == SIZE - 5


async def test_an_inserted_event_is_reported(log: SealedLog, store: Store) -> None:
    store.execute(
        "INSERT INTO audit_event (id, at, kind, actor, subject, body, salt, commitment)"
        " SELECT 9000, at, kind, actor, subject, body, salt, commitment FROM audit_event WHERE id = ?",
        event_id(store, 5),
    )
    store.execute("INSERT INTO audit_place (leaf_index, event_id) VALUES (?, 9000)", SIZE)
    store.execute("DELETE FROM audit_unsealed")
    report = await log.verified()
    assert briefly(report.findings) == [("inserted", SIZE, 9000)]


async def test_an_event_in_place_of_a_removed_one_is_reported(log: SealedLog, store: Store) -> None:
    store.execute(
        "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index = 7)"
    )
    body, salt = b'{"kind":"made.up"}', b"s" * 16
    store.execute(
        "INSERT INTO audit_event (id, at, kind, actor, subject, body, salt, commitment)"
        " SELECT 9000, at, kind, actor, subject, ?, ?, ? FROM audit_event WHERE id = ?",
        body,
        salt,
        hashlib.sha256(salt + body).digest(),
        event_id(store, 5),
    )
    store.execute("DELETE FROM audit_unsealed")
    store.execute("UPDATE audit_place SET event_id = 9000 WHERE leaf_index = 7")
    report = await log.verified()
    assert briefly(report.findings) == [("changed", 7, 9000)]


async def test_moved_events_are_reported_with_their_own_places(log: SealedLog, store: Store) -> None:
    ids = event_id(store, 3), event_id(store, 600)
    for old, new in ((3, -1), (600, 3), (-1, 600)):
        store.execute("UPDATE audit_place SET leaf_index = ? WHERE leaf_index = ?", new, old)
    report = await log.verified()
    assert briefly(report.findings) == [("reordered", 3, ids[1]), ("reordered", 600, ids[0])]
    assert [finding.facts["home"] for finding in report.findings] == [600, 3]


async def test_an_event_changed_with_its_leaf_is_found_by_the_tree(log: SealedLog, store: Store) -> None:
    rewritten(store, 100, -1)
    report = await log.verified()
    assert ("tree", 100) in {(finding.kind.problem, finding.place) for finding in report.findings}
    assert "checkpoint" in {finding.kind.problem for finding in report.findings}


async def test_an_event_changed_with_its_leaf_is_found_by_the_parent_tile(
    log: SealedLog, store: Store
) -> None:
    rewritten(store, 100, -1, 0)
    report = await log.verified()
    tree = [finding for finding in report.findings if finding.kind.problem == "tree"]
    assert [finding.place for finding in tree] == [0]
    assert tree[0].facts == {"level": 1, "index": 0, "first": 0, "last": 255}
    assert "checkpoint" in {finding.kind.problem for finding in report.findings}


async def test_a_log_rewritten_with_its_key_is_found_only_by_a_kept_checkpoint(
    database: Database, store: Store
) -> None:
    """An attacker with the key can create another valid log, but not one that matches a saved checkpoint."""
    log = await new_log(database)
    await log.grow(20)
    kept = await log.head()
    store.execute("DELETE FROM audit_place")
    store.execute("DELETE FROM audit_event WHERE id = 5")
    store.execute("INSERT INTO audit_unsealed SELECT id, project_id, commitment FROM audit_event")
    store.execute("DELETE FROM audit_tile")
    store.execute("DELETE FROM audit_checkpoint")
    store.execute("UPDATE audit_log SET size = 0")
    store.execute("UPDATE audit_event SET subject = 'thing ' || (id - 2) WHERE id > 1")
    await log.sealer.seal_all()
    forged = await log.verified()
    assert forged.findings == []
    report = await log.verified(kept)
    assert {finding.kind.problem for finding in report.findings} == {"checkpoint"}
    assert report.findings[0] == Finding(
        FindingKind.TRUNCATED, facts={"head": "the kept one", "head_size": 21, "size": report.size}
    )
    await log.grow(5)
    report = await log.verified(kept)
    assert report.findings[0].kind == FindingKind.ROOT_MISMATCH
    assert (
        report.findings[0].facts.items()
        >= {"size": 21, "head": "the kept one", "root": kept.root.hex()}.items()
    )


async def test_missing_tiles_are_reported(log: SealedLog, store: Store) -> None:
    for level, index in ((-1, 1), (0, 2), (1, 0)):
        store.execute('DELETE FROM audit_tile WHERE level = ? AND "index" = ?', level, index)
    report = await log.verified()
    assert report.findings == [
        Finding(FindingKind.TILE_MISSING, place, facts={"level": level, "index": index})
        for place, level, index in ((256, -1, 1), (512, 0, 2), (None, 1, 0))
    ]


async def test_values_of_other_types_are_findings_too(file: Path) -> None:
    """SQLite accepts text in columns for bytes, and any value in columns for times."""
    database = patient(sqlite_url(file))
    log = await new_log(database)
    await log.grow(600)
    execute(
        file,
        "UPDATE audit_event SET body = 'text' WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index = 3)",
    )
    execute(
        file,
        "UPDATE audit_event SET at = 'never' WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index = 400)",
    )
    execute(file, "UPDATE audit_tile SET hashes = 'text' WHERE level = 1")
    report = await log.verified()
    found = {(finding.kind.problem, finding.place) for finding in report.findings}
    assert found >= {("changed", 3), ("changed", 400), ("tree", None)}
    assert report.events == 601 - 2
    execute(file, "UPDATE audit_checkpoint SET note = x'00'")
    with pytest.raises(NoteError):
        await log.verified()
    await database.close()


async def test_a_changed_stored_checkpoint_is_reported(log: SealedLog, store: Store) -> None:
    await log.grow(3)
    store.execute("UPDATE audit_checkpoint SET note = 'nothing' WHERE size = ?", SIZE)
    report = await log.verified()
    assert [finding.kind.problem for finding in report.findings] == ["checkpoint"]


@pytest.mark.parametrize(
    "change", ["root = X", "note = (SELECT note FROM audit_checkpoint WHERE size = 703)"]
)
async def test_a_stored_checkpoint_that_differs_from_its_row_is_reported(
    log: SealedLog, store: Store, change: str
) -> None:
    await log.grow(3)
    change = change.replace("X", "(SELECT root FROM audit_checkpoint WHERE size = 703)")
    store.execute(f"UPDATE audit_checkpoint SET {change} WHERE size = {SIZE}")
    [finding] = (await log.verified()).findings
    assert finding.kind == FindingKind.CHECKPOINT_ROW_MISMATCH
    assert finding.facts["row_size"] == SIZE


async def test_an_old_checkpoint_in_place_of_the_newest_hides_nothing(log: SealedLog, store: Store) -> None:
    await log.grow(3)
    store.execute("UPDATE audit_checkpoint SET size = 100000 WHERE size = ?", SIZE)
    report = await log.verified()
    assert report.size == SIZE
    assert {finding.kind.problem for finding in report.findings} == {"checkpoint"}
    assert report.findings[0].facts == {
        "source": "the row of the newest checkpoint",
        "size": 100000,
        "signed": SIZE,
    }


async def test_a_stored_size_without_a_signed_checkpoint_is_reported(log: SealedLog, store: Store) -> None:
    store.execute("UPDATE audit_log SET size = 600")
    [finding] = (await log.verified()).findings
    assert finding.kind == FindingKind.SIZE_MISMATCH
    assert finding.facts == {"source": "the row of the log", "size": 600, "signed": SIZE}


async def test_a_log_cut_off_without_its_tree_is_found_by_the_tree(log: SealedLog, store: Store) -> None:
    await log.grow(3)
    store.execute(
        "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index >= ?)", SIZE
    )
    store.execute("DELETE FROM audit_checkpoint WHERE size > ?", SIZE)
    store.execute("UPDATE audit_log SET size = ?", SIZE)
    findings = (await log.verified()).findings
    assert [(finding.kind, finding.facts) for finding in findings] == [
        (FindingKind.SIZE_MISMATCH, {"source": source, "size": 703, "signed": SIZE})
        for source in ("the entry bundles", "level 0 of the tree")
    ]


async def test_a_deletion_event_does_not_cover_later_places(
    log: SealedLog, database: Database, store: Store
) -> None:
    everything = EventsDeleted(
        at=NOW,
        actor=Actor.service(),
        subject="everything",
        why="test",
        count=1,
        places=((SIZE - 2, 10**9),),
    )
    async with database.transaction(everything):
        pass
    await log.grow(3)
    store.execute(
        "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index = ?)",
        SIZE + 2,
    )
    assert briefly((await log.verified()).findings) == [("removed", SIZE + 2, None)]


async def test_invalid_text_is_a_finding_and_no_database_failure(file: Path) -> None:
    """SQLite stores any bytes as text."""
    database = patient(sqlite_url(file))
    log = await new_log(database)
    await log.grow(600)
    await log.grow(1)
    execute(
        file,
        "UPDATE audit_event SET body = CAST(x'ff' AS TEXT)"
        " WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index = 3)",
    )
    execute(
        file,
        "UPDATE audit_event SET actor = CAST(x'ff' AS TEXT)"
        " WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index = 400)",
    )
    execute(file, "UPDATE audit_checkpoint SET note = CAST(x'ff' AS TEXT) WHERE size = 601")
    report = await log.verified()
    found = {(finding.kind.problem, finding.place) for finding in report.findings}
    assert found >= {("changed", 3), ("changed", 400), ("checkpoint", None)}
    assert report.events == 602 - 2
    execute(file, "UPDATE audit_checkpoint SET note = CAST(x'ff' AS TEXT)")
    with pytest.raises(NoteError, match="can't be read"):
        await log.verified()
    await database.close()


async def test_a_checkpoint_of_another_key_is_refused(log: SealedLog) -> None:
    other = VerifierKey("audit.test", bytes(32))
    with pytest.raises(NoteError):
        await verify(log.queries, other)


async def test_a_log_without_a_checkpoint_is_refused(database: Database) -> None:
    with pytest.raises(NoteError, match="the log has no checkpoint yet"):
        await verify(EvidenceQueries(database), VerifierKey("audit.test", bytes(32)))

"""`audit verify` finds each manipulation by an attacker who can write to the database, but has no other access.

The attacker knows the program and recomputes what needs no key: commitments, leaves and the tree. The auditor has the
key-encryption key, or the verifier key, and for attacks that go back in time a kept checkpoint.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clustercert.merkle.notes import Checkpoint, VerifierKey, sign_note
from clustercert.merkle.tiles import append_leaves, tree_root
from clustercert.merkle.tree import leaf_hash
from clustercert.store import tables
from clustercert.store.audit.events import commitment
from support.command_line import Operator, new_operator
from support.stores import blob, execute, rows

_AT = "SELECT event_id FROM audit_place WHERE leaf_index"


@pytest.fixture(scope="module")
def sealed_log(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    """The operator of a store with a sealed log, which tests copy."""
    operator = new_operator(tmp_path_factory.mktemp("sealed"))
    for name in ("first", "second", "third", "fourth"):
        operator.output("domain", "create", name)
        operator.output("audit", "checkpoint")
    return operator


@pytest.fixture
def operator(sealed_log: Operator, tmp_path: Path) -> Operator:
    """The operator of a copy."""
    return sealed_log.copy(tmp_path)


@pytest.fixture
def file(operator: Operator) -> Path:
    """The copy's database file."""
    return operator.folder / "data" / "clustercert.db"


def size_of(file: Path) -> int:
    [(size,)] = rows(file, "SELECT size FROM audit_log")
    return int(str(size))


def event_id(file: Path, place: int) -> int:
    [(found,)] = rows(file, f"{_AT} = ?", place)
    return int(str(found))


def findings(operator: Operator, *options: str | Path) -> list[dict[str, Any]]:
    """Verify the log, which must fail. Return the findings."""
    done = operator.run("audit", "verify", "-o", "json", *options)
    assert done.code == 1, done
    found: list[dict[str, Any]] = json.loads(done.out)["findings"]
    assert found
    return found


def change_event(file: Path) -> None:
    """Change an event and its commitment."""
    [(body, salt)] = rows(file, f"SELECT body, salt FROM audit_event WHERE id IN ({_AT} = 3)")
    changed = blob(body).replace(b"domain.created", b"domain.updated")
    assert changed != body
    execute(
        file,
        f"UPDATE audit_event SET kind = 'domain.updated', body = ?, commitment = ? WHERE id IN ({_AT} = 3)",
        changed,
        commitment(blob(salt), changed),
    )


def change_actor(file: Path) -> None:
    execute(file, f"UPDATE audit_event SET actor = 'cli:nobody' WHERE id IN ({_AT} = 3)")


def delete_event(file: Path) -> None:
    execute(file, f"DELETE FROM audit_event WHERE id IN ({_AT} = 3)")
    execute(file, "DELETE FROM audit_place WHERE leaf_index = 3")


def move_to_another_project(file: Path) -> None:
    """Let the admins of another project see an event, by the column that lists use."""
    execute(file, "UPDATE audit_place SET project_id = 'another' WHERE leaf_index = 3")


def backdate_checkpoint(file: Path) -> None:
    """Let lists that begin at a time skip all events before it."""
    execute(file, "UPDATE audit_checkpoint SET at = '1999-01-01 00:00:00.000000' WHERE size = 4")


def postdate_checkpoint(file: Path) -> None:
    execute(file, "UPDATE audit_checkpoint SET at = '2099-01-01 00:00:00.000000' WHERE size = 4")


def postdate_newest_checkpoint(file: Path) -> None:
    """`audit checkpoint` shows the time."""
    execute(
        file, "UPDATE audit_checkpoint SET at = '2099-01-01 00:00:00.000000' WHERE size = ?", size_of(file)
    )


def add_log(file: Path) -> None:
    """Add a second log, which readers could take instead of the first one."""
    execute(
        file,
        "INSERT INTO audit_log (id, origin, public_key, sealed_key, size)"
        " SELECT 'a', origin, public_key, sealed_key, size FROM audit_log",
    )


def add_tile(file: Path) -> None:
    """Add a tile beyond the end of the log. Everybody can fetch the tiles."""
    execute(file, 'INSERT INTO audit_tile (level, "index", hashes) VALUES (1, 0, ?)', bytes(32))


def lengthen_tile(file: Path) -> None:
    execute(file, "UPDATE audit_tile SET hashes = CAST(hashes || zeroblob(32) AS BLOB) WHERE level = 0")


def insert_event_outside(file: Path) -> None:
    """Insert an event that never gets a leaf index, with the trigger that would enter it for sealing removed."""
    execute(file, "DROP TRIGGER audit_event_unsealed")
    copy_event(file)


def copy_event(file: Path) -> None:
    execute(
        file,
        "INSERT INTO audit_event (id, at, kind, actor, subject, body, salt, commitment)"
        " SELECT 9000, at, kind, actor, subject, body, salt, commitment FROM audit_event"
        f" WHERE id IN ({_AT} = 3)",
    )


def change_waiting_commitment(file: Path) -> None:
    copy_event(file)
    execute(file, "UPDATE audit_unsealed SET commitment = zeroblob(32)")


def change_waiting_project(file: Path) -> None:
    copy_event(file)
    execute(file, "UPDATE audit_unsealed SET project_id = 'another'")


def change_waiting_event(file: Path) -> None:
    copy_event(file)
    execute(file, "UPDATE audit_event SET actor = 'cli:nobody' WHERE id = 9000")


def change_waiting_event_with_a_negative_id(file: Path) -> None:
    change_waiting_event(file)
    for table, column in (("audit_event", "id"), ("audit_unsealed", "event_id")):
        execute(file, f"UPDATE {table} SET {column} = -5 WHERE {column} = 9000")


def delete_waiting_event(file: Path) -> None:
    copy_event(file)
    execute(file, "DELETE FROM audit_event WHERE id = 9000")


def insert_event(file: Path) -> None:
    """Insert a copy of an event after the end of the log, as if it had been sealed."""
    size = size_of(file)
    copy_event(file)
    execute(file, "DELETE FROM audit_unsealed")
    execute(file, "INSERT INTO audit_place (leaf_index, event_id) VALUES (?, 9000)", size)


def exchange_events(file: Path) -> None:
    for old, new in ((3, -1), (4, 3), (-1, 4)):
        execute(file, "UPDATE audit_place SET leaf_index = ? WHERE leaf_index = ?", new, old)


def change_entry(file: Path) -> None:
    """Change an event together with its commitment in the tree."""
    change_event(file)
    [(changed,)] = rows(file, f"SELECT commitment FROM audit_event WHERE id IN ({_AT} = 3)")
    replace_hash(file, -1, 3, blob(changed))


def change_leaf(file: Path) -> None:
    """Change an event together with its commitment and its leaf hash in the tree."""
    change_entry(file)
    [(changed,)] = rows(file, f"SELECT commitment FROM audit_event WHERE id IN ({_AT} = 3)")
    replace_hash(file, 0, 3, leaf_hash(blob(changed)))


def change_leaf_hash(file: Path) -> None:
    replace_hash(file, 0, 3, bytes(32))


def delete_tile(file: Path) -> None:
    execute(file, "DELETE FROM audit_tile WHERE level = -1")


def change_checkpoint(file: Path) -> None:
    """Change the root in a stored checkpoint that is not the newest one."""
    [(size,)] = rows(file, "SELECT min(size) FROM audit_checkpoint")
    execute(file, "UPDATE audit_checkpoint SET root = ? WHERE size = ?", bytes(32), size)


def forge_newest_checkpoint(file: Path) -> None:
    """Sign the newest checkpoint with another key."""
    [(origin,)] = rows(file, "SELECT origin FROM audit_log")
    note = sign_note(
        Checkpoint(str(origin), size_of(file), bytes(32)).text(), str(origin), Ed25519PrivateKey.generate()
    )
    execute(file, "UPDATE audit_checkpoint SET note = ? WHERE size = ?", note, size_of(file))


def replace_hash(file: Path, level: int, place: int, value: bytes) -> None:
    [(hashes,)] = rows(file, 'SELECT hashes FROM audit_tile WHERE level = ? AND "index" = 0', level)
    content = bytearray(blob(hashes))
    content[32 * place : 32 * place + 32] = value
    execute(file, 'UPDATE audit_tile SET hashes = ? WHERE level = ? AND "index" = 0', bytes(content), level)


def cut_off(file: Path, size: int) -> None:
    """Truncate the log consistently to an earlier stored checkpoint."""
    execute(file, f"DELETE FROM audit_event WHERE id IN ({_AT} >= ?)", size)
    execute(file, "DELETE FROM audit_place WHERE leaf_index >= ?", size)
    execute(file, "DELETE FROM audit_checkpoint WHERE size > ?", size)
    execute(file, "UPDATE audit_tile SET hashes = substr(hashes, 1, ?)", 32 * size)
    execute(file, "UPDATE audit_log SET size = ?", size)


def cut_off_tail(file: Path) -> None:
    """Truncate the log to an earlier checkpoint, but leave the tree."""
    [(size,)] = rows(file, "SELECT max(size) FROM audit_checkpoint WHERE size < ?", size_of(file))
    tiles = rows(file, 'SELECT level, "index", hashes FROM audit_tile')
    cut_off(file, int(str(size)))
    for level, index, hashes in tiles:
        execute(
            file, 'UPDATE audit_tile SET hashes = ? WHERE level = ? AND "index" = ?', hashes, level, index
        )


def sign_anew(file: Path) -> VerifierKey:
    """Delete an event, rebuild the tree without it, and sign it with a new key, which replaces the stored one."""
    delete_event(file)
    execute(file, "UPDATE audit_place SET leaf_index = leaf_index - 1 WHERE leaf_index > 3")
    leaves = [
        blob(leaf)
        for (leaf,) in rows(
            file, "SELECT commitment FROM audit_event JOIN audit_place ON event_id = id ORDER BY leaf_index"
        )
    ]
    tiles = append_leaves(0, {}, leaves)
    [(origin,)] = rows(file, "SELECT origin FROM audit_log")
    key = Ed25519PrivateKey.generate()
    root = tree_root(len(leaves), tiles)
    note = sign_note(Checkpoint(str(origin), len(leaves), root).text(), str(origin), key)
    execute(file, "DELETE FROM audit_tile")
    for tile, hashes in tiles.items():
        execute(
            file,
            'INSERT INTO audit_tile (level, "index", hashes) VALUES (?, ?, ?)',
            tile.level,
            tile.index,
            hashes,
        )
    [(at,)] = rows(file, "SELECT max(at) FROM audit_checkpoint")
    execute(file, "DELETE FROM audit_checkpoint")
    execute(
        file,
        "INSERT INTO audit_checkpoint (size, at, root, note) VALUES (?, ?, ?, ?)",
        len(leaves),
        at,
        root,
        note,
    )
    public = key.public_key().public_bytes_raw()
    execute(file, "UPDATE audit_log SET size = ?, public_key = ?", len(leaves), public)
    return VerifierKey(str(origin), public)


# Each attack, with the findings that must be among those reported: the problem, and the place of which event.
ATTACKS: dict[Callable[[Path], object], list[tuple[str, int | None]]] = {
    change_event: [("changed", 3)],
    change_actor: [("changed", 3)],
    delete_event: [("removed", 3)],
    exchange_events: [("reordered", 3), ("reordered", 4)],
    change_entry: [("tree", 3), ("checkpoint", None)],
    change_leaf: [("checkpoint", None)],
    change_leaf_hash: [("tree", 3)],
    change_checkpoint: [("checkpoint", None)],
    cut_off_tail: [("checkpoint", None)],
    forge_newest_checkpoint: [("checkpoint", None)],
    move_to_another_project: [("changed", 3)],
    backdate_checkpoint: [("checkpoint", 3)],
    postdate_checkpoint: [("checkpoint", None)],
    postdate_newest_checkpoint: [("checkpoint", None)],
    add_log: [("log", None)],
    add_tile: [("checkpoint", None)],
    lengthen_tile: [("checkpoint", None)],
    insert_event_outside: [("inserted", None)],
    change_waiting_commitment: [("changed", None)],
    change_waiting_project: [("changed", None)],
    change_waiting_event: [("changed", None)],
    change_waiting_event_with_a_negative_id: [("changed", None)],
    delete_waiting_event: [("removed", None)],
    sign_anew: [("key", None), ("checkpoint", None)],
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize(
    "trust", ["key-encryption key", pytest.param("verifier key", marks=pytest.mark.full)]
)
def test_an_attack_by_way_of_the_database_is_found(
    operator: Operator, file: Path, attack: Callable[[Path], object], trust: str
) -> None:
    key = operator.output("audit", "checkpoint", "--verifier-key").strip()
    assert operator.output_json("audit", "verify", "--key", key)["findings"] == []
    attack(file)
    if trust == "key-encryption key":
        found = findings(operator)
        expected = ATTACKS[attack]
    else:
        # No key-encryption key is needed.
        (operator.folder / "kek").unlink()
        found = findings(operator, "--key", key)
        expected = [each for each in ATTACKS[attack] if each[0] != "key"]
    assert set(expected) <= {(each["problem"], each["place"]) for each in found}


_LEAF = f"WHERE id IN ({_AT} = 3)"
_LATE = "'2026-01-01 00:00:00.000000'"
# For each column of the log's tables, an assignment, which rows it changes, and the problem that `verify` must report.
COLUMNS = {
    "audit_event": {
        "id": ("9000", _LEAF, "removed"),
        "at": (_LATE, _LEAF, "changed"),
        "kind": ("'user.created'", _LEAF, "changed"),
        "project_id": ("'another'", _LEAF, "changed"),
        "actor": ("'cli:nobody'", _LEAF, "changed"),
        "subject": ("'another'", _LEAF, "changed"),
        "body": ("CAST('{}' AS BLOB)", _LEAF, "changed"),
        "salt": ("zeroblob(16)", _LEAF, "changed"),
        "commitment": ("zeroblob(32)", _LEAF, "changed"),
    },
    "audit_place": {
        "leaf_index": ("300", "WHERE leaf_index = 3", "removed"),
        "event_id": ("9000", "WHERE leaf_index = 3", "removed"),
        "project_id": ("'another'", "WHERE leaf_index = 3", "changed"),
    },
    "audit_unsealed": {
        "event_id": ("9001", "", "removed"),
        "project_id": ("'another'", "", "changed"),
        "commitment": ("zeroblob(32)", "", "changed"),
    },
    "audit_log": {
        "id": ("'other'", "", "log"),
        "origin": ("'other'", "", "checkpoint"),
        "public_key": ("zeroblob(32)", "", "key"),
        "sealed_key": ("zeroblob(80)", "", "key"),
        "size": ("size - 1", "", "checkpoint"),
    },
    "audit_tile": {
        "level": (str(2**62), "WHERE level = 0", "tree"),
        "index": ("3", "WHERE level = 0", "tree"),
        "hashes": ("zeroblob(32)", "WHERE level = 0", "tree"),
    },
    "audit_checkpoint": {
        "size": ("3", "WHERE size = 4", "checkpoint"),
        "at": (_LATE, "WHERE size = 4", "checkpoint"),
        "root": ("zeroblob(32)", "WHERE size = 4", "checkpoint"),
        "note": ("'x'", "WHERE size = 4", "checkpoint"),
    },
}


def test_each_column_of_the_log_has_a_case() -> None:
    logs = [table for name, table in tables.metadata.tables.items() if name.startswith("audit_")]
    assert {table.name: set(table.columns.keys()) for table in logs} == {
        name: columns.keys() for name, columns in COLUMNS.items()
    }


@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, columns in COLUMNS.items() for column in columns]
)
def test_a_change_of_each_column_is_found(operator: Operator, file: Path, table: str, column: str) -> None:
    value, which, problem = COLUMNS[table][column]
    if table == "audit_unsealed":
        copy_event(file)
    execute(file, f'UPDATE {table} SET "{column}" = {value} {which}')
    assert problem in {each["problem"] for each in findings(operator)}


@pytest.mark.parametrize(("column", "value"), [("origin", "other"), ("public_key", bytes(32))])
def test_a_kept_key_shows_that_the_stored_one_was_replaced(
    operator: Operator, file: Path, column: str, value: object
) -> None:
    """Anybody can fetch the stored key, and would keep the wrong one."""
    key = operator.output("audit", "checkpoint", "--verifier-key").strip()
    (operator.folder / "kek").unlink()
    execute(file, f"UPDATE audit_log SET {column} = ?", value)
    [finding] = findings(operator, "--key", key)
    assert finding["problem"] == "key"
    assert f"is not the given key {key}" in finding["message"]


def test_an_inserted_event_is_found(operator: Operator, file: Path) -> None:
    size = size_of(file)
    insert_event(file)
    [finding] = findings(operator)
    assert (finding["problem"], finding["place"], finding["id"]) == ("inserted", size, 9000)


def test_a_deletion_is_proved_only_once_it_is_sealed(operator: Operator, file: Path) -> None:
    """An attacker could insert the event that records the deletion, and delete it again after the verification."""
    delete_event(file)
    body = json.dumps({"kind": "events.deleted", "detail": {"places": [[3, 3]]}}).encode()
    execute(
        file,
        "INSERT INTO audit_event (id, at, kind, actor, subject, body, salt, commitment)"
        " SELECT 9000, at, 'events.deleted', actor, subject, ?, salt, ? FROM audit_event LIMIT 1",
        body,
        commitment(bytes(16), body),
    )
    found = findings(operator)
    assert {("removed", 3)} <= {(each["problem"], each["place"]) for each in found}
    assert any("The deletion is not sealed yet" in each["message"] for each in found)
    execute(file, "DELETE FROM audit_event WHERE id = 9000")
    assert any("no event records the deletion" in each["message"] for each in findings(operator))


def test_row_ids_identify_no_event(operator: Operator, file: Path) -> None:
    """Nothing seals the ids of rows, so whoever changes them changes nothing that anybody sees."""
    shown = operator.output_json("audit", "show", "3")
    listed = operator.output("audit", "tail", "-o", "json")
    for table, column in (("audit_event", "id"), ("audit_place", "event_id")):
        execute(file, f"UPDATE {table} SET {column} = -1 - {column}")
    assert operator.output_json("audit", "verify")["findings"] == []
    assert operator.output_json("audit", "show", "3") == shown
    assert operator.output("audit", "tail", "-o", "json") == listed
    assert '"id"' not in listed


BLOCKS = {
    "abort": "CREATE TRIGGER block BEFORE INSERT ON audit_place BEGIN SELECT RAISE(ABORT, 'no'); END",
    "fail on checkpoints": "CREATE TRIGGER block BEFORE INSERT ON audit_checkpoint BEGIN SELECT RAISE(FAIL, 'no'); END",
    "keep waiting": "CREATE TRIGGER block BEFORE DELETE ON audit_unsealed BEGIN SELECT RAISE(IGNORE); END",
    "no place": "CREATE TRIGGER block BEFORE INSERT ON audit_place BEGIN SELECT RAISE(IGNORE); END",
    "never waiting": "CREATE TRIGGER block AFTER INSERT ON audit_unsealed BEGIN DELETE FROM audit_unsealed; END",
}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_trigger_against_sealing_is_found(operator: Operator, file: Path, block: str) -> None:
    """Whoever prevents sealing can change events for longer. So an event that waits for long is a finding."""
    execute(file, BLOCKS[block])
    operator.output("domain", "create", "fifth")
    operator.run("audit", "checkpoint")
    execute(file, "DROP TRIGGER block")
    execute(
        file,
        "UPDATE audit_event SET at = '2026-01-01 00:00:00.000000', body ="
        """ CAST(json_set(body, '$.at', '2026-01-01T00:00:00+00:00') AS BLOB) WHERE instr(body, 'fifth') > 0""",
    )
    problems = {each["problem"] for each in findings(operator)}
    expected = {"no place": "removed", "never waiting": "inserted", "keep waiting": "changed"}
    assert expected.get(block, "unsealed") in problems


def test_a_deleted_part_of_the_tree_is_found(operator: Operator, file: Path) -> None:
    delete_tile(file)
    [finding] = findings(operator)
    assert finding["problem"] == "tree"
    assert "Entry bundle 0 is missing" in finding["message"]


def test_a_replaced_key_is_found_by_the_sealed_one(operator: Operator, file: Path) -> None:
    key = operator.output("audit", "checkpoint", "--verifier-key").strip()
    forged = sign_anew(file)
    texts = [each["message"] for each in findings(operator)]
    assert any("audit_log" in text and str(forged) in text and key in text for text in texts)
    assert "does not belong to its private key" in operator.error("audit", "checkpoint", "--verifier-key")


def test_a_replaced_private_key_is_found(operator: Operator, file: Path) -> None:
    """The attacker's private key can't be sealed without the data keys."""
    sign_anew(file)
    execute(file, "UPDATE audit_log SET sealed_key = ?", b"\x01" * 80)
    [finding] = findings(operator)
    assert finding["problem"] == "key"
    assert "The private key in the table audit_log was changed" in finding["message"]


def test_without_any_key_the_log_is_checked_but_not_proved(operator: Operator, file: Path) -> None:
    """A log that was signed anew is consistent, so the command must not succeed without a trusted key."""
    sign_anew(file)
    (operator.folder / "kek").unlink()
    done = operator.run("audit", "verify")
    assert done.code == 1
    assert "Not proved:" in done.err
    assert "--key" in done.err
    assert "kek_file" in done.err
    change_actor(file)
    assert findings(operator)[0]["problem"] == "changed"


@pytest.mark.parametrize("how", ["cut off", "restored"])
def test_a_log_that_went_back_in_time_is_found_by_a_kept_checkpoint(
    operator: Operator, file: Path, how: str
) -> None:
    """All of an older state is valid, so only something outside of the database can prove that it is not the newest."""
    old = Path(shutil.copy(file, operator.folder / "old.db"))
    size = size_of(file)
    operator.output("domain", "create", "fifth")
    kept = operator.folder / "kept"
    kept.write_text(operator.output("audit", "checkpoint"))
    if how == "restored":
        for leftover in file.parent.glob(f"{file.name}-*"):
            leftover.unlink()
        shutil.copy(old, file)
    else:
        cut_off(file, size)
    assert operator.run("audit", "verify").code == 0
    [finding] = findings(operator, "--checkpoint", kept)
    assert finding["problem"] == "checkpoint"
    assert f"The log was cut off: the checkpoint in {kept}" in finding["message"]
    assert f"only {size} are left" in finding["message"]

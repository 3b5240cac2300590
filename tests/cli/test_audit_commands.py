"""`clustercert audit`: what an operator sees of the log, and what is said of one that was tampered with."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from operating import Operator
from running import interrupted, uncovered
from stores import execute, rows


@pytest.fixture
def file(operator: Operator) -> Path:
    """The store of an operator who has done a few things."""
    for name in ("first", "second", "third"):
        operator.gets("domain", "create", name)
    return operator.folder / "data" / "clustercert.db"


def kept(operator: Operator) -> tuple[Path, Path]:
    """A checkpoint and the key, as somebody keeps them."""
    checkpoint, key = operator.folder / "kept", operator.folder / "key"
    checkpoint.write_text(operator.gets("audit", "checkpoint"))
    key.write_text(operator.gets("audit", "key"))
    return checkpoint, key


def test_a_good_log_is_good_from_a_kept_checkpoint_on(operator: Operator, file: Path) -> None:
    checkpoint, key = kept(operator)
    operator.gets("domain", "create", "fourth")
    shown = operator.gets_json("audit", "checkpoint")
    assert shown["note"] != checkpoint.read_text()
    assert shown["verifier_key"] == key.read_text().strip()
    done = operator.types("audit", "verify", "--checkpoint", checkpoint, "--key", key)
    assert (done.code, done.err) == (0, "")
    report = operator.gets_json("audit", "verify", "--checkpoint", checkpoint, "--key", shown["verifier_key"])
    assert report["size"] == report["events"] == shown["size"]
    assert (report["root"], report["checkpoints"], report["findings"]) == (shown["root"], 2, [])
    without = operator.types("audit", "verify")
    assert without.code == 0
    assert "Keep a copy and give it with --key" in without.err
    assert "Nothing was checked against a checkpoint that you keep" in without.err


def test_a_changed_event_is_named_and_the_exit_code_says_so(operator: Operator, file: Path) -> None:
    kept(operator)
    [(event_id, place)] = rows(
        file,
        "SELECT id, leaf_index FROM audit_event JOIN audit_place ON event_id = id WHERE instr(body, 'second') > 0",
    )
    changed = "CAST(replace(body, 'second', 'fourth') AS BLOB)"
    execute(file, f"UPDATE audit_event SET body = {changed} WHERE id = ?", event_id)
    done = operator.types("audit", "verify")
    assert done.code == 1
    assert f"CHANGED: Event {event_id} at place {place} isn't what was sealed there" in done.err
    found = operator.types("audit", "verify", "--output", "json")
    assert found.code == 1
    [finding] = json.loads(found.out)["findings"]
    assert (finding["problem"], finding["place"], finding["id"]) == ("changed", place, event_id)
    assert "is not what was sealed" in operator.is_refused("audit", "show", str(event_id))


def test_an_export_is_checked_with_nothing_but_the_key(operator: Operator, file: Path) -> None:
    checkpoint, key = kept(operator)
    folder = operator.folder / "exported"
    done = operator.gets_json("audit", "export", "--out", folder)
    assert done["size"] == done["events"] == json.loads(checkpoint.read_text().split("\n")[1])
    shutil.rmtree(operator.folder / "data")
    operator.config.write_text("no settings")
    verify = ("audit", "verify", "--export", folder, "--checkpoint", checkpoint)
    done = operator.types(*verify, "--key", key)
    assert (done.code, done.err) == (0, "")
    assert "whoever made the folder chose it" in operator.types(*verify).err
    [events] = (folder / "events").iterdir()
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(lines[:2] + lines[3:]))
    done = operator.types(*verify, "--key", key)
    assert done.code == 1
    assert "REMOVED: The event at place 2 is gone" in done.err
    checkpoint.write_text("nothing")
    assert "can't be trusted" in operator.is_refused(*verify, "--key", key)
    assert "--key: the verifier key" in operator.is_refused(*verify, "--key", "non+sense")
    assert "--key: there is no file lost.key" in operator.is_refused(*verify, "--key", "lost.key")
    assert "is no exported log" in operator.is_refused(
        "audit", "verify", "--export", operator.folder / "none"
    )


def test_nothing_is_exported_among_other_files(operator: Operator, file: Path) -> None:
    folder = operator.folder / "home"
    folder.mkdir()
    operator.gets("audit", "export", "--out", folder)
    # A run that was stopped goes on.
    (folder / ".checkpoint.new").touch()
    operator.gets("audit", "export", "--out", folder)
    (folder / "letters").touch()
    before = sorted(folder.rglob("*"))
    assert "Name a new or empty folder" in operator.is_refused("audit", "export", "--out", folder)
    assert "Name a new or empty folder" in operator.is_refused("audit", "export", "--out", folder / "letters")
    assert sorted(folder.rglob("*")) == before


def test_events_are_shown_the_last_ones_last(operator: Operator, file: Path) -> None:
    lines = operator.gets("audit", "tail", "-n", "2").splitlines()
    assert [line.split()[2] for line in lines] == ["domain.created", "domain.created"]
    found = [json.loads(line) for line in operator.gets("audit", "tail", "-o", "json").splitlines()]
    assert found[0]["kind"] == "keys.created"
    assert [one["place"] for one in found] == list(range(len(found)))
    assert found[-1]["detail"] == {"name": "third"}
    table = list(csv.DictReader(operator.gets("audit", "tail", "-o", "csv").splitlines()))
    assert [one["id"] for one in table] == [str(one["id"]) for one in found]
    assert json.loads(table[-1]["detail"]) == {"name": "third"}
    created = operator.gets("audit", "tail", "--kind", "domain.*", "-o", "name").split()
    assert len(created) == 4
    shown = operator.gets_json("audit", "show", created[-1])
    assert shown["detail"] == {"name": "third"}
    assert shown["proved_in"] == found[-1]["place"] + 1
    assert shown["source"] == "local"
    assert "There is no event 999" in operator.is_refused("audit", "show", "999")


def test_what_is_deleted_is_told_from_what_is_gone(operator: Operator, file: Path) -> None:
    checkpoint, key = kept(operator)
    first, second, third = operator.gets("audit", "tail", "--kind", "domain.*", "-o", "name").split()[-3:]
    done = operator.gets_json("audit", "erase", second, "--why", "the right to be forgotten", "--yes")
    assert done["id"] == int(second)
    assert operator.gets_json("audit", "checkpoint")["size"]
    report = operator.gets_json("audit", "verify", "--checkpoint", checkpoint, "--key", key)
    assert (report["deleted"], report["findings"]) == (1, [])
    execute(file, "DELETE FROM audit_event WHERE id = ?", int(third))
    found = operator.types("audit", "verify", "-o", "json")
    [finding] = json.loads(found.out)["findings"]
    assert (finding["problem"], finding["place"]) == ("removed", done["place"] + 1)
    assert "can be erased" in operator.is_refused("audit", "erase", second, "--why", "again", "--yes")
    assert "--why" in operator.misuses("audit", "erase", first, "--why", "a\nb", "--yes")
    assert "--yes" in operator.is_refused("audit", "erase", first, "--why", "x")


def test_old_events_are_pruned_and_the_log_stays_good(operator: Operator, file: Path) -> None:
    kept(operator)
    total = len(rows(file, "SELECT id FROM audit_event"))
    execute(
        file,
        "UPDATE audit_event SET at = '2020-01-01 00:00:00.000000'"
        " WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index < 3)",
    )
    assert operator.gets_json("audit", "prune", "--older-than", "365d", "--yes")["deleted"] == 3
    assert operator.gets_json("audit", "prune", "--older-than", "365d", "--yes")["deleted"] == 0
    operator.gets("audit", "checkpoint")
    report = operator.gets_json("audit", "verify")
    assert (report["deleted"], report["events"], report["findings"]) == (3, total - 3 + 1, [])
    assert "write it like 400d" in operator.misuses("audit", "prune", "--older-than", "long", "--yes")


def test_stored_certificates_are_checked(operator: Operator, file: Path) -> None:
    done = operator.types("audit", "check-certificates")
    assert (done.code, done.out) == (0, "")
    assert "0 certificates were checked" in done.err
    execute(
        file,
        "INSERT INTO certificate (fingerprint, serial, epoch, cluster_id, project_id, ca_id, user_id, user_name,"
        " groups, not_before, not_after, key_type, key_origin, auth_method, source_address, request_id, issued_at, der)"
        " VALUES (x'01', 's', 0, 'c', 'p', 'a', 'u', 'n', '[]', '2020-01-01 00:00:00.000000',"
        " '2020-01-01 00:00:00.000000', 'ec-p256', 'csr', 'token', '', '', '2020-01-01 00:00:00.000000', x'00')",
    )
    found = operator.types("audit", "check-certificates", "-o", "json")
    assert found.code == 1
    [row] = json.loads(found.out)
    assert (row["fingerprint"], row["user_id"]) == ("01", "u")
    assert row["problems"] == ["The certificate or its row can't be read: ValueError."]


def test_the_tail_is_followed_until_it_is_interrupted(operator: Operator, file: Path) -> None:
    command = [sys.executable, "-m", "clustercert", "--config", str(operator.config)]
    tail = [*command, "audit", "tail", "--follow", "-n", "1", "--kind", "domain.*", "-o", "json"]
    with subprocess.Popen(
        tail, env=uncovered(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["detail"] == {"name": "third"}
            for name in ("fourth", "fifth"):
                operator.gets("domain", "create", name)
                operator.gets("audit", "checkpoint")
                assert json.loads(process.stdout.readline())["detail"] == {"name": name}
            out, err = interrupted(process)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err

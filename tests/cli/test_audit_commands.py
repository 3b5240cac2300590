"""`clustercert audit`, on intact and on damaged logs."""

import csv
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from clustercert.cli.audit.events import whole_pages
from clustercert.merkle.proof_files import ProofFile
from support.command_line import Operator
from support.demo_process import interrupted, uncovered
from support.stores import execute, rows


@pytest.fixture
def file(operator: Operator) -> Path:
    """The database file of a store with some events."""
    for name in ("first", "second", "third"):
        operator.output("domain", "create", name)
    return operator.folder / "data" / "clustercert.db"


def kept(operator: Operator) -> tuple[Path, Path]:
    """Files with a checkpoint and the verifier key."""
    checkpoint, key = operator.folder / "kept", operator.folder / "key"
    checkpoint.write_text(operator.output("audit", "checkpoint"))
    key.write_text(operator.output("audit", "checkpoint", "--verifier-key"))
    return checkpoint, key


def test_verify_accepts_a_log_that_extends_a_checkpoint(operator: Operator, file: Path) -> None:
    checkpoint, key = kept(operator)
    operator.output("domain", "create", "fourth")
    shown = operator.output_json("audit", "checkpoint")
    assert shown["note"] != checkpoint.read_text()
    assert shown["verifier_key"] == key.read_text().strip()
    done = operator.run("audit", "verify", "--checkpoint", checkpoint, "--key", key)
    size = shown["size"]
    assert (done.code, done.err) == (
        0,
        f"The audit log is intact: all {size} events are as they were sealed.\n",
    )
    report = operator.output_json(
        "audit", "verify", "--checkpoint", checkpoint, "--key", shown["verifier_key"]
    )
    assert report["size"] == report["events"] == shown["size"]
    assert (report["root"], report["checkpoints"], report["findings"]) == (shown["root"], 2, [])
    without = operator.run("audit", "verify")
    assert without.code == 0
    assert "not compared with a saved checkpoint" in without.err


def test_verify_names_a_changed_event_and_exits_with_1(operator: Operator, file: Path) -> None:
    kept(operator)
    [(event_id, place)] = rows(
        file,
        "SELECT id, leaf_index FROM audit_event JOIN audit_place ON event_id = id WHERE instr(body, 'second') > 0",
    )
    changed = "CAST(replace(body, 'second', 'fourth') AS BLOB)"
    execute(file, f"UPDATE audit_event SET body = {changed} WHERE id = ?", event_id)
    done = operator.run("audit", "verify")
    assert done.code == 1
    assert f"CHANGED: The event at leaf index {place} does not match its leaf" in done.err
    assert done.err.splitlines()[-1] == "The audit log is not intact: 1 finding."
    found = operator.run("audit", "verify", "--output", "json")
    assert found.code == 1
    [finding] = json.loads(found.out)["findings"]
    assert (finding["problem"], finding["place"], finding["id"]) == ("changed", place, event_id)
    assert "differs from the sealed event" in operator.error("audit", "show", str(place))


def test_an_export_is_verified_with_only_the_key(operator: Operator, file: Path) -> None:
    checkpoint, key = kept(operator)
    folder = operator.folder / "exported"
    done = operator.output_json("audit", "export", "--out", folder)
    assert done["size"] == done["events"] == json.loads(checkpoint.read_text().split("\n")[1])
    shutil.rmtree(operator.folder / "data")
    operator.config.write_text("no settings")
    verify = ("audit", "verify", "--export", folder, "--checkpoint", checkpoint)
    done = operator.run(*verify, "--key", key)
    assert done.code == 0
    assert done.err.startswith("The audit log is intact: all")
    without = operator.run(*verify)
    assert without.code == 1
    assert "which the folder's creator chose. Give --key with the key that you saved" in without.err
    [events] = (folder / "events").iterdir()
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(lines[:2] + lines[3:]))
    done = operator.run(*verify, "--key", key)
    assert done.code == 1
    assert "REMOVED: The event at leaf index 2 is missing" in done.err
    checkpoint.write_text("nothing")
    assert "can't be trusted" in operator.error(*verify, "--key", key)
    assert "--key: the verifier key" in operator.error(*verify, "--key", "non+sense")
    assert "--key: lost.key is neither a file nor a key" in operator.error(*verify, "--key", "lost.key")
    assert "is not an exported log" in operator.error("audit", "verify", "--export", operator.folder / "none")


def test_export_refuses_a_folder_with_other_files(operator: Operator, file: Path) -> None:
    folder = operator.folder / "home"
    folder.mkdir()
    operator.output("audit", "export", "--out", folder)
    # An interrupted export is continued.
    (folder / ".checkpoint.new").touch()
    operator.output("audit", "export", "--out", folder)
    (folder / "letters").touch()
    before = sorted(folder.rglob("*"))
    assert "Specify a new or empty folder" in operator.error("audit", "export", "--out", folder)
    assert "Specify a new or empty folder" in operator.error("audit", "export", "--out", folder / "letters")
    assert sorted(folder.rglob("*")) == before


def test_tail_and_show_print_events(operator: Operator, file: Path) -> None:
    lines = operator.output("audit", "tail", "-n", "2").splitlines()
    assert [line.split()[2] for line in lines] == ["domain.created", "domain.created"]
    found = [json.loads(line) for line in operator.output("audit", "tail", "-o", "json").splitlines()]
    assert found[0]["kind"] == "keys.created"
    assert [one["place"] for one in found] == list(range(len(found)))
    assert found[-1]["detail"] == {"name": "third"}
    table = list(csv.DictReader(operator.output("audit", "tail", "-o", "csv").splitlines()))
    assert [one["place"] for one in table] == [str(one["place"]) for one in found]
    assert json.loads(table[-1]["detail"]) == {"name": "third"}
    created = operator.output("audit", "tail", "--kind", "domain.*", "-o", "name").split()
    assert len(created) == 4
    shown = operator.output_json("audit", "show", created[-1])
    assert shown["detail"] == {"name": "third"}
    assert shown["proved_in"] == found[-1]["place"] + 1
    assert shown["source"] == "local"
    assert "Event not found" in operator.error("audit", "show", "999")


def test_a_damaged_log_is_reported_once(operator: Operator, file: Path) -> None:
    """The waiting event can't be sealed, so it is not listed."""
    listed = operator.output("audit", "tail", "-o", "name")
    execute(file, "UPDATE audit_tile SET hashes = zeroblob(length(hashes)) WHERE level = 0")
    operator.output("domain", "create", "waiting")
    done = operator.run("audit", "tail", "-o", "name")
    assert (done.code, done.out) == (0, listed)
    (warning,) = done.err.splitlines()
    assert warning.startswith("Warning: ")
    assert "Run `clustercert audit verify`." in warning


def test_tail_continues_after_the_events_that_it_printed(operator: Operator, file: Path) -> None:
    cursor = operator.folder / "cursor"
    tail = ("audit", "tail", "--cursor-file", cursor, "-o", "name")
    first = operator.output(*tail).split()
    assert first == [str(place) for place in range(len(first))]
    assert json.loads(cursor.read_text())["next"] == len(first)
    unchanged = cursor.stat()
    assert operator.output(*tail) == ""
    # Without a new event, the file is not written again.
    assert (cursor.stat().st_ino, cursor.stat().st_mtime_ns) == (unchanged.st_ino, unchanged.st_mtime_ns)
    operator.output("domain", "create", "fourth")
    assert operator.output(*tail).split() == [str(len(first))]
    # A cursor belongs to one filter.
    refused = operator.error(*tail, "--kind", "domain.*")
    assert "belongs to the events /events, but this command lists /events?kind=domain.%2A" in refused
    filtered = (*tail[:2], "--cursor-file", operator.folder / "filtered", "-o", "name", "--kind", "domain.*")
    assert len(operator.output(*filtered).split()) == 5
    operator.output("domain", "create", "fifth")
    assert operator.output(*filtered) == f"{len(first) + 1}\n"
    for text in ("99", "{}", '{"events": "/events", "next": "x", "leaf": null}', "\xff"):
        cursor.write_text(text)
        assert "is not a cursor file, or is damaged" in operator.error(*tail)
    assert "can't be written" in operator.error(*tail[:3], "/nowhere/cursor")
    assert "--cursor-file" in operator.usage_error(*tail, "-n", "3")


def test_tail_refuses_a_restored_log(operator: Operator, file: Path) -> None:
    """The restored log has fewer events than were printed, and then more."""
    cursor, backup = operator.folder / "cursor", operator.folder / "backup"
    tail = ("audit", "tail", "--cursor-file", cursor, "-o", "name")
    with sqlite3.connect(file) as database, sqlite3.connect(backup) as copy:
        database.backup(copy)
    operator.output("domain", "create", "lost")
    printed = len(operator.output(*tail).split())
    kept = cursor.read_bytes()
    with sqlite3.connect(backup) as copy, sqlite3.connect(file) as database:
        copy.backup(database)
    message = f"the first {printed} events of a log were read, but this log does not begin with these events"
    assert message in operator.error(*tail)
    for name in ("fourth", "fifth"):
        operator.output("domain", "create", name)
    assert message in operator.error(*tail)
    assert cursor.read_bytes() == kept
    cursor.unlink()
    assert len(operator.output(*tail).split()) == printed + 1


def test_tail_finishes_a_page_before_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def print_page(*signals: int) -> None:
        with whole_pages():
            for number in signals:
                signal.raise_signal(number)
            print("the whole page")

    with pytest.raises(KeyboardInterrupt):
        print_page(signal.SIGINT)
    assert capsys.readouterr().out == "the whole page\n"
    # If nobody reads the pipe, the second signal ends the command.
    with pytest.raises(KeyboardInterrupt):
        print_page(signal.SIGINT, signal.SIGINT)
    assert capsys.readouterr().out == ""


def test_tail_says_which_role_or_member_an_event_changed(operator: Operator, file: Path) -> None:
    operator.output("project", "create", "eu-de")
    operator.output("user", "create", "alice", "--no-password")
    operator.output("group", "create", "team")
    operator.output("group", "add-user", "team", "alice")
    operator.output("role", "assign", "reader", "--user", "alice", "--project", "eu-de")
    operator.output("role", "unassign", "reader", "--user", "alice", "--project", "eu-de")
    operator.output("role", "assign", "auditor", "--group", "team", "--service")
    operator.output("audit", "checkpoint")
    lines = operator.output("audit", "tail", "-n", "4").splitlines()
    assert [line.partition("   ")[2].split("   ", 4)[1:2] + line.split("   ")[5:] for line in lines] == [
        ["group.member_added", "member alice"],
        ["role.assigned", "role reader in eu-de"],
        ["role.unassigned", "role reader in eu-de"],
        ["role.assigned", "role auditor in the whole service"],
    ]


def test_verify_distinguishes_erased_from_removed_events(operator: Operator, file: Path) -> None:
    checkpoint, key = kept(operator)
    first, second, third = operator.output("audit", "tail", "--kind", "domain.*", "-o", "name").split()[-3:]
    done = operator.output_json("audit", "erase", second, "--reason", "the right to be forgotten", "--yes")
    assert done["place"] == int(second)
    report = operator.output_json("audit", "verify", "--checkpoint", checkpoint, "--key", key)
    assert (report["deleted"], report["findings"]) == (1, [])
    execute(
        file,
        "DELETE FROM audit_event WHERE id = (SELECT event_id FROM audit_place WHERE leaf_index = ?)",
        int(third),
    )
    found = operator.run("audit", "verify", "-o", "json")
    [finding] = json.loads(found.out)["findings"]
    assert (finding["problem"], finding["place"]) == ("removed", done["place"] + 1)
    assert "can be erased" in operator.error("audit", "erase", second, "--reason", "again", "--yes")
    assert "--reason" in operator.usage_error("audit", "erase", first, "--reason", "a\nb", "--yes")
    refused = operator.error("audit", "erase", first, "--reason", "x")
    assert "domain.created" in refused
    assert "--yes" in refused


def test_the_log_verifies_after_old_events_are_pruned(operator: Operator, file: Path) -> None:
    kept(operator)
    total = len(rows(file, "SELECT id FROM audit_event"))
    execute(
        file,
        "UPDATE audit_event SET at = '2020-01-01 00:00:00.000000'"
        " WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index < 3)",
    )
    assert operator.output_json("audit", "prune", "--older-than", "365d", "--yes")["deleted"] == 3
    assert operator.output_json("audit", "prune", "--older-than", "365d", "--yes")["deleted"] == 0
    operator.output("audit", "checkpoint")
    report = operator.output_json("audit", "verify")
    assert (report["deleted"], report["events"], report["findings"]) == (3, total - 3 + 1, [])
    assert "Write it like 90d" in operator.usage_error("audit", "prune", "--older-than", "long", "--yes")


def test_stored_certificates_are_checked(operator: Operator, file: Path) -> None:
    done = operator.run("db", "check", "--certificates")
    assert (done.code, done.out) == (0, "")
    assert "0 certificates were checked" in done.err
    execute(
        file,
        "INSERT INTO certificate (fingerprint, serial, credential_number, epoch, cluster_id, project_id, ca_id,"
        " user_id, user_name, groups, not_before, not_after, key_type, key_origin, auth_method, source_address,"
        " request_id, issued_at, kind, der)"
        " VALUES (x'01', 's', 'n', 0, 'c', 'p', 'a', 'u', 'n', '[]', '2020-01-01 00:00:00.000000',"
        " '2020-01-01 00:00:00.000000', 'ec-p256', 'csr', 'token', '', '', '2020-01-01 00:00:00.000000',"
        " 'certificate', x'00')",
    )
    assert operator.run("db", "check").code == 0
    found = operator.run("db", "check", "--certificates")
    assert found.code == 1
    [_, row] = found.out.splitlines()
    problem = "The certificate or its row can't be read: ValueError."
    assert re.split(" {3,}", row) == ["01", problem, "s", "c", "u"]
    assert "1 certificates were checked, and 1 differ" in found.err


@pytest.mark.full
def test_tail_follows_until_it_is_interrupted(operator: Operator, file: Path) -> None:
    command = [sys.executable, "-m", "clustercert", "--config", str(operator.config)]
    tail = [*command, "audit", "tail", "--local", "-f", "-n", "1", "--kind", "domain.*", "-o", "json"]
    with subprocess.Popen(
        tail, env=uncovered(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["detail"] == {"name": "third"}
            for name in ("fourth", "fifth"):
                operator.output("domain", "create", name)
                operator.output("audit", "checkpoint")
                assert json.loads(process.stdout.readline())["detail"] == {"name": name}
            out, err = interrupted(process)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


def proof_of_the_last_event(operator: Operator) -> Path:
    """A file with a proof, in the form in which the API and the console give it."""
    shown = operator.output_json("audit", "checkpoint")
    [(extra,)] = rows(
        operator.folder / "data" / "clustercert.db",
        "SELECT CAST(salt || body AS blob) FROM audit_event ORDER BY id DESC LIMIT 1",
    )
    assert isinstance(extra, bytes)
    event = operator.output_json("audit", "show", str(shown["size"] - 1), "--local")
    hashes = tuple(map(bytes.fromhex, event["proof"]))
    file = operator.folder / "event.proof"
    file.write_text(str(ProofFile(extra, shown["size"] - 1, hashes, shown["note"])))
    return file


def test_a_copied_proof_is_verified_with_the_key_alone(operator: Operator, file: Path) -> None:
    _, key = kept(operator)
    proof = proof_of_the_last_event(operator)
    shutil.rmtree(operator.folder / "data")
    done = operator.run("audit", "verify", "--proof", proof, "--key", key)
    assert done.code == 0, done.err
    assert "Proved: the log" in done.err
    shown = operator.output_json("audit", "verify", "--proof", proof, "--key", key.read_text().strip())
    assert (shown["kind"], shown["detail"]["name"]) == ("domain.created", "third")
    assert shown["proved_in"] == shown["place"] + 1


@pytest.mark.parametrize("line", [1, 2, 3, -3])
def test_a_proof_with_a_changed_line_proves_nothing(operator: Operator, file: Path, line: int) -> None:
    """The lines are the event, the index, a hash, and the root in the checkpoint."""
    _, key = kept(operator)
    proof = proof_of_the_last_event(operator)
    lines = proof.read_text().split("\n")
    name, space, text = lines[line].rpartition(" ")
    lines[line] = name + space + (str(int(text) - 1) if name == "index" else f"{text[:9]}AAAA{text[13:]}")
    proof.write_text("\n".join(lines))
    assert operator.run("audit", "verify", "--proof", proof, "--key", key).code == 1
    proof.write_text("")
    done = operator.run("audit", "verify", "--proof", proof, "--key", key)
    assert (done.code, done.out) == (1, "")
    assert "proves nothing" in done.err


def test_a_proof_is_not_verified_without_a_key(operator: Operator, file: Path) -> None:
    done = operator.run("audit", "verify", "--proof", proof_of_the_last_event(operator))
    assert done.code == 2
    assert "--proof needs --key" in done.err

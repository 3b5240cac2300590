"""Jobs that delete old events and checkpoints, and publish checkpoints."""

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from clustercert.audit.event_parsing import deleted_places
from clustercert.audit.findings import FindingKind
from clustercert.audit.publish_targets import PublishError, SyslogTarget, UrlTarget, parse_target
from clustercert.audit.publishing import CheckpointPublisher
from clustercert.audit.retention import Retention
from clustercert.audit.settings_changes import POLICY_CURSOR, record_policy_change
from clustercert.audit.verification import parse_checkpoints
from clustercert.model import Actor
from clustercert.model.errors import NotFound, Unavailable
from clustercert.policy.decision import Policy
from clustercert.policy.rule_settings import PolicySettings
from clustercert.store.audit.evidence import EvidenceQueries
from clustercert.store.engine.database import Database
from clustercert.store.job_cursors import JobCursor
from support.samples import NOW, POLICY, role_rule
from support.sealed_log import SEALED_AT, SealedLog, new_log
from support.stores import NOW as EARLIER
from support.stores import ORIGIN, Store, blob, patient
from support.wait import SECONDS

# SHA-256 of the default policy. With another one, an upgrade would record the policy again.
DIGEST = "5930f4d3ba9fafef516eab0df495f22c4a2f6566797dda934ceaf8bde90a7774"

# Retention


@pytest.fixture
async def log(database: Database) -> SealedLog:
    log = await new_log(database)
    await log.grow(50)
    return log


async def test_pruned_events_are_gone_and_the_log_still_verifies(log: SealedLog, store: Store) -> None:
    kept = await log.head()
    retention = Retention(log.queries, lambda: SEALED_AT)
    before = EARLIER + timedelta(seconds=20)
    count = await retention.prune(before, actor=Actor("cli:test", ORIGIN))
    # The first checkpoint is from the creation of the log, and as old as the first of these.
    assert count == 21
    assert await retention.prune(before, actor=Actor("cli:test", ORIGIN)) == 0
    marker = store.events()[-1]
    assert (marker["kind"], marker["actor"]) == ("events.deleted", "cli:test")
    assert marker["detail"] == {
        "why": "retention",
        "before": before.isoformat(),
        "count": 21,
        "places": [[0, 20]],
    }
    report = await log.verified(kept)
    [finding] = report.findings
    assert (report.deleted, finding.kind, finding.place) == (0, FindingKind.DELETION_UNSEALED, 0)
    await log.sealer.seal_all()
    report = await log.verified(kept)
    assert (report.size, report.deleted, report.findings) == (52, 21, [])
    assert not any(
        b"thing 3" in blob(body) for (body,) in store.rows("SELECT body FROM audit_event WHERE id < 21")
    )


async def test_deletion_events_and_unsealed_events_are_not_deleted(
    log: SealedLog, database: Database, store: Store
) -> None:
    retention = Retention(log.queries, lambda: NOW)
    far = NOW + timedelta(days=1)
    await log.grow(0)
    while await retention.prune(far, actor=Actor("cli:test", ORIGIN)):
        pass
    await log.sealer.seal_all()
    while await retention.prune(far, actor=Actor("cli:test", ORIGIN)):
        pass
    assert [event["kind"] for event in store.events()] == ["events.deleted"]
    assert (await log.verified()).findings == []


async def test_concurrent_prunes_delete_each_event_once(log: SealedLog, store: Store) -> None:
    others = [Retention(EvidenceQueries(patient(store.url)), lambda: NOW) for _ in range(2)]
    before = EARLIER + timedelta(seconds=30)
    counts = await asyncio.gather(
        *(
            one.prune(before, actor=Actor("cli:test", ORIGIN))
            for one in (*others, Retention(log.queries, lambda: NOW))
        )
    )
    for other in others:
        await other.queries._database.close()
    assert sum(counts) == 31
    said = [
        place for event in store.events() for place in deleted_places(json.dumps(event).encode(), 1 << 62)
    ]
    assert sorted(said) == [(0, 30)]
    await log.sealer.seal_all()
    assert (await log.verified()).findings == []


async def test_a_log_that_grows_while_it_is_pruned_verifies(log: SealedLog, database: Database) -> None:
    retention = Retention(log.queries, lambda: NOW)

    async def live() -> None:
        for number in range(1, 8):
            await log.grow(20)
            await retention.prune(EARLIER + timedelta(seconds=2 * number), actor=Actor("cli:test", ORIGIN))
        await log.sealer.seal_all()

    working = asyncio.create_task(live())
    while not working.done():
        report = await log.verified(patience=SECONDS)
        # The recorded events are older than the checkpoints by an hour.
        assert {each.kind for each in report.findings} <= {FindingKind.SEALING_LATE}
    await working


async def test_only_sealed_events_without_deletions_can_be_erased(log: SealedLog, store: Store) -> None:
    retention = Retention(log.queries, lambda: NOW)
    await retention.erase(7, "asked for", actor=Actor("cli:test", ORIGIN))
    await log.sealer.seal_all()
    [(marker,)] = store.rows("SELECT max(leaf_index) FROM audit_place")
    for wrong in (7, int(str(marker)), 10**9):
        with pytest.raises(NotFound):
            await retention.erase(wrong, "again", actor=Actor("cli:test", ORIGIN))
    assert store.events()[-1]["detail"] == {"why": "asked for", "count": 1, "places": [[7, 7]]}


async def test_a_deletion_event_hides_only_the_places_that_it_names(log: SealedLog, store: Store) -> None:
    retention = Retention(log.queries, lambda: NOW)
    await retention.erase(7, "asked for", actor=Actor("cli:test", ORIGIN))
    await log.sealer.seal_all()
    store.execute(
        "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index IN (6, 8))"
    )
    report = await log.verified()
    assert [(one.kind.problem, one.place) for one in report.findings] == [("removed", 6), ("removed", 8)]
    assert report.deleted == 1


# Publishing


@asynccontextmanager
async def listening(*answers: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """The address of a server that gives these answers, then 204, and the bodies that it gets."""
    bodies: list[bytes] = []
    pending = list(answers)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                assert head.startswith("post /log http/1.1")
                assert "content-type: text/plain; charset=utf-8" in head
                length = int(head.partition("content-length: ")[2].split()[0])
                bodies.append(await reader.readexactly(length))
                answer = pending.pop(0) if pending else "204 No Content"
                end = "" if "\r\n\r\n" in answer else "\r\nContent-Length: 0\r\n\r\n"
                writer.write(f"HTTP/1.1 {answer}{end}".encode())
                await writer.drain()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/log", bodies
    finally:
        server.close()


async def test_checkpoints_are_appended_to_a_file_when_the_log_has_grown(
    log: SealedLog, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoints"
    publisher = CheckpointPublisher(log.reader, (parse_target(f"file:{file}"),))
    assert [await publisher.publish() for _ in range(3)] == [1, 0, 0]
    await log.grow(3)
    assert await publisher.publish() == 1
    heads = parse_checkpoints(file.read_text(), "it", await log.key())
    assert [head.size for head in heads] == [51, 54]
    report = await log.verified(*heads)
    assert (report.trusted, report.findings) == (3, [])


async def test_a_failing_server_is_retried_without_delaying_other_targets(
    log: SealedLog, tmp_path: Path
) -> None:
    async with listening("500 No", "503 No", "404 No", "500 No") as (address, bodies):
        url = UrlTarget(address, retry_seconds=0)
        file = parse_target(f"file:{tmp_path / 'kept'}")
        publisher = CheckpointPublisher(log.reader, (url, file))
        assert await publisher.publish() == 1
        assert len(bodies) == 3
        assert await publisher.publish() == 1
        assert len(bodies) == 5
        assert await publisher.publish() == 0
    assert set(bodies) == {(tmp_path / "kept").read_bytes()}


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Length: 1000\r\n\r\n", "a compressed response"),
        ("200 OK\r\nContent-Length: 600000\r\n\r\n" + " " * 600_000, "more than 524288 bytes"),
        ("200 OK\r\nX: " + "x" * 200_000, "RemoteProtocolError"),
        ("302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "status 302"),
    ],
)
async def test_a_hostile_server_costs_little(answer: str, cause: str) -> None:
    async with listening(*[answer] * 3) as (address, bodies):
        with pytest.raises(PublishError, match=cause):
            await UrlTarget(address, retry_seconds=0, timeout_seconds=SECONDS).publish("note")
    assert bodies == [b"note"] * 3


async def test_a_server_that_never_completes_its_answer_is_left() -> None:
    async with listening(*["200 OK\r\nContent-Length: 10\r\n\r\n"] * 3) as (address, _):
        with pytest.raises(PublishError, match=r"no complete response within 0\.5 seconds"):
            await UrlTarget(address, retry_seconds=0, timeout_seconds=0.5).publish("note")


async def test_a_file_that_cannot_be_written_is_retried(log: SealedLog, tmp_path: Path) -> None:
    publisher = CheckpointPublisher(log.reader, (parse_target(f"file:{tmp_path / 'no' / 'x'}"),))
    assert await publisher.publish() == 0
    (tmp_path / "no").mkdir()
    assert await publisher.publish() == 1


async def test_a_partial_append_is_undone_and_fails(log: SealedLog, tmp_path: Path) -> None:
    bounds = resource.getrlimit(resource.RLIMIT_FSIZE)
    head = await log.reader.checkpoint()
    # As on a disk with 100 free bytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, bounds[1]))
    try:
        with pytest.raises(PublishError):
            await parse_target(f"file:{tmp_path / 'x'}").publish(head.note)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
    # Later lines are still read.
    await parse_target(f"file:{tmp_path / 'x'}").publish(head.note)
    assert (tmp_path / "x").read_text() == head.note


@pytest.mark.parametrize("kind", [socket.AF_UNIX, socket.AF_INET])
async def test_syslog_gets_the_checkpoint_in_one_line(
    log: SealedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    # From here the path of the socket is short enough, whatever the folder is called.
    monkeypatch.chdir(tmp_path)
    with socket.socket(kind, socket.SOCK_DGRAM) as server:
        server.settimeout(SECONDS)
        server.bind("log" if kind == socket.AF_UNIX else ("127.0.0.1", 0))
        text = (
            f"syslog:{tmp_path / 'log'}"
            if kind == socket.AF_UNIX
            else f"syslog://127.0.0.1:{server.getsockname()[1]}"
        )
        parsed = parse_target(text)
        assert isinstance(parsed, SyslogTarget)
        sender = replace(parsed, now=lambda: NOW)
        if kind == socket.AF_UNIX:
            assert sender.address == str(tmp_path / "log")
            sender = replace(sender, address="log")
        assert await CheckpointPublisher(log.reader, (sender,)).publish() == 1
        message = server.recv(65536).decode("ascii")
    head, note = message.split(" checkpoint - ")
    assert head.startswith("<109>1 2026-03-14T15:09:26.535897Z ")
    assert parse_checkpoints(json.loads(note), "it", await log.key())[0].size == 51


async def test_a_log_without_a_checkpoint_has_nothing_to_publish(database: Database, tmp_path: Path) -> None:
    log = await new_log(database)
    with pytest.raises(Unavailable):
        await CheckpointPublisher(log.reader, (parse_target(f"file:{tmp_path / 'x'}"),)).publish()
    assert await CheckpointPublisher(log.reader, ()).publish() == 0


# Changes to the loaded policy


async def test_a_policy_is_recorded_once_until_it_changes(database: Database, store: Store) -> None:
    progress = JobCursor(database, POLICY_CURSOR)
    others = [JobCursor(patient(store.url), POLICY_CURSOR) for _ in range(3)]
    done = await asyncio.gather(*(record_policy_change(one, POLICY, NOW) for one in (progress, *others)))
    assert sorted(done) == [False, False, False, True]
    for other in others:
        await other._database.close()
    assert not await record_policy_change(progress, POLICY, NOW)
    changed = Policy(
        rules=(role_rule("admin", ("x",), timedelta(hours=1)),), allowed_system_names=frozenset("s")
    )
    assert await record_policy_change(progress, changed, NOW)
    assert await record_policy_change(progress, POLICY, NOW)
    said = {"name": "ours", "when": {"roles": ["admin"]}, "grant": {"groups": ["x"], "max_lifetime": "1h"}}
    assert await record_policy_change(
        progress, PolicySettings.model_validate({"rules": [said]}).policy(), NOW
    )
    first, second, third, fourth = store.events()
    assert {event["kind"] for event in store.events()} == {"policy.loaded"}
    assert first["subject"] == third["subject"] != second["subject"]
    assert second["detail"] == {
        "rules": [
            {"name": "admin", "when": {"roles": ["admin"]}, "grant": {"groups": ["x"], "max_lifetime": 3600}}
        ],
        "allow_system": ["s"],
        "max_lifetime": 1825 * 86400,
        "username": "{user.id}",
        "sha256": second["subject"],
        "before": first["subject"],
    }
    rule = {"name": "ours", "when": {"roles": ["admin"]}, "grant": {"groups": ["x"], "max_lifetime": 3600}}
    assert fourth["detail"] == {
        "rules": [rule],
        "allow_system": [],
        "max_lifetime": 1825 * 86400,
        "username": "{user.id}",
        "sha256": fourth["subject"],
        "before": third["subject"],
    }


async def test_a_policy_keeps_its_digest(database: Database, store: Store) -> None:
    assert await record_policy_change(JobCursor(database, POLICY_CURSOR), PolicySettings().policy(), NOW)
    [event] = store.events()
    assert event["subject"] == DIGEST

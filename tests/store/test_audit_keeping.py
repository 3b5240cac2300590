"""The log is kept in bounds, handed on, and the ledger is looked over, by whoever holds the lease."""

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from clustercert.audit.addresses import parsed_address
from clustercert.audit.evidence import deleted_places
from clustercert.audit.loading import NAME, record_policy
from clustercert.audit.publishing import Publisher, PublishError, SyslogTarget, UrlTarget, target
from clustercert.audit.retention import Retention
from clustercert.audit.verification import kept_heads
from clustercert.errors import NotFound, Unavailable
from clustercert.model import PolicyRule
from clustercert.policy import Policy
from clustercert.store.database import Database
from clustercert.store.evidence import EvidenceRows
from clustercert.store.progress import Progress
from nouns import NOW, POLICY
from sealed import Log, new_log
from stores import NOW as EARLIER
from stores import ORIGIN, Store, blob

# Retention


@pytest.fixture
async def log(database: Database) -> Log:
    log = await new_log(database)
    await log.grow(50)
    return log


async def test_what_is_pruned_is_gone_for_good_and_the_log_stays_whole(log: Log, store: Store) -> None:
    kept = await log.head()
    retention = Retention(log.rows, lambda: NOW)
    before = EARLIER + timedelta(seconds=20)
    count = await retention.prune(before, actor="cli:test", origin=ORIGIN)
    # The first is that of the log's beginning, which is as old as the first of these.
    assert count == 21
    assert await retention.prune(before, actor="cli:test", origin=ORIGIN) == 0
    marker = store.events()[-1]
    assert (marker["kind"], marker["actor"]) == ("events.deleted", "cli:test")
    assert marker["detail"] == {
        "why": "retention",
        "before": before.isoformat(),
        "count": 21,
        "places": [[0, 20]],
    }
    # While it has no place itself, it counts as well.
    for _ in range(2):
        report = await log.verified(kept)
        assert (report.deleted, report.findings) == (21, [])
        await log.sealer.seal_all()
    assert report.size == 52
    assert not any(
        b"thing 3" in blob(body) for (body,) in store.rows("SELECT body FROM audit_event WHERE id < 21")
    )


async def test_what_says_what_was_deleted_and_what_is_not_sealed_stays(
    log: Log, database: Database, store: Store
) -> None:
    retention = Retention(log.rows, lambda: NOW)
    far = NOW + timedelta(days=1)
    await log.grow(0)
    while await retention.prune(far, actor="cli:test", origin=ORIGIN):
        pass
    await log.sealer.seal_all()
    while await retention.prune(far, actor="cli:test", origin=ORIGIN):
        pass
    assert [event["kind"] for event in store.events()] == ["events.deleted"]
    assert (await log.verified()).findings == []


async def test_two_that_prune_at_once_delete_each_event_once(log: Log, store: Store) -> None:
    others = [Retention(EvidenceRows(Database(store.url)), lambda: NOW) for _ in range(2)]
    before = EARLIER + timedelta(seconds=30)
    counts = await asyncio.gather(
        *(
            one.prune(before, actor="cli:test", origin=ORIGIN)
            for one in (*others, Retention(log.rows, lambda: NOW))
        )
    )
    for other in others:
        await other._rows._database.close()
    assert sum(counts) == 31
    said = [
        place for event in store.events() for place in deleted_places(json.dumps(event).encode(), 1 << 62)
    ]
    assert sorted(said) == [(0, 30)]
    assert (await log.verified()).findings == []


async def test_a_log_that_grows_and_is_pruned_meanwhile_is_good(log: Log, database: Database) -> None:
    retention = Retention(log.rows, lambda: NOW)

    async def live() -> None:
        for number in range(1, 8):
            await log.grow(20)
            await retention.prune(EARLIER + timedelta(seconds=2 * number), actor="cli:test", origin=ORIGIN)

    working = asyncio.create_task(live())
    while not working.done():
        report = await log.verified()
        assert report.findings == []
    await working


async def test_one_event_is_erased_and_only_one_that_can_be(log: Log, store: Store) -> None:
    retention = Retention(log.rows, lambda: NOW)
    [(event_id,)] = store.rows("SELECT event_id FROM audit_place WHERE leaf_index = 7")
    assert await retention.erase(int(str(event_id)), "asked for", actor="cli:test", origin=ORIGIN) == 7
    [(marker,)] = store.rows("SELECT max(id) FROM audit_event")
    for wrong in (int(str(event_id)), int(str(marker)), 10**9):
        with pytest.raises(NotFound):
            await retention.erase(wrong, "again", actor="cli:test", origin=ORIGIN)
    assert store.events()[-1]["detail"] == {"why": "asked for", "count": 1, "places": [[7, 7]]}


async def test_a_marker_that_lies_does_not_hide_more_than_it_says(log: Log, store: Store) -> None:
    retention = Retention(log.rows, lambda: NOW)
    [(event_id,)] = store.rows("SELECT event_id FROM audit_place WHERE leaf_index = 7")
    await retention.erase(int(str(event_id)), "asked for", actor="cli:test", origin=ORIGIN)
    store.execute(
        "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_place WHERE leaf_index IN (6, 8))"
    )
    report = await log.verified()
    assert [(one.problem, one.place) for one in report.findings] == [("removed", 6), ("removed", 8)]
    assert report.deleted == 1


# Publishing


@asynccontextmanager
async def listening(answers: list[int]) -> AsyncIterator[tuple[httpx.MockTransport, list[bytes]]]:
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        assert request.method == "POST"
        assert request.headers["content-type"] == "text/plain; charset=utf-8"
        return httpx.Response(answers.pop(0) if answers else 204)

    yield httpx.MockTransport(answer), bodies


async def test_checkpoints_are_appended_to_a_file_when_the_log_has_grown(log: Log, tmp_path: Path) -> None:
    file = tmp_path / "checkpoints"
    publisher = Publisher(log.reader, (target(parsed_address(f"file:{file}"), lambda: NOW),))
    assert [await publisher.publish() for _ in range(3)] == [1, 0, 0]
    await log.grow(3)
    assert await publisher.publish() == 1
    heads = kept_heads(file.read_text(), "it", await log.key())
    assert [head.size for head in heads] == [51, 54]
    report = await log.verified(*heads)
    assert (report.trusted, report.findings) == (3, [])


async def test_a_server_that_fails_is_asked_again_and_the_others_are_not_kept_waiting(
    log: Log, tmp_path: Path
) -> None:
    async with listening([500, 503, 404, 500]) as (transport, bodies):
        url = UrlTarget("the server", "https://keeper.test/", transport, pause=0)
        file = target(parsed_address(f"file:{tmp_path / 'kept'}"), lambda: NOW)
        publisher = Publisher(log.reader, (url, file))
        assert await publisher.publish() == 1
        assert len(bodies) == 3
        assert await publisher.publish() == 1
        assert len(bodies) == 5
        assert await publisher.publish() == 0
    assert set(bodies) == {(tmp_path / "kept").read_bytes()}


async def test_a_file_that_cannot_be_written_is_tried_again(log: Log, tmp_path: Path) -> None:
    publisher = Publisher(log.reader, (target(parsed_address(f"file:{tmp_path / 'no' / 'x'}"), lambda: NOW),))
    assert await publisher.publish() == 0
    (tmp_path / "no").mkdir()
    assert await publisher.publish() == 1


async def test_a_file_that_took_a_part_only_has_not_got_it(log: Log, tmp_path: Path) -> None:
    bounds = resource.getrlimit(resource.RLIMIT_FSIZE)
    head = await log.reader.checkpoint()
    # As on a disk with room for a hundred bytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, bounds[1]))
    try:
        with pytest.raises(PublishError):
            await target(parsed_address(f"file:{tmp_path / 'x'}"), lambda: NOW).publish(head.note)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
    # What follows is read.
    await target(parsed_address(f"file:{tmp_path / 'x'}"), lambda: NOW).publish(head.note)
    assert (tmp_path / "x").read_text() == head.note


@pytest.mark.parametrize("kind", [socket.AF_UNIX, socket.AF_INET])
async def test_syslog_gets_the_checkpoint_in_one_line(log: Log, tmp_path: Path, kind: int) -> None:
    with socket.socket(kind, socket.SOCK_DGRAM) as server:
        server.settimeout(20)
        server.bind(str(tmp_path / "log") if kind == socket.AF_UNIX else ("127.0.0.1", 0))
        text = (
            f"syslog:{tmp_path / 'log'}"
            if kind == socket.AF_UNIX
            else f"syslog://127.0.0.1:{server.getsockname()[1]}"
        )
        sender = target(parsed_address(text), lambda: NOW)
        assert isinstance(sender, SyslogTarget)
        assert await Publisher(log.reader, (sender,)).publish() == 1
        message = server.recv(65536).decode("ascii")
    head, note = message.split(" checkpoint - ")
    assert head.startswith("<109>1 2026-03-14T15:09:26.535897Z ")
    assert kept_heads(json.loads(note), "it", await log.key())[0].size == 51


async def test_a_log_without_a_checkpoint_has_nothing_to_publish(database: Database, tmp_path: Path) -> None:
    log = await new_log(database)
    with pytest.raises(Unavailable):
        await Publisher(
            log.reader, (target(parsed_address(f"file:{tmp_path / 'x'}"), lambda: NOW),)
        ).publish()
    assert await Publisher(log.reader, ()).publish() == 0


# The policy that is loaded


async def test_a_policy_is_recorded_once_until_it_changes(database: Database, store: Store) -> None:
    progress = Progress(database, NAME)
    others = [Progress(Database(store.url), NAME) for _ in range(3)]
    done = await asyncio.gather(*(record_policy(one, POLICY, NOW) for one in (progress, *others)))
    assert sorted(done) == [False, False, False, True]
    for other in others:
        await other._database.close()
    assert not await record_policy(progress, POLICY, NOW)
    changed = Policy(
        rules=(PolicyRule("admin", ("x",), timedelta(hours=1)),), allowed_system_names=frozenset("s")
    )
    assert await record_policy(progress, changed, NOW)
    assert await record_policy(progress, POLICY, NOW)
    first, second, third = store.events()
    assert {event["kind"] for event in store.events()} == {"policy.loaded"}
    assert first["subject"] == third["subject"] != second["subject"]
    assert second["detail"] == {
        "rules": [{"role": "admin", "groups": ["x"], "max_lifetime": 3600}],
        "allow_system": ["s"],
        "sha256": second["subject"],
        "before": first["subject"],
    }

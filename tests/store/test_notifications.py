"""Messages about access requests: which are sent, in which order, and what failing receivers delay."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event

import pytest
from prometheus_client import REGISTRY
from sqlalchemy.engine import make_url

from clustercert.jobs import notifications
from clustercert.jobs.notifications import (
    CURSOR,
    GIVE_UP_AFTER,
    INTERVAL,
    LONGEST_RETRY_SECONDS,
    MAX_WAITING,
    READ_AT_ONCE,
    STORED_EVERY,
    Notifier,
)
from clustercert.model import Actor, AuditEvent
from clustercert.model.access_requests import AccessRequest
from clustercert.model.events.requests import AccessRequestChange
from clustercert.requests import steps
from clustercert.requests.receiver import WebhookReceiver
from clustercert.store.audit.log import EventPages
from clustercert.store.engine.database import Database
from clustercert.store.job_cursors import JobCursor
from support import programs
from support.access_requests import access_request
from support.log_capture import captured_lines
from support.message_receiver import SECRET, MessageReceiver, Received, message_receiver
from support.sealed_log import SealedLog, new_log
from support.stores import NOW, ORIGIN, Store, patient
from support.wait import SECONDS, eventually_async

# What these tests ask is decided in Python. Other files read and write the same tables on PostgreSQL.
pytestmark = pytest.mark.long_on_server

DAY = timedelta(days=1)


def step(request: AccessRequest, kind: AccessRequestChange, at: datetime = NOW) -> AuditEvent:
    return steps.event(request, kind, at, Actor(request.user_id, ORIGIN))


def sent(outcome: str) -> float:
    name = "clustercert_access_request_notifications_total"
    return REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0.0


@dataclass
class Site:
    """A database with a sealed log, and a receiver. The test sets both clocks.

    Attributes:
        time: monotonic seconds.
    """

    database: Database
    log: SealedLog
    there: MessageReceiver
    secret: Path
    now: datetime = NOW
    time: float = 1000.0
    notifiers: list[Notifier] = field(default_factory=list)

    async def happen(self, *events: AuditEvent) -> None:
        """Record events, and seal them."""
        async with self.database.transaction(*events):
            pass
        await self.log.sealer.seal_all()

    def notifier(self, database: Database | None = None) -> Notifier:
        """A new process that sends messages."""
        shared = database or self.database
        receiver = WebhookReceiver(self.there.url, self.secret, None, lambda: self.now, SECONDS)
        made = Notifier(
            EventPages(shared), JobCursor(shared, CURSOR), receiver, lambda: self.now, lambda: self.time
        )
        self.notifiers.append(made)
        return made


@pytest.fixture
async def site(database: Database, tmp_path: Path) -> AsyncIterator[Site]:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    with message_receiver(check_time=False) as there:
        made = Site(database, await new_log(database), there, secret)
        yield made
        for each in made.notifiers:
            await each.finish()
    assert there.refused == []


async def settled(notifier: Notifier) -> float:
    """Make a step, and wait until nothing is being sent. Returns the pause until the next step."""
    pause = await notifier.step()
    await eventually_async(lambda: not notifier._sending)
    return pause


async def begun(site: Site) -> Notifier:
    await site.log.grow(0)
    notifier = site.notifier()
    await notifier.step()
    return notifier


async def test_messages_begin_at_the_end_of_the_log_when_the_receiver_is_first_set(site: Site) -> None:
    early, late = access_request(), access_request()
    await site.happen(step(early, "access_request.created"))
    notifier = site.notifier()
    assert await settled(notifier) == INTERVAL
    await site.happen(step(late, "access_request.created"), step(late, "access_request.started"))
    await settled(notifier)
    assert [each.step for each in site.there.confirmed] == [(late.id, "created"), (late.id, "started")]


async def test_each_step_is_sent_once_in_order_across_processes(site: Site) -> None:
    counted = sent("sent")
    await begun(site)
    request, other = access_request(), access_request()
    await site.log.grow(3)
    await site.happen(step(request, "access_request.created"), step(other, "access_request.created"))
    await site.notifiers[0].step()
    await site.notifiers[0].finish()
    second = site.notifier()
    await site.happen(step(request, "access_request.approved"))
    await settled(second)
    await settled(second)
    assert sorted(each.step for each in site.there.received) == sorted(
        [(request.id, "created"), (request.id, "approved"), (other.id, "created")]
    )
    assert len({each.id for each in site.there.received}) == 3
    assert sent("sent") == counted + 3
    places = [each.body["data"]["event"] for each in site.there.received if each.access_request == request.id]
    assert places == sorted(places)
    event = await second.pages.event(places[0])
    assert event is not None
    assert (event.kind, event.subject) == ("access_request.created", request.id)


async def test_a_refused_message_delays_only_those_of_its_request(site: Site) -> None:
    bad, good = access_request(), access_request()
    site.there.answer = lambda received: (500 if received.access_request == bad.id else 204, {})
    notifier = await begun(site)
    failed = sent("failed")
    await site.happen(
        step(bad, "access_request.created"),
        step(bad, "access_request.approved"),
        step(good, "access_request.created"),
    )
    with captured_lines(notifications) as lines:
        await settled(notifier)
        assert [each.step for each in site.there.confirmed] == [(good.id, "created")]
        # The pauses grow up to five minutes.
        tried = [site.time]
        while len(tried) < 12:
            before = len(site.there.received)
            site.time += 0.5
            await settled(notifier)
            if len(site.there.received) > before:
                tried.append(site.time)
        pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
        assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
        assert LONGEST_RETRY_SECONDS == 300
        assert {each.step for each in site.there.received} == {(good.id, "created"), (bad.id, "created")}
        site.there.answer = lambda _: (200, {})
        site.time += LONGEST_RETRY_SECONDS
        await settled(notifier)
    assert [each.step for each in site.there.confirmed][1:] == [(bad.id, "created"), (bad.id, "approved")]
    assert sent("failed") == failed + 12
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("notification failed", "the receiver responded with status 500")
    ]


async def test_a_slow_answer_delays_only_the_messages_of_its_request(site: Site) -> None:
    slow, quick = access_request(), [access_request() for _ in range(20)]
    over = Event()

    def answer(received: Received) -> tuple[int, dict[str, str]]:
        if received.access_request == slow.id:
            over.wait(SECONDS)
        return 204, {}

    site.there.answer = answer
    notifier = await begun(site)
    await site.happen(
        step(slow, "access_request.created"),
        step(slow, "access_request.approved"),
        *[step(each, "access_request.created") for each in quick],
    )
    assert await notifier.step() == INTERVAL
    await eventually_async(lambda: len(site.there.confirmed) == 20)
    assert slow.id not in {each.access_request for each in site.there.confirmed}
    over.set()
    await eventually_async(lambda: len(site.there.confirmed) == 22)
    await eventually_async(lambda: not notifier._sending)
    assert [each.step for each in site.there.confirmed][-2:] == [(slow.id, "created"), (slow.id, "approved")]


async def test_messages_that_failed_leave_connections_for_new_ones(site: Site) -> None:
    bad = [access_request() for _ in range(20)]
    ids = {each.id for each in bad}
    site.there.answer = lambda received: (500 if received.access_request in ids else 204, {})
    notifier = await begun(site)
    await site.happen(*[step(each, "access_request.created") for each in bad])
    await settled(notifier)
    over = Event()

    def hang(received: Received) -> tuple[int, dict[str, str]]:
        if received.access_request in ids:
            over.wait(SECONDS)
        return 204, {}

    site.there.answer = hang
    site.time += LONGEST_RETRY_SECONDS
    await notifier.step()
    await site.happen(step(access_request(), "access_request.created"))
    await notifier.step()
    await eventually_async(lambda: len(site.there.confirmed) == 1)
    over.set()
    await eventually_async(lambda: len(site.there.confirmed) == 21)


async def test_a_message_is_given_up_after_a_day(site: Site) -> None:
    bad = access_request()
    site.there.answer = lambda received: (500 if received.body["type"].endswith("created") else 204, {})
    notifier = await begun(site)
    given_up = sent("given_up")
    await site.happen(
        step(bad, "access_request.created"), step(bad, "access_request.approved", NOW + 2 * DAY)
    )
    await settled(notifier)
    site.now += GIVE_UP_AFTER
    site.time += LONGEST_RETRY_SECONDS
    await settled(notifier)
    assert site.there.confirmed == []
    site.now += timedelta(seconds=1)
    site.time += LONGEST_RETRY_SECONDS
    with captured_lines(notifications) as lines:
        await settled(notifier)
        await eventually_async(lambda: not notifier._sending)
    assert [each.step for each in site.there.confirmed] == [(bad.id, "approved")]
    [line] = lines
    assert (line["event"], line["access_request"], line["failures"], line["reason"]) == (
        "notification given up",
        bad.id,
        2,
        "the receiver responded with status 500",
    )
    assert sent("given_up") == given_up + 1


async def test_what_waits_survives_the_end_of_the_process(site: Site) -> None:
    requests = [access_request() for _ in range(3)]
    site.there.answer = lambda received: (204 if received.access_request == requests[1].id else 503, {})
    notifier = await begun(site)
    await site.happen(*[step(each, "access_request.created") for each in requests])
    await settled(notifier)
    await notifier.step()
    # As if the process was killed: it stores nothing more.
    site.notifiers.clear()
    await notifier.receiver.close()
    site.there.answer = lambda _: (204, {})
    await settled(site.notifier())
    confirmed = [each.access_request for each in site.there.confirmed]
    assert confirmed[0] == requests[1].id
    assert sorted(confirmed[1:]) == sorted(each.id for each in (requests[0], requests[2]))


@pytest.mark.long_on_server
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.long)])
async def test_a_process_that_is_killed_at_any_step_loses_no_message(
    site: Site, store: Store, count: int
) -> None:
    notifier = await begun(site)
    requests = [access_request() for _ in range(count)]
    await site.happen(
        *[step(each, "access_request.created") for each in requests],
        *[step(each, "access_request.approved") for each in requests],
    )
    await notifier.finish()
    await site.database.close()
    done = await asyncio.to_thread(
        programs.run, "killed_notifications", store.url, site.there.url, site.secret
    )
    assert done.returncode == 0, done.stderr
    killed = int(done.stdout)
    assert killed >= 4
    for number in range(1, killed + 2):
        url = make_url(store.url)
        url = url.set(database=f"{url.database}_{number}")
        copy = Store(url.render_as_string(hide_password=False))
        database = patient(copy.url)
        site.there.url, whole = f"{site.there.url}/{number}", site.there.url
        last = site.notifier(database)
        await settled(last)
        await last.finish()
        await database.close()
        site.there.url = whole
        copy.remove()
        steps_of = [each.step for each in site.there.confirmed if each.path == f"/{number}"]
        # At least once, and for each request in order, if repetitions are left out.
        first = list(dict.fromkeys(steps_of))
        assert sorted(first) == sorted(
            (each.id, kind) for each in requests for kind in ("created", "approved")
        )
        for each in requests:
            assert [kind for id_, kind in first if id_ == each.id] == ["created", "approved"]


async def test_a_deleted_or_damaged_event_delays_nothing(site: Site, store: Store) -> None:
    deleted, damaged, good = (access_request() for _ in range(3))
    site.there.answer = lambda _: (503, {})
    notifier = await begun(site)
    await site.happen(step(deleted, "access_request.created"))
    await settled(notifier)
    await notifier.finish()
    place = site.there.received[0].body["data"]["event"]
    store.execute("DELETE FROM audit_event WHERE subject = ?", deleted.id)
    site.there.answer = lambda _: (204, {})
    await site.happen(step(damaged, "access_request.created"), step(good, "access_request.created"))
    store.execute("UPDATE audit_event SET body = ? WHERE subject = ?", b"{", damaged.id)
    again = site.notifier()
    with captured_lines(notifications) as lines:
        await settled(again)
    assert [each.access_request for each in site.there.confirmed] == [good.id]
    assert [(line["event"], line["place"]) for line in lines] == [
        ("unreadable event not notified", place + 1)
    ]
    await again.step()
    assert json.loads(str(await again.cursor.value()))["waiting"] == []


async def test_a_dead_receiver_stops_the_reading_before_memory_is_full(site: Site) -> None:
    site.there.answer = lambda _: (503, {})
    notifier = await begun(site)
    request = access_request()
    await site.happen(*[step(request, "access_request.created")] * (MAX_WAITING + 3 * READ_AT_ONCE))
    pauses = [await settled(notifier) for _ in range(MAX_WAITING // READ_AT_ONCE + 2)]
    assert pauses == [0.0] * (MAX_WAITING // READ_AT_ONCE) + [INTERVAL] * 2
    assert len(notifier._waiting[request.id]) == MAX_WAITING
    site.there.answer = lambda _: (204, {})
    site.time += LONGEST_RETRY_SECONDS
    for _ in range(4):
        await settled(notifier)
    assert len(site.there.confirmed) == MAX_WAITING + 3 * READ_AT_ONCE


async def test_the_position_is_stored_seldom_while_there_are_no_messages(site: Site) -> None:
    notifier = await begun(site)
    stored = await notifier.cursor.value()
    await site.log.grow(5)
    await settled(notifier)
    assert await notifier.cursor.value() == stored
    notifier._stored_next -= STORED_EVERY
    await settled(notifier)
    state = json.loads(str(await notifier.cursor.value()))
    assert state == {"next": json.loads(str(stored))["next"] + 5, "waiting": []}


async def test_two_processes_that_both_think_they_lead_lose_no_message(site: Site, store: Store) -> None:
    elsewhere = patient(store.url)
    one, other = await begun(site), site.notifier(elsewhere)
    await other.step()
    requests = [access_request() for _ in range(10)]
    for request in requests:
        await site.happen(step(request, "access_request.created"))
        await asyncio.gather(one.step(), other.step())
    for each in (one, other):
        await each.finish()
    await settled(site.notifier())
    assert {each.access_request for each in site.there.confirmed} == {each.id for each in requests}
    await elsewhere.close()

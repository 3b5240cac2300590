"""Whatever fails and whenever a process ends, each message arrives, in order. Database and receiver are doubles."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from hypothesis import given
from hypothesis import strategies as st

from clustercert.jobs.notifications import LONGEST_RETRY_SECONDS, Notifier
from clustercert.requests.receiver import Message, NotDelivered
from clustercert.store.audit.log import EventFilter, EventPage, EventPages, StoredEvent
from support.samples import NOW

if TYPE_CHECKING:
    from clustercert.store.job_cursors import JobCursor

REQUESTS = 3


@dataclass
class World:
    """The log, the stored position and the receiver.

    Attributes:
        outcomes: whether the receiver confirms the next messages, and the sender learns this; then always.
    """

    events: list[StoredEvent] = field(default_factory=list)
    value_: str | None = None
    outcomes: list[tuple[bool, bool]] = field(default_factory=list)
    confirmed: list[Message] = field(default_factory=list)

    def happen(self, request: int) -> None:
        place = len(self.events)
        self.events.append(
            StoredEvent(
                id=place,
                leaf_index=place,
                place_project_id=None,
                at=NOW + timedelta(seconds=place),
                kind="access_request.created",
                project_id=None,
                actor="",
                subject=str(request),
                body=b'{"detail":{}}',
                salt=b"",
                commitment=place.to_bytes(32),
            )
        )

    # The log

    async def size(self) -> int:
        return len(self.events)

    async def event(self, leaf_index: int) -> StoredEvent:
        return self.events[leaf_index]

    async def page(
        self, _filter: EventFilter, *, cursor: int | None, newest_first: bool, limit: int
    ) -> EventPage:
        assert not newest_first
        start = 0 if cursor is None else cursor + 1
        found = tuple(self.events[start : start + min(limit, 2)])
        return EventPage(found, found[-1].leaf_index if len(found) == 2 else None)

    # The stored position

    async def value(self) -> str | None:
        return self.value_

    async def set(self, value: str) -> bool:
        await asyncio.sleep(0)
        self.value_ = value
        return True

    # The receiver

    async def send(self, sent: Message) -> None:
        await asyncio.sleep(0)
        is_confirmed, is_known = self.outcomes.pop() if self.outcomes else (True, True)
        if is_confirmed:
            self.confirmed.append(sent)
        if not (is_confirmed and is_known):
            raise NotDelivered("no")

    async def close(self) -> None:
        """Nothing to close."""


STEPS = st.lists(
    st.one_of(
        st.integers(0, REQUESTS - 1),
        st.sampled_from(["step", "step", "turn", "wait", "kill", "finish"]),
    ),
    min_size=30,
    max_size=60,
)


@given(steps=STEPS, outcomes=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=10, max_size=20))
def test_each_message_arrives_and_those_of_a_request_in_order(
    steps: list[int | str], outcomes: list[tuple[bool, bool]]
) -> None:
    world = World(outcomes=outcomes)
    asyncio.run(_play(world, steps))
    first = list(dict.fromkeys(each.place for each in world.confirmed))
    assert sorted(first) == list(range(len(world.events)))
    for request in range(REQUESTS):
        places = [place for place in first if world.events[place].subject == str(request)]
        assert places == sorted(places)


class Processes:
    """One process after another. Nothing of a killed process goes on, and it stores nothing more."""

    def __init__(self, world: World) -> None:
        self.time = 0.0
        self._world = world
        self.notifier = self._started()

    async def do(self, step: str) -> None:
        match step:
            case "step":
                await self.notifier.step()
            case "turn":
                await asyncio.sleep(0)
            case "wait":
                self.time += LONGEST_RETRY_SECONDS
            case "kill":
                tasks = [task for _, task in self.notifier._sending.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self.notifier = self._started()
            case "finish":
                await self.notifier.finish()

    def _started(self) -> Notifier:
        pages, cursor = cast("EventPages", self._world), cast("JobCursor", self._world)
        return Notifier(pages, cursor, self._world, lambda: NOW, lambda: self.time)


async def _play(world: World, steps: list[int | str]) -> None:
    processes = Processes(world)
    await processes.do("step")
    for each in steps:
        if isinstance(each, int):
            world.happen(each)
        else:
            await processes.do(each)
    for _ in range(10 * (len(steps) + len(world.outcomes) + 1)):
        for last in ("wait", "step", "turn"):
            await processes.do(last)
    await processes.do("finish")

"""Kills a process that sends messages about access requests, at each of its steps. Arguments: URL RECEIVER SECRET.

Works on copies URL_1, URL_2, … (see `kill_points`). Each sends to a path of its own, /1, /2, … Prints the number of
killed processes.
"""

import asyncio
import sys
from pathlib import Path

from clustercert.jobs.notifications import CURSOR, Notifier
from clustercert.requests.receiver import Message, WebhookReceiver
from clustercert.store.audit.log import EventPages
from clustercert.store.job_cursors import JobCursor
from support.kill_points import Steps, kill_everywhere
from support.stores import NOW, Store, patient
from support.wait import SECONDS, eventually_async


class CountedReceiver(WebhookReceiver):
    """The moments before and after a message is sent are steps too."""

    steps: Steps

    async def send(self, sent: Message) -> None:
        self.steps.one()
        await super().send(sent)
        self.steps.one()


async def notify(store: Store, url: str, secret: Path, kill_at: int) -> None:
    database, steps = patient(store.url), Steps(kill_at)
    steps.count(database)
    receiver = CountedReceiver(url, secret, None, lambda: NOW, SECONDS)
    receiver.steps = steps
    notifier = Notifier(EventPages(database), JobCursor(database, CURSOR), receiver, lambda: NOW)
    await notifier.step()
    # Some messages are confirmed, and others not yet, when the state is stored again.
    await notifier.step()
    await eventually_async(lambda: not notifier._sending)
    await notifier.finish()
    await database.close()


def main(url: str, receiver: str, secret: str) -> None:
    def work(store: Store, kill_at: int) -> None:
        asyncio.run(notify(store, f"{receiver}/{kill_at}", Path(secret), kill_at))

    kill_everywhere(url, work)


if __name__ == "__main__":
    main(*sys.argv[1:])

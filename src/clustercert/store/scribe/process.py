"""The scribe's process."""

import contextlib
import multiprocessing
import selectors
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy.engine import make_url

from clustercert.store.checkpointer import Checkpointer
from clustercert.store.engine import BUSY_SECONDS, inserting_connection
from clustercert.store.scribe.frames import DURABLE, Answer, Frames, Job, Outcome, answer_frame
from clustercert.store.turn import Turn

BACKLOG = 256
_READ_BYTES = 1 << 20


def serve(url: str, path: Path) -> None:
    """Write what comes over connections to a Unix socket, until SIGTERM or the end of the parent process.

    `url` is the SQLAlchemy URL of an SQLite file; `path` is the socket's, in a folder that nobody else can open.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit())
    path.unlink(missing_ok=True)
    file = _File(str(make_url(url).database))
    with socket.socket(socket.AF_UNIX) as own, contextlib.closing(file):
        own.bind(str(path))
        own.listen(BACKLOG)
        own.setblocking(False)
        for asked in _asked(own):
            answers = file.written([job for _, job in asked])
            for (client, _), answer in zip(asked, answers, strict=True):
                client.tell(answer)


def _asked(own: socket.socket) -> Iterator[Sequence[tuple["_Client", Job]]]:
    """What is asked for at a time, until the parent ends."""
    parent = multiprocessing.parent_process()
    with selectors.DefaultSelector() as selector:
        selector.register(own, selectors.EVENT_READ)
        if parent is not None:
            selector.register(parent.sentinel, selectors.EVENT_READ)
        while True:
            asked: list[tuple[_Client, Job]] = []
            for key, _ in selector.select():
                if key.data is not None:
                    asked += [(key.data, job) for job in _received(key.data, selector)]
                elif key.fileobj is own:
                    _welcome(own, selector)
                else:
                    return
            if asked:
                yield asked


def _welcome(own: socket.socket, selector: selectors.BaseSelector) -> None:
    try:
        connection, _ = own.accept()
    except OSError:
        # It is gone again, or there are no more files to open: it comes back.
        return
    connection.setblocking(False)
    selector.register(connection, selectors.EVENT_READ, _Client(connection))


def _received(client: "_Client", selector: selectors.BaseSelector) -> Sequence[Job]:
    jobs = client.received()
    if jobs is None:
        selector.unregister(client.socket)
        client.socket.close()
    return jobs or ()


class _Client:
    """A worker's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._frames = Frames()

    def received(self) -> Sequence[Job] | None:
        """The jobs that are whole now; None where the worker is gone."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return ()
        except OSError:
            return None
        return list(self._frames.jobs(data)) if data else None

    def tell(self, answer: Answer) -> None:
        """Answer. A worker that is gone, or reads nothing, is hung up on, and has to look itself."""
        try:
            self.socket.sendall(answer_frame(answer))
        except OSError:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)


class _File:
    """An SQLite file and the one connection to it, which is made anew after a failure."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._turn = Turn(path)
        self._checkpointer = Checkpointer(path)
        self._connection: sqlite3.Connection | None = None

    def written(self, jobs: Sequence[Job]) -> list[Answer]:
        """What came of each, all in one transaction, or each in its own where that failed."""
        if len(jobs) > 1:
            together = self._transacted(jobs)
            if all(answer.outcome is not Outcome.FAILED for answer in together):
                return together
        return [answer for job in jobs for answer in self._transacted([job])]

    def close(self) -> None:
        """Let go of the file."""
        self._checkpointer.close()
        self._forget()

    def _transacted(self, jobs: Sequence[Job]) -> list[Answer]:
        """One transaction of all that may still be begun."""
        try:
            with self._turn.held():
                return self._transacted_in_turn(jobs)
        except OSError as failure:
            return [Answer.of(Outcome.NOT_BEGUN, failure)] * len(jobs)

    def _transacted_in_turn(self, jobs: Sequence[Job]) -> list[Answer]:
        now = time.monotonic()
        answers = {id(job): Answer(Outcome.NOT_BEGUN) for job in jobs if job.begin_until < now}
        begun = [job for job in jobs if id(job) not in answers]
        if begun:
            answer = self._inserted(begun)
            answers |= {id(job): answer for job in begun}
        return [answers[id(job)] for job in jobs]

    def _inserted(self, jobs: Sequence[Job]) -> Answer:
        try:
            connection = self._begun()
        except (sqlite3.Error, OSError) as failure:
            self._forget()
            return Answer.of(Outcome.NOT_BEGUN, failure)
        try:
            for job in jobs:
                for text, values in job.statements:
                    connection.execute(text, values)
            connection.execute("COMMIT")
        except Exception as failure:  # noqa: BLE001 - whatever it is, those who wait are told
            self._forget()
            return Answer.of(Outcome.FAILED, failure)
        self._checkpointer.changed(connection.total_changes)
        return DURABLE

    def _begun(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = inserting_connection(self._path, BUSY_SECONDS)
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def _forget(self) -> None:
        """Undo what is open, by closing the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

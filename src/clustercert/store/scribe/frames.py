"""What workers and the scribe say to each other, over a socket that nobody else can reach.

Each says one value at a time: its length in four bytes, big-endian, then the value as `marshal` has it, which is read
by processes of the same interpreter alone. Answers come in the order of what was asked.
"""

import marshal
import sqlite3
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from clustercert.store.writer import Statement

_LENGTH_BYTES = 4


class Job(NamedTuple):
    """One transaction's worth.

    Attributes:
        begin_until: after this nothing of it is begun any more; seconds of the machine's monotonic clock.
        statements: text and what stands for its question marks, in order.
    """

    begin_until: float
    statements: Sequence[Statement]


class Outcome(IntEnum):
    """What came of a job."""

    DURABLE = 0
    NOT_BEGUN = 1
    # Or it is not known; the failure says.
    FAILED = 2


class Answer(NamedTuple):
    """To one job.

    Attributes:
        kind, message: of the driver's failure; both empty where there is none.
    """

    outcome: Outcome
    kind: str = ""
    message: str = ""

    @classmethod
    def of(cls, outcome: Outcome, failure: Exception) -> "Answer":
        return cls(outcome, type(failure).__name__, str(failure))

    def failure(self) -> sqlite3.Error:
        """The driver's failure, raised anew in another process."""
        kind = getattr(sqlite3, self.kind, None)
        made = (
            kind if isinstance(kind, type) and issubclass(kind, sqlite3.Error) else sqlite3.OperationalError
        )
        return made(self.message)


DURABLE = Answer(Outcome.DURABLE)


def job_frame(job: Job) -> bytes:
    return _frame((job.begin_until, *job.statements))


def answer_frame(answer: Answer) -> bytes:
    return _frame((int(answer.outcome), answer.kind, answer.message))


class Frames:
    """Puts together again what comes in pieces."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def jobs(self, received: bytes) -> Iterator[Job]:
        """The jobs that are whole now."""
        for begin_until, *statements in self._values(received):
            yield Job(begin_until, statements)

    def answers(self, received: bytes) -> Iterator[Answer]:
        """The answers that are whole now."""
        for outcome, kind, message in self._values(received):
            yield Answer(Outcome(outcome), kind, message)

    def _values(self, received: bytes) -> Iterator[tuple[Any, ...]]:
        self._pending += received
        while len(self._pending) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._pending[:_LENGTH_BYTES], "big")
            if len(self._pending) < end:
                return
            value = bytes(self._pending[_LENGTH_BYTES:end])
            del self._pending[:end]
            # Both ends are ours: the socket lies in a folder that only this user can open.
            yield marshal.loads(value)  # noqa: S302


def _frame(value: tuple[Any, ...]) -> bytes:
    content = marshal.dumps(value)
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content

"""What workers and the scribe say to each other."""

import itertools
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.store.scribe.frames import Answer, Frames, Job, Outcome, answer_frame, job_frame

VALUES = st.one_of(st.none(), st.integers(), st.text(), st.binary(max_size=2000), st.floats(allow_nan=False))
STATEMENTS = st.lists(st.tuples(st.text(), st.lists(VALUES).map(tuple)), max_size=3)
JOBS = st.lists(st.builds(Job, st.floats(allow_nan=False), STATEMENTS), max_size=5)
ANSWERS = st.lists(st.builds(Answer, st.sampled_from(Outcome), st.text(), st.text()), max_size=5)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


@given(jobs=JOBS, answers=ANSWERS, cuts=st.lists(st.integers(min_value=0), max_size=8))
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    jobs: list[Job], answers: list[Answer], cuts: list[int]
) -> None:
    one, other = Frames(), Frames()
    pieces = in_pieces(b"".join(job_frame(job) for job in jobs), cuts)
    assert [job for piece in pieces for job in one.jobs(piece)] == jobs
    pieces = in_pieces(b"".join(answer_frame(answer) for answer in answers), cuts)
    assert [answer for piece in pieces for answer in other.answers(piece)] == answers


@pytest.mark.parametrize(
    "failure", [sqlite3.IntegrityError("no"), sqlite3.OperationalError("full"), ValueError("odd")]
)
def test_a_failure_is_the_drivers_again(failure: Exception) -> None:
    again = Answer.of(Outcome.FAILED, failure).failure()
    assert str(again) == str(failure)
    assert type(again) is (type(failure) if isinstance(failure, sqlite3.Error) else sqlite3.OperationalError)

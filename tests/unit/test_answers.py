"""Answers in one piece: what they look like, and what is left to those who check more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.server.answers import retry_after, whole

DATE = [(b"date", b"Wed, 25 Nov 2026 00:00:00 GMT")]
LENGTH = (b"content-length", b"2")


def answer(
    *headers: tuple[bytes, bytes],
    body: bytes = b"{}",
    status: int = 200,
    more_body: bool = False,
    keep: bool = True,
) -> bytes | None:
    return whole(
        {"type": "http.response.start", "status": status, "headers": list(headers)},
        {"type": "http.response.body", "body": body, "more_body": more_body},
        DATE,
        keep_alive=keep,
    )


def test_an_answer_is_its_head_and_its_body() -> None:
    assert answer((b"x-a", b"1"), LENGTH, status=404) == (
        b"HTTP/1.1 404 Not Found\r\nx-a: 1\r\ncontent-length: 2\r\ndate: Wed, 25 Nov 2026 00:00:00 GMT\r\n\r\n{}"
    )


def test_the_last_one_of_a_connection_says_so() -> None:
    said = answer(LENGTH, keep=False)
    assert said is not None
    assert b"\r\nconnection: close\r\n" in said


@pytest.mark.parametrize(
    ("headers", "more_body"),
    [
        ([], False),
        ([(b"content-length", b"3")], False),
        ([LENGTH, (b"transfer-encoding", b"chunked")], False),
        ([LENGTH, (b"connection", b"close")], False),
        ([LENGTH], True),
    ],
)
def test_what_is_less_usual_is_left_alone(headers: list[tuple[bytes, bytes]], *, more_body: bool) -> None:
    assert answer(*headers, more_body=more_body) is None


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_no_field_looks_like_another_one_or_like_the_end_of_the_head(name: bytes, value: bytes) -> None:
    said = answer((name, value), LENGTH)
    if any(octet in name + value for octet in b"\r\n\0"):
        assert said is None
    elif name not in (b"connection", b"transfer-encoding"):
        assert said is not None
        assert said.partition(b"\r\n\r\n")[0].count(b"\r\n") == 3


def test_the_longest_pause_that_is_named_counts() -> None:
    assert retry_after([(b"retry-after", b"1"), (b"Retry-After", b"7"), (b"retry-after", b"soon")]) == 7
    assert retry_after([(b"x-a", b"1")]) == 0

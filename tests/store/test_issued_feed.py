"""Certificates of other processes, read from the audit log."""

import pytest

from clustercert.model import RecordedIssue
from clustercert.store.certificates import issued_feed
from clustercert.store.certificates.issued_feed import IssuedFeed
from clustercert.store.engine.database import Database
from support.log_capture import captured_lines
from support.sealed_log import new_log
from support.stores import Store


@pytest.mark.parametrize("damaged", [b"{", b"\xff", b"{}", b"[]", b"[" * 200_000])
async def test_an_unreadable_event_is_skipped_with_a_log_line(
    database: Database, store: Store, damaged: bytes
) -> None:
    log = await new_log(database)
    feed = IssuedFeed(database)
    assert await feed.read() == []
    await log.grow(2)
    change = "UPDATE audit_event SET kind = 'certificate.issued', body = ? WHERE subject = ?"
    store.execute(change, damaged, "thing 0")
    store.execute(change, b'{"request_id": "r", "source": "192.0.2.1"}', "thing 1")
    with captured_lines(issued_feed) as said:
        assert await feed.read() == [RecordedIssue("r", "cli:test", "", "192.0.2.1")]
    assert [line["event"] for line in said] == ["unreadable event not counted for rates"]

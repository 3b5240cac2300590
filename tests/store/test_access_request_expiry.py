"""The closing of access requests whose time is over, and the figures about requests in the metrics."""

from dataclasses import replace
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY

from clustercert.jobs import access_requests
from clustercert.model import Caller
from clustercert.requests import service
from clustercert.requests.service import EXPIRED_AT_ONCE, EXPIRY_RETRY, AccessRequests
from clustercert.requests.users import RequestUsers
from clustercert.store.access_requests import AccessRequestQueries, RequestFilter
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.engine.database import Database
from clustercert.store.identity.known_users import KnownUserQueries
from clustercert.store.identity.roles import MemberQueries
from support.access_requests import HOUR, access_request, store_request
from support.accounts import Clock
from support.log_capture import captured_lines
from support.samples import POLICY
from support.stores import NOW, Store, certificate_record


async def unchanged(caller: Caller) -> Caller:
    return caller


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def requests(database: Database, clock: Clock) -> AccessRequests:
    clusters = ClusterQueries(database)
    users = RequestUsers(MemberQueries(database), KnownUserQueries(database), clusters)
    return AccessRequests(POLICY, AccessRequestQueries(database), clusters, users, unchanged, clock)


def closed(outcome: str) -> float:
    return REGISTRY.get_sample_value("clustercert_access_requests_closed_total", {"outcome": outcome}) or 0.0


def before_approval() -> float:
    return REGISTRY.get_sample_value("clustercert_access_before_approval_total") or 0.0


async def test_a_request_is_closed_when_its_time_is_over(
    requests: AccessRequests, clock: Clock, store: Store
) -> None:
    pending = await store_request(requests.queries, access_request())
    approved = await store_request(
        requests.queries,
        access_request(state="approved", approved_at=NOW, claim_by=NOW + 2 * HOUR, approve_by=NOW + HOUR),
    )
    counted = closed("expired")
    clock.forward(HOUR - timedelta(microseconds=1))
    assert await requests.expire_due() == 0
    clock.forward(timedelta(microseconds=1))
    assert await requests.expire_due() == 1
    assert await requests.expire_due() == 0
    found = await requests.queries.find(pending.id, RequestFilter())
    assert found is not None
    assert (found.state, found.closed_at, found.closed_why) == ("expired", NOW + HOUR, "not approved in time")
    other = await requests.queries.find(approved.id, RequestFilter())
    assert other is not None
    assert other.state == "approved"
    assert store.events()[-1]["kind"] == "access_request.expired"
    assert closed("expired") == counted + 1


async def test_a_request_that_cannot_be_closed_delays_no_other(
    requests: AccessRequests, clock: Clock, store: Store
) -> None:
    """Those of a full batch, all due before the other one, are damaged."""
    damaged = [
        await store_request(requests.queries, access_request(NOW - timedelta(minutes=1)))
        for _ in range(EXPIRED_AT_ONCE)
    ]
    for each in damaged:
        store.execute("UPDATE access_request SET conditions = '5' WHERE id = ?", each.id)
    good = await store_request(requests.queries, access_request())
    clock.forward(HOUR)
    expiry = access_requests.expiry(requests.expire_due)
    with captured_lines(service) as lines:
        assert await expiry.run() == 0.0
        assert await expiry.run() == access_requests.INTERVAL
    assert {line["access_request"] for line in lines} == {each.id for each in damaged}
    assert {line["event"] for line in lines} == {"access request not closed"}
    found = await requests.queries.find(good.id, RequestFilter())
    assert found is not None
    assert found.state == "expired"

    store.execute("UPDATE access_request SET conditions = '[]'")
    assert await requests.expire_due() == 0
    clock.forward(EXPIRY_RETRY)
    assert await requests.expire_due() == EXPIRED_AT_ONCE
    assert store.rows("SELECT count(*) FROM access_request WHERE state = 'expired'") == [
        (EXPIRED_AT_ONCE + 1,)
    ]


async def test_two_processes_close_a_request_once(
    requests: AccessRequests, clock: Clock, store: Store
) -> None:
    await store_request(requests.queries, access_request())
    clock.forward(HOUR)
    other = replace(requests)
    counted = closed("expired")
    await other.expire_due()
    await requests.expire_due()
    assert [each["kind"] for each in store.events()] == ["access_request.created", "access_request.expired"]
    assert closed("expired") == counted + 1


async def test_access_that_is_used_before_its_approval_is_counted_once(
    requests: AccessRequests, clock: Clock
) -> None:
    for is_approved in (True, False):
        request = await store_request(
            requests.queries,
            access_request(
                before_approval=True,
                state="approved" if is_approved else "pending",
                approved_at=NOW if is_approved else None,
                claim_by=NOW + HOUR if is_approved else None,
            ),
        )
        counted = before_approval()
        for _ in range(2):
            record, issued = certificate_record()
            record = replace(
                record,
                user_id=request.user_id,
                access_request_id=request.id,
                issued_at=NOW,
                not_after=NOW + timedelta(minutes=5),
            )
            await requests.record(record, issued)
        assert before_approval() == counted + (not is_approved)
    counts = await requests.queries.counts(NOW)
    assert (counts.states, counts.oldest_pending) == ({"active": 2}, NOW)

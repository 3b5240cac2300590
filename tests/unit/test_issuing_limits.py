"""Rates and quotas of issued certificates."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from clustercert.limits import issuing
from clustercert.limits.issuing import COUNT_SECONDS, IssuingRates, LimitedIssuance, LiveQuota
from clustercert.limits.rates import Kind, Rate, TokenBuckets, parse_rate
from clustercert.model import (
    Caller,
    CallerAuthentication,
    Issued,
    IssueRequest,
    Origin,
    Preview,
    RecordedIssue,
)
from clustercert.model.errors import Forbidden, NotFound, TooManyRequests
from clustercert.observability import metrics
from clustercert.policy.lifetime import waiting_time
from support.issuance_doubles import REQUEST, ChangingRights, issuance
from support.log_capture import captured_lines
from support.samples import CLUSTER_ID, OTHER_PROJECT_ID, PROJECT_ID, caller

SOURCE = "192.0.2.1"


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Feed:
    """What the audit log says next."""

    waiting: list[RecordedIssue] = field(default_factory=list)

    async def read(self) -> Sequence[RecordedIssue]:
        found, self.waiting = self.waiting, []
        return found


def by(user_id: str = "alice", source: str = SOURCE, request_id: str = "1") -> Caller:
    known = caller("admin")
    return replace(known, user=replace(known.user, id=user_id), origin=Origin(source, request_id))


def take(rates: IssuingRates, who: Caller, project_id: str = PROJECT_ID) -> bool:
    try:
        with rates.token(who, project_id):
            return True
    except TooManyRequests:
        return False


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1 second"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (1197, "20 minutes"),
        (7199, "120 minutes"),
        (7201, "3 hours"),
    ],
)
def test_a_long_wait_is_shown_in_minutes_or_hours(seconds: int, text: str) -> None:
    assert waiting_time(seconds) == text


@pytest.mark.parametrize(
    ("text", "rate"), [("20/1h", Rate(20, 3600)), ("1/1s", Rate(1, 1)), ("1000000/30d", Rate(10**6, 2592000))]
)
def test_rates_are_a_number_and_a_period(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["20", "0/1h", "-1/1h", "1.5/1h", "20/h", "20/0s", "20/31d", "1000001/1h", "/1h", 20]
)
def test_other_rates_are_rejected(text: object) -> None:
    with pytest.raises(ValueError, match=r"20/1h|period|lifetime"):
        parse_rate(text)


def test_a_bucket_starts_full_and_refills_evenly() -> None:
    clock = Clock()
    buckets = TokenBuckets(Rate(3, 60), clock=clock)
    for _ in range(3):
        assert buckets.seconds_until_token("a") == 0
        buckets.add("a", -1)
    assert (buckets.seconds_until_token("a"), buckets.seconds_until_token("b")) == (20, 0)
    clock.seconds += 19
    assert buckets.seconds_until_token("a") == 1
    clock.seconds += 1
    assert buckets.seconds_until_token("a") == 0
    clock.seconds += 3600
    for _ in range(3):
        buckets.add("a", -1)
    assert buckets.seconds_until_token("a") == 20


def test_a_debt_is_at_most_one_bucket() -> None:
    buckets = TokenBuckets(Rate(3, 60), clock=Clock())
    buckets.add("a", -1000)
    assert buckets.seconds_until_token("a") == 80


def test_many_keys_do_not_use_more_memory() -> None:
    buckets = TokenBuckets(Rate(1, 60), max_keys=10)
    for number in range(1000):
        buckets.add(str(number), -1)
    assert len(buckets._buckets) == 10


@pytest.mark.parametrize(
    ("kind", "other"),
    [("caller", by("bob")), ("source", by(source="192.0.2.2"))],
)
def test_each_rate_has_a_bucket_for_each_key(kind: Kind, other: Caller) -> None:
    rates = IssuingRates({kind: Rate(2, 60)}, Feed(), Clock())
    assert [take(rates, by()) for _ in range(3)] == [True, True, False]
    assert take(rates, other)


def test_a_projects_rate_is_shared_by_its_callers() -> None:
    rates = IssuingRates({"project": Rate(2, 60)}, Feed(), Clock())
    assert [take(rates, by(name)) for name in ("a", "b", "c")] == [True, True, False]
    assert take(rates, by("c"), OTHER_PROJECT_ID)


def test_addresses_in_one_64_share_a_bucket() -> None:
    rates = IssuingRates({"source": Rate(1, 60)}, Feed(), Clock())
    assert [take(rates, by(source=f"2001:db8::{n}")) for n in (1, 2)] == [True, False]


def test_a_refusal_says_when_to_try_again_and_takes_no_token() -> None:
    clock = Clock()
    rates = IssuingRates({"caller": Rate(1, 60), "project": Rate(2, 600)}, Feed(), clock)
    assert take(rates, by())
    for _ in range(10):
        with pytest.raises(TooManyRequests, match="for you") as refused, rates.token(by(), PROJECT_ID):
            pass
        assert refused.value.retry_after == 60
    assert take(rates, by("bob"))
    with (
        pytest.raises(TooManyRequests, match="for this project") as refused,
        rates.token(by("eve"), PROJECT_ID),
    ):
        pass
    assert refused.value.retry_after == 300


def test_a_failed_request_returns_its_token() -> None:
    rates = IssuingRates({"caller": Rate(1, 60)}, Feed(), Clock())
    for _ in range(5):
        with pytest.raises(Forbidden), rates.token(by(), PROJECT_ID):
            raise Forbidden("No.")
    assert take(rates, by())


async def test_certificates_of_other_processes_count_and_own_ones_only_once() -> None:
    feed = Feed()
    rates = IssuingRates({"caller": Rate(4, 60)}, feed, Clock())
    assert take(rates, by(request_id="own"))
    feed.waiting = [
        RecordedIssue(request_id, "alice", PROJECT_ID, SOURCE) for request_id in ("own", "other", "another")
    ]
    await rates.read_others()
    assert [take(rates, by(request_id=str(n))) for n in range(2)] == [True, False]


async def test_a_request_that_failed_after_it_was_recorded_counts() -> None:
    feed = Feed([RecordedIssue("unknown", "alice", PROJECT_ID, SOURCE)])
    rates = IssuingRates({"caller": Rate(1, 60)}, feed, Clock())
    with pytest.raises(Forbidden), rates.token(by(request_id="unknown"), PROJECT_ID):
        raise Forbidden("No.")
    await rates.read_others()
    assert not take(rates, by())


async def test_reading_goes_on_after_an_unexpected_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuing, "READ_SECONDS", 0)

    class FailingFeed(Feed):
        async def read(self) -> Sequence[RecordedIssue]:
            if not self.waiting:
                stop.set()
            elif self.waiting[0].request_id == "broken":
                del self.waiting[0]
                raise KeyError("source")
            return await super().read()

    stop = asyncio.Event()
    feed = FailingFeed([RecordedIssue(name, "alice", PROJECT_ID, SOURCE) for name in ("broken", "other")])
    rates = IssuingRates({"caller": Rate(1, 60)}, feed, Clock())
    failures = next(iter(metrics.RATE_READ_FAILURES.collect())).samples[0].value
    with captured_lines(issuing) as said:
        await rates.watch(stop)
    assert [line["event"] for line in said] == ["rates not shared: audit log can't be read"]
    assert next(iter(metrics.RATE_READ_FAILURES.collect())).samples[0].value == failures + 1
    assert not take(rates, by())


@dataclass
class Ledger:
    live: int = 0
    counts: int = 0

    async def count(self, user_id: str, cluster_id: str) -> int:
        assert cluster_id == CLUSTER_ID
        self.counts += 1
        return self.live if user_id == "alice" else 0


async def test_a_quota_refuses_further_live_certificates() -> None:
    clock, ledger = Clock(), Ledger(live=1)
    quota = LiveQuota(3, ledger.count, clock)
    for _ in range(2):
        await quota.check("alice", CLUSTER_ID)
    with pytest.raises(TooManyRequests, match="3 live certificates") as refused:
        await quota.check("alice", CLUSTER_ID)
    assert (refused.value.retry_after, ledger.counts) == (60, 1)
    await quota.check("bob", CLUSTER_ID)
    # Some were revoked.
    clock.seconds += COUNT_SECONDS
    await quota.check("alice", CLUSTER_ID)


async def test_a_quota_counts_requests_that_arrive_together() -> None:
    counting = asyncio.Event()

    async def count(_user_id: str, _cluster_id: str) -> int:
        await counting.wait()
        return 1

    quota = LiveQuota(3, count)
    checks = [asyncio.create_task(quota.check("alice", CLUSTER_ID)) for _ in range(6)]
    await asyncio.sleep(0)
    counting.set()
    results = await asyncio.gather(*checks, return_exceptions=True)
    assert [type(each) for each in results] == [type(None)] * 2 + [TooManyRequests] * 4


@dataclass
class Issuer:
    """Issues certificates. Records the users who got one, and the authentication of each request."""

    issued: list[str] = field(default_factory=list)
    authentications: list[CallerAuthentication | None] = field(default_factory=list)
    inner: LimitedIssuance = field(default_factory=lambda: LimitedIssuance(issuance()))

    async def issue(
        self,
        caller: Caller,
        project_id: str,
        cluster_id: str,
        request: IssueRequest,
        authentication: CallerAuthentication | None = None,
    ) -> Issued:
        self.authentications.append(authentication)
        issued = await self.inner.issue(caller, project_id, cluster_id, request, authentication)
        self.issued.append(caller.user.id)
        return issued

    async def preview(
        self, caller: Caller, project_id: str, cluster_id: str, request: IssueRequest
    ) -> Preview:
        return await self.inner.preview(caller, project_id, cluster_id, request)


async def test_issuing_is_limited_and_a_preview_is_not() -> None:
    issuer = Issuer()
    limited = LimitedIssuance(
        issuer, IssuingRates({"caller": Rate(2, 60)}, Feed()), LiveQuota(5, Ledger().count)
    )
    who = caller("admin")
    for _ in range(2):
        await limited.issue(who, PROJECT_ID, CLUSTER_ID, REQUEST)
    with pytest.raises(TooManyRequests):
        await limited.issue(who, PROJECT_ID, CLUSTER_ID, REQUEST)
    await limited.preview(who, PROJECT_ID, CLUSTER_ID, REQUEST)
    assert len(issuer.issued) == 2


async def test_the_limits_pass_the_authentication_on() -> None:
    """Otherwise, rights that are lost while the certificate is signed would go unnoticed."""
    issuer, authentication = Issuer(), ChangingRights(changes=0)
    limited = LimitedIssuance(issuer)
    await limited.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST, authentication)
    with pytest.raises(NotFound):
        await limited.issue(caller("admin"), OTHER_PROJECT_ID, CLUSTER_ID, REQUEST, authentication)
    assert issuer.authentications == [authentication] * 2


async def test_an_outsider_takes_no_token_of_a_project() -> None:
    rates = IssuingRates({"project": Rate(1, 60)}, Feed(), Clock())
    limited = LimitedIssuance(Issuer(), rates)
    for _ in range(3):
        with pytest.raises(NotFound):
            await limited.issue(caller("admin"), OTHER_PROJECT_ID, CLUSTER_ID, REQUEST)
    assert take(rates, by(), OTHER_PROJECT_ID)


async def test_the_quota_counts_by_user_id() -> None:
    counted: list[str] = []

    async def count(user_id: str, _cluster_id: str) -> int:
        counted.append(user_id)
        return 0

    await LimitedIssuance(Issuer(), quota=LiveQuota(1, count)).issue(
        caller("admin"), PROJECT_ID, CLUSTER_ID, REQUEST
    )
    assert counted == [caller("admin").user.id]

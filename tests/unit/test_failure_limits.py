"""Limits on failed authentications: by source address, and by access key and source address."""

from dataclasses import dataclass

import pytest
from prometheus_client import REGISTRY

from clustercert.authn.access_keys import LOCK_SECONDS, WRONG_SIGNATURES, SignatureLock
from clustercert.limits.failures import (
    ACCOUNT_WINDOW_SECONDS,
    MANY_OF_ACCOUNT,
    WINDOW_SECONDS,
    FailureLimit,
)
from clustercert.model import Origin
from clustercert.model.errors import NoCredential, TooManyFailures, Unauthenticated

KEY = "AKEXAMPLE00000000001"


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


def accounts_with_failures() -> float:
    return REGISTRY.get_sample_value("clustercert_accounts_with_failures_total") or 0.0


def origin(address: str = "192.0.2.1") -> Origin:
    return Origin(address, "0" * 32)


def is_refused(limit: FailureLimit, address: str = "192.0.2.1") -> bool:
    try:
        limit.check(origin(address))
    except TooManyFailures:
        return True
    return False


def test_a_source_is_refused_after_sixty_failures_until_the_minute_is_over() -> None:
    clock = Clock()
    limit = FailureLimit(60, clock=clock)
    for _ in range(60):
        assert not is_refused(limit)
        limit.count(origin())
        clock.seconds += 0.5
    with pytest.raises(TooManyFailures) as refused:
        limit.check(origin(), Unauthenticated("wrong", known="user"))
    assert (refused.value.retry_after, refused.value.known) == (WINDOW_SECONDS - 30, "user")
    assert not is_refused(limit, "192.0.2.2")
    limit.check(origin(), NoCredential("none"))
    clock.seconds += WINDOW_SECONDS - 30
    assert not is_refused(limit)


def test_a_limit_of_zero_refuses_nothing() -> None:
    limit = FailureLimit(0)
    limit.count(origin())
    assert not is_refused(limit)


def test_many_failures_of_one_account_are_counted_once_in_a_window() -> None:
    clock = Clock()
    limit = FailureLimit(60, clock=clock)
    before = accounts_with_failures()

    def fail(times: int, account: str) -> float:
        for number in range(times):
            limit.count(origin(f"192.0.2.{number}"), account)
        return accounts_with_failures() - before

    assert fail(MANY_OF_ACCOUNT - 1, "alice") == 0
    assert fail(MANY_OF_ACCOUNT, "") == 0
    assert fail(MANY_OF_ACCOUNT, "alice") == 1
    assert fail(MANY_OF_ACCOUNT, "bob") == 2
    clock.seconds += ACCOUNT_WINDOW_SECONDS
    assert fail(MANY_OF_ACCOUNT, "alice") == 3


def test_addresses_in_one_64_are_one_source() -> None:
    limit = FailureLimit(3)
    for host in range(3):
        limit.count(origin(f"2001:db8::{host + 1:x}"))
    assert is_refused(limit, "2001:db8:0:0:ffff::1")
    assert not is_refused(limit, "2001:db8:0:1::1")


def test_many_sources_do_not_use_more_memory() -> None:
    limit = FailureLimit(1, max_sources=10)
    for number in range(1000):
        limit.count(origin(f"2001:db8:0:{number:x}::1"))
    assert len(limit._windows) == 10
    assert is_refused(limit, "2001:db8:0:3e7::1")


def test_five_wrong_signatures_lock_the_pair_for_five_minutes() -> None:
    clock = Clock()
    lock = SignatureLock(clock=clock)
    for _ in range(WRONG_SIGNATURES):
        assert not lock.is_locked(KEY, origin())
        lock.wrong(KEY, origin())
    assert lock.is_locked(KEY, origin())
    assert not lock.is_locked(KEY, origin("192.0.2.2"))
    assert not lock.is_locked("AKEXAMPLE00000000002", origin())
    clock.seconds += LOCK_SECONDS - 1
    assert lock.is_locked(KEY, origin())
    clock.seconds += 1
    assert not lock.is_locked(KEY, origin())


def test_a_right_signature_ends_the_row_of_wrong_ones() -> None:
    lock = SignatureLock()
    for _ in range(3):
        for _ in range(WRONG_SIGNATURES - 1):
            lock.wrong(KEY, origin())
        lock.right(KEY, origin())
    assert not lock.is_locked(KEY, origin())


def test_many_pairs_do_not_use_more_memory() -> None:
    lock = SignatureLock(max_pairs=10)
    for number in range(1000):
        for _ in range(WRONG_SIGNATURES):
            lock.wrong(f"AK{number}", origin())
    assert len(lock._wrong) == 10
    assert lock.is_locked("AK999", origin())

import asyncio
import threading
import unicodedata
from types import SimpleNamespace
from typing import Literal

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from clustercert.identity import passwords as passwords_module
from clustercert.identity.passwords import DEFAULT_HASHER, THREADS, Contender, Passwords
from clustercert.model.errors import InvalidRequest, Unavailable
from support.wait import SECONDS

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Counting(PasswordHasher):
    """Counts what is verified, and can be made to wait."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.verified: list[str | bytes] = []
        self.gate = threading.Event()
        self.gate.set()

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002 - argon2's name
        self.gate.wait(SECONDS)
        self.verified.append(hash)
        return super().verify(hash, password)


async def test_a_hash_is_argon2id_and_matches_its_password_alone() -> None:
    passwords = Passwords(CHEAP)
    kept = await passwords.hashed("correct horse")
    assert kept.startswith("$argon2id$")
    assert await passwords.matches("correct horse", kept)
    assert not await passwords.matches("correct horsf", kept)
    assert await passwords.hashed("correct horse") != kept


def test_the_default_parameters_are_the_recommended_ones() -> None:
    assert (DEFAULT_HASHER.memory_cost, DEFAULT_HASHER.time_cost, DEFAULT_HASHER.parallelism) == (19456, 2, 1)


@pytest.mark.parametrize("password", ["", "1234567", "x" * 1025, "é" * 513, "abcdefgh\ud800"])
async def test_an_impossible_password_is_refused_and_matches_nothing(password: str) -> None:
    passwords = Passwords(CHEAP)
    with pytest.raises(InvalidRequest, match="at least 8 characters"):
        await passwords.hashed(password)
    assert not await passwords.matches(password, CHEAP.hash("some password"))


async def test_what_is_too_long_is_not_even_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes seconds for 30,000 accents in a row, and nobody else is answered meanwhile."""
    composed: list[int] = []

    def compose(form: Literal["NFC"], text: str) -> str:
        composed.append(len(text))
        return unicodedata.normalize(form, text)

    monkeypatch.setattr(passwords_module, "unicodedata", SimpleNamespace(normalize=compose))
    passwords = Passwords(CHEAP)
    kept = await passwords.hashed("correct horse")
    for length in (2_000, 30_000):
        assert not await passwords.matches("a" + "\u0360" * length + "\u0334" * length, kept)
    assert composed == [len("correct horse")]


async def test_the_longest_password_is_one_in_every_form() -> None:
    passwords = Passwords(CHEAP)
    longest = "\u01d5" * 512
    decomposed = unicodedata.normalize("NFD", longest)
    assert (len(longest.encode()), len(decomposed)) == (1024, 1536)
    assert await passwords.matches(decomposed, await passwords.hashed(longest))


async def test_the_bounds_themselves_are_fine() -> None:
    passwords = Passwords(CHEAP)
    for password in ("12345678", "x" * 1024):
        assert await passwords.matches(password, await passwords.hashed(password))


async def test_both_ways_to_compose_an_accent_are_one_password() -> None:
    passwords = Passwords(CHEAP)
    assert await passwords.matches("passwo\u0308rt", await passwords.hashed("passw\u00f6rt"))


@given(st.text(), st.text())
def test_no_text_at_all_upsets_the_check(password: str, other: str) -> None:
    passwords = Passwords(CHEAP)
    kept = CHEAP.hash(b"\0")
    assert not asyncio.run(passwords.matches(password, None))
    assert asyncio.run(passwords.matches(password, kept)) is (password == "\0")
    assert not asyncio.run(passwords.matches(other, "no hash at all"))
    passwords.close()


async def test_an_unknown_user_costs_one_verification_as_a_known_one_does() -> None:
    hasher = Counting()
    passwords = Passwords(hasher)
    kept = hasher.hash("correct horse")
    await passwords.matches("correct horse", kept)
    await passwords.matches("correct horse", None)
    await passwords.matches("x" * 2000, kept)
    assert len(hasher.verified) == 3


async def test_more_logins_than_can_wait_are_told_to_come_again() -> None:
    hasher = Counting()
    passwords = Passwords(hasher, max_waiting=3)
    hasher.gate.clear()
    under_way = [asyncio.create_task(passwords.matches("correct horse", None)) for _ in range(THREADS + 3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="Too many logins") as refusal:
        await passwords.matches("correct horse", None)
    assert refusal.value.retry_after == 2
    hasher.gate.set()
    assert await asyncio.gather(*under_way) == [False] * (THREADS + 3)
    assert not await passwords.matches("correct horse", None)


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_failed_login_of_a_known_pair_is_answered_after_those_that_came_before_it(
    is_known: bool,
) -> None:
    """Otherwise its time would tell that the user exists, and has logged in from this network."""
    hasher = Counting()
    passwords = Passwords(hasher)
    stored = hasher.hash("correct horse")
    answered: list[str] = []

    async def attempt(name: str, password: str, contender: Contender) -> bool:
        matches = await passwords.matches(password, stored, contender)
        answered.append(name)
        return matches

    hasher.gate.clear()
    others = [
        asyncio.create_task(attempt("other", "wrong", Contender(f"{number}.0.2.1", "alice")))
        for number in range(THREADS + 10)
    ]
    await asyncio.sleep(0)
    pair = Contender("198.51.100.1", "alice", is_known)
    wrong = asyncio.create_task(attempt("wrong", "wrong", pair))
    await asyncio.sleep(0)
    right = asyncio.create_task(attempt("right", "correct horse", pair))
    await asyncio.sleep(0)
    hasher.gate.set()
    assert await asyncio.gather(*others, wrong, right) == [*[False] * (THREADS + 11), True]
    assert "other" not in answered[answered.index("wrong") :]
    assert ("other" in answered[answered.index("right") :]) is is_known
    assert len(hasher.verified) == THREADS + 12 + is_known


async def test_a_login_that_was_given_up_makes_room() -> None:
    hasher = Counting()
    passwords = Passwords(hasher, max_waiting=0)
    hasher.gate.clear()
    under_way = [asyncio.create_task(passwords.matches("correct horse", None)) for _ in range(THREADS)]
    await asyncio.sleep(0)
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    hasher.gate.set()
    assert not await passwords.matches("correct horse", None)


async def test_a_hash_of_other_parameters_is_made_anew_once() -> None:
    old, new = Passwords(CHEAP), Passwords(PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    kept = await old.hashed("correct horse")
    fresh = await new.rehashed("correct horse", kept)
    assert fresh is not None
    assert await new.matches("correct horse", fresh)
    assert await new.rehashed("correct horse", fresh) is None


async def test_hashing_leaves_the_event_loop_free() -> None:
    hasher = Counting()
    passwords = Passwords(hasher)
    hasher.gate.clear()
    check = asyncio.create_task(passwords.matches("correct horse", None))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not check.done()
    hasher.gate.set()
    await check

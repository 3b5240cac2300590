"""User names that the policy chooses: each belongs to one user, on both databases and in all processes."""

import asyncio

import pytest

from clustercert.model.errors import Forbidden
from clustercert.store.engine.database import Database
from clustercert.store.identity.known_users import UsernameQueries
from support.samples import grant
from support.stores import Store, patient

ALICE, MALLORY = "a" * 32, "b" * 32
NAME = "alice@example.com"


async def test_a_name_belongs_to_its_first_user_forever(database: Database) -> None:
    usernames = UsernameQueries(database)
    assert await usernames.owner(NAME) is None
    for _ in range(2):
        await usernames.claim(grant(username=NAME), ALICE)
    for queries in (usernames, UsernameQueries(database)):
        with pytest.raises(Forbidden, match="belongs to another user"):
            await queries.claim(grant(username=NAME), MALLORY)
        await queries.claim(grant(username=NAME), ALICE)
        assert await queries.owner(NAME) == ALICE
    await usernames.claim(grant(username=NAME.upper()), MALLORY)


async def test_of_several_processes_one_gets_the_name(database: Database, store: Store) -> None:
    others = [patient(store.url) for _ in range(4)]
    claims = [
        UsernameQueries(other).claim(grant(username=NAME), f"{number:032x}")
        for number, other in enumerate(others)
    ]
    outcomes = await asyncio.gather(*claims, return_exceptions=True)
    for other in others:
        await other.close()
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [Forbidden] * 3
    owner = await UsernameQueries(database).owner(NAME)
    assert owner == f"{outcomes.index(None):032x}"

"""Tokens of API servers: two at once, counted under a lock, gone with their cluster."""

import asyncio

import pytest

from clustercert.errors import Conflict, NotFound, Unauthenticated
from clustercert.model import AuditEvent, Cluster, Origin
from clustercert.store.clusters import ClusterRows
from clustercert.store.credentials import Feed
from clustercert.store.database import Database
from clustercert.store.webhook_tokens import WebhookTokenRows
from clustercert.webhook.tokens import WebhookTokens
from nouns import NOW, PROJECT_ID
from stores import Store, event
from webhooks import registered

ACTOR = "cli:test"
ORIGIN = Origin(address="local", request_id="e" * 32)


@pytest.fixture
async def there(database: Database, store: Store) -> Cluster:
    """A registered cluster."""
    return await registered(database, store)


@pytest.fixture
async def tokens(database: Database, there: Cluster) -> WebhookTokens:
    feed = Feed(database)
    await feed.refresh()
    return WebhookTokens(WebhookTokenRows(database), feed, lambda: NOW)


async def create(tokens: WebhookTokens, there: Cluster) -> str:
    return (await tokens.create(there, actor=ACTOR, origin=ORIGIN)).text


async def test_a_token_lets_in_at_its_cluster_alone(tokens: WebhookTokens, there: Cluster) -> None:
    text = await create(tokens, there)
    gate = await tokens.admit(there.id, text)
    assert (gate.cluster_id, gate.project_id, gate.options) == (there.id, PROJECT_ID, there.options)
    for cluster_id, token in {
        there.id: text[:-1],
        there.id.upper(): text,
        "another": text,
        "00000000-0000-4000-8000-000000000000": text,
        "\x00": text,
    }.items():
        with pytest.raises(Unauthenticated):
            await tokens.admit(cluster_id, token)
    with pytest.raises(Unauthenticated):
        await tokens.admit(there.id, "")


async def test_of_a_token_only_its_hash_is_kept(tokens: WebhookTokens, there: Cluster, store: Store) -> None:
    text = await create(tokens, there)
    assert text.startswith("ccw_")
    assert len(text) == 47
    assert text.encode() not in store.content()
    assert text not in repr(await tokens.create(there, actor=ACTOR, origin=ORIGIN))


async def test_two_are_valid_at_once_and_a_third_is_refused(tokens: WebhookTokens, there: Cluster) -> None:
    texts = [await create(tokens, there) for _ in range(2)]
    with pytest.raises(Conflict):
        await create(tokens, there)
    for text in texts:
        await tokens.admit(there.id, text)
        assert await tokens.belongs(there.id, text)
    old, new = await tokens.of_cluster(there.id)
    await tokens.remove(there, old.id, actor=ACTOR, origin=ORIGIN)
    with pytest.raises(NotFound):
        await tokens.remove(there, old.id, actor=ACTOR, origin=ORIGIN)
    assert await tokens.of_cluster(there.id) == (new,)
    await create(tokens, there)


async def test_a_removed_token_is_refused_once_the_generation_is_read(
    database: Database, store: Store, there: Cluster
) -> None:
    feed = Feed(database)
    await feed.refresh()
    here = WebhookTokens(WebhookTokenRows(database), feed, lambda: NOW)
    text = await create(here, there)
    await feed.refresh()
    await here.admit(there.id, text)
    other = Database(store.url)
    elsewhere = WebhookTokens(WebhookTokenRows(other), feed, lambda: NOW)
    (token,) = await elsewhere.of_cluster(there.id)
    await elsewhere.remove(there, token.id, actor=ACTOR, origin=ORIGIN)
    await here.admit(there.id, text)
    await feed.refresh()
    with pytest.raises(Unauthenticated):
        await here.admit(there.id, text)
    await other.close()


async def test_making_and_removing_are_events(tokens: WebhookTokens, there: Cluster, store: Store) -> None:
    await create(tokens, there)
    (token,) = await tokens.of_cluster(there.id)
    await tokens.remove(there, token.id, actor=ACTOR, origin=ORIGIN)
    made, removed = store.events()[-2:]
    assert (made["kind"], removed["kind"]) == ("webhook_token.created", "webhook_token.removed")
    for said in (made, removed):
        assert (said["subject"], said["actor"], said["project_id"]) == (token.id, ACTOR, PROJECT_ID)
        assert said["detail"] == {"cluster_id": there.id}


async def test_no_third_one_slips_in_at_the_same_moment(
    tokens: WebhookTokens, there: Cluster, store: Store
) -> None:
    await create(tokens, there)
    others = [Database(store.url) for _ in range(3)]
    at_once = [WebhookTokens(WebhookTokenRows(other), other.generation, lambda: NOW) for other in others]
    made = await asyncio.gather(*(create(each, there) for each in at_once), return_exceptions=True)
    assert sorted(type(each).__name__ for each in made) == ["Conflict", "Conflict", "str"]
    assert store.rows("SELECT count(*) FROM webhook_token") == [(2,)]
    for other in others:
        await other.close()


async def test_tokens_go_with_their_cluster(
    database: Database, tokens: WebhookTokens, there: Cluster, store: Store
) -> None:
    await create(tokens, there)
    await ClusterRows(database).remove(there.id, _removed())
    assert store.rows("SELECT * FROM webhook_token") == []
    with pytest.raises(NotFound):
        await create(tokens, there)
    with pytest.raises(NotFound):
        await tokens.gate(there.id)


def _removed() -> AuditEvent:
    return event("cluster.removed")

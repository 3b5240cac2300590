"""Webhook tokens: at most two for each cluster, removed with it."""

import asyncio

import pytest

from clustercert.kubernetes.webhook.tokens import WebhookTokens
from clustercert.model import Actor, AuditEvent, Cluster, Origin
from clustercert.model.errors import Conflict, NotFound, Unauthenticated, Unavailable
from clustercert.store.clusters.registry import ClusterQueries, ClusterWebhookConfig, WebhookTokenQueries
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes.credential_cache import RevocationFeed
from support.credential_cache import Clock
from support.samples import NOW, PROJECT_ID
from support.stores import Store, event, patient

ACTOR = "cli:test"
ORIGIN = Origin(address="local", request_id="e" * 32)


@pytest.fixture
async def tokens(database: Database, there: Cluster) -> WebhookTokens:
    feed = RevocationFeed(database)
    await feed.refresh()
    return WebhookTokens(WebhookTokenQueries(database), feed, lambda: NOW)


async def create(tokens: WebhookTokens, there: Cluster) -> str:
    return (await tokens.create(there, actor=Actor(ACTOR, ORIGIN))).text


async def test_a_token_is_valid_only_for_its_cluster(tokens: WebhookTokens, there: Cluster) -> None:
    text = await create(tokens, there)
    webhook_config = await tokens.authenticate(there.id, text)
    assert (webhook_config.cluster_id, webhook_config.project_id, webhook_config.options) == (
        there.id,
        PROJECT_ID,
        there.options,
    )
    for cluster_id, token in {
        there.id: text[:-1],
        there.id.upper(): text,
        "another": text,
        "00000000-0000-4000-8000-000000000000": text,
        "\x00": text,
    }.items():
        with pytest.raises(Unauthenticated):
            await tokens.authenticate(cluster_id, token)
    with pytest.raises(Unauthenticated):
        await tokens.authenticate(there.id, "")


async def test_a_database_that_hangs_does_not_hold_up_a_review(
    database: Database, there: Cluster, tokens: WebhookTokens
) -> None:
    """An API server waits for three seconds."""

    class Hanging(WebhookTokenQueries):
        async def webhook_config(self, cluster_id: str) -> ClusterWebhookConfig | None:
            await asyncio.Event().wait()
            return await super().webhook_config(cluster_id)

    text = await create(tokens, there)
    hanging = WebhookTokens(Hanging(database), RevocationFeed(database), lambda: NOW, read_seconds=0.01)
    with pytest.raises(Unavailable, match="in time"):
        await hanging.authenticate(there.id, text)


async def test_only_the_hash_of_a_token_is_stored(
    tokens: WebhookTokens, there: Cluster, store: Store
) -> None:
    text = await create(tokens, there)
    assert text.startswith("ccw_")
    assert len(text) == 47
    assert text.encode() not in store.content()
    assert text not in repr(await tokens.create(there, actor=Actor(ACTOR, ORIGIN)))


async def test_two_tokens_are_valid_and_a_third_is_rejected(tokens: WebhookTokens, there: Cluster) -> None:
    texts = [await create(tokens, there) for _ in range(2)]
    with pytest.raises(Conflict):
        await create(tokens, there)
    for text in texts:
        await tokens.authenticate(there.id, text)
        assert await tokens.is_valid(there.id, text)
    old, new = await tokens.queries.tokens_of_cluster(there.id)
    await tokens.remove(there, old.id, actor=Actor(ACTOR, ORIGIN))
    with pytest.raises(NotFound):
        await tokens.remove(there, old.id, actor=Actor(ACTOR, ORIGIN))
    assert await tokens.queries.tokens_of_cluster(there.id) == (new,)
    await create(tokens, there)


async def test_a_removed_token_is_rejected_after_a_generation_read(
    database: Database, store: Store, there: Cluster
) -> None:
    feed = RevocationFeed(database, Clock())
    await feed.refresh()
    here = WebhookTokens(WebhookTokenQueries(database), feed, lambda: NOW)
    text = await create(here, there)
    await feed.refresh()
    await here.authenticate(there.id, text)
    other = patient(store.url)
    elsewhere = WebhookTokens(WebhookTokenQueries(other), feed, lambda: NOW)
    (token,) = await elsewhere.queries.tokens_of_cluster(there.id)
    await elsewhere.remove(there, token.id, actor=Actor(ACTOR, ORIGIN))
    await here.authenticate(there.id, text)
    await feed.refresh()
    with pytest.raises(Unauthenticated):
        await here.authenticate(there.id, text)
    await other.close()


async def test_creating_and_removing_a_token_record_events(
    tokens: WebhookTokens, there: Cluster, store: Store
) -> None:
    await create(tokens, there)
    (token,) = await tokens.queries.tokens_of_cluster(there.id)
    await tokens.remove(there, token.id, actor=Actor(ACTOR, ORIGIN))
    made, removed = store.events()[-2:]
    assert (made["kind"], removed["kind"]) == ("webhook_token.created", "webhook_token.removed")
    for said in (made, removed):
        assert (said["subject"], said["actor"], said["project_id"]) == (token.id, ACTOR, PROJECT_ID)
        assert said["detail"] == {"cluster_id": there.id}


async def test_concurrent_creation_allows_only_two_tokens(
    tokens: WebhookTokens, there: Cluster, store: Store
) -> None:
    await create(tokens, there)
    others = [patient(store.url) for _ in range(3)]
    at_once = [WebhookTokens(WebhookTokenQueries(other), other.generation, lambda: NOW) for other in others]
    made = await asyncio.gather(*(create(each, there) for each in at_once), return_exceptions=True)
    assert sorted(type(each).__name__ for each in made) == ["Conflict", "Conflict", "str"]
    assert store.rows("SELECT count(*) FROM webhook_token") == [(2,)]
    for other in others:
        await other.close()


async def test_tokens_are_removed_with_their_cluster(
    database: Database, tokens: WebhookTokens, there: Cluster, store: Store
) -> None:
    await create(tokens, there)
    await ClusterQueries(database).remove(there.id, _removed())
    assert store.rows("SELECT * FROM webhook_token") == []
    with pytest.raises(NotFound):
        await create(tokens, there)
    with pytest.raises(NotFound):
        await tokens.webhook_config(there.id)


def _removed() -> AuditEvent:
    return event("cluster.removed")

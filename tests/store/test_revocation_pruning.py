"""Deleting old revocations of users and clusters, on both databases."""

from datetime import timedelta

import pytest

from clustercert.certificates.pruning import RevocationPruning
from clustercert.model import CertificateRecord, KnownUser, Revocation
from clustercert.store.certificates.revocation_pruning import CHECKED_AT_ONCE, RevocationPruningQueries
from clustercert.store.certificates.revocations import CLOCK_MARGIN, NO_END, RevocationQueries
from clustercert.store.engine.database import Database
from clustercert.store.identity.directory import DirectoryQueries
from clustercert.store.identity.known_users import FederationQueries, KnownUserQueries
from clustercert.store.kubernetes.credential_cache import CredentialCache, RevocationFeed
from support.credential_cache import is_revoked, look_up
from support.statements import QueryPlans
from support.store_records import cluster_id, issue, new_user, revoked, user_id
from support.stores import NOW, Store, event, revocation

LIFETIME, UNDO_WINDOW = timedelta(days=30), timedelta(hours=1)
ACTOR = event().actor
KEPT_FOR = LIFETIME + CLOCK_MARGIN
AFTER = NOW + KEPT_FOR + timedelta(seconds=1)
SCOPES = ["user in cluster", "user", "cluster"]


@pytest.fixture
async def queries(database: Database) -> RevocationPruningQueries:
    queries = RevocationPruningQueries(database)
    await queries.note_lifetime(LIFETIME)
    return queries


@pytest.fixture
def rows(database: Database) -> RevocationQueries:
    return RevocationQueries(database)


async def prune(queries: RevocationPruningQueries, *, at: object = AFTER) -> int:
    return await RevocationPruning(queries, UNDO_WINDOW, lambda: at).prune(actor=ACTOR)  # type: ignore[return-value, arg-type] # a time


def scope(what: str, user: str, cluster: str) -> Revocation:
    return revocation(user_id=user if "user" in what else "", cluster_id=cluster if "cluster" in what else "")


async def seen_user(database: Database) -> str:
    """A user of an issuer who has logged in."""
    user = user_id()
    await KnownUserQueries(database).record_user(KnownUser(user, user, "sso", "https://sso.example"))
    return user


def left(store: Store) -> list[object]:
    return [number for (number,) in store.rows("SELECT id FROM revocation ORDER BY id")]


def forget(store: Store, record: CertificateRecord) -> None:
    store.execute("DELETE FROM certificate WHERE fingerprint = ?", record.fingerprint)


# --- what is deleted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", SCOPES)
async def test_a_revocation_is_deleted_after_the_longest_lifetime(
    database: Database, store: Store, queries: RevocationPruningQueries, rows: RevocationQueries, what: str
) -> None:
    await rows.revoke(scope(what, await seen_user(database), cluster_id()), event())
    assert await prune(queries, at=NOW + KEPT_FOR) == 0
    assert await prune(queries) == 1
    assert left(store) == []
    assert [found["detail"] for found in store.events() if found["kind"] == "revocations.pruned"] == [
        {"count": 1, "made_before": "2026-03-14T15:09:27+00:00"}
    ]
    assert await prune(queries) == 0


@pytest.mark.parametrize("what", SCOPES)
async def test_a_revocation_stays_as_long_as_the_ledger_has_a_certificate_that_it_revokes(
    database: Database, store: Store, queries: RevocationPruningQueries, rows: RevocationQueries, what: str
) -> None:
    """Even an expired one, which lists show as revoked."""
    alice, here = await seen_user(database), cluster_id()
    old = await issue(database, alice, here)
    made = await rows.revoke(scope(what, alice, here), event())
    later = await issue(database, alice, here)
    assert await prune(queries, at=NOW + timedelta(days=36_500)) == 0
    assert (await revoked(database, old), await revoked(database, later)) == (True, False)
    assert left(store) == [made.id]
    forget(store, old)
    assert await prune(queries) == 1
    assert not await revoked(database, later)


async def test_a_certificate_of_somebody_else_keeps_no_revocation(
    database: Database, queries: RevocationPruningQueries, rows: RevocationQueries
) -> None:
    alice, bob, here, there = await seen_user(database), user_id(), cluster_id(), cluster_id()
    await issue(database, alice, there)
    await issue(database, bob, here)
    await rows.revoke(revocation(user_id=alice, cluster_id=here), event())
    assert await prune(queries) == 1


async def test_an_undone_revocation_is_deleted_too_and_one_that_can_be_undone_is_not(
    database: Database, store: Store, queries: RevocationPruningQueries, rows: RevocationQueries
) -> None:
    made = await rows.revoke(revocation(user_id=await seen_user(database)), event())
    window = KEPT_FOR * 2
    patient = RevocationPruning(queries, window, lambda: NOW + window)
    assert await patient.prune(actor=ACTOR) == 0
    await rows.undo(made.id, by="cli:other", at=NOW, event=event())
    assert await prune(queries) == 1
    assert left(store) == []


async def test_thousands_are_checked_in_steps(
    database: Database, store: Store, queries: RevocationPruningQueries, rows: RevocationQueries
) -> None:
    alice, count = await seen_user(database), 2 * CHECKED_AT_ONCE
    made = [revocation(user_id=alice, cluster_id=cluster_id()) for _ in range(count)]
    await rows.revoke_all(made, [event() for _ in made])
    step = await queries.prune(AFTER, 0, lambda _: event())
    assert (step.deleted, step.last_id) == (CHECKED_AT_ONCE, CHECKED_AT_ONCE)
    assert await prune(queries) == CHECKED_AT_ONCE
    assert left(store) == []


# --- what is kept --------------------------------------------------------------------------------------------------


async def test_revocations_of_ids_that_the_service_has_never_seen_are_kept(
    store: Store, queries: RevocationPruningQueries, rows: RevocationQueries
) -> None:
    """An operator stored them: for forged certificates, or after a restore that lost a user."""
    made = [
        await rows.revoke_user(
            revocation(user_id=user_id(), cluster_id=where), lambda _: event(), only_known=False
        )
        for where in ("", cluster_id())
    ]
    assert await prune(queries, at=NOW + timedelta(days=36_500)) == 0
    assert left(store) == [each.id for each in made]


async def test_revocations_that_keep_users_out_are_kept(
    database: Database, store: Store, queries: RevocationPruningQueries, rows: RevocationQueries
) -> None:
    directory = DirectoryQueries(database)
    disabled, deleted, blocked = await new_user(database), await new_user(database), await seen_user(database)
    await directory.enable_user(disabled, False, event("user.disabled"), event())
    await directory.remove_user(deleted, event("user.removed"), event())
    await FederationQueries(database).block(revocation(user_id=blocked), event())
    # The certificates of a deleted user are forgotten one day, and then this revocation is not needed.
    await rows.revoke(revocation(user_id=deleted, cluster_id=cluster_id()), event())
    assert await prune(queries, at=NOW + timedelta(days=36_500)) == 1
    assert store.rows("SELECT epoch FROM revocation") == [(NO_END,)] * 3
    await directory.enable_user(disabled, True, event("user.enabled"))
    assert await prune(queries, at=NOW + timedelta(days=36_500)) == 1


async def test_the_longest_lifetime_of_any_policy_counts(queries: RevocationPruningQueries) -> None:
    assert await queries.longest_lifetime() == LIFETIME
    for days in (90, 1):
        await queries.note_lifetime(timedelta(days=days))
    assert await queries.longest_lifetime() == timedelta(days=90)


async def test_without_a_known_policy_the_longest_possible_lifetime_counts(database: Database) -> None:
    assert await RevocationPruningQueries(database).longest_lifetime() == timedelta(days=1827)


# --- attacks -------------------------------------------------------------------------------------------------------


async def test_a_certificate_that_a_restore_lost_stays_revoked_if_it_comes_back(
    database: Database, store: Store, queries: RevocationPruningQueries, rows: RevocationQueries
) -> None:
    """The ledger lost it, an operator revokes its user, and later somebody inserts the lost row again."""
    alice, here = await seen_user(database), cluster_id()
    lost = await issue(database, alice, here)
    columns = [name for name, *_ in _columns(store)]
    (saved,) = store.rows(f"SELECT {', '.join(columns)} FROM certificate")
    forget(store, lost)
    await rows.revoke(revocation(user_id=alice), event())
    assert await prune(queries, at=NOW + LIFETIME) == 0
    marks = ", ".join("?" * len(columns))
    store.execute(f"INSERT INTO certificate ({', '.join(columns)}) VALUES ({marks})", *saved)
    assert await revoked(database, lost)
    assert await prune(queries, at=NOW + timedelta(days=36_500)) == 0


def _columns(store: Store) -> list[tuple[str, ...]]:
    if store.file is not None:
        return [(f'"{name}"',) for _, name, *_ in store.rows("PRAGMA table_info(certificate)")]
    query = (
        "SELECT quote_ident(column_name) FROM information_schema.columns"
        " WHERE table_name = 'certificate' AND table_schema = current_schema()"
    )
    return [(str(name),) for (name,) in store.rows(query)]


async def test_webhook_workers_agree_before_and_after(
    database: Database, store: Store, queries: RevocationPruningQueries, rows: RevocationQueries
) -> None:
    """One worker has read the revocations, one starts after the deletion, and one restarts its feed."""
    alice, here = await seen_user(database), cluster_id()
    forgotten, old = await issue(database, alice, cluster_id()), await issue(database, alice, here)
    feed = RevocationFeed(database)
    await feed.refresh()
    known = CredentialCache(database, feed)
    assert not await is_revoked(known, old)
    for made in (
        revocation(user_id=alice, cluster_id=here),
        revocation(user_id=alice, cluster_id=cluster_id()),
    ):
        await rows.revoke(made, event())
    await feed.refresh()
    live = await issue(database, alice, here)
    forget(store, forgotten)
    assert await prune(queries) == 1
    await feed.refresh()
    later = RevocationFeed(database)
    await later.refresh()
    for cache in (known, CredentialCache(database, later)):
        assert (await is_revoked(cache, old), await is_revoked(cache, live)) == (True, False)
        assert await look_up(cache, forgotten) is None
    # The next revocation reaches a worker whose last one was deleted.
    await rows.revoke(revocation(user_id=alice), event())
    await feed.refresh()
    assert await is_revoked(known, live)


async def test_the_certificates_of_a_scope_are_read_once_by_an_index(
    database: Database, store: Store, queries: RevocationPruningQueries, rows: RevocationQueries
) -> None:
    alice, here = await seen_user(database), cluster_id()
    for _ in range(3):
        for what in SCOPES:
            await rows.revoke(scope(what, alice, here), event())
    plans = QueryPlans(database, "certificate")
    with plans.noted():
        assert await prune(queries) == 9
    found = await plans.all()
    # One more query asks whether the service has seen the user.
    assert len(found) == len(SCOPES) + 1
    # On PostgreSQL, a small table is always scanned.
    assert store.file is None or not any("SCAN certificate" in plan for plan in found)

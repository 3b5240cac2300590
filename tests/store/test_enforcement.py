"""Queries for enforcing revocations in clusters, on each database."""

from dataclasses import replace
from datetime import timedelta

import pytest

from clustercert.model import CertificateRecord, Cluster, ClusterOptions
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes.enforcement import MAX_CHANGES, PAGE, RevokedCertificate
from support.credential_ledger import HERE, THERE, CredentialLedger
from support.samples import client_ca, cluster
from support.stores import NOW, Store, event


@pytest.fixture
def certificates(database: Database) -> CredentialLedger:
    return CredentialLedger(database)


# Affected clusters


async def test_every_kind_of_revocation_touches_the_clusters_that_it_is_about(
    certificates: CredentialLedger,
) -> None:
    here, _, there = (
        await certificates.issue(),
        await certificates.issue(),
        await certificates.issue(cluster_id=THERE),
    )
    since = await certificates.queries.newest()
    assert await certificates.queries.affected_clusters(
        since, NOW
    ) == await certificates.queries.affected_clusters(since, NOW)
    assert (await certificates.queries.affected_clusters(since, NOW)).cluster_ids == frozenset()

    await certificates.revoke(here)
    one = await certificates.queries.affected_clusters(since, NOW)
    assert one.cluster_ids == frozenset({HERE})
    await certificates.revoke(user_id=there.user_id, cluster_id=THERE)
    user = await certificates.queries.affected_clusters(one.newest, NOW)
    assert user.cluster_ids == frozenset({THERE})
    await certificates.revoke(cluster_id=HERE)
    everybody = await certificates.queries.affected_clusters(user.newest, NOW)
    assert everybody.cluster_ids == frozenset({HERE})
    await certificates.revoke(user_id=there.user_id)
    everywhere = await certificates.queries.affected_clusters(everybody.newest, NOW)
    assert everywhere.cluster_ids == frozenset({HERE, THERE})
    assert (await certificates.queries.affected_clusters(everywhere.newest, NOW)).cluster_ids == frozenset()
    assert (await certificates.queries.affected_clusters(since, NOW)).cluster_ids == frozenset({HERE, THERE})
    assert since < one.newest < user.newest < everybody.newest < everywhere.newest


async def test_a_revocation_everywhere_skips_expired_certificates(certificates: CredentialLedger) -> None:
    record = await certificates.issue()
    since = await certificates.queries.newest()
    await certificates.revoke(user_id=record.user_id)
    assert (await certificates.queries.affected_clusters(since, record.not_after)).cluster_ids == frozenset()
    before_the_end = record.not_after - timedelta(seconds=1)
    assert (await certificates.queries.affected_clusters(since, before_the_end)).cluster_ids == frozenset(
        {HERE}
    )


async def test_undoing_touches_too(certificates: CredentialLedger) -> None:
    made = await certificates.revoke(await certificates.issue())
    since = await certificates.queries.newest()
    await certificates.revocations.undo(made.id, by="cli:test", at=NOW, event=event())
    assert (await certificates.queries.affected_clusters(since, NOW)).cluster_ids == frozenset({HERE})


async def test_too_many_changes_are_not_told_apart(certificates: CredentialLedger, store: Store) -> None:
    revoked = await certificates.revoke(cluster_id=HERE)
    columns = 'epoch, changed, user_id, cluster_id, at, "by", reason, proved'
    for _ in range(2):
        store.execute(
            f"INSERT INTO revocation ({columns}) SELECT a.epoch, a.changed + 1, a.user_id, a.cluster_id, a.at, a.by,"
            f" a.reason, a.proved FROM revocation a, ({_numbers(MAX_CHANGES // 2)}) b WHERE a.id = {revoked.id}"
        )
    touched = await certificates.queries.affected_clusters(0, NOW)
    assert (touched.cluster_ids, touched.newest) == (None, revoked.epoch + 1)


def _numbers(count: int) -> str:
    return (
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n"
    )


# Live certificates


async def test_what_lives_is_neither_revoked_nor_expired_nor_elsewhere(
    certificates: CredentialLedger,
) -> None:
    good = [await certificates.issue(not_after=NOW + timedelta(hours=hours)) for hours in (3, 1, 2)]
    await certificates.issue(not_after=NOW)
    await certificates.issue(cluster_id=THERE)
    await certificates.revoke(await certificates.issue())
    await certificates.issue(user_id="leaves")
    await certificates.revoke(user_id="leaves", cluster_id=HERE)
    found = await certificates.queries.live(HERE, NOW, None)
    assert [each.credential_number for each in found] == [good[number].serial for number in (1, 2, 0)]
    first = found[0]
    assert (first.fingerprint, first.groups, first.rule) == (good[1].fingerprint, (), "admin")
    assert first.not_after == good[1].not_after


async def test_what_lives_comes_in_pages_that_leave_nothing_out(certificates: CredentialLedger) -> None:
    """Many certificates expire at the same time."""
    issued = {(await certificates.issue(not_after=NOW + timedelta(hours=1))).serial for _ in range(PAGE + 3)}
    first = await certificates.queries.live(HERE, NOW, None)
    second = await certificates.queries.live(HERE, NOW, first[-1])
    assert (len(first), len(second)) == (PAGE, 3)
    assert {each.credential_number for each in first + second} == issued
    assert await certificates.queries.live(HERE, NOW, second[-1]) == ()


async def test_what_is_recorded_has_ended_or_not(certificates: CredentialLedger) -> None:
    good, revoked, along = (
        await certificates.issue(),
        await certificates.issue(),
        await certificates.issue(user_id="leaves"),
    )
    expired = await certificates.issue(not_after=NOW)
    await certificates.revoke(revoked)
    await certificates.revoke(user_id="leaves")
    asked = [each.fingerprint for each in (good, revoked, along, expired)]
    assert await certificates.queries.ended([*asked, b"\0" * 32], NOW) == {
        good.fingerprint: False,
        revoked.fingerprint: True,
        along.fingerprint: True,
        expired.fingerprint: True,
    }


async def test_one_certificate_is_revoked_or_not(certificates: CredentialLedger) -> None:
    record, other = await certificates.issue(), await certificates.issue(user_id="another")
    assert not await certificates.queries.is_revoked(record.fingerprint)
    await certificates.revoke(user_id=record.user_id)
    assert await certificates.queries.is_revoked(record.fingerprint)
    assert not await certificates.queries.is_revoked(other.fingerprint)
    assert not await certificates.queries.is_revoked(b"\0" * 32)


# Revoked certificates


async def test_what_was_revoked_last_comes_first_however_it_was(certificates: CredentialLedger) -> None:
    first, second, third = [await certificates.issue() for _ in range(3)]
    along = await certificates.issue(user_id="another")
    ended = await certificates.issue(not_after=NOW)
    for minute, record in enumerate((second, first, ended)):
        await certificates.revoke(record, at=NOW + timedelta(minutes=minute))
    await certificates.revoke(user_id="another", at=NOW + timedelta(seconds=30))
    await certificates.issue(cluster_id=THERE, user_id="another")
    found = await certificates.queries.revoked(HERE, NOW, 10)
    assert found == tuple(
        RevokedCertificate(each.credential_number, each.not_after) for each in (first, along, second)
    )
    assert await certificates.queries.revoked(HERE, NOW, 1) == found[:1]
    assert await certificates.queries.count_revoked(HERE, NOW) == 3
    assert third.credential_number not in {each.credential_number for each in found}


async def test_what_is_good_again_is_not_among_the_revoked(certificates: CredentialLedger) -> None:
    record = await certificates.issue()
    made = await certificates.revoke(cluster_id=HERE)
    assert [each.credential_number for each in await certificates.queries.revoked(HERE, NOW, 10)] == [
        record.credential_number
    ]
    await certificates.revocations.undo(made.id, by="cli:test", at=NOW, event=event())
    assert await certificates.queries.revoked(HERE, NOW, 10) == ()


# Clusters with enforcement


async def test_clusters_are_found_by_what_their_options_ask_for(database: Database, store: Store) -> None:
    rows, wanted = ClusterQueries(database), {}
    options = {
        "plain": ClusterOptions(),
        "known-only": ClusterOptions(mode="known-only"),
        "admission": ClusterOptions(admission=True),
        "roles": ClusterOptions(credential_roles={"admin": "cluster-admin"}),
        "no more": ClusterOptions(credential_roles={}),
    }
    for number, (name, said) in enumerate(options.items()):
        wanted[name] = await registered(rows, store, number, said)
    first = await rows.enforced("", 2)
    second = await rows.enforced(first[-1].id, 2)
    assert [each.id for each in first + second] == [
        wanted[name].id for name in ("admission", "roles", "no more")
    ]
    assert [each.options for each in first + second] == [
        options[name] for name in ("admission", "roles", "no more")
    ]
    assert await rows.enforced(second[-1].id, 2) == ()
    some = await rows.clusters_with_ids({wanted["plain"].id, wanted["roles"].id, "nobody's"})
    assert {each.id for each in some} == {wanted["plain"].id, wanted["roles"].id}


async def registered(queries: ClusterQueries, store: Store, number: int, options: ClusterOptions) -> Cluster:
    ca = replace(client_ca(), id=f"{number:032x}", cluster_id=f"{number:036x}")
    made = replace(
        cluster(ca), id=ca.cluster_id, name=f"cluster-{number}", project_id="0" * 32, options=options
    )
    if number == 0:
        store.execute("INSERT INTO domain (id, name, enabled) VALUES (?, 'd', true)", "0" * 32)
        store.execute(
            "INSERT INTO project (id, domain_id, name, description, enabled, labels)"
            " VALUES (?, ?, 'p', '', true, '{}')",
            "0" * 32,
            "0" * 32,
        )
    await queries.add(made, event(), 100)
    return made


# Tokens


async def test_recently_ended_tokens_of_a_cluster(certificates: CredentialLedger) -> None:
    async def token(**changed: object) -> CertificateRecord:
        return await certificates.issue(kind="token", **changed)

    before = await token()
    await certificates.revoke(before)
    generation = await certificates.queries.newest()
    live, over, own = await token(), await token(not_after=NOW), await token()
    long_over = await token(not_after=NOW - timedelta(minutes=5))
    of_user, elsewhere = await token(user_id="u"), await token(cluster_id=THERE, user_id="u")
    certificate = await certificates.issue(user_id="u")
    for revoked in (own, long_over, elsewhere):
        await certificates.revoke(revoked)
    await certificates.revoke(user_id="u")
    later = await token(user_id="u")
    queries, since = certificates.queries, NOW - timedelta(minutes=1)
    found = await queries.ended_tokens(HERE, generation, since, NOW)
    assert sorted(found) == sorted(each.credential_number for each in (over, own, of_user))
    numbers = [
        each.credential_number for each in (before, live, over, own, of_user, elsewhere, certificate, later)
    ]
    states = await queries.token_states(numbers, NOW)
    assert {number for number, is_ended in states.items() if not is_ended} == {
        live.credential_number,
        later.credential_number,
    }
    assert set(numbers) - states.keys() == {certificate.credential_number}
    newest = await queries.newest()
    assert await queries.ended_tokens(HERE, newest, NOW, NOW) == ()
    await certificates.revoke(cluster_id=HERE)
    assert set(await queries.ended_tokens(HERE, newest, NOW, NOW)) == {
        each.credential_number for each in (before, live, own, of_user, later)
    }
    assert await queries.expired_clusters(since, NOW) == frozenset({HERE})
    assert await queries.expired_clusters(NOW, NOW + timedelta(minutes=1)) == frozenset()


async def test_expired_certificates_are_not_expired_tokens(certificates: CredentialLedger) -> None:
    await certificates.issue(not_after=NOW)
    before = NOW - timedelta(seconds=1)
    assert await certificates.queries.expired_clusters(before, NOW) == frozenset()
    assert await certificates.queries.ended_tokens(HERE, 0, before, NOW) == ()

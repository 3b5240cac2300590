"""What API servers have to know of revocations, on each database."""

from dataclasses import replace
from datetime import timedelta

import pytest

from clustercert.model import Cluster, ClusterOptions
from clustercert.store.clusters import ClusterRows
from clustercert.store.database import Database
from clustercert.store.enforcement import MAX_CHANGES, PAGE, Revoked
from nouns import client_ca, cluster
from shelf import HERE, THERE, Shelf
from stores import NOW, Store, event


@pytest.fixture
def shelf(database: Database) -> Shelf:
    return Shelf(database)


# What is touched


async def test_every_kind_of_revocation_touches_the_clusters_that_it_is_about(shelf: Shelf) -> None:
    here, _, there = await shelf.issue(), await shelf.issue(), await shelf.issue(cluster_id=THERE)
    since = await shelf.rows.newest()
    assert await shelf.rows.touched(since, NOW) == await shelf.rows.touched(since, NOW)
    assert (await shelf.rows.touched(since, NOW)).cluster_ids == frozenset()

    await shelf.revoke(here)
    one = await shelf.rows.touched(since, NOW)
    assert one.cluster_ids == frozenset({HERE})
    await shelf.revoke(user_id=there.user_id, cluster_id=THERE)
    user = await shelf.rows.touched(one.newest, NOW)
    assert user.cluster_ids == frozenset({THERE})
    await shelf.revoke(cluster_id=HERE)
    everybody = await shelf.rows.touched(user.newest, NOW)
    assert everybody.cluster_ids == frozenset({HERE})
    await shelf.revoke(user_id=there.user_id)
    everywhere = await shelf.rows.touched(everybody.newest, NOW)
    assert everywhere.cluster_ids == frozenset({HERE, THERE})
    assert (await shelf.rows.touched(everywhere.newest, NOW)).cluster_ids == frozenset()
    assert (await shelf.rows.touched(since, NOW)).cluster_ids == frozenset({HERE, THERE})
    assert since < one.newest < user.newest < everybody.newest < everywhere.newest


async def test_a_revocation_everywhere_does_not_touch_where_everything_has_expired(shelf: Shelf) -> None:
    record = await shelf.issue()
    since = await shelf.rows.newest()
    await shelf.revoke(user_id=record.user_id)
    assert (await shelf.rows.touched(since, record.not_after)).cluster_ids == frozenset()
    before_the_end = record.not_after - timedelta(seconds=1)
    assert (await shelf.rows.touched(since, before_the_end)).cluster_ids == frozenset({HERE})


async def test_undoing_touches_too(shelf: Shelf) -> None:
    made = await shelf.revoke(await shelf.issue())
    since = await shelf.rows.newest()
    await shelf.revocations.undo(made.id, by="cli:test", at=NOW, event=event())
    assert (await shelf.rows.touched(since, NOW)).cluster_ids == frozenset({HERE})


async def test_too_many_changes_are_not_told_apart(shelf: Shelf, store: Store) -> None:
    revoked = await shelf.revoke(cluster_id=HERE)
    columns = 'epoch, changed, user_id, cluster_id, at, "by", reason, proved'
    for _ in range(2):
        store.execute(
            f"INSERT INTO revocation ({columns}) SELECT a.epoch, a.changed + 1, a.user_id, a.cluster_id, a.at, a.by,"
            f" a.reason, a.proved FROM revocation a, ({_numbers(MAX_CHANGES // 2)}) b WHERE a.id = {revoked.id}"
        )
    touched = await shelf.rows.touched(0, NOW)
    assert (touched.cluster_ids, touched.newest) == (None, revoked.epoch + 1)


def _numbers(count: int) -> str:
    return (
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n"
    )


# What lives


async def test_what_lives_is_neither_revoked_nor_expired_nor_elsewhere(shelf: Shelf) -> None:
    good = [await shelf.issue(not_after=NOW + timedelta(hours=hours)) for hours in (3, 1, 2)]
    await shelf.issue(not_after=NOW)
    await shelf.issue(cluster_id=THERE)
    await shelf.revoke(await shelf.issue())
    await shelf.issue(user_id="leaves")
    await shelf.revoke(user_id="leaves", cluster_id=HERE)
    found = await shelf.rows.live(HERE, NOW, None)
    assert [each.credential_number for each in found] == [good[number].serial for number in (1, 2, 0)]
    first = found[0]
    assert (first.fingerprint, first.groups, first.rule) == (good[1].fingerprint, (), "admin")
    assert first.not_after == good[1].not_after


async def test_what_an_older_program_recorded_has_the_number_of_its_group(shelf: Shelf) -> None:
    bound = await shelf.issue_as_before(not_after=NOW + timedelta(hours=1))
    unnumbered = await shelf.issue(
        credential_number=None, groups=("clustercert:admins",), not_after=NOW + timedelta(hours=2)
    )
    both = await shelf.issue(groups=("clustercert:admins",), not_after=NOW + timedelta(hours=3))
    found = await shelf.rows.live(HERE, NOW, None)
    assert [(each.fingerprint, each.credential_number, each.groups) for each in found] == [
        (bound.fingerprint, bound.serial, ()),
        (unnumbered.fingerprint, None, ("clustercert:admins",)),
        (both.fingerprint, both.credential_number, ("clustercert:admins",)),
    ]
    for record in (bound, unnumbered, both):
        await shelf.revoke(record)
    assert set(await shelf.rows.revoked(HERE, NOW, 10)) == {
        Revoked(bound.fingerprint, bound.serial, bound.not_after),
        Revoked(unnumbered.fingerprint, None, unnumbered.not_after),
        Revoked(both.fingerprint, both.credential_number, both.not_after),
    }


async def test_when_the_last_certificate_without_a_credential_group_ends(shelf: Shelf) -> None:
    assert await shelf.rows.last_unnumbered(NOW) is None
    await shelf.issue(not_after=NOW + timedelta(days=9))
    await shelf.issue_as_before(not_after=NOW + timedelta(days=9))
    assert await shelf.rows.last_unnumbered(NOW) is None
    ends = [NOW + timedelta(days=days) for days in (1, 3, 2)]
    plain = [
        await shelf.issue(credential_number=None, groups=("clustercert:admins",), not_after=end)
        for end in ends
    ]
    elsewhere = await shelf.issue(
        credential_number=None, groups=("x",), cluster_id=THERE, not_after=NOW + timedelta(days=5)
    )
    assert await shelf.rows.last_unnumbered(NOW) == NOW + timedelta(days=5), "whatever the cluster"
    await shelf.revoke(plain[1])
    await shelf.revoke(elsewhere)
    assert await shelf.rows.last_unnumbered(NOW) == NOW + timedelta(days=5), "it may be shown altered"
    assert await shelf.rows.last_unnumbered(NOW + timedelta(days=5)) is None


async def test_what_lives_comes_in_pages_that_leave_nothing_out(shelf: Shelf) -> None:
    """Many end at the same moment."""
    issued = {(await shelf.issue(not_after=NOW + timedelta(hours=1))).serial for _ in range(PAGE + 3)}
    first = await shelf.rows.live(HERE, NOW, None)
    second = await shelf.rows.live(HERE, NOW, first[-1])
    assert (len(first), len(second)) == (PAGE, 3)
    assert {each.credential_number for each in first + second} == issued
    assert await shelf.rows.live(HERE, NOW, second[-1]) == ()


async def test_what_is_recorded_has_ended_or_not(shelf: Shelf) -> None:
    good, revoked, along = await shelf.issue(), await shelf.issue(), await shelf.issue(user_id="leaves")
    expired = await shelf.issue(not_after=NOW)
    await shelf.revoke(revoked)
    await shelf.revoke(user_id="leaves")
    asked = [each.fingerprint for each in (good, revoked, along, expired)]
    assert await shelf.rows.ended([*asked, b"\0" * 32], NOW) == {
        good.fingerprint: False,
        revoked.fingerprint: True,
        along.fingerprint: True,
        expired.fingerprint: True,
    }


async def test_one_certificate_is_revoked_or_not(shelf: Shelf) -> None:
    record, other = await shelf.issue(), await shelf.issue(user_id="another")
    assert not await shelf.rows.is_revoked(record.fingerprint)
    await shelf.revoke(user_id=record.user_id)
    assert await shelf.rows.is_revoked(record.fingerprint)
    assert not await shelf.rows.is_revoked(other.fingerprint)
    assert not await shelf.rows.is_revoked(b"\0" * 32)


# What is revoked


async def test_what_was_revoked_last_comes_first_however_it_was(shelf: Shelf) -> None:
    first, second, third = [await shelf.issue() for _ in range(3)]
    along = await shelf.issue(user_id="another")
    ended = await shelf.issue(not_after=NOW)
    for minute, record in enumerate((second, first, ended)):
        await shelf.revoke(record, at=NOW + timedelta(minutes=minute))
    await shelf.revoke(user_id="another", at=NOW + timedelta(seconds=30))
    await shelf.issue(cluster_id=THERE, user_id="another")
    found = await shelf.rows.revoked(HERE, NOW, 10)
    assert found == tuple(
        Revoked(each.fingerprint, each.credential_number, each.not_after) for each in (first, along, second)
    )
    assert await shelf.rows.revoked(HERE, NOW, 1) == found[:1]
    assert await shelf.rows.count_revoked(HERE, NOW) == 3
    assert third.fingerprint not in {each.fingerprint for each in found}


async def test_what_is_good_again_is_not_among_the_revoked(shelf: Shelf) -> None:
    record = await shelf.issue()
    made = await shelf.revoke(cluster_id=HERE)
    assert [each.fingerprint for each in await shelf.rows.revoked(HERE, NOW, 10)] == [record.fingerprint]
    await shelf.revocations.undo(made.id, by="cli:test", at=NOW, event=event())
    assert await shelf.rows.revoked(HERE, NOW, 10) == ()


# Which clusters ask for it


async def test_clusters_are_found_by_what_their_options_ask_for(database: Database, store: Store) -> None:
    rows, wanted = ClusterRows(database), {}
    options = {
        "plain": ClusterOptions(),
        "known-only": ClusterOptions(mode="known-only"),
        "admission": ClusterOptions(admission=True),
        "roles": ClusterOptions(credential_roles={"admin": "cluster-admin"}),
        "no more": ClusterOptions(credential_roles={}),
    }
    for number, (name, said) in enumerate(options.items()):
        wanted[name] = await registered(rows, store, number, said)
    # As a program leaves it that knows nothing of options.
    wanted["older"] = await registered(rows, store, 9, ClusterOptions())
    store.execute("UPDATE cluster SET options = NULL WHERE id = ?", wanted["older"].id)

    first = await rows.guarded("", 2)
    second = await rows.guarded(first[-1].id, 2)
    assert [each.id for each in first + second] == [
        wanted[name].id for name in ("admission", "roles", "no more")
    ]
    assert [each.options for each in first + second] == [
        options[name] for name in ("admission", "roles", "no more")
    ]
    assert await rows.guarded(second[-1].id, 2) == ()
    some = await rows.some({wanted["plain"].id, wanted["older"].id, "nobody's"})
    assert {each.id for each in some} == {wanted["plain"].id, wanted["older"].id}


async def registered(rows: ClusterRows, store: Store, number: int, options: ClusterOptions) -> Cluster:
    ca = replace(client_ca(), id=f"{number:032x}", cluster_id=f"{number:036x}")
    made = replace(
        cluster(ca), id=ca.cluster_id, name=f"cluster-{number}", project_id="0" * 32, options=options
    )
    if number == 0:
        store.execute("INSERT INTO domain (id, name, enabled) VALUES (?, 'd', true)", "0" * 32)
        store.execute(
            "INSERT INTO project (id, domain_id, name, description, enabled) VALUES (?, ?, 'p', '', true)",
            "0" * 32,
            "0" * 32,
        )
    await rows.add(made, event())
    return made

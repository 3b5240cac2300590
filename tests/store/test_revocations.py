"""Which certificates are revoked, on each database."""

import uuid
from dataclasses import replace

import pytest
from sqlalchemy import insert, select

from clustercert.model.errors import Conflict, NotFound
from clustercert.store import tables
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.revocations import NO_END, RevocationQueries
from clustercert.store.certificates.views import is_revoked
from clustercert.store.engine.database import Database
from clustercert.store.identity.directory import DirectoryQueries
from support.store_records import LATER, cluster_id, issue, new_user, revoked, undo, user_id
from support.stores import NOW, Store, certificate_record, event, revocation


async def test_a_revocation_covers_its_scope_until_it_is_undone(
    database: Database,
) -> None:
    alice, bob, here, there = user_id(), user_id(), cluster_id(), cluster_id()
    places = [(user, cluster) for user in (alice, bob) for cluster in (here, there)]
    covered = {
        ("", here): [(alice, here), (bob, here)],
        (alice, ""): [(alice, here), (alice, there)],
        (bob, there): [(bob, there)],
    }
    for (user, cluster), expected in covered.items():
        before = {place: await issue(database, *place) for place in places}
        made = await RevocationQueries(database).revoke(revocation(user_id=user, cluster_id=cluster), event())
        after = {place: await issue(database, *place) for place in places}
        assert [place for place in places if await revoked(database, before[place])] == expected
        assert [place for place in places if await revoked(database, after[place])] == []
        await undo(database, made)
        assert [place for place in places if await revoked(database, before[place])] == []


async def test_one_certificate_is_revoked_and_its_row_says_so(database: Database, store: Store) -> None:
    alice, here = user_id(), cluster_id()
    one, other = [await issue(database, alice, here) for _ in range(2)]
    wanted = revocation(fingerprint=one.fingerprint, user_id=alice, cluster_id=here)
    made = await RevocationQueries(database).revoke(
        wanted, event("certificate.revoked", one.fingerprint.hex())
    )

    assert (await revoked(database, one), await revoked(database, other)) == (True, False)
    assert made == replace(wanted, id=made.id, epoch=1)
    query = "SELECT revoked_at, revoked_by, revoked_why FROM certificate WHERE fingerprint = ?"
    assert store.rows(query, one.fingerprint) == [(store.time(NOW), "cli:test", "superseded")]
    assert store.rows(query, other.fingerprint) == [(None, None, None)]
    assert [said["kind"] for said in store.events()][2:] == ["certificate.revoked"]
    assert store.rows("SELECT value FROM generation") == [(1,)]

    undone = await undo(database, made)
    assert undone == replace(made, undone_at=LATER, undone_by="cli:other")
    assert not await revoked(database, one)
    assert store.rows(query, one.fingerprint) == [(None, None, None)]
    assert store.rows("SELECT epoch, changed FROM revocation") == [(1, 2)]
    assert await RevocationQueries(database).revocation(made.id) == undone


async def test_single_revocations_of_a_user_revoke_nothing_else_of_theirs(database: Database) -> None:
    """They are in the same index as revocations of all certificates of a user."""
    alice, here = user_id(), cluster_id()
    first, second = [await issue(database, alice, here) for _ in range(2)]
    for place in ((alice, here), (alice, ""), ("", here)):
        wanted = revocation(fingerprint=first.fingerprint, user_id=place[0], cluster_id=place[1])
        await RevocationQueries(database).revoke(wanted, event())
    assert not await revoked(database, second)


async def test_what_two_revocations_hold_stays_revoked_when_one_is_undone(
    database: Database, store: Store
) -> None:
    alice, here = user_id(), cluster_id()
    one = await issue(database, alice, here)
    single = revocation(fingerprint=one.fingerprint, user_id=alice, cluster_id=here)
    rows = RevocationQueries(database)
    first = await rows.revoke(single, event())
    second = await rows.revoke(replace(single, reason="keyCompromise", by="holder", proved=True), event())
    assert [each.id for each in await rows.revocations_of_certificate(one.fingerprint)] == [
        second.id,
        first.id,
    ]
    await undo(database, first)
    assert await revoked(database, one)
    assert store.rows("SELECT revoked_by, revoked_why FROM certificate") == [("holder", "keyCompromise")]


async def test_an_undone_or_missing_one_can_not_be_undone(database: Database, store: Store) -> None:
    made = await RevocationQueries(database).revoke(revocation(user_id=user_id()), event())
    await undo(database, made)
    kept = store.rows("SELECT * FROM revocation"), store.rows("SELECT * FROM audit_event")
    with pytest.raises(Conflict, match="already"):
        await undo(database, made)
    with pytest.raises(NotFound):
        await undo(database, replace(made, id=made.id + 1))
    assert (store.rows("SELECT * FROM revocation"), store.rows("SELECT * FROM audit_event")) == kept
    assert store.rows("SELECT value FROM generation") == [(2,)]


async def test_a_number_names_its_certificate_before_another_ones_serial(database: Database) -> None:
    ledger, rows = Ledger(database), RevocationQueries(database)
    (record, issued), (other, other_issued) = certificate_record(), certificate_record()
    chosen = replace(other, serial=record.credential_number)
    await ledger.record(record, issued)
    await ledger.record(chosen, other_issued)
    [found] = await rows.find(chosen.serial)
    assert found.fingerprint == record.fingerprint
    [found] = await rows.find(chosen.serial, cluster_id=chosen.cluster_id)
    assert found.fingerprint == chosen.fingerprint


async def test_certificates_are_found_by_fingerprint_number_or_serial(database: Database) -> None:
    one, other = [await issue(database, user_id(), cluster_id(), serial=serial) for serial in ("5a", "5b")]
    rows = RevocationQueries(database)
    for wanted in (one.fingerprint.hex(), one.credential_number, one.serial):
        [found] = await rows.find(wanted)
        assert (found.fingerprint, found.der, found.revoked_at) == (one.fingerprint, one.der, None)
        assert (found.user_id, found.cluster_id) == (one.user_id, one.cluster_id)
        assert await rows.find(wanted, cluster_id=one.cluster_id) == (found,)
        assert await rows.find(wanted, cluster_id=other.cluster_id) == ()
    made = await rows.revoke(revocation(user_id=one.user_id), event())
    [found] = await rows.find(one.serial)
    assert found.revoked_at == made.at


async def test_lists_are_pages_the_newest_first(database: Database) -> None:
    alice, here, project = user_id(), cluster_id(), uuid.uuid4().hex
    rows = RevocationQueries(database)
    one = await issue(database, alice, here)
    in_project = replace(revocation(cluster_id=here), project_id=project)
    made = [
        await rows.revoke(wanted, event())
        for wanted in (
            replace(in_project, user_id=alice),
            in_project,
            replace(in_project, user_id=alice, fingerprint=one.fingerprint),
        )
    ]
    everywhere = await rows.revoke(revocation(user_id=alice), event())
    await rows.revoke(replace(in_project, cluster_id=cluster_id()), event())
    await rows.revoke(replace(in_project, project_id=uuid.uuid4().hex), event())
    assert await rows.revocations_of_cluster(project, here, limit=9) == tuple(reversed(made))
    assert await rows.revocations_of_cluster(project, here, limit=2) == (made[2], made[1])
    assert await rows.revocations_of_cluster(project, here, limit=2, before=made[1].id) == (made[0],)
    assert await rows.revocations_of_user(alice, limit=9) == (everywhere,)
    assert await rows.revocations_of_user(alice, limit=9, before=everywhere.id) == ()


@pytest.mark.parametrize("what", ["disabled", "removed", "disabled, then removed"])
async def test_a_user_who_goes_loses_what_they_have_and_what_is_issued_meanwhile(
    database: Database, store: Store, what: str
) -> None:
    """A worker may still treat the user as enabled for up to a second."""
    alice, here = await new_user(database), cluster_id()
    bobs = await issue(database, user_id(), here)
    before = await issue(database, alice, here)
    directory = DirectoryQueries(database)
    if "disabled" in what:
        await directory.enable_user(alice, False, event("user.disabled"), event("user.revoked"))
    if "removed" in what:
        await directory.remove_user(alice, event("user.removed"), event("user.revoked"))
    meanwhile = await issue(database, alice, here)
    assert [await revoked(database, each) for each in (before, meanwhile, bobs)] == [True, True, False]
    [standing] = await RevocationQueries(database).revocations_of_user(alice, limit=9)
    assert (standing.epoch, standing.reason, standing.by) == (NO_END, "cessationOfOperation", "cli:test")
    with pytest.raises(Conflict, match="Enable or unblock the user"):
        await undo(database, standing)
    kinds = [said["kind"] for said in store.events()]
    assert kinds.count("user.revoked") == len(what.split(", "))


async def test_a_user_who_is_enabled_again_gets_good_ones_and_none_back(
    database: Database, store: Store
) -> None:
    alice, here, directory = await new_user(database), cluster_id(), DirectoryQueries(database)
    lost = [await issue(database, alice, here)]
    for _ in range(2):
        await directory.enable_user(alice, False, event(), event())
        lost.append(await issue(database, alice, here))
        await directory.enable_user(alice, True, event())
        lost_now = await issue(database, alice, here)
        assert not await revoked(database, lost_now)
        assert [await revoked(database, each) for each in lost] == [True] * len(lost)
        lost.append(lost_now)
    assert store.rows("SELECT count(*) FROM revocation WHERE epoch < ? AND epoch = changed", NO_END) == [(2,)]


async def test_enabling_and_disabling_twice_changes_nothing_more(
    database: Database,
) -> None:
    alice, here, directory = await new_user(database), cluster_id(), DirectoryQueries(database)
    good = await issue(database, alice, here)
    await directory.enable_user(alice, True, event())
    assert not await revoked(database, good)
    for _ in range(2):
        await directory.enable_user(alice, False, event(), event())
    assert len(await RevocationQueries(database).revocations_of_user(alice, limit=9)) == 1
    with pytest.raises(NotFound):
        await directory.enable_user(user_id(), False, event(), event())


# --- speed ---------------------------------------------------------------------------------------------------------


async def test_whether_a_certificate_is_revoked_is_answered_by_indexes(
    database: Database, store: Store
) -> None:
    here, alice = cluster_id(), user_id()
    made = {"epoch": 1, "changed": 1, "at": NOW, "by": "cli:test", "reason": "superseded", "proved": False}
    singles = [
        made | {"fingerprint": number.to_bytes(32), "user_id": alice, "cluster_id": here}
        for number in range(2000)
    ]
    others = [made | {"fingerprint": None, "user_id": user_id(), "cluster_id": here} for _ in range(2000)]
    async with database.transaction() as connection:
        await connection.execute(insert(tables.revocation), singles + others)
    query = select(is_revoked()).where(tables.certificate.c.id == 1)
    compiled = str(query.compile(database.engine.sync_engine, compile_kwargs={"literal_binds": True}))
    if store.file is not None:
        plan = [str(row[-1]) for row in store.rows(f"EXPLAIN QUERY PLAN {compiled}")]
        conditions = [line for line in plan if "revocation" in line]
        used = "(user_id=? AND cluster_id=? AND fingerprint=? AND epoch>?)"
    else:
        store.execute("ANALYZE revocation")
        plan = [str(row[0]) for row in store.rows(f"EXPLAIN {compiled}")]
        conditions = [line for line in plan if "Index Cond" in line and "fingerprint IS NULL" in line]
        used = "epoch >"
    probes = [line for line in plan if "ix_revocation_user_id_cluster_id_fingerprint_epoch" in line]
    assert len(probes) == len(conditions) == 3
    assert all(used in line for line in conditions)
    assert not [line for line in plan if "SCAN revocation" in line or "Seq Scan on revocation" in line]

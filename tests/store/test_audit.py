"""Proofs from the audit log, also after events were deleted, and pages of events at constant cost."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event as engine_events
from sqlalchemy import insert

from clustercert.audit.event_access import EventAccess
from clustercert.audit.sealer import MAX_BATCH
from clustercert.custody.keks import write_new_kek_file
from clustercert.merkle.tiles import ENTRIES, TileId, TilePath, split_hashes
from clustercert.merkle.tree import leaf_hash, verify_consistency, verify_inclusion
from clustercert.model import Actor
from clustercert.model.errors import InvalidRequest, LogDamaged, NotFound, Unavailable
from clustercert.store import tables
from clustercert.store.audit.events import event_row
from clustercert.store.audit.evidence import EvidenceQueries
from clustercert.store.audit.log import SCANNED, EventFilter, EventPage, EventPages
from support import sealer_process
from support.samples import caller
from support.sealer_process import SealerProcess, commitments
from support.statements import QueryPlans
from support.stores import NOW, ORIGIN, Store, event, patient

PROJECT = "0c97ac3cb280f4d91fa7c0096739e1f8"


@pytest.fixture
async def log(store: Store, tmp_path: Path) -> AsyncIterator[SealerProcess]:
    write_new_kek_file(tmp_path / "kek")
    async with sealer_process.opened(store, tmp_path / "kek") as it:
        await it.sealer.seal_all()
        yield it


async def grow(log: SealerProcess, *steps: int) -> list[int]:
    """Seal these numbers of events one after another, and return the log sizes."""
    sizes = []
    for step in steps:
        await log.happen(step)
        await log.sealer.seal_all()
        sizes.append((await log.log.log()).size)
    return sizes


async def everything(
    log: SealerProcess, wanted: EventFilter, limit: int = 1000, *, newest_first: bool = False
) -> list[int]:
    """Return the leaf indexes of all events that match, page by page."""
    places, cursor, more = list[int](), None, True
    while more:
        page: EventPage = await log.log.events(wanted, cursor=cursor, newest_first=newest_first, limit=limit)
        places += [each.leaf_index for each in page.events if each.leaf_index is not None]
        cursor, more = page.cursor, page.cursor is not None
    return places


async def test_proofs_of_a_log_of_many_tiles_verify(log: SealerProcess, store: Store) -> None:
    sizes = await grow(log, 3, 250, 2, 300, 1500)
    leaves = commitments(store)
    roots = {size: sealer_process.root(leaves[:size]) for size in sizes}
    for size in sizes:
        for place in {0, 1, size // 2, 255 % size, 256 % size, 512 % size, size - 1}:
            [found] = await EvidenceQueries(log.database).events(place, place + 1)
            proof = await log.log.inclusion(found, size)
            assert (proof.checkpoint.size, proof.checkpoint.root) == (size, roots[size])
            verify_inclusion(leaf_hash(leaves[place]), place, size, proof.hashes, roots[size])
    for old in sizes:
        for new in sizes:
            if old <= new:
                verify_consistency(old, roots[old], new, roots[new], await log.log.consistency(old, new))
    for old in (0, 1, 7, 256, 257, 1000):
        verify_consistency(
            old,
            sealer_process.root(leaves[:old]),
            sizes[-1],
            roots[sizes[-1]],
            await log.log.consistency(old, sizes[-1]),
        )


async def test_a_proof_reads_few_tiles_and_no_events(log: SealerProcess) -> None:
    await grow(log, 1500)
    [found] = await EvidenceQueries(log.database).events(700, 701)
    statements = []

    def note(_connection: object, _cursor: object, statement: str, *_others: object) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    engine_events.listen(log.database.engine.sync_engine, "before_cursor_execute", note)
    await log.log.inclusion(found)
    assert len(statements) == 2
    assert not any("audit_event" in statement for statement in statements)


async def test_proofs_stay_valid_after_events_are_deleted(log: SealerProcess, store: Store) -> None:
    [size] = await grow(log, 300)
    leaves = commitments(store)
    root = sealer_process.root(leaves)
    before = await EvidenceQueries(log.database).events(0, size)
    store.execute(
        "DELETE FROM audit_event WHERE id IN"
        " (SELECT event_id FROM audit_place WHERE leaf_index >= 100 AND leaf_index < 200)"
    )
    for each in before:
        assert each.leaf_index is not None
        proof = await log.log.inclusion(each)
        verify_inclusion(leaf_hash(each.commitment), each.leaf_index, size, proof.hashes, root)
    around = await EvidenceQueries(log.database).events(98, 202)
    assert [each.leaf_index for each in around] == [98, 99, 200, 201]
    listed = await everything(log, EventFilter(), 7, newest_first=False)
    assert listed == [each.leaf_index for each in before if each.leaf_index not in range(100, 200)]
    entries = await log.log.tile(TilePath(TileId(ENTRIES, 0)))
    assert split_hashes(entries) == leaves[:256], "the commitments of deleted events are still stored"
    [larger] = await grow(log, 5)
    newest = await log.log.checkpoint()
    verify_consistency(size, root, larger, newest.root, await log.log.consistency(size, larger))


@pytest.mark.parametrize("columns", ["audit_place", "audit_place, audit_event"])
async def test_the_sealed_body_decides_who_may_see_an_event(
    log: SealerProcess, store: Store, columns: str
) -> None:
    async with log.database.transaction(replace(event(), project_id=PROJECT)):
        pass
    await log.sealer.seal_all()
    place = (await log.log.log()).size - 1
    access, other = EventAccess(log.log), "f" * 32

    async def seen(project: str) -> tuple[list[int | None], bool]:
        """The leaf indexes that the admin of a project sees, and whether the event itself can be read."""
        admin = caller(in_projects={project: ("admin",)})
        page = await access.page(
            admin, EventFilter(project_id=project), cursor=None, newest_first=True, limit=9
        )
        try:
            await access.event(admin, project, place)
        except NotFound:
            return [each.leaf_index for each in page.events], False
        return [each.leaf_index for each in page.events], True

    assert (await seen(PROJECT), await seen(other)) == (([place], True), ([], False))
    for table in columns.split(", "):
        store.execute(f"UPDATE {table} SET project_id = ?", other)
    assert await seen(other) == ([], False)


async def test_unsealed_events_are_not_proved_or_listed(log: SealerProcess) -> None:
    [size] = await grow(log, 1)
    await log.happen(1)
    assert await log.log.pages.event(size) is None
    assert await everything(log, EventFilter()) == list(range(size))


async def test_impossible_proofs_are_refused(log: SealerProcess) -> None:
    first, second = await grow(log, 3, 2)
    [last] = await EvidenceQueries(log.database).events(second - 1, second)
    with pytest.raises(InvalidRequest, match="larger than the event"):
        await log.log.inclusion(last, first)
    with pytest.raises(NotFound, match="of this size"):
        await log.log.inclusion(last, second - 1)
    with pytest.raises(NotFound, match="must not exceed the size of the log"):
        await log.log.consistency(1, second + 1)
    with pytest.raises(InvalidRequest):
        await log.log.consistency(2, 1)
    with pytest.raises(NotFound):
        await log.log.tile(TilePath(TileId(0, 0), second + 1))


async def test_a_missing_tile_is_damage(log: SealerProcess, store: Store) -> None:
    await grow(log, 3)
    [first] = await EvidenceQueries(log.database).events(0, 1)
    store.execute("DELETE FROM audit_tile WHERE level = 0")
    with pytest.raises(LogDamaged):
        await log.log.inclusion(first)
    with pytest.raises(NotFound):
        await log.log.tile(TilePath(TileId(0, 0), 1))


async def test_without_a_log_all_reads_are_unavailable(store: Store, tmp_path: Path) -> None:
    write_new_kek_file(tmp_path / "kek")
    async with sealer_process.opened(store, tmp_path / "kek") as log:
        for ask in (log.log.log, log.log.verifier_key, log.log.checkpoint):
            with pytest.raises(Unavailable):
                await ask()
        assert await everything(log, EventFilter()) == []


async def test_events_are_filtered_by_their_fields(log: SealerProcess) -> None:
    others = {
        "project": replace(event(), project_id=PROJECT),
        "kind": event("thing.changed"),
        "like": event("thing_changed"),
        "actor": replace(event(), actor=Actor("somebody", ORIGIN)),
        "subject": event(subject="other"),
        "early": replace(event(), at=NOW - timedelta(days=1)),
        "late": replace(event(), at=NOW + timedelta(days=1)),
    }
    names = list(others)
    async with log.database.transaction(*others.values()):
        pass
    await log.sealer.seal_all()
    for wanted, found in (
        (EventFilter(project_id=PROJECT), ["project"]),
        (EventFilter(kind="thing.changed"), ["kind"]),
        (EventFilter(kind="thing.c*"), ["kind"]),
        (EventFilter(kind="thing_*"), ["like"]),
        (EventFilter(actor="somebody"), ["actor"]),
        (EventFilter(subject="other"), ["subject"]),
        (EventFilter(project_id=PROJECT, actor="somebody"), []),
        (EventFilter(user_id=PROJECT), ["project"]),
        (EventFilter(user_id="somebody", cluster_id="thing.happened"), ["actor"]),
        (EventFilter(cluster_id=PROJECT, access_request_id="somebody"), []),
        # Neither a wildcard of SQL nor the other case of a letter matches.
        (EventFilter(user_id="some%"), []),
        (EventFilter(user_id="SOMEBODY"), []),
    ):
        # Creating the log recorded two events.
        assert [names[place - 2] for place in await everything(log, wanted)] == found, wanted


async def test_time_filters_are_exact_although_they_search_by_checkpoints(
    store: Store, tmp_path: Path
) -> None:
    """An event may be sealed later than it happened, and clocks may differ by minutes."""
    write_new_kek_file(tmp_path / "kek")
    times = []
    for minute in range(0, 90, 3):
        now = NOW + timedelta(minutes=minute)
        async with sealer_process.opened(store, tmp_path / "kek", now) as log:
            for offset in (-100, 0, 100):
                times.append(at := now + timedelta(seconds=offset))
                async with log.database.transaction(replace(event("timed"), at=at)):
                    pass
            await log.sealer.seal_all()
    async with sealer_process.opened(store, tmp_path / "kek") as log:
        for since, until in ((None, 30), (30, None), (20, 41), (33, 33), (200, None), (None, -20)):
            start = NOW + timedelta(minutes=since) if since is not None else None
            end = NOW + timedelta(minutes=until) if until is not None else None
            wanted = EventFilter(kind="timed", since=start, until=end)
            expected = [
                place
                for place, at in enumerate(times)
                if (start is None or at >= start) and (end is None or at <= end)
            ]
            found = await everything(log, wanted, limit=7)
            # Creating the log recorded two events, which were sealed between the first other ones.
            timed = await everything(log, EventFilter(kind="timed"))
            assert [timed.index(place) for place in found] == expected
            assert await everything(log, wanted, limit=7, newest_first=True) == found[::-1]


async def test_an_event_sealed_an_hour_late_is_found_by_its_time(store: Store, tmp_path: Path) -> None:
    """More events than one batch: the first checkpoint afterwards contains only some of them."""
    write_new_kek_file(tmp_path / "kek")
    late = NOW + timedelta(hours=1)
    async with sealer_process.opened(store, tmp_path / "kek") as log:
        await log.sealer.seal_all()
        for _ in range(10):
            await log.happen(MAX_BATCH, "waited")
        async with log.database.transaction(*(replace(event("later"), at=late) for _ in range(MAX_BATCH))):
            pass
    sealed, step = MAX_BATCH, 0
    while sealed == MAX_BATCH:
        step += 1
        async with sealer_process.opened(store, tmp_path / "kek", late + step * timedelta(seconds=1)) as log:
            sealed = await log.sealer.seal()
    async with sealer_process.opened(store, tmp_path / "kek") as log:
        for kind, until, count in (
            ("waited", NOW + timedelta(minutes=10), 10 * MAX_BATCH),
            ("later", NOW + timedelta(minutes=10), 0),
            ("later", late, MAX_BATCH),
        ):
            for newest_first in (True, False):
                wanted = EventFilter(kind=kind, until=until)
                assert len(await everything(log, wanted, newest_first=newest_first)) == count


async def test_a_page_looks_at_a_bounded_number_of_events(log: SealerProcess) -> None:
    rows = [event_row(event("dull")) for _ in range(SCANNED + 500)]
    async with log.database.transaction() as connection:
        await connection.execute(insert(tables.audit_event), [event_row(event("rare"))])
        await connection.execute(insert(tables.audit_event), rows)
        await connection.execute(insert(tables.audit_event), [event_row(event("rare"))])
    await log.sealer.seal_all()
    first = await log.log.events(EventFilter(kind="rare"), cursor=None, newest_first=False, limit=10)
    assert [each.leaf_index for each in first.events] == [2]
    assert first.cursor == SCANNED - 1
    second = await log.log.events(EventFilter(kind="rare"), cursor=first.cursor, newest_first=False, limit=10)
    assert [each.leaf_index for each in second.events] == [SCANNED + 503]
    assert second.cursor is None
    behind_all = await log.log.events(EventFilter(), cursor=2**63 - 1, newest_first=False, limit=10)
    assert (behind_all.events, behind_all.cursor) == ((), None)
    nothing = await log.log.events(EventFilter(kind="none"), cursor=None, newest_first=True, limit=10)
    assert (nothing.events, nothing.cursor) == ((), 504)
    assert await everything(log, EventFilter(kind="rare"), newest_first=True) == [SCANNED + 503, 2]


async def test_a_page_of_one_project_does_not_read_the_events_of_others(on_postgresql: Store) -> None:
    """With outdated statistics, PostgreSQL assumes that there are almost no new events."""
    database = patient(on_postgresql.url)
    async with database.transaction(event("first")):
        pass
    copies = (
        "INSERT INTO audit_event (at, kind, project_id, actor, subject, body, salt, commitment)"
        " SELECT at, kind, 'project-' || n % 50, actor, subject, body, salt, commitment"
        " FROM audit_event, generate_series(?::int, ?::int) AS n WHERE id = 1"
    )
    placed = (
        "INSERT INTO audit_place (leaf_index, event_id, project_id)"
        " SELECT id - 1, id, project_id FROM audit_event WHERE id > ? AND id <= ?"
    )
    for first, last in ((1, 20_001), (20_001, 40_001)):
        on_postgresql.execute(copies, first, last - 1)
        on_postgresql.execute(placed, first, last)
        if first == 1:
            on_postgresql.execute("ANALYZE")
    on_postgresql.execute(
        "INSERT INTO audit_checkpoint (size, at, root, note) VALUES (20000, ?, '', ''), (40000, ?, '', '')",
        *(NOW, NOW + timedelta(hours=2)),
    )
    plans = QueryPlans(database, of="audit_place")
    everything_of = EventFilter()
    an_hour_of = EventFilter(since=NOW + timedelta(minutes=30), until=NOW + timedelta(minutes=90))
    with plans.noted():
        for wanted in (everything_of, an_hour_of):
            for newest_first in (True, False):
                for cursor in (None, 30_000):
                    for number in range(6):
                        of_one = replace(wanted, project_id=f"project-{number}")
                        pages = EventPages(database)
                        await pages.page(of_one, cursor=cursor, newest_first=newest_first, limit=20)
    found = [
        plan
        for plan, (statement, _) in zip(await plans.all(), plans.sent, strict=True)
        if "project_id" in statement
    ]
    await database.close()
    assert len(found) >= 48
    for plan in found:
        assert "ix_audit_place_project_id_leaf_index" in plan, plan
        assert "pk_audit_place" not in plan, plan


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("limit", [1, 2, 5, 7])
async def test_pages_of_any_length_cover_all_events(
    log: SealerProcess, limit: int, newest_first: bool
) -> None:
    [size] = await grow(log, 5)
    expected = list(range(size))
    found = await everything(log, EventFilter(), limit, newest_first=newest_first)
    assert found == (expected[::-1] if newest_first else expected)

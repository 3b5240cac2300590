"""After any sequence of changes, exactly the certificates older than a revocation in force are revoked.

The changes include the deletion of old revocations by a process whose clock is years ahead.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from clustercert.store import tables
from clustercert.store.certificates.revocation_pruning import RevocationPruningQueries
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.engine.database import Database
from clustercert.store.identity.directory import DirectoryQueries
from support.store_records import cluster_id, issue, new_user
from support.stores import NOW, Store, event, patient, revocation

USERS, CLUSTERS = 2, 2
FOREVER = float("inf")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("issue"), st.integers(0, USERS - 1), st.integers(0, CLUSTERS - 1)),
        st.tuples(st.just("revoke"), st.integers(-1, USERS - 1), st.integers(-1, CLUSTERS - 1)),
        st.tuples(st.just("single"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("undo"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("forget"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("prune"), st.just(0), st.just(0)),
        st.tuples(st.just("enable"), st.integers(0, USERS - 1), st.integers(0, 1)),
    ),
    min_size=8,
    max_size=24,
)


@dataclass
class History:
    """A sequence of changes, and which certificates must be revoked: those older than a revocation in force.

    Attributes:
        issued: user, cluster and time of each certificate.
        standing: the revocations in force: user, cluster and certificate, each or None, and time, which is infinite
            while the user is disabled.
    """

    issued: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    standing: dict[int, tuple[int | None, int | None, bytes | None, float]] = field(default_factory=dict)
    disabled: set[int] = field(default_factory=set)
    moment: int = 0

    def enable(self, user: int, enabled: bool, newest: int) -> None:
        """Enable or disable the user. `newest` is the revocation from disabling the user, if there is one."""
        if enabled and user in self.disabled:
            for number, (who, where, single, until) in self.standing.items():
                if (who, until) == (user, FOREVER):
                    self.standing[number] = (who, where, single, self.moment)
            self.disabled.discard(user)
        elif not enabled and user not in self.disabled:
            self.standing[newest] = (user, None, None, FOREVER)
            self.disabled.add(user)

    def revoked(self) -> set[bytes]:
        return {
            fingerprint
            for fingerprint, (user, cluster, moment) in self.issued.items()
            for by_user, by_cluster, single, until in self.standing.values()
            if (
                fingerprint == single
                if single is not None
                else by_user in (None, user) and by_cluster in (None, cluster) and moment < until
            )
        }


@pytest.mark.long_on_server
@pytest.mark.full
@settings(suppress_health_check=list(HealthCheck))  # each example has new rows in the test's one database
@given(steps=STEPS)
def test_any_history_revokes_what_is_older_than_a_standing_revocation(
    store: Store, steps: list[tuple[str, int, int]]
) -> None:
    asyncio.run(_lived_through(store, steps))


async def _lived_through(store: Store, steps: list[tuple[str, int, int]]) -> None:
    database = patient(store.url)
    users = [await new_user(database) for _ in range(USERS)]
    clusters = [cluster_id() for _ in range(CLUSTERS)]
    history = History()
    try:
        for step in steps:
            history.moment += 1
            await _one_step(database, users, clusters, history, step)
        found = {
            fingerprint
            for fingerprint in history.issued
            if (await RevocationQueries(database).find(fingerprint.hex()))[0].revoked_at is not None
        }
        assert found == history.revoked()
    finally:
        await database.close()


async def _delete_certificate(database: Database, fingerprint: bytes) -> None:
    async with database.transaction() as connection:
        for table in (tables.certificate, tables.revocation):
            await connection.execute(delete(table).where(table.c.fingerprint == fingerprint))


async def _one_step(
    database: Database, users: list[str], clusters: list[str], history: History, step: tuple[str, int, int]
) -> None:
    what, first, second = step
    rows, now = RevocationQueries(database), history.moment
    if what == "issue":
        record = await issue(database, users[first], clusters[second])
        history.issued[record.fingerprint] = (first, second, now)
    elif what == "revoke" and (first, second) != (-1, -1):
        who, where = (first if first >= 0 else None), (second if second >= 0 else None)
        user, cluster = ("" if who is None else users[who]), ("" if where is None else clusters[where])
        made = await rows.revoke(revocation(user_id=user, cluster_id=cluster), event())
        history.standing[made.id] = (who, where, None, now)
    elif what == "single" and history.issued:
        fingerprint = list(history.issued)[first % len(history.issued)]
        who, where, _ = history.issued[fingerprint]
        wanted = revocation(fingerprint=fingerprint, user_id=users[who], cluster_id=clusters[where])
        made = await rows.revoke(wanted, event())
        history.standing[made.id] = (None, None, fingerprint, now)
    elif what == "undo" and history.standing:
        number = list(history.standing)[first % len(history.standing)]
        if history.standing[number][3] != FOREVER:
            await rows.undo(number, by="cli:test", at=NOW, event=event())
            del history.standing[number]
    elif what == "forget" and history.issued:
        # As `db prune` does with an expired certificate.
        fingerprint = list(history.issued)[first % len(history.issued)]
        await _delete_certificate(database, fingerprint)
        del history.issued[fingerprint]
        gone = [number for number, row in history.standing.items() if row[2] == fingerprint]
        for number in gone:
            del history.standing[number]
    elif what == "prune":
        expected = history.revoked()
        await RevocationPruningQueries(database).prune(NOW + timedelta(days=3650), 0, lambda _: event())
        left = {row.id for row in await rows.revocations_of_project(None, limit=1000)}
        history.standing = {number: row for number, row in history.standing.items() if number in left}
        assert history.revoked() == expected
    elif what == "enable":
        await DirectoryQueries(database).enable_user(users[first], bool(second), event())
        [*newest] = await rows.revocations_of_user(users[first], limit=1)
        history.enable(first, bool(second), newest[0].id if newest else 0)

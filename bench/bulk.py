"""Fills a store with copies of one cluster and one certificate that the service created itself.

It bypasses the service, so it knows only those columns that must differ from row to row.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Table, insert, select

from bench.postgres import Postgres
from bench.world import ACTOR, World, origin
from clustercert.model import Actor, Project
from clustercert.pki.certificates import certificate_der
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import key_der, new_key
from clustercert.pki.signer import LOCAL
from clustercert.store import tables
from clustercert.wiring import Components, open_components

IN_A_PROJECT = 1000
# Clusters for which the benchmark's user may get certificates: more than a worker caches. Their CA keys can be
# unsealed. The keys of the other clusters are plain copies, which can't.
REACHABLE = 12 * IN_A_PROJECT
AT_ONCE = 500_000
# Certificates are valid for a day and stored for this long, as if `clustercert db prune` deleted older ones.
DAYS_KEPT = 90


def cluster_id(number: int) -> str:
    """Return the id of a cluster that this module created."""
    return f"{number:08x}-0000-4000-8000-000000000000"


@dataclass(frozen=True, slots=True)
class Reachable:
    """A cluster for which the benchmark's user may get certificates."""

    project_id: str
    cluster_id: str


@dataclass(frozen=True, slots=True)
class Filler:
    """Fills one store.

    Attributes:
        database: the name of the database in the PostgreSQL server.
    """

    world: World
    postgres: Postgres | None
    database: str

    async def add_reachable(self, first: int, last: int) -> list[Reachable]:
        """Add clusters for which the user may get certificates, by number, without the last one."""
        reachable: list[Reachable] = []
        async with open_components(self.world.settings) as components:
            async with components.database.read() as connection:
                query = select(tables.cluster).where(tables.cluster.c.id == self.world.cluster_id)
                template = dict((await connection.execute(query)).mappings().one())
            last = min(last, REACHABLE)
            for start in range(first, last, IN_A_PROJECT):
                numbers = range(start, min(start + IN_A_PROJECT, last))
                project = await _project(components, self.world, start)
                await _add(components, template, project, numbers)
                reachable += [Reachable(project.id, cluster_id(number)) for number in numbers]
        return reachable

    def add_others(self, first: int, last: int) -> None:
        """Add the clusters with these numbers that belong to other users' projects."""
        first = max(first, REACHABLE)
        if first >= last:
            return
        own = self.world
        projects = (first // IN_A_PROJECT, (last - 1) // IN_A_PROJECT + 1)
        self._run(
            [
                self._copies(tables.project, f"id = '{own.project_id}'", *projects, of=1),
                self._copies(tables.cluster, f"id = '{own.cluster_id}'", first, last, of=1),
                self._copies(tables.client_ca, f"cluster_id = '{own.cluster_id}'", first, last, of=1),
            ]
        )

    def add_certificates(self, rows: int, clusters: int) -> None:
        """Add certificates, each with its audit event, spread over the clusters."""
        asyncio.run(self._seal())
        issued = "kind = 'certificate.issued'"
        statements: list[str] = []
        for first in range(0, rows, AT_ONCE):
            for table, which in ((tables.certificate, "1 = 1"), (tables.audit_event, issued)):
                last = min(first + AT_ONCE, rows)
                statements.append(self._copies(table, which, first, last, of=rows, clusters=clusters))
            statements += _OUTSIDE_THE_LOG
        if self.postgres is None:
            self._run(statements)
            return
        # Drop the index of fingerprints, and create it again at the end: their order is random, so inserts are slow.
        name = "uq_certificate_fingerprint"
        self._run([f"ALTER TABLE certificate DROP CONSTRAINT {name}", *statements])
        again = f"ALTER TABLE certificate ADD CONSTRAINT {name} UNIQUE (fingerprint)"
        self._run([f"SET maintenance_work_mem = '1GB'; {again}"])

    def add_revocations(self, rows: int, clusters: int) -> None:
        """Add revocations, half of them for single certificates. They revoke nothing that is in the store."""
        dialect = "postgres" if self.postgres else "sqlite"
        columns = _COMMON_COLUMNS[dialect]
        statement = (
            'INSERT INTO revocation (epoch, changed, fingerprint, user_id, cluster_id, at, "by", reason, proved)'  # noqa: S608 - contains no input
            f" SELECT 0, 0, CASE WHEN n % 2 = 0 THEN {columns['fingerprint']} END, {columns['user_id']},"
            f" {columns['cluster_id']}, CURRENT_TIMESTAMP, 'bench', 'unspecified', false FROM {_NUMBERS[dialect]}"
        )
        for name, number in {"first": 0, "last": rows, "clusters": clusters}.items():
            statement = statement.replace(f":{name}", str(number))
        self._run([statement])

    def settle(self) -> None:
        """Do now what the service and its database would do by themselves a few minutes after these inserts."""
        asyncio.run(self._seal())
        self._run(["ANALYZE" if self.postgres is None else "VACUUM ANALYZE"])
        self.checkpoint()
        # Otherwise the kernel would write gigabytes during the next measurement.
        os.sync()

    def checkpoint(self) -> None:
        """Make a checkpoint, as the database does by itself from time to time."""
        self._run(["PRAGMA wal_checkpoint(TRUNCATE)" if self.postgres is None else "CHECKPOINT"])

    async def _seal(self) -> None:
        async with open_components(self.world.settings) as components:
            await components.log_sealer.seal_all()

    def _copies(self, table: Table, which: str, first: int, last: int, *, of: int, clusters: int = 0) -> str:
        """Return the statement that copies the first row of a kind, once for each number."""
        dialect = "postgres" if self.postgres else "sqlite"
        changed = {**_COMMON_COLUMNS[dialect], **_COLUMNS[dialect].get(table.name, {})}
        if table is tables.certificate:
            changed |= _in_clusters(dialect)
        # The database assigns the row's own id.
        columns = [
            column.name for column in table.columns if table.name in _COLUMNS[dialect] or column.name != "id"
        ]
        quoted = ", ".join(f'"{name}"' for name in columns)
        values = ", ".join(changed.get(name, f'"{name}"') for name in columns)
        statement = (
            f"INSERT INTO {table.name} ({quoted}) SELECT {values} FROM"  # noqa: S608 - contains no input
            f" (SELECT * FROM {table.name} WHERE {which} ORDER BY id LIMIT 1) AS template, {_NUMBERS[dialect]}"
        )
        numbers = {"first": first, "last": last, "rows": of, "clusters": clusters, "days": DAYS_KEPT}
        for name, number in numbers.items():
            statement = statement.replace(f":{name}", str(number))
        return statement

    def _run(self, statements: list[str]) -> None:
        """Run statements without waiting for the disk. After a power failure, the store would be filled again."""
        if self.postgres is not None:
            for statement in statements:
                asynchronous = (
                    "" if statement.startswith(("VACUUM", "CHECK")) else "SET synchronous_commit = off; "
                )
                self.postgres.sql(self.database, asynchronous + statement)
            return
        file = self.world.settings.store_url.removeprefix("sqlite+aiosqlite:///")
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA cache_size = -2000000")
            for statement in statements:
                connection.execute(statement)


async def _project(components: Components, world: World, number: int) -> Project:
    directory = components.identity.directory
    user = await directory.find_user(world.user_id)
    name = f"project-of-{number}"
    project = await directory.create_project(name, user.domain, actor=Actor(ACTOR, origin()))
    await components.identity.roles.assign("admin", user, project, actor=Actor(ACTOR, origin()))
    return project


async def _add(components: Components, template: dict[str, object], project: Project, numbers: range) -> None:
    """Add rows for clusters and their CAs. The CAs of one project share a key, sealed for each row."""
    key = new_key("ec-p256")
    now = datetime.now(UTC).replace(microsecond=0)
    authority = new_client_ca("kubernetes", key, now, timedelta(days=3650))
    clusters, authorities = [], []
    for number in numbers:
        own = {"id": cluster_id(number), "project_id": project.id, "name": f"cluster-{number}"}
        clusters.append({**template, **own})
        ca_id = f"{number:032x}"
        sealed = await components.custody.seal(key_der(key), f"client_ca:{ca_id}")
        authorities.append(
            {
                "id": ca_id,
                "cluster_id": own["id"],
                "certificate_der": certificate_der(authority),
                "sealed_key": sealed,
                "state": "active",
                "signer": LOCAL,
                "not_before": authority.not_valid_before_utc,
                "not_after": authority.not_valid_after_utc,
            }
        )
    async with components.database.transaction() as connection:
        await connection.execute(insert(tables.cluster), clusters)
        await connection.execute(insert(tables.client_ca), authorities)


# The values that differ from row to row, in each dialect. `n` is the row's number, out of `:rows`. Times are spread
# over the days for which certificates are stored, oldest first.
_SECONDS_AGO = "(:rows - n) * :days * 86400.0 / :rows"
# Serials begin with the time.
_FIRST_SERIAL = 0x60000000
# Negative leaf indexes, which are not in the log's tree: the module `audit_log` measures sealing.
_OUTSIDE_THE_LOG = (
    (
        "INSERT INTO audit_place (leaf_index, event_id, project_id) SELECT -id, id, project_id"
        " FROM audit_event WHERE id IN (SELECT event_id FROM audit_unsealed)"
    ),
    "DELETE FROM audit_unsealed",
)
_TIMES = ("not_before", "not_after", "issued_at", "at")
_COMMON_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "sqlite": {
        "fingerprint": "randomblob(32)",
        "serial": f"printf('%08x', {_FIRST_SERIAL} + n) || lower(hex(randomblob(16)))",
        "credential_number": f"printf('%08x', {_FIRST_SERIAL} + n) || lower(hex(randomblob(16)))",
        "request_id": "lower(hex(randomblob(16)))",
        "cluster_id": "printf('%08x-0000-4000-8000-000000000000', n % :clusters)",
        "user_id": "printf('%032x', n % 10007)",
        "subject": "lower(hex(randomblob(32)))",
        "salt": "randomblob(16)",
        "commitment": "randomblob(32)",
        **{
            time: f"strftime('%Y-%m-%d %H:%M:%S.000000', {time}, '-' || ({_SECONDS_AGO}) || ' seconds')"
            for time in _TIMES
        },
    },
    "postgres": {
        "fingerprint": "sha256(uuid_send(gen_random_uuid()))",
        "serial": f"to_hex({_FIRST_SERIAL} + n) || replace(gen_random_uuid()::text, '-', '')",
        "credential_number": f"to_hex({_FIRST_SERIAL} + n) || replace(gen_random_uuid()::text, '-', '')",
        "request_id": "replace(gen_random_uuid()::text, '-', '')",
        "cluster_id": "lpad(to_hex(n % :clusters), 8, '0') || '-0000-4000-8000-000000000000'",
        "user_id": "lpad(to_hex(n % 10007), 32, '0')",
        "subject": "encode(sha256(uuid_send(gen_random_uuid())), 'hex')",
        "salt": "uuid_send(gen_random_uuid())",
        "commitment": "sha256(uuid_send(gen_random_uuid()))",
        **{time: f"{time} - make_interval(secs => {_SECONDS_AGO})" for time in _TIMES},
    },
}


# Clusters are inserted before their certificates.
_ITS_PROJECT = "(SELECT project_id FROM cluster WHERE cluster.id = {cluster_id})"


def _in_clusters(dialect: str) -> Mapping[str, str]:
    """Return the columns that differ between certificates. Each belongs to its cluster's project."""
    return {"project_id": _ITS_PROJECT.format(cluster_id=_COMMON_COLUMNS[dialect]["cluster_id"])}


def _named(hex32: str, uuid: str, project: str) -> Mapping[str, Mapping[str, str]]:
    """Return the columns that differ between rows with names. The clusters' times are copied."""
    times = {time: time for time in _TIMES}
    return {
        "project": {"id": hex32, "name": "'project-' || n"},
        "cluster": {"id": uuid, "project_id": project, "name": "'cluster-' || n"},
        "client_ca": {"id": hex32, "cluster_id": uuid, **times},
    }


_COLUMNS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "sqlite": _named(
        hex32="printf('%032x', n)",
        uuid="printf('%08x-0000-4000-8000-000000000000', n)",
        project=f"printf('%032x', n / {IN_A_PROJECT})",
    ),
    "postgres": _named(
        hex32="lpad(to_hex(n), 32, '0')",
        uuid="lpad(to_hex(n), 8, '0') || '-0000-4000-8000-000000000000'",
        project=f"lpad(to_hex(n / {IN_A_PROJECT}), 32, '0')",
    ),
}
_NUMBERS = {
    "sqlite": "(WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :last)"
    " SELECT n FROM numbers) AS numbers",
    "postgres": "generate_series(:first, :last - 1) AS numbers(n)",
}

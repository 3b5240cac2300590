"""Databases of tests with direct access to them; records and events to store; child processes."""

import asyncio
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy.engine import make_url

from clustercert.model import Actor, AuditEvent, CertificateRecord, Origin, Revocation, RevocationReason
from clustercert.store.engine import migrate as migrations
from clustercert.store.engine.database import Database
from support import postgres, programs
from support.wait import SECONDS

NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
ORIGIN = Origin(address="192.0.2.1", request_id="f" * 32)


def sqlite_url(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"


def rows(file: Path, query: str, *values: object) -> list[tuple[object, ...]]:
    """The rows of a query on an SQLite file."""
    with closing(sqlite3.connect(file, timeout=SECONDS)) as connection:
        return connection.execute(query, values).fetchall()


def execute(file: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(file, timeout=SECONDS)) as connection, connection:
        connection.execute(statement, values)


@dataclass(frozen=True)
class Store:
    """A database of a test, accessed without our code."""

    url: str

    @property
    def file(self) -> Path | None:
        """The SQLite file, or None."""
        _, found, path = self.url.partition("sqlite+aiosqlite:///")
        return Path(path) if found else None

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """The rows of a query; `?` stands for each value."""
        if self.file is not None:
            return rows(self.file, query, *values)
        return postgres.look(self.url, _numbered(query), *values)

    def execute(self, statement: str, *values: object) -> None:
        if self.file is not None:
            execute(self.file, statement, *values)
        else:
            postgres.look(self.url, _numbered(statement), *values)

    def time(self, time: datetime) -> object:
        """A time as `rows` returns it."""
        return f"{time:%Y-%m-%d %H:%M:%S.%f}" if self.file is not None else time

    def recorded(self) -> set[str]:
        """The fingerprints of all certificates. Asserts one event for each, and no others."""
        # One statement, so one snapshot: a server may still commit what a killed client sent.
        found = self.rows(
            "SELECT fingerprint, NULL FROM certificate UNION ALL SELECT NULL, subject FROM audit_event"
        )
        certificates = sorted(blob(fingerprint).hex() for fingerprint, _ in found if fingerprint is not None)
        assert certificates == sorted(str(subject) for _, subject in found if subject is not None)
        assert len(set(certificates)) == len(certificates)
        return set(certificates)

    def copied(self, suffix: str) -> "Store":
        """A copy of the database, which must have no connections."""
        if self.file is None:
            return Store(postgres.copied(self.url, suffix))
        return Store(sqlite_url(Path(shutil.copy(self.file, f"{self.file}{suffix}"))))

    def remove(self) -> None:
        if self.file is None:
            postgres.drop(self.url)
        else:
            for path in self._files():
                path.unlink()

    def content(self) -> bytes:
        """All bytes of the SQLite files, or all values of the PostgreSQL tables."""
        if self.file is not None:
            return b"".join(path.read_bytes() for path in self._files())
        tables = self.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        values = [
            value for (table,) in tables for row in self.rows(f'SELECT * FROM "{table}"') for value in row
        ]
        return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in values)

    def store_secrets(self, sealed: Mapping[str, bytes]) -> None:
        """Insert sealed secrets into the rows that they are bound to. Referenced rows need not exist."""
        statements = {
            "access_key": "INSERT INTO access_key (id, sealed_secret, user_id, description, enabled, created_at)"
            " VALUES (?, ?, 'user', '', true, '2026-03-14 15:09:26.000000')",
            "client_ca": "INSERT INTO client_ca (id, sealed_key, cluster_id, certificate_der, state, signer,"
            " not_before, not_after)"
            " VALUES (?, ?, 'cluster', '', 'active', 'local', '2026-03-14 15:09:26.000000',"
            " '2036-03-14 15:09:26.000000')",
        }
        for table, statement in statements.items():
            rows = [
                (bound_to.removeprefix(f"{table}:"), secret)
                for bound_to, secret in sealed.items()
                if bound_to.startswith(table)
            ]
            if self.file is None:
                postgres.change(self.url, _numbered(statement), rows)
            else:
                with closing(sqlite3.connect(self.file, timeout=SECONDS)) as connection, connection:
                    connection.executemany(statement, rows)

    def stored_secrets(self) -> dict[str, bytes]:
        """All sealed secrets by what they are bound to."""
        query = (
            "SELECT 'access_key:' || id, sealed_secret FROM access_key"
            " UNION ALL SELECT 'client_ca:' || id, sealed_key FROM client_ca WHERE sealed_key IS NOT NULL"
        )
        return {str(bound_to): blob(sealed) for bound_to, sealed in self.rows(query)}

    def events(self) -> list[dict[str, object]]:
        """The bodies of all audit events, oldest first."""
        return [json.loads(blob(body)) for (body,) in self.rows("SELECT body FROM audit_event ORDER BY id")]

    def _files(self) -> list[Path]:
        assert self.file is not None
        return [self.file, *self.file.parent.glob(f"{self.file.name}-*")]


def patient(url: str) -> Database:
    """A database whose locks and statements may take as long as a busy machine needs."""
    return Database(url, SECONDS, SECONDS)


def migrate(store: Store) -> None:
    """Create the schema, and close all connections."""

    async def upgrade() -> None:
        database = patient(store.url)
        await migrations.upgrade(database)
        await database.close()

    asyncio.run(upgrade())


def new_template(server: postgres.Server) -> str:
    """The name of a new template database with the schema."""
    store = Store(server.create())
    migrate(store)
    return str(make_url(store.url).database)


def _numbered(statement: str) -> str:
    numbers = itertools.count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", statement)


@contextmanager
def child(what: str, store: Store, program: str = "store_process") -> Iterator[subprocess.Popen[str]]:
    """A second process at the same store, waiting for `start`. Killed at the end of the block."""
    with subprocess.Popen(
        programs.command(program, what, store.url),
        cwd=programs.TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> list[str]:
    """All lines of output until the process ends."""
    assert process.stdout is not None
    return process.stdout.read().split("\n")


def blob(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def event(kind: str = "thing.happened", subject: str = "thing") -> AuditEvent:
    return AuditEvent(at=NOW, kind=kind, project_id=None, actor=Actor("cli:test", ORIGIN), subject=subject)


def revocation(
    *,
    fingerprint: bytes | None = None,
    user_id: str = "",
    cluster_id: str = "",
    reason: RevocationReason = "superseded",
) -> Revocation:
    return Revocation(
        id=0,
        epoch=0,
        fingerprint=fingerprint,
        user_id=user_id,
        cluster_id=cluster_id,
        at=NOW,
        by="cli:test",
        reason=reason,
        note="a note",
    )


def certificate_record() -> tuple[CertificateRecord, AuditEvent]:
    """A unique certificate record with its event. Its DER bytes are random.

    Its credential number is its serial, as the local signer's certificates have it.
    """
    fingerprint = os.urandom(32)
    # Positive, of at most 159 bits, and 40 digits long in hex.
    number = f"{int.from_bytes(os.urandom(20)) >> 1 | 1 << 158:040x}"
    record = CertificateRecord(
        fingerprint=fingerprint,
        serial=number,
        cluster_id=str(uuid.uuid4()),
        project_id="0c97ac3cb280f4d91fa7c0096739e1f8",
        ca_id=uuid.uuid4().hex,
        user_id="7116d09f88fa41908676fdd4b039e95b",
        user_name="alice",
        groups=("clustercert:admins", "Ü,+\"'"),
        not_before=NOW - timedelta(minutes=5),
        not_after=NOW + timedelta(days=30),
        key_type="ec-p256",
        key_origin="generated",
        auth_method="token",
        source_address="192.0.2.1",
        request_id="f" * 32,
        reason="a reason",
        issued_at=NOW,
        der=os.urandom(600),
        credential_number=number,
    )
    return record, event("certificate.issued", fingerprint.hex())

"""Records and events to store, and a plain look into the database that goes round everything of ours."""

import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import postgres
from clustercert.model import AuditEvent, CertificateRecord, Origin

NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
ORIGIN = Origin(address="192.0.2.1", request_id="f" * 32)


def sqlite_url(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"


def rows(file: Path, query: str, *values: object) -> list[tuple[object, ...]]:
    """What any SQLite program sees in the file."""
    with closing(sqlite3.connect(file, timeout=5)) as connection:
        return connection.execute(query, values).fetchall()


def execute(file: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(file, timeout=5)) as connection, connection:
        connection.execute(statement, values)


@dataclass(frozen=True)
class Store:
    """A database of a test, as any program sees it."""

    url: str

    @property
    def file(self) -> Path | None:
        """Of SQLite."""
        _, found, path = self.url.partition("sqlite+aiosqlite:///")
        return Path(path) if found else None

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """What a query gives; `?` stands for each value."""
        if self.file is not None:
            return rows(self.file, query, *values)
        return postgres.look(self.url, _numbered(query), *values)

    def execute(self, statement: str, *values: object) -> None:
        if self.file is not None:
            execute(self.file, statement, *values)
        else:
            postgres.look(self.url, _numbered(statement), *values)

    def copied(self, suffix: str) -> "Store":
        """Another one like it, to which nobody may be connected. Exists until this one's test ends."""
        if self.file is None:
            return Store(postgres.copied(self.url, suffix))
        return Store(sqlite_url(shutil.copy(self.file, f"{self.file}{suffix}")))

    def store_secret(self, bound_to: str, sealed: bytes) -> None:
        """Put a sealed secret into the row that it is bound to; what that row would refer to need not exist."""
        table, row_id = bound_to.split(":")
        if table == "access_key":
            statement = (
                "INSERT INTO access_key (id, user_id, sealed_secret, description, enabled, created_at)"
                " VALUES (?, 'user', ?, '', true, '2026-03-14 15:09:26.000000')"
            )
            self.execute(statement, row_id, sealed)
        else:
            statement = (
                "INSERT INTO client_ca (id, cluster_id, certificate_der, sealed_key, state, not_after)"
                " VALUES (?, 'cluster', ?, ?, 'active', '2026-03-14 15:09:26.000000')"
            )
            self.execute(statement, row_id, b"", sealed)

    def stored_secrets(self) -> dict[str, bytes]:
        """All sealed secrets by what they are bound to."""
        query = (
            "SELECT 'access_key:' || id, sealed_secret FROM access_key"
            " UNION ALL SELECT 'client_ca:' || id, sealed_key FROM client_ca WHERE sealed_key IS NOT NULL"
        )
        return {str(bound_to): blob(sealed) for bound_to, sealed in self.rows(query)}

    def events(self) -> list[dict[str, object]]:
        """The bodies of all audit events, oldest first."""
        return [
            json.loads(blob(body)) for (body,) in self.rows("SELECT body FROM audit_event ORDER BY id")
        ]


def _numbered(statement: str) -> str:
    numbers = itertools.count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", statement)


@contextmanager
def child(what: str, store: Store, program: str = "store_child.py") -> Iterator[subprocess.Popen[str]]:
    """Another process at the same store, loaded and waiting for `start`. Killed at the end of the block."""
    path = Path(__file__).with_name(program)
    with subprocess.Popen(
        [sys.executable, path, what, store.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
    """All the lines of a process until it ended."""
    assert process.stdout is not None
    return process.stdout.read().split("\n")


def blob(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def event(kind: str = "thing.happened", subject: str = "thing") -> AuditEvent:
    return AuditEvent(at=NOW, kind=kind, project_id=None, actor="cli:test", subject=subject, origin=ORIGIN)


def certificate_record() -> tuple[CertificateRecord, AuditEvent]:
    """A certificate like no other, with its event. The ledger does not look into its bytes."""
    fingerprint = os.urandom(32)
    record = CertificateRecord(
        fingerprint=fingerprint,
        serial=os.urandom(16).hex(),
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
    )
    return record, event("certificate.issued", fingerprint.hex())

"""A process that seals an audit log, and independent checks of the log: plain SQL and the tree of RFC 6962."""

import base64
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from clustercert.audit.log import AuditLog
from clustercert.audit.sealer import LogSealer
from clustercert.custody import Custody
from clustercert.custody.keks import KekFile
from clustercert.store.audit.log import AuditQueries, EventPages
from clustercert.store.engine.database import Database
from support.stores import NOW, Store, blob, event, patient

NAME = "log.example/tests"


@dataclass
class SealerProcess:
    """A process with access to the audit log of a database."""

    database: Database
    queries: AuditQueries
    sealer: LogSealer
    log: AuditLog
    custody: Custody

    async def happen(self, count: int, kind: str = "thing.happened") -> None:
        """Record some events."""
        async with self.database.transaction(*(event(kind, f"thing {number}") for number in range(count))):
            pass


@asynccontextmanager
async def opened(
    store: Store, kek: Path, now: datetime = NOW, name: str = NAME
) -> AsyncIterator[SealerProcess]:
    """A process with a fixed clock."""
    database = patient(store.url)
    custody = Custody(database, KekFile(kek))
    await custody.initialise()
    queries = AuditQueries(database)
    sealer = LogSealer(queries, custody, lambda: now, name)
    try:
        yield SealerProcess(database, queries, sealer, AuditLog(queries, EventPages(database)), custody)
    finally:
        await database.close()


def root(leaves: Sequence[bytes]) -> bytes:
    """The Merkle tree hash of RFC 6962, 2.1."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1
    while 2 * half < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + root(leaves[:half]) + root(leaves[half:])).digest()


def commitments(store: Store) -> list[bytes]:
    """The commitments of sealed events in log order. Asserts places without gaps or duplicates."""
    found = store.rows(
        "SELECT leaf_index, salt, body, commitment FROM audit_event JOIN audit_place ON event_id = id"
        " ORDER BY leaf_index"
    )
    assert [place for place, *_ in found] == list(range(len(found)))
    for _, salt, body, commitment in found:
        assert hashlib.sha256(blob(salt) + blob(body)).digest() == commitment
    return [blob(commitment) for *_, commitment in found]


def check(store: Store) -> int:
    """Assert that the stored log is consistent. Returns the number of sealed events."""
    leaves = commitments(store)
    [(origin, public_key, size)] = store.rows("SELECT origin, public_key, size FROM audit_log")
    assert size == len(leaves)
    check_tiles(store, leaves)
    heads = store.rows("SELECT size, root, note FROM audit_checkpoint ORDER BY size")
    for head, stored, note in heads:
        assert isinstance(head, int)
        text, _, signature = str(note).rpartition("\n\n")
        computed = root(leaves[:head])
        assert stored == computed
        assert f"{text}\n" == f"{origin}\n{head}\n{base64.b64encode(computed).decode()}\n"
        signed = base64.b64decode(signature.split(" ")[2])[4:]
        Ed25519PublicKey.from_public_bytes(blob(public_key)).verify(signed, f"{text}\n".encode())
    assert (heads[-1][0] if heads else 0) == size
    return len(leaves)


def check_tiles(store: Store, leaves: Sequence[bytes]) -> None:
    """Assert that the stored tiles are exactly those of a tree over these leaves."""
    expected = {(-1, at // 256): b"".join(leaves[at : at + 256]) for at in range(0, len(leaves), 256)}
    level, hashes = 0, [root([leaf]) for leaf in leaves]
    while hashes:
        expected |= {(level, at // 256): b"".join(hashes[at : at + 256]) for at in range(0, len(hashes), 256)}
        span = 256 ** (level + 1)
        hashes = [root(leaves[at : at + span]) for at in range(0, len(leaves) - span + 1, span)]
        level += 1
    stored = store.rows('SELECT level, "index", hashes FROM audit_tile')
    assert {(level, index): hashes for level, index, hashes in stored} == expected

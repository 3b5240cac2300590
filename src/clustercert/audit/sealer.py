"""Puts events into the log, and signs the log's head. Issuing never waits for it.

Each call is one transaction that holds the log's row: a second sealer waits for its end and goes on behind it, and
after a crash in the middle nothing of it has happened.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clustercert import metrics
from clustercert.errors import LogDamaged
from clustercert.merkle import Checkpoint, NoteError, TileId, VerifierKey, opened, signed
from clustercert.merkle.tiles import edge, grown, node_in, tile_of, width_in
from clustercert.merkle.tree import HASH_BYTES, root_of
from clustercert.model import AuditEvent, Origin
from clustercert.sealing import Sealer
from clustercert.store.audit import LOG, AuditRows, Sealing, StoredCheckpoint, StoredLog

# A transaction this long keeps an SQLite file's other writers waiting for some milliseconds.
MAX_BATCH = 128
# Whoever keeps checkpoints fetches them more often than this; of older ones, one an hour is enough to find a time.
THIN_AFTER = timedelta(days=1)
# What the log's key is sealed for.
BOUND_TO = f"audit_log:{LOG}"


@dataclass(frozen=True, slots=True)
class _Signer:
    verifier: VerifierKey
    key: Ed25519PrivateKey


class LogSealer:
    """Seals the log of one database."""

    def __init__(self, rows: AuditRows, custody: Sealer, now: Callable[[], datetime], name: str) -> None:
        """`name` is what a log that is begun here is called; one that is there keeps its own.

        No two logs may share a name: the checkpoints of one would seem to be the other's.
        """
        self._rows = rows
        self._custody = custody
        self._now = now
        self._name = name
        self._signer: _Signer | None = None
        self._thinned_to = 0

    async def begin(self, *, actor: str = "clustercert", origin: Origin | None = None) -> StoredLog:
        """The log; it is begun, with a key of its own, where there is none. Raises SealError or Unavailable."""
        while (log := await self._rows.log()) is None:
            key = Ed25519PrivateKey.generate()
            now = self._now()
            begun = StoredLog(
                origin=self._name,
                public_key=key.public_key().public_bytes_raw(),
                sealed_key=await self._custody.seal(key.private_bytes_raw(), BOUND_TO),
                size=0,
                created_at=now,
            )
            verifier = VerifierKey(begun.origin, begun.public_key)
            event = AuditEvent(
                at=now,
                kind="audit_log.begun",
                project_id=None,
                actor=actor,
                subject=begun.origin,
                origin=origin or Origin.local(),
                detail={"verifier_key": str(verifier)},
            )
            await self._rows.add_log(begun, event)
        return log

    async def seal_all(self) -> int:
        """Give every event that is waiting now its place; how many. Raises as `seal` does."""
        sealed = count = await self.seal()
        while count == MAX_BATCH:
            count = await self.seal()
            sealed += count
        return sealed

    async def seal(self) -> int:
        """Give at most `MAX_BATCH` events their places and sign the new head; how many.

        Raises LogDamaged where the log is not what was signed last, SealError where its key doesn't open,
        Unavailable.
        """
        signer = self._signer = self._signer or await self._open()
        head, count = await self._rows.seal(lambda sealing: self._put(sealing, signer))
        if head is not None:
            metrics.SEALED.set(head.size)
        return count

    def _put(self, sealing: Sealing, signer: _Signer) -> tuple[StoredCheckpoint | None, int]:
        """The new head, and how many events are new below it; no head where there are none."""
        leaves = sealing.take(MAX_BATCH)
        if not leaves:
            return None, 0
        present = edge(sealing.size)
        tiles = sealing.tiles(present)
        _check(sealing, tiles, signer.verifier)
        changed = grown(sealing.size, tiles, leaves)
        head = self._head(sealing.size + len(leaves), tiles | changed, signer)
        sealing.write(changed, present, head)
        return head, len(leaves)

    async def thin(self) -> None:
        """Of the checkpoints that are a day old, keep one an hour. Raises Unavailable."""
        before = self._now() - THIN_AFTER
        more = True
        while more:
            ended, dropped = await self._rows.thin(before, self._thinned_to)
            more = dropped > 0 or ended != self._thinned_to
            self._thinned_to = ended

    def _head(self, size: int, tiles: dict[TileId, bytes], signer: _Signer) -> StoredCheckpoint:
        head = Checkpoint(signer.verifier.name, size, _root(size, tiles))
        note = signed(head.text(), head.origin, signer.key)
        return StoredCheckpoint(size=size, at=self._now(), root=head.root, note=note)

    async def _open(self) -> _Signer:
        log = await self.begin()
        key = Ed25519PrivateKey.from_private_bytes(await self._custody.unseal(log.sealed_key, BOUND_TO))
        verifier = VerifierKey(log.origin, key.public_key().public_bytes_raw())
        if verifier.public_key != log.public_key:
            raise LogDamaged(
                "The audit log's public key is not the one of its key. Restore the table audit_log."
            )
        return _Signer(verifier, key)


def _check(sealing: Sealing, tiles: dict[TileId, bytes], verifier: VerifierKey) -> None:
    """Raise LogDamaged unless the log ends as it was signed: nothing is to be signed on top of anything else."""
    newest = sealing.checkpoint()
    if newest is None:
        if sealing.size:
            raise _damaged("its newest checkpoint is missing")
        return
    try:
        head = opened(newest.note, verifier)
        root = _root(sealing.size, tiles)
    except NoteError as error:
        raise _damaged(str(error)) from error
    except (KeyError, IndexError) as error:
        raise _damaged("a tile is missing") from error
    if (head.size, head.root) != (sealing.size, root):
        raise _damaged(f"its newest checkpoint, of {head.size} events, is of another tree")
    if any(len(hashes) > width_in(tile, sealing.size) * HASH_BYTES for tile, hashes in tiles.items()):
        raise _damaged("a tile at its end is longer than the log")


def _root(size: int, tiles: Mapping[TileId, bytes]) -> bytes:
    """The root of a tree, from the tiles at its edge. Raises KeyError where one is missing."""
    return _root_of(size, tuple((tile, tiles[tile]) for tile in edge(size)))


# What was signed is what is found the next time, unless somebody changed it.
@functools.lru_cache(maxsize=2)
def _root_of(size: int, tiles: tuple[tuple[TileId, bytes], ...]) -> bytes:
    by_id = dict(tiles)
    return root_of(size, lambda node: node_in(by_id[tile_of(node)], node))


def _damaged(how: str) -> LogDamaged:
    return LogDamaged(
        f"The audit log is damaged: {how}. Nothing is sealed until it is whole again; see `clustercert audit verify`."
    )

"""Seals events: assigns their leaf indexes and signs the new checkpoint.

Sealing is a background job, so issuing a certificate does not wait for sealing. Each batch is written in one
transaction, which locks the log's row. A second process that seals at the same time waits for the lock and then starts
the batch again. A crash rolls the batch back.
"""

import functools
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clustercert.audit.log import KEY_CONTEXT, unseal_private_key
from clustercert.merkle.notes import Checkpoint, NoteError, VerifierKey, sign_note, verify_checkpoint
from clustercert.merkle.tiles import TileId, append_leaves, partial_tiles, tile_width, tree_root
from clustercert.merkle.tree import HASH_BYTES
from clustercert.model import Actor
from clustercert.model.errors import LogDamaged
from clustercert.model.events.operation import AuditLogBegun
from clustercert.observability import metrics
from clustercert.pki.envelope import SecretSealer
from clustercert.store.audit.log import AuditQueries, Sealing, StoredCheckpoint, StoredLog

# The maximum number of events in a batch. A full batch blocks other writers to an SQLite file for a few milliseconds.
MAX_BATCH = 128
# Older checkpoints are deleted, except one for each hour. A verifier that fetches checkpoints at least once a day sees
# every checkpoint.
THIN_AFTER = timedelta(days=1)


class LogSealer:
    """Seals events into the log of one database."""

    def __init__(
        self, queries: AuditQueries, custody: SecretSealer, now: Callable[[], datetime], name: str
    ) -> None:
        """Create a sealer. `name` is the name for a new log; an existing log keeps its name.

        Two logs must not have the same name, because their checkpoints could be confused.
        """
        self._queries = queries
        self._custody = custody
        self._now = now
        self._name = name
        self._key: tuple[VerifierKey, Ed25519PrivateKey] | None = None
        self._thinned_to = 0

    async def ensure_log(self, *, actor: Actor | None = None) -> StoredLog:
        """Return the log. If the database has no log, create one with a new key. Raises Unavailable."""
        while (log := await self._queries.log()) is None:
            key = Ed25519PrivateKey.generate()
            new = StoredLog(
                origin=self._name,
                public_key=key.public_key().public_bytes_raw(),
                sealed_key=await self._custody.seal(key.private_bytes_raw(), KEY_CONTEXT),
                size=0,
            )
            verifier = VerifierKey(new.origin, new.public_key)
            actor = actor or Actor.service()
            event = AuditLogBegun(at=self._now(), actor=actor, subject=new.origin, verifier_key=str(verifier))
            await self._queries.add_log(new, event)
        return log

    async def seal_all(self) -> int:
        """Seal all waiting events. Returns the number of sealed events. Raises the same errors as `seal`."""
        sealed = count = await self.seal()
        while count == MAX_BATCH:
            count = await self.seal()
            sealed += count
        return sealed

    async def seal(self) -> int:
        """Seal at most `MAX_BATCH` events. Returns the number of sealed events.

        Raises LogDamaged if the log does not match its newest checkpoint, UnsealError if the log's key can't be
        decrypted, or Unavailable.
        """
        verifier, private = self._key = self._key or await self._open()
        head, count = await self._queries.seal(lambda sealing: self._append(sealing, verifier, private))
        if head is not None:
            metrics.SEALED.set(head.size)
        return count

    async def unsealed_since(self) -> datetime | None:
        """Return the time of the oldest unsealed event, or None if all events are sealed. Raises Unavailable."""
        return await self._queries.unsealed_since()

    def _append(
        self, sealing: Sealing, verifier: VerifierKey, private: Ed25519PrivateKey
    ) -> tuple[StoredCheckpoint | None, int]:
        """Append the waiting events.

        Returns the new checkpoint and the number of events, or (None, 0) if no events wait.
        """
        leaves = sealing.choose_events(MAX_BATCH)
        if not leaves:
            return None, 0
        present = partial_tiles(sealing.size)
        tiles = sealing.tiles(present)
        _check(sealing, tiles, verifier)
        changed = append_leaves(sealing.size, tiles, leaves)
        size = sealing.size + len(leaves)
        signed = Checkpoint(verifier.name, size, _root(size, tiles | changed))
        note = sign_note(signed.text(), signed.origin, private)
        head = StoredCheckpoint(size=size, at=self._now(), root=signed.root, note=note)
        sealing.write(changed, present, head)
        return head, len(leaves)

    async def verifier_key(self) -> VerifierKey:
        """Return the public key of the sealed private key. Raises LogDamaged if the stored public key is different.

        Also raises UnsealError or Unavailable.
        """
        verifier, _ = await self._open()
        return verifier

    async def thin_checkpoints(self) -> None:
        """Delete checkpoints older than a day, except one for each hour. Raises Unavailable."""
        before = self._now() - THIN_AFTER
        more = True
        while more:
            ended, dropped = await self._queries.thin(before, self._thinned_to)
            more = dropped > 0 or ended != self._thinned_to
            self._thinned_to = ended

    async def _open(self) -> tuple[VerifierKey, Ed25519PrivateKey]:
        log = await self.ensure_log()
        key = await unseal_private_key(log.sealed_key, self._custody)
        verifier = VerifierKey(log.origin, key.public_key().public_bytes_raw())
        if verifier.public_key != log.public_key:
            raise LogDamaged(
                "The audit log's public key does not belong to its private key. Restore the table audit_log."
            )
        return verifier, key


def _check(sealing: Sealing, tiles: dict[TileId, bytes], verifier: VerifierKey) -> None:
    """Raise LogDamaged if the log does not match its newest checkpoint. A tampered log must not be signed again."""
    newest = sealing.checkpoint()
    if newest is None:
        if sealing.size:
            raise _damaged("its newest checkpoint is missing")
        return
    try:
        head = verify_checkpoint(newest.note, verifier)
        root = _root(sealing.size, tiles)
    except NoteError as error:
        raise _damaged(str(error)) from error
    except (KeyError, IndexError) as error:
        raise _damaged("a tile is missing") from error
    if (head.size, head.root) != (sealing.size, root):
        raise _damaged(f"its newest checkpoint, for {head.size} events, does not match its tree")
    if any(len(hashes) > tile_width(tile, sealing.size) * HASH_BYTES for tile, hashes in tiles.items()):
        raise _damaged("its last tile has more hashes than the size of the log allows")


def _root(size: int, tiles: Mapping[TileId, bytes]) -> bytes:
    return _cached_root(size, tuple((tile, tiles[tile]) for tile in partial_tiles(size)))


# Cached, because each sealing checks the tiles that the previous sealing signed.
@functools.lru_cache(maxsize=2)
def _cached_root(size: int, tiles: tuple[tuple[TileId, bytes], ...]) -> bytes:
    return tree_root(size, dict(tiles))


def _damaged(reason: str) -> LogDamaged:
    return LogDamaged(
        f"The audit log is damaged: {reason}. Nothing is sealed until the log is repaired. Run `clustercert"
        " audit verify`."
    )

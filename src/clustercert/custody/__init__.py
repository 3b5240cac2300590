"""Use case: manage the keys that encrypt secrets at rest. `pki.envelope` explains the kinds of keys.

`keks` reads key-encryption keys, `ring` loads the data keys, `rotation` replaces both.
"""

import contextlib
from collections.abc import Callable
from datetime import datetime

from clustercert.custody.keks import KekSource
from clustercert.custody.ring import active_wrapped_key, load_ring
from clustercert.custody.rotation import Rotation
from clustercert.model import Actor, utc_now
from clustercert.model.errors import Conflict, CustodyError, Unavailable
from clustercert.model.events.administration import KeysChanged
from clustercert.pki.envelope import KeyRing, new_data_key
from clustercert.store.engine.database import Database
from clustercert.store.keys import KeyQueries

FIRST_DATA_KEY = 1


class Custody:
    """Encrypts and decrypts secrets. After another process has rotated keys, loads the new data key."""

    def __init__(self, database: Database, keks: KekSource, now: Callable[[], datetime] = utc_now) -> None:
        self._queries = KeyQueries(database)
        self.rotation = Rotation(self._queries, keks, now)
        self._generation = database.generation
        self._keks = keks
        self._now = now
        self._ring = KeyRing((), active_id=0)
        self._read_at: tuple[int, int] | None = None

    async def open(self) -> None:
        """Load all keys. Raises Unavailable, or CustodyError if the keys can't be used."""
        read_at = self._generation.state
        self._ring = await load_ring(self._queries, self._keks)
        self._read_at = read_at

    async def check(self) -> None:
        """Load the data keys that this process has not loaded yet. Raises Unavailable."""
        known = {data_key.id for data_key in self._ring.data_keys}
        if not all(key.id in known for key in await self._queries.data_keys()):
            await self._reload()

    async def initialise(self, *, actor: Actor | None = None) -> None:
        """Create a data key if the database has none, then call `open`. Several processes may call this at once."""
        async with self._keks.lock():
            if not await self._queries.data_keys():
                kek = self._keks.read()[0]
                first = active_wrapped_key(new_data_key(FIRST_DATA_KEY), kek, self._now())
                event = KeysChanged(
                    at=first.created_at,
                    kind="keys.created",
                    actor=actor or Actor.service(),
                    subject=kek.id,
                    kek_id=kek.id,
                    data_key_id=first.id,
                )
                # A Conflict means that another process has created the data key.
                with contextlib.suppress(Conflict):
                    await self._queries.add_active(first, event)
        await self.open()

    async def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        """Encrypt a secret for a database row. `bound_to` names the row as `table:id`. Raises Unavailable."""
        # After another process has rotated the data keys, this process must use the new data key within a second. The
        # rotation waits a little longer, and then encrypts again all secrets that are sealed with old data keys.
        if not self._generation.fresh() or self._generation.state != self._read_at:
            await self._reload()
        return self._ring.seal(plaintext, bound_to)

    async def unseal(self, sealed: bytes, bound_to: str) -> bytes:
        """Decrypt a row's secret, without I/O if the secret's data key is loaded. Raises UnsealError or Unavailable."""
        if not self._ring.knows(sealed):
            await self._reload()
        return self._ring.unseal(sealed, bound_to)

    async def _reload(self) -> None:
        try:
            await self.open()
        except CustodyError as error:
            raise Unavailable("The service can't read its keys. Try again later.") from error

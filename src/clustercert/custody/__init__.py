"""Use case: secrets at rest are sealed and unsealed under the data keys of the database.

Where key-encryption keys come from is `keks`; exchanging keys for new ones is `rotation`.
"""

import contextlib
from collections.abc import Callable
from datetime import datetime

from clustercert.custody.keks import KekFile, KekSource, KekVariable, read_kek_file, write_new_kek_file
from clustercert.custody.ring import load_ring, wrapped_anew
from clustercert.custody.rotation import DataKeyRotation, KekRotation, Rotation
from clustercert.errors import Conflict, CustodyError, Unavailable
from clustercert.model import AuditEvent, Origin, utc_now
from clustercert.sealing import KeyRing, new_data_key
from clustercert.store.database import Database
from clustercert.store.keys import KeyRows

__all__ = [
    "Custody",
    "DataKeyRotation",
    "KekFile",
    "KekRotation",
    "KekSource",
    "KekVariable",
    "Rotation",
    "read_kek_file",
    "write_new_kek_file",
]

FIRST_DATA_KEY = 1


class Custody:
    """Seals and unseals for the rest of the program, whoever has rotated the keys meanwhile.

    Attributes:
        rotation: exchanges the keys for new ones.
    """

    def __init__(self, database: Database, keks: KekSource, now: Callable[[], datetime] = utc_now) -> None:
        self._rows = KeyRows(database)
        self.rotation = Rotation(self._rows, keks, now)
        self._generation = database.generation
        self._keks = keks
        self._now = now
        self._ring = KeyRing((), active_id=0)
        self._read_at: int | None = None

    async def open(self) -> None:
        """Read all keys anew. Raises CustodyError, which says what to do, or Unavailable."""
        read_at = self._generation.value
        self._ring = await load_ring(self._rows, self._keks)
        self._read_at = read_at

    async def check(self) -> None:
        """Make sure that this process can open whatever any process may seal now. Raises Unavailable."""
        known = {data_key.id for data_key in self._ring.data_keys}
        if not all(key.id in known for key in await self._rows.all()):
            await self._reopen()

    async def initialise(self, *, actor: str = "clustercert", origin: Origin | None = None) -> None:
        """Make the first data key where the database has none, then open. Several processes may do it at once.

        Raises as `open` does.
        """
        async with self._keks.held():
            if not await self._rows.all():
                kek = self._keks.read()[0]
                first = wrapped_anew(new_data_key(FIRST_DATA_KEY), kek, self._now())
                event = AuditEvent(
                    at=self._now(),
                    kind="keys.created",
                    project_id=None,
                    actor=actor,
                    subject=kek.id,
                    origin=origin or Origin.local(),
                    detail={"kek_id": kek.id, "data_key_id": first.id},
                )
                # Where another process was quicker, its data key is as good.
                with contextlib.suppress(Conflict):
                    await self._rows.add_active(first, event)
        await self.open()

    async def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        """Seal a secret for one row, named `table:id`. Raises Unavailable."""
        # What an old data key seals stays readable, but a rotation must come to its end: within a second of it
        # nobody seals with the old one any more.
        if not self._generation.fresh() or self._generation.value != self._read_at:
            await self._reopen()
        return self._ring.seal(plaintext, bound_to)

    async def unseal(self, sealed: bytes, bound_to: str) -> bytes:
        """The secret of that row; no I/O where its data key is known already. Raises SealError or Unavailable."""
        if not self._ring.knows(sealed):
            await self._reopen()
        return self._ring.unseal(sealed, bound_to)

    async def _reopen(self) -> None:
        try:
            await self.open()
        except CustodyError as error:
            raise Unavailable("The keys of this service can't be read now. Try again in a moment.") from error

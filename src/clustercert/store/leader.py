"""Which one of all the processes does the work that is to be done once: whoever holds the lease.

For work that does no harm when two do it after all: a process that was stopped in the middle may come back and finish.
"""

import secrets

from sqlalchemy import BigInteger, cast, delete, extract, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.store import tables
from clustercert.store.database import Database

_lease = tables.lease

_NOW = cast(extract("epoch", func.now()), BigInteger)


class Leader:
    """A candidate for one kind of work; it has to ask again before the lease has run out.

    Attributes:
        seconds: how long after the end of a process another one takes over, at most.
    """

    def __init__(self, database: Database, name: str, seconds: int = 60) -> None:
        self._database = database
        self._name = name
        self._holder = secrets.token_hex(16)
        self.seconds = seconds

    async def leads(self) -> bool:
        """Whether this candidate holds the lease, taken or renewed now. Raises Unavailable."""
        # One that ends much later than any is taken for was taken before the database's clock was put right.
        too_late = _lease.c.expires_at > _NOW + 2 * self.seconds
        to_be_had = or_(_lease.c.holder == self._holder, _lease.c.expires_at < _NOW, too_late)
        values = {"holder": self._holder, "expires_at": _NOW + self.seconds}
        take = update(_lease).where(_lease.c.name == self._name, to_be_had).values(values)
        async with self._database.write() as connection:
            if (await connection.execute(take)).rowcount:
                return True
            if (await connection.execute(select(_lease.c.name).where(_lease.c.name == self._name))).first():
                return False
        try:
            async with self._database.write() as connection:
                await connection.execute(insert(_lease).values(name=self._name, **values))
        except IntegrityError:
            return False
        return True

    async def resign(self) -> None:
        """Let another one take over at once. Raises Unavailable."""
        mine = (_lease.c.name == self._name, _lease.c.holder == self._holder)
        async with self._database.write() as connection:
            await connection.execute(delete(_lease).where(*mine))

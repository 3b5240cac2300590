"""Leader election: one process holds the lease for a job.

Two processes may still run the job at once, because a suspended leader can continue after its lease has expired. So the
job must be safe to run twice at the same time.
"""

from sqlalchemy import BigInteger, cast, delete, extract, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.model import new_id
from clustercert.store import tables
from clustercert.store.engine.database import Database

_lease = tables.lease

_NOW = cast(extract("epoch", func.now()), BigInteger)


class Leader:
    """A candidate for the lease of one job. The holder must renew the lease before the lease expires.

    If the leader dies, another process takes over within `seconds`, the lifetime of the lease.
    """

    def __init__(self, database: Database, name: str, seconds: int = 60) -> None:
        self._database = database
        self.name = name
        self._holder = new_id()
        self.seconds = seconds

    @property
    def is_database_away(self) -> bool:
        """Whether the database can't be used now, which another line of the log says."""
        return self._database.outage.is_ongoing

    async def leads(self) -> bool:
        """Take or renew the lease. Returns whether this candidate holds the lease. Raises Unavailable."""
        # A lease with an impossibly late expiry was taken before the database's clock was set back. Treat such a lease
        # as free.
        too_late = _lease.c.expires_at > _NOW + 2 * self.seconds
        is_free = or_(_lease.c.holder == self._holder, _lease.c.expires_at < _NOW, too_late)
        values = {"holder": self._holder, "expires_at": _NOW + self.seconds}
        take = update(_lease).where(_lease.c.name == self.name, is_free).values(values)
        async with self._database.transaction() as connection:
            if (await connection.execute(take)).rowcount:
                return True
            if (await connection.execute(select(_lease.c.name).where(_lease.c.name == self.name))).first():
                return False
        try:
            async with self._database.transaction() as connection:
                await connection.execute(insert(_lease).values(name=self.name, **values))
        except IntegrityError:
            return False
        return True

    async def resign(self) -> None:
        """Give up the lease, so that another process can take over at once. Raises Unavailable."""
        mine = (_lease.c.name == self.name, _lease.c.holder == self._holder)
        async with self._database.transaction() as connection:
            await connection.execute(delete(_lease).where(*mine))

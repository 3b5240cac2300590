"""User names that the policy chose instead of user ids. Each belongs to one user forever."""

from datetime import datetime

from cachetools import LRUCache
from sqlalchemy import insert, or_, select
from sqlalchemy.exc import IntegrityError

from clustercert.model import Grant
from clustercert.model.errors import Forbidden
from clustercert.store import tables
from clustercert.store.engine.database import Database
from clustercert.store.engine.queries import Queries

_certificate, _username = tables.certificate, tables.username

CACHED_NAMES = 10_000


class UsernameQueries(Queries):
    """Assigns names to users. Owners are cached without expiry, because a name never changes its owner."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._owners: LRUCache[str, str] = LRUCache(CACHED_NAMES)

    async def owner(self, name: str) -> str | None:
        """Return the id of the user to whom a name belongs, or None. Raises Unavailable."""
        return await self._scalar(select(_username.c.user_id).where(_username.c.name == name))

    async def in_cluster(self, cluster_id: str, name: str, now: datetime) -> tuple[str, ...]:
        """Return the ids of users with this name, or common name, in unexpired certificates of a cluster, sorted."""
        has_name = or_(_certificate.c.user_name == name, _certificate.c.username == name)
        query = select(_certificate.c.user_id).where(
            _certificate.c.cluster_id == cluster_id, _certificate.c.not_after > now, has_name
        )
        return tuple(sorted(row.user_id for row in await self._rows(query.distinct())))

    async def claim(self, grant: Grant, user_id: str) -> None:
        """Assign the grant's user name to a user. Raises Forbidden if it belongs to another user, or Unavailable."""
        name = grant.username
        owner = self._owners.get(name) or await self._claim(name, user_id)
        self._owners[name] = owner
        if owner != user_id:
            raise _taken(grant)

    async def require_free(self, grant: Grant, user_id: str) -> None:
        """Raise Forbidden if the grant's user name belongs to another user, or Unavailable. Assigns nothing."""
        owner = self._owners.get(grant.username) or await self.owner(grant.username)
        if owner not in (None, user_id):
            raise _taken(grant)

    async def _claim(self, name: str, user_id: str) -> str:
        """Return the owner of a name. If it has none, the user becomes its owner."""
        owner = await self.owner(name)
        if owner is None:
            try:
                async with self._database.transaction() as connection:
                    await connection.execute(insert(_username).values(name=name, user_id=user_id))
            except IntegrityError:
                # Another process claimed the name at the same time.
                owner = await self.owner(name)
        return owner or user_id


def _taken(grant: Grant) -> Forbidden:
    return Forbidden(
        f"The user name {grant.username} belongs to another user."
        " Ask the operator to change the policy's username.",
        trace={**grant.trace, "username_taken": grant.username},
    )

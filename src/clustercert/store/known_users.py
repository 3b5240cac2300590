"""Queries for users by name: those of the built-in identity, and those of issuers and Keystone who have logged in."""

import contextlib
from dataclasses import asdict

from sqlalchemy import and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from clustercert.model import KnownUser
from clustercert.model.identity import BUILT_IN
from clustercert.store import tables
from clustercert.store.engine.queries import Queries
from clustercert.store.engine.transaction import Transaction

_domain, _user, _federated, _username = (
    tables.domain,
    tables.user,
    tables.federated_user,
    tables.username,
)

_BUILT_IN_USERS = select(_user.c.id, _user.c.name, _domain.c.name.label("domain")).join(
    _domain, _domain.c.id == _user.c.domain_id
)
_FEDERATED_USERS = select(_federated.c.id, _federated.c.name, _federated.c.domain, _federated.c.issuer)


class KnownUserQueries(Queries):
    """Finds users by name or id, and records users of issuers and of Keystone."""

    async def named(self, name: str) -> tuple[KnownUser, ...]:
        """Return the users with this name, sorted by domain and id.

        The name is that of a user, alone or as `DOMAIN/NAME`, or a user name that the policy chose. Names of users of
        an issuer usually begin with its name.
        """
        domain, _, rest = name.partition("/")
        own = or_(_user.c.name == name, and_(_domain.c.name == domain, _user.c.name == rest))
        others = or_(
            _federated.c.name == name, and_(_federated.c.domain == domain, _federated.c.name == rest)
        )
        async with self._database.read() as connection:
            chosen = (
                await connection.execute(select(_username.c.user_id).where(_username.c.name == name))
            ).scalar()
            built_in = await connection.execute(_BUILT_IN_USERS.where(or_(own, _user.c.id == chosen)))
            federated = await connection.execute(
                _FEDERATED_USERS.where(or_(others, _federated.c.id == chosen))
            )
            found = [KnownUser(*row, BUILT_IN) for row in built_in]
            found += [KnownUser(*row) for row in federated]
        if chosen is not None and chosen not in {each.id for each in found}:
            found.append(KnownUser(chosen, name, "", ""))
        return tuple(sorted(found, key=lambda each: (each.domain, each.id)))

    async def with_id(self, user_id: str) -> KnownUser | None:
        """Return the user with this id, or None if the service knows no name of theirs."""
        async with self._database.read() as connection:
            built_in = (await connection.execute(_BUILT_IN_USERS.where(_user.c.id == user_id))).first()
            if built_in is not None:
                return KnownUser(*built_in, BUILT_IN)
            other = (await connection.execute(_FEDERATED_USERS.where(_federated.c.id == user_id))).first()
            return KnownUser(*other) if other is not None else None

    async def remember(self, user: KnownUser) -> None:
        """Record a user of an issuer or of Keystone, or their new name."""
        # Another process may insert the row at the same time.
        with contextlib.suppress(IntegrityError):
            async with self._database.transaction() as connection:
                await put_federated_user(connection, user)


async def put_federated_user(connection: Transaction, user: KnownUser, **others: object) -> None:
    """Insert or change the row of a user, in the caller's transaction. `others` are values of further columns.

    Raises IntegrityError if another transaction inserts it at the same time.
    """
    values = asdict(user) | others
    changed = await connection.execute(update(_federated).where(_federated.c.id == user.id).values(values))
    if changed.rowcount == 0:
        await connection.execute(insert(_federated).values(values))

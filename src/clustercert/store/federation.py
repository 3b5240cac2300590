"""Queries for users of OIDC issuers and Keystone: their projects, and whether they are blocked."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import or_, select

from clustercert.model import AuditEvent, KnownUser, Project, Revocation
from clustercert.model.errors import ConcurrentChange, Conflict, NotFound
from clustercert.store import tables
from clustercert.store.engine.database import raise_generation
from clustercert.store.engine.queries import Queries, exists
from clustercert.store.entities import Reference, entity_of, in_domains
from clustercert.store.revocations import blocking, end_disabled, revoke_disabled

_project, _domain, _user, _federated = tables.project, tables.domain, tables.user, tables.federated_user
_role = tables.role


@dataclass(frozen=True, slots=True)
class FederatedAccess:
    """The access of an issuer's user, according to the store.

    Attributes:
        projects: the enabled projects among those in which the issuer's users can have roles.
        blocked: whether an operator blocked the user.
        name_taken: whether a domain has the issuer's name, so that its users' names are ambiguous.
        id_taken: whether a user of the built-in identity has the user's id.
        recorded: the user as last recorded, or None.
        logins_ended_at: when the user ended all their logins.
    """

    projects: frozenset[str]
    blocked: bool
    name_taken: bool
    id_taken: bool = False
    recorded: KnownUser | None = None
    logins_ended_at: datetime | None = None


class FederationQueries(Queries):
    """Reads the access of federated users, and blocks users. Blocking invalidates caches."""

    async def access(
        self, user_id: str, issuer_name: str, project_ids: Collection[str], domain: str | None
    ) -> FederatedAccess:
        """Return the access of a user. The settings of the issuer name the projects, and the domain by name or id."""
        bound = or_(_project.c.id.in_(project_ids), _domain.c.name == domain, _domain.c.id == domain)
        projects = (
            select(_project.c.id)
            .join(_domain, _domain.c.id == _project.c.domain_id)
            .where(_project.c.enabled, _domain.c.enabled, bound)
        )
        async with self._database.read() as connection:
            found = frozenset((await connection.execute(projects)).scalars())
            blocked = await exists(connection, blocking(user_id))
            taken = await exists(connection, select(_domain.c.id).where(_domain.c.name == issuer_name))
            built_in = await exists(connection, select(_user.c.id).where(_user.c.id == user_id))
            row = (await connection.execute(select(_federated).where(_federated.c.id == user_id))).first()
        if row is None:
            return FederatedAccess(found, blocked, taken, built_in)
        *recorded, ended_at = row
        return FederatedAccess(found, blocked, taken, built_in, KnownUser(*recorded), ended_at)

    async def existing(
        self, project_ids: Collection[str], domain: str | None, roles: Collection[str]
    ) -> tuple[frozenset[str], bool, frozenset[str]]:
        """Return which of these projects exist, whether the domain with this name or id does, and which roles do."""
        projects = select(_project.c.id).where(_project.c.id.in_(project_ids))
        domains = select(_domain.c.id).where(or_(_domain.c.name == domain, _domain.c.id == domain))
        names = select(_role.c.name).where(_role.c.name.in_(roles))
        async with self._database.read() as connection:
            return (
                frozenset((await connection.execute(projects)).scalars()),
                await exists(connection, domains),
                frozenset((await connection.execute(names)).scalars()),
            )

    async def projects(self, ids: Collection[str]) -> tuple[Project, ...]:
        """Return the projects with these ids, sorted by domain and name."""
        query = in_domains(Project, Reference()).where(_project.c.id.in_(ids))
        rows = await self._rows(query.order_by(_domain.c.name, _project.c.name))
        return tuple(entity_of(Project, row) for row in rows)

    async def block(self, revocation: Revocation, *events: AuditEvent) -> None:
        """Block a user who is not in the store, and revoke their certificates.

        Raises Conflict for a user of the built-in identity, or one who is blocked already.
        """
        async with self._database.transaction(*events) as connection:
            generation = await raise_generation(connection)
            if await exists(connection, select(_user.c.id).where(_user.c.id == revocation.user_id)):
                raise ConcurrentChange
            if await exists(connection, blocking(revocation.user_id)):
                raise Conflict("This user is blocked already.")
            await revoke_disabled(connection, revocation, generation)

    async def unblock(self, user_id: str, event: AuditEvent) -> None:
        """Accept a blocked user's logins again. Their old certificates stay revoked. Raises NotFound or Conflict."""
        async with self._database.transaction(event) as connection:
            generation = await raise_generation(connection)
            if await exists(connection, select(_user.c.id).where(_user.c.id == user_id)):
                raise ConcurrentChange
            if not await exists(connection, blocking(user_id, "user.blocked")):
                raise NotFound("This user is not blocked.")
            await end_disabled(connection, user_id, generation)

"""Queries that find users by name, record federated users, and assign the user names that the policy chose.

Federated users are users of OIDC issuers and of Keystone.
"""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from cachetools import LRUCache
from sqlalchemy import ColumnElement, and_, insert, literal, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from clustercert.model import AuditEvent, Grant, KnownUser, Revocation
from clustercert.model.errors import ConcurrentChange, Conflict, Forbidden, NotFound
from clustercert.model.identity import BUILT_IN
from clustercert.store import tables
from clustercert.store.certificates.lists import belongs_to, name_parts
from clustercert.store.certificates.revocations import NO_END, blocking, end_disabled, revoke_disabled
from clustercert.store.engine.database import Database, hold_generation, raise_generation
from clustercert.store.engine.queries import Queries, exists
from clustercert.store.engine.transaction import Transaction
from clustercert.store.identity.console_sessions import end_sessions

_domain, _user, _federated, _username = tables.domain, tables.user, tables.federated_user, tables.username
_certificate, _project, _role = tables.certificate, tables.project, tables.role
_revocation, _assignment, _member = tables.revocation, tables.role_assignment, tables.group_member

_BUILT_IN_USERS = select(_user.c.id, _user.c.name, _domain.c.name.label("domain")).join(
    _domain, _domain.c.id == _user.c.domain_id
)
_FEDERATED_USERS = select(_federated.c.id, _federated.c.name, _federated.c.domain, _federated.c.issuer)


class KnownUserQueries(Queries):
    """Finds users by name or id, and records users of issuers and of Keystone."""

    async def find_by_name(self, name: str) -> tuple[KnownUser, ...]:
        """Return the users with this name, sorted by domain and id.

        `name` is a user's name, alone or as `DOMAIN/NAME`, or a user name that the policy chose. Names of an issuer's
        users usually begin with the issuer's name.
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

    async def find_by_id(self, user_id: str) -> KnownUser | None:
        """Return the user with this id, or None if the service does not know the user's name."""
        async with self._database.read() as connection:
            built_in = (await connection.execute(_BUILT_IN_USERS.where(_user.c.id == user_id))).first()
            if built_in is not None:
                return KnownUser(*built_in, BUILT_IN)
            other = (await connection.execute(_FEDERATED_USERS.where(_federated.c.id == user_id))).first()
            return KnownUser(*other) if other is not None else None

    async def find_by_ids(self, ids: Collection[str]) -> Mapping[str, KnownUser]:
        """Return the users with these ids, by id. Omits users whose names the service does not know."""
        async with self._database.read() as connection:
            federated = await connection.execute(_FEDERATED_USERS.where(_federated.c.id.in_(ids)))
            found = {row.id: KnownUser(*row) for row in federated}
            built_in = await connection.execute(_BUILT_IN_USERS.where(_user.c.id.in_(ids)))
            return found | {row.id: KnownUser(*row, BUILT_IN) for row in built_in}

    async def last_logins(self, ids: Collection[str]) -> Mapping[str, datetime]:
        """Return when users of issuers and of Keystone last logged in, by id. Omits other users. See `note_login`."""
        query = select(_federated.c.id, _federated.c.last_login_at).where(_federated.c.id.in_(ids))
        return {row.id: row.last_login_at for row in await self._rows(query) if row.last_login_at is not None}

    async def note_login(self, user_id: str, at: datetime) -> None:
        """Store when a recorded user of an issuer or of Keystone logged in."""
        async with self._database.transaction() as connection:
            query = update(_federated).where(_federated.c.id == user_id)
            await connection.execute(query.values(last_login_at=at))

    async def is_in_project(self, user_id: str, project_id: str) -> bool:
        """Whether a user has a role in the project, or had a certificate for one of its clusters."""
        groups = select(_member.c.group_id).where(_member.c.user_id == user_id)
        role = select(literal(1)).where(
            _assignment.c.project_id == project_id,
            or_(_assignment.c.actor_id == user_id, _assignment.c.actor_id.in_(groups)),
        )
        certificate = select(literal(1)).where(
            _certificate.c.user_id == user_id, _certificate.c.project_id == project_id
        )
        return await self._row(select(literal(1)).where(or_(role.exists(), certificate.exists()))) is not None

    async def record_user(self, user: KnownUser) -> None:
        """Record a user of an issuer or of Keystone, or the user's new name."""
        # Another process may insert the row at the same time.
        with contextlib.suppress(IntegrityError):
            async with self._database.transaction() as connection:
                await put_federated_user(connection, user)
                await hold_generation(connection)


async def put_federated_user(connection: Transaction, user: KnownUser, **others: object) -> None:
    """Insert or change the row of a federated user, in the caller's transaction.

    `others` contains the values of columns that are not fields of `KnownUser`. Raises IntegrityError if another
    transaction inserts the row at the same time.
    """
    values = asdict(user) | others
    changed = await connection.execute(update(_federated).where(_federated.c.id == user.id).values(values))
    if changed.rowcount == 0:
        await connection.execute(insert(_federated).values(values))


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
        """Return the sorted ids of users with this name who have unexpired certificates for a cluster.

        See `belongs_to` for the names.
        """
        has_name = belongs_to(literal(name), *map(literal, name_parts(name)))
        query = select(_certificate.c.user_id).where(
            _certificate.c.cluster_id == cluster_id, _certificate.c.not_after > now, has_name
        )
        return tuple(sorted(row.user_id for row in await self._rows(query.distinct())))

    async def claim(self, grant: Grant, user_id: str) -> None:
        """Assign the grant's user name to a user. Raises Unavailable, or Forbidden if another user owns the name."""
        name = grant.username
        owner = self._owners.get(name) or await self._claim(name, user_id)
        self._owners[name] = owner
        if owner != user_id:
            raise _taken(grant)

    async def require_free(self, grant: Grant, user_id: str) -> None:
        """Raise Forbidden if the grant's user name belongs to another user. Assigns nothing. Raises Unavailable."""
        owner = self._owners.get(grant.username) or await self.owner(grant.username)
        if owner not in (None, user_id):
            raise _taken(grant)

    async def _claim(self, name: str, user_id: str) -> str:
        """Assign a name to the user if the name has no owner. Returns the id of the name's owner."""
        owner = await self.owner(name)
        if owner is None:
            try:
                async with self._database.transaction() as connection:
                    await connection.execute(insert(_username).values(name=name, user_id=user_id))
                    await hold_generation(connection)
            except IntegrityError:
                # Another process claimed the name at the same time.
                owner = await self.owner(name)
        return owner or user_id


def _taken(grant: Grant) -> Forbidden:
    return Forbidden(
        f"The user name {grant.username} belongs to another user. Ask the operator to set policy.username ="
        ' "{user.name}@{user.domain}", or to add {user.id} if the other user was deleted.',
        trace={**grant.trace, "username_taken": grant.username},
    )


@dataclass(frozen=True, slots=True)
class FederatedAccess:
    """The stored data that decide what an issuer's user may access.

    Attributes:
        projects: DOMAIN/NAME of each enabled project in which the issuer's users can have roles, by id.
        blocked: whether an operator blocked the user.
        name_taken: whether a domain has the issuer's name, so that the names of the issuer's users are ambiguous.
        id_taken: whether a user of the built-in identity service has the same id.
        recorded: the user as last recorded, or None.
        logins_ended_at: when the user last ended all their logins, or None.
        last_login_at: when the user last logged in, updated at most once an hour; None if unknown.
    """

    projects: Mapping[str, str]
    blocked: bool
    name_taken: bool
    id_taken: bool = False
    recorded: KnownUser | None = None
    logins_ended_at: datetime | None = None
    last_login_at: datetime | None = None


_PROJECTS = select(_project.c.id, _project.c.name, _domain.c.name.label("domain")).join(
    _domain, _domain.c.id == _project.c.domain_id
)


def _is_named(projects: Collection[str]) -> ColumnElement[bool]:
    """Return a condition that matches projects by their ids or by DOMAIN/NAME."""
    names = [tuple(each.split("/", 1)) for each in projects if "/" in each]
    ids = [each for each in projects if "/" not in each]
    return or_(_project.c.id.in_(ids), tuple_(_domain.c.name, _project.c.name).in_(names))


class FederationQueries(Queries):
    """Reads the access of federated users, and blocks users. Blocking invalidates caches."""

    async def access(
        self, user_id: str, issuer_name: str, projects: Collection[str], domain: str | None
    ) -> FederatedAccess:
        """Return the access of a user.

        The projects (by id or DOMAIN/NAME) and the domain (by name or id) are from the issuer's settings.
        """
        bound = or_(_is_named(projects), _domain.c.name == domain, _domain.c.id == domain)
        query = _PROJECTS.where(_project.c.enabled, _domain.c.enabled, bound)
        async with self._database.read() as connection:
            found = {row.id: f"{row.domain}/{row.name}" for row in await connection.execute(query)}
            blocked = await exists(connection, blocking(user_id))
            taken = await exists(connection, select(_domain.c.id).where(_domain.c.name == issuer_name))
            built_in = await exists(connection, select(_user.c.id).where(_user.c.id == user_id))
            row = (await connection.execute(select(_federated).where(_federated.c.id == user_id))).first()
        if row is None:
            return FederatedAccess(found, blocked, taken, built_in)
        *recorded, ended_at, last_login_at = row
        return FederatedAccess(found, blocked, taken, built_in, KnownUser(*recorded), ended_at, last_login_at)

    async def existing_names(
        self, projects: Collection[str], domain: str | None, roles: Collection[str]
    ) -> tuple[frozenset[str], bool, frozenset[str]]:
        """Return which of these projects and roles exist, and whether a domain has this name or id.

        The order in the result is: projects, domain, roles. A project that exists is returned by its id and as
        DOMAIN/NAME. `projects` can have both forms.
        """
        query = _PROJECTS.where(_is_named(projects))
        domains = select(_domain.c.id).where(or_(_domain.c.name == domain, _domain.c.id == domain))
        names = select(_role.c.name).where(_role.c.name.in_(roles))
        async with self._database.read() as connection:
            found = (await connection.execute(query)).all()
            return (
                frozenset(name for row in found for name in (row.id, f"{row.domain}/{row.name}")),
                await exists(connection, domains),
                frozenset((await connection.execute(names)).scalars()),
            )

    async def block(self, revocation: Revocation, *events: AuditEvent) -> None:
        """Block a user of an issuer or of Keystone, end their sessions, and revoke their certificates.

        Raises Conflict for a user of the built-in identity service, or for a user who is already blocked.
        """
        async with self._database.transaction(*events) as connection:
            generation = await raise_generation(connection)
            if await exists(connection, select(_user.c.id).where(_user.c.id == revocation.user_id)):
                raise ConcurrentChange
            if await exists(connection, blocking(revocation.user_id)):
                raise Conflict("This user is blocked already.")
            await end_sessions(connection, (revocation.user_id,))
            await revoke_disabled(connection, revocation, generation)

    async def unblock(self, user_id: str, event: AuditEvent) -> None:
        """Accept a blocked user's logins again. Old certificates stay revoked. Raises NotFound or Conflict."""
        async with self._database.transaction(event) as connection:
            generation = await raise_generation(connection)
            if await exists(connection, select(_user.c.id).where(_user.c.id == user_id)):
                raise ConcurrentChange
            if not await exists(connection, blocking(user_id, "user.blocked")):
                raise NotFound("This user is not blocked.")
            await end_disabled(connection, user_id, generation)


class SeenUserQueries(Queries):
    """Reads users from the ledger."""

    async def last_issued(self, project_id: str, user_id: str) -> datetime | None:
        """Return when a user got their last certificate for the project's clusters."""
        query = (
            select(_certificate.c.issued_at)
            .where(_certificate.c.user_id == user_id, _certificate.c.project_id == project_id)
            .order_by(_certificate.c.id.desc())
            .limit(1)
        )
        return await self._scalar(query)

    async def is_blocked(self, user_id: str) -> bool:
        return await self._row(blocking(user_id)) is not None

    async def page(self, project_id: str, *, after: str, limit: int) -> Mapping[str, datetime | None]:
        """Return a page of federated users: their sorted ids, and the times of their last certificates.

        A time is None if the user got no certificate for the project. Leaves out blocked users.
        """
        blocked = select(_revocation.c.user_id).where(
            _revocation.c.cluster_id == "",
            _revocation.c.fingerprint.is_(None),
            _revocation.c.epoch == NO_END,
        )
        issued = (
            select(_certificate.c.issued_at)
            .where(_certificate.c.user_id == _federated.c.id, _certificate.c.project_id == project_id)
            .order_by(_certificate.c.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        query = (
            select(_federated.c.id, issued)
            .where(_federated.c.id > after, _federated.c.id.not_in(blocked))
            .order_by(_federated.c.id)
            .limit(limit)
        )
        return {row[0]: row[1] for row in await self._rows(query)}

"""A built-in identity on a real database, with cheap password hashes and a manual clock."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from argon2 import PasswordHasher
from sqlalchemy import event, func, select

from clustercert.identity.access_keys import IssuedKey
from clustercert.identity.directory import Directory
from clustercert.identity.passwords import Passwords
from clustercert.identity.service import Identity
from clustercert.identity.tokens import ByPassword, DomainScope, IssuedToken, ProjectScope, Scope
from clustercert.model import Actor, Caller, Domain, Origin, Project, User
from clustercert.store import tables
from clustercert.store.engine.database import Database
from clustercert.store.identity.entities import Reference
from support.ring_sealer import RingSealer
from support.stores import Store, patient

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
ORIGIN = Origin(address="192.0.2.7", request_id="5" * 32)
ACTOR = "cli:tester"
PASSWORD = "correct horse"
LIFETIME = timedelta(hours=24)


@dataclass
class Clock:
    """A clock that a test moves."""

    time: datetime = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def forward(self, by: timedelta) -> None:
        self.time += by


async def enable(directory: Directory, entity: Domain | Project, *, enabled: bool, actor: Actor) -> None:
    """Enable or disable a domain or project."""
    if isinstance(entity, Domain):
        await directory.update_domain(await directory.find_domain(entity.id), enabled=enabled, actor=actor)
    else:
        before = await directory.find_project(entity.id)
        await directory.update_project(
            before, description=before.description, enabled=enabled, labels=before.labels, actor=actor
        )


@dataclass
class Accounts:
    """An identity with a domain and a project, and short methods to create more.

    Attributes:
        store: the database as other programs see it.
        others: the databases of second processes, closed at the end.
    """

    store: Store
    database: Database
    sealer: RingSealer
    clock: Clock
    identity: Identity
    others: list[Database] = field(default_factory=list)
    domain: Domain = field(init=False)
    project: Project = field(init=False)

    async def create_defaults(self) -> None:
        await self.identity.roles.bootstrap()
        self.domain = await self.new_domain("OTC1")
        self.project = await self.new_project("eu-de")

    async def new_domain(self, name: str) -> Domain:
        return await self.identity.directory.create_domain(name, actor=Actor(ACTOR, ORIGIN))

    async def new_project(self, name: str, domain: Domain | None = None) -> Project:
        domain = domain or self.domain
        return await self.identity.directory.create_project(name, domain, actor=Actor(ACTOR, ORIGIN))

    async def new_user(
        self, name: str = "alice", *roles: str, domain: Domain | None = None, password: str | None = PASSWORD
    ) -> User:
        """A user with roles in the default project."""
        user = await self.identity.directory.create_user(
            name, domain or self.domain, password=password, actor=Actor(ACTOR, ORIGIN)
        )
        for role in roles:
            await self.assign(role, user, self.project)
        return user

    async def assign(self, role: str, user: User, project: Project | None) -> None:
        await self.identity.roles.assign(role, user, project, actor=Actor(ACTOR, ORIGIN))

    async def new_key(self, user: User) -> IssuedKey:
        return await self.identity.access_keys.create(user, actor=Actor(ACTOR, ORIGIN))

    async def login(
        self, user: User, scope: Project | Domain | None = None, password: str = PASSWORD
    ) -> IssuedToken:
        wanted: Scope = None
        if isinstance(scope, Project):
            wanted = ProjectScope(Reference(id=scope.id))
        elif isinstance(scope, Domain):
            wanted = DomainScope(id=scope.id)
        return await self.identity.tokens.issue(ByPassword(Reference(id=user.id), password), wanted)

    async def events(self) -> list[dict[str, object]]:
        """The audit events, oldest first."""
        async with self.database.read() as connection:
            query = select(tables.audit_event.c.body).order_by(tables.audit_event.c.id)
            return [json.loads(body) for body in (await connection.execute(query)).scalars()]

    def second_process(self) -> Identity:
        """The same identity in another process: separate connections and caches."""
        return new_identity(self.second_database(), self.sealer, self.clock)

    def second_database(self) -> Database:
        database = patient(self.store.url)
        self.others.append(database)
        return database

    @contextlib.contextmanager
    def counted_statements(self) -> Iterator[list[str]]:
        """The statements that this process sends to the database during the block."""
        seen: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
            seen.append(statement)

        engines = {self.database.engine.sync_engine, self.database.writing_engine}
        for engine in engines:
            event.listen(engine, "before_cursor_execute", note)
        try:
            yield seen
        finally:
            for engine in engines:
                event.remove(engine, "before_cursor_execute", note)


def new_identity(database: Database, sealer: RingSealer, clock: Clock) -> Identity:
    return Identity(
        database, sealer, region="eu-de", token_lifetime=LIFETIME, passwords=Passwords(CHEAP), now=clock
    )


@contextlib.asynccontextmanager
async def new_accounts(database: Database, store: Store) -> AsyncIterator[Accounts]:
    """Accounts on an empty database that has the schema."""
    sealer, clock = RingSealer(), Clock()
    accounts = Accounts(store, database, sealer, clock, new_identity(database, sealer, clock))
    await accounts.create_defaults()
    yield accounts
    accounts.identity.close()
    for other in accounts.others:
        await other.close()


async def caller_of(accounts: Accounts, token: str) -> Caller:
    return await accounts.identity.tokens.caller_of_token(token, ORIGIN)


async def count(accounts: Accounts, table: str) -> int:
    async with accounts.database.read() as connection:
        return (
            await connection.execute(select(func.count()).select_from(tables.metadata.tables[table]))
        ).scalar_one()

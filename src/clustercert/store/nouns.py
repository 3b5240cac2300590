"""What the statements about the built-in identity share: columns, nouns out of rows, harmless repeats."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, FromClause, Row, Select, Table, insert, select
from sqlalchemy.exc import IntegrityError

from clustercert.errors import Conflict
from clustercert.model import Domain, Group, Project, Role, User
from clustercert.store import tables
from clustercert.store.transaction import Transaction

_domain, _project, _user, _group, _role = (
    tables.domain,
    tables.project,
    tables.user,
    tables.group,
    tables.role,
)


@dataclass(frozen=True, slots=True)
class Reference:
    """Which user or project is meant: by id, or by name and the id or name of its domain."""

    id: str | None = None
    name: str | None = None
    domain_id: str | None = None
    domain_name: str | None = None


def columns(table: FromClause, prefix: str, *names: str) -> tuple[ColumnElement[Any], ...]:
    """Columns of one table in a query of several, labelled `prefix_name`."""
    return tuple(table.c[name].label(f"{prefix}_{name}") for name in names)


def domain_columns(table: FromClause, prefix: str) -> tuple[ColumnElement[Any], ...]:
    return columns(table, prefix, "id", "name", "enabled")


def user_columns(domain: FromClause) -> tuple[ColumnElement[Any], ...]:
    """Of the user table and, from `domain`, its domain."""
    return (*columns(_user, "user", "id", "name", "enabled"), *domain_columns(domain, "user_domain"))


def project_columns(domain: FromClause) -> tuple[ColumnElement[Any], ...]:
    """Of the project table and, from `domain`, its domain."""
    own = columns(_project, "project", "id", "name", "description", "enabled")
    return (*own, *domain_columns(domain, "project_domain"))


def group_columns(domain: FromClause) -> tuple[ColumnElement[Any], ...]:
    """Of the group table and, from `domain`, its domain."""
    return (*columns(_group, "group", "id", "name"), *domain_columns(domain, "group_domain"))


def role_columns() -> tuple[ColumnElement[Any], ...]:
    return columns(_role, "role", "id", "name")


def domains_query() -> Select[Any]:
    return select(*domain_columns(_domain, "domain"))


def users_query() -> Select[Any]:
    return select(*user_columns(_domain)).join(_domain, _domain.c.id == _user.c.domain_id)


def projects_query() -> Select[Any]:
    return select(*project_columns(_domain)).join(_domain, _domain.c.id == _project.c.domain_id)


def groups_query() -> Select[Any]:
    return select(*group_columns(_domain)).join(_domain, _domain.c.id == _group.c.domain_id)


def narrowed(query: Select[Any], *wanted: tuple[Column[str], str | None]) -> Select[Any]:
    """The query for those rows that have every value that isn't None."""
    return query.where(*(column == value for column, value in wanted if value is not None))


def domain_of(row: Row[Any], prefix: str = "domain") -> Domain:
    return Domain(*(getattr(row, f"{prefix}_{name}") for name in ("id", "name", "enabled")))


def user_of(row: Row[Any]) -> User:
    domain = domain_of(row, "user_domain")
    return User(id=row.user_id, name=row.user_name, domain=domain, enabled=row.user_enabled)


def project_of(row: Row[Any]) -> Project:
    return Project(
        id=row.project_id,
        name=row.project_name,
        domain=domain_of(row, "project_domain"),
        description=row.project_description,
        enabled=row.project_enabled,
    )


def group_of(row: Row[Any]) -> Group:
    return Group(id=row.group_id, name=row.group_name, domain=domain_of(row, "group_domain"))


def role_of(row: Row[Any]) -> Role:
    return Role(id=row.role_id, name=row.role_name)


async def insert_once(connection: Transaction, table: Table, row: Mapping[str, str]) -> None:
    """Insert a row that is all key, unless it is there."""
    there = select(table).where(*(table.c[name] == value for name, value in row.items()))
    if (await connection.execute(there)).first() is None:
        await connection.execute(insert(table).values(dict(row)))


@contextlib.contextmanager
def changed_meanwhile() -> Iterator[None]:
    """Raises Conflict where what a row refers to went away, or the row came, since it was looked for."""
    try:
        yield
    except IntegrityError as error:
        raise Conflict("Somebody changed this at the same moment. Look again.") from error

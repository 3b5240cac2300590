"""Shared by the statements about the built-in identity: columns, objects made of rows, changes."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Delete, FromClause, Row, Select, Table, Update, insert, select
from sqlalchemy.exc import IntegrityError

from clustercert.errors import Conflict, NotFound
from clustercert.model import AccessKey, Domain, Group, Project, Role, Token, User
from clustercert.store import tables
from clustercert.store.transaction import Transaction

_domain, _project, _user, _group, _role = (
    tables.domain,
    tables.project,
    tables.user,
    tables.group,
    tables.role,
)

N = TypeVar("N", AccessKey, Domain, Group, Project, Role, Token, User)


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


def noun_of(kind: type[N], row: Row[Any], prefix: str, **others: Any) -> N:
    """An object of a row: each field is the column labelled `prefix_field`, unless it is given in `others`."""
    names = (each.name for each in fields(kind) if each.name not in others)
    return kind(**{name: getattr(row, f"{prefix}_{name}") for name in names}, **others)


def domain_of(row: Row[Any], prefix: str = "domain") -> Domain:
    return noun_of(Domain, row, prefix)


def user_of(row: Row[Any]) -> User:
    return noun_of(User, row, "user", domain=domain_of(row, "user_domain"))


def project_of(row: Row[Any]) -> Project:
    return noun_of(Project, row, "project", domain=domain_of(row, "project_domain"))


def group_of(row: Row[Any]) -> Group:
    return noun_of(Group, row, "group", domain=domain_of(row, "group_domain"))


def role_of(row: Row[Any]) -> Role:
    return noun_of(Role, row, "role")


async def insert_once(connection: Transaction, table: Table, row: Mapping[str, str]) -> None:
    """Insert a row that is all key, unless it is there."""
    there = select(table).where(*(table.c[name] == value for name, value in row.items()))
    if (await connection.execute(there)).first() is None:
        await connection.execute(insert(table).values(dict(row)))


async def change_one(
    connection: Transaction, statement: Update | Delete, missing: str = "It does not exist any more."
) -> None:
    """Raises NotFound where there is nothing to change."""
    if (await connection.execute(statement)).rowcount == 0:
        raise NotFound(missing)


@contextlib.contextmanager
def changed_meanwhile() -> Iterator[None]:
    """Raises Conflict where what a row refers to went away, or the row came, since it was looked for."""
    try:
        yield
    except IntegrityError as error:
        raise Conflict("Somebody changed this at the same moment. Look again.") from error

"""Columns and row mappers for the entities of the built-in identity service."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, FromClause, Row, Select, Table, select

from clustercert.model import AccessKey, Domain, Group, Project, Role, Token, User
from clustercert.store import tables

TABLES: Mapping[type, Table] = {
    AccessKey: tables.access_key,
    Domain: tables.domain,
    Group: tables.group,
    Project: tables.project,
    Role: tables.role,
    Token: tables.token,
    User: tables.user,
}

E = TypeVar("E", bound=AccessKey | Domain | Group | Project | Role | Token | User)


@dataclass(frozen=True, slots=True)
class Reference:
    """Refers to a user or project by id, or by name together with the id or name of the domain."""

    id: str | None = None
    name: str | None = None
    domain_id: str | None = None
    domain_name: str | None = None


ALL = Reference()
"""Refers to all users or projects."""


def entity_columns(
    kind: type[E], *, domain: FromClause = tables.domain, prefix: str = ""
) -> list[ColumnElement[Any]]:
    """Return the columns that `entity_of` reads, with labels of the form `PREFIX_FIELD`.

    The default prefix is the name of the entity's class in lower case.

    `domain` is the table or alias in which the query finds the entity's domain.
    """
    table, prefix = domain if kind is Domain else TABLES[kind], prefix or kind.__name__.lower()
    names = [each.name for each in fields(kind)]
    columns: list[ColumnElement[Any]] = [
        table.c[name].label(f"{prefix}_{name}") for name in names if name != "domain"
    ]
    if "domain" in names:
        columns += entity_columns(Domain, domain=domain, prefix=f"{prefix}_domain")
    return columns


def entity_of(kind: type[E], row: Row[Any], prefix: str = "", **others: Any) -> E:
    """Map the columns from `entity_columns` to an entity.

    `others` contains the values of fields that the row does not have.
    """
    prefix = prefix or kind.__name__.lower()
    names = {each.name for each in fields(kind)} - others.keys()
    if "domain" in names:
        others["domain"] = entity_of(Domain, row, f"{prefix}_domain")
    return kind(**{name: getattr(row, f"{prefix}_{name}") for name in names - others.keys()}, **others)


def in_domains(kind: type[E], reference: Reference) -> Select[Any]:
    """Select the entities to which a reference refers, with their domains."""
    table, domain = TABLES[kind], tables.domain
    return filter_by(
        select(*entity_columns(kind)).join(domain, domain.c.id == table.c.domain_id),
        (table.c.id, reference.id),
        (table.c.name, reference.name),
        (table.c.domain_id, reference.domain_id),
        (domain.c.name, reference.domain_name),
    )


def filter_by(query: Select[Any], *values: tuple[Column[str], str | None]) -> Select[Any]:
    """Restrict a query to rows that have the given values in the given columns. A value of `None` matches every row."""
    return query.where(*(column == value for column, value in values if value is not None))

"""Rows of tables from the API's objects."""

from typing import TYPE_CHECKING

from clustercert.model.times import parse_rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clustercert.model import JsonObject

_TIMES = frozenset({"at", "not_before", "not_after", "client_ca_not_after"})
# The digits of a fingerprint for which a column has room. `certificate show` and `revoke` accept them.
_DIGITS = 16


def with_times(fields: "JsonObject") -> "JsonObject":
    """Parse the times, which tables show relative to now."""
    return {name: _time(name, value) for name, value in fields.items()}


def with_names(fields: "JsonObject") -> "JsonObject":
    """Add short columns: the first digits of the fingerprint, and the names of cluster and project, or their ids."""
    columns: JsonObject = {}
    if "fingerprint" in fields:
        columns["certificate"] = str(fields["fingerprint"] or "")[:_DIGITS]
    for noun in ("cluster", "project"):
        if f"{noun}_id" in fields:
            columns[noun] = fields.get(f"{noun}_name") or fields[f"{noun}_id"]
    return with_times(fields) | columns


def with_domain(
    columns: "Sequence[str]", rows: "Sequence[Mapping[str, object]]", column: str = "domain"
) -> "Sequence[str]":
    """Add a column after `project` if several projects in the rows have the same name: their domain, or their id."""
    projects = {(row["project"], row[column]) for row in rows}
    if len(projects) == len({name for name, _ in projects}):
        return columns
    place = columns.index("project") + 1
    return (*columns[:place], column, *columns[place:])


def _time(name: str, value: object) -> object:
    is_time = name in _TIMES or name.endswith("_at")
    return parse_rfc3339(value) if is_time and isinstance(value, str) else value

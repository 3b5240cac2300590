"""Warns about environment variables that look like settings and have no effect."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, get_args, get_origin

from clustercert.cli.options import did_you_mean
from clustercert.cli.output import note

if TYPE_CHECKING:
    from pydantic import BaseModel

_PREFIX = "CLUSTERCERT_"
# Variables that are not settings, but that the command line reads.
_OTHERS = frozenset({"CONFIG", "DEBUG", "PASSWORD", "PROFILE", "SECRET_KEY", "TOKEN"})
# The fields of the settings, without their tables' fields. The client can't import the settings, whose packages it may
# lack.
TOP_LEVEL_SETTINGS = frozenset(
    {
        *(
            "DATA_DIR",
            "DATABASE_URL",
            "KEK_FILE",
            "KEK",
            "SERVICE_NAME",
            "SERVER",
            "WEBHOOK",
            "API",
            "IDENTITY",
        ),
        *("ISSUING", "SIGNERS", "LIMITS", "POLICY", "REVOCATION", "AUDIT", "METRICS", "LOG"),
    }
)


def warn_of_unknown_variables(environment: Mapping[str, str]) -> None:
    """Write a warning to standard error for each variable `CLUSTERCERT_…` that is not a setting."""
    from clustercert.settings import Settings

    known, tables = set(_OTHERS), set[str]()
    for name, is_table in _variables(Settings, ""):
        (tables if is_table else known).add(name)
    for variable in sorted(environment):
        name = variable.upper().removeprefix(_PREFIX)
        if not variable.upper().startswith(_PREFIX) or name in known or name.partition("__")[0] in tables:
            continue
        # Most often, one underscore is missing between a table and its field.
        same = [each for each in known if each.replace("_", "") == name.replace("_", "")]
        similar = did_you_mean(variable, [_PREFIX + each for each in same or known])
        _warn(variable, similar)


def warn_in_client(environment: Mapping[str, str]) -> None:
    """Write the same warning in a command that does not load the settings. Accepts all fields of their tables."""
    known = _OTHERS | TOP_LEVEL_SETTINGS
    for variable in sorted(environment):
        name = variable.upper().removeprefix(_PREFIX)
        if variable.upper().startswith(_PREFIX) and name.partition("__")[0] not in known:
            from difflib import get_close_matches  # slow to import

            # Compare names without the prefix, which would make all of them similar.
            similar = get_close_matches(name, sorted(known), n=1)
            _warn(variable, f" Did you mean {_PREFIX}{similar[0]}?" if similar else "")


def _warn(variable: str, similar: str) -> None:
    note(f"Warning: The environment variable {variable} is not a setting and has no effect.{similar}")


def _variables(model: "type[BaseModel]", prefix: str) -> Iterator[tuple[str, bool]]:
    """Yield the name of each variable, and whether it stands for a table with free names."""
    from pydantic import BaseModel

    for field, info in model.model_fields.items():
        name = prefix + field.upper()
        kinds = [info.annotation, *get_args(info.annotation)]
        yield name, any(get_origin(kind) is dict for kind in kinds)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _variables(kind, f"{name}__")

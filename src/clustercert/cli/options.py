"""Options that several commands share, and functions that read their values."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from clustercert.model.errors import ClustercertError
from clustercert.model.times import parse_rfc3339

DomainOption = Annotated[
    str | None,
    typer.Option("--domain", metavar="DOMAIN", help="Domain of the names, by name or id."),
]
InDomainOption = Annotated[
    str | None, typer.Option("--domain", metavar="DOMAIN", help="List only this domain, by name or id.")
]
ClusterArgument = Annotated[str, typer.Argument(metavar="CLUSTER", help="Name or id of the cluster.")]
ClusterOption = Annotated[str, typer.Option("--cluster", metavar="CLUSTER", help="Cluster, by name or id.")]
InProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project", metavar="PROJECT", help="Project; required if several have a cluster of this name."
    ),
]
ProjectDomainOption = Annotated[
    str | None,
    typer.Option("--domain", metavar="DOMAIN", help="Domain of the project, by name or id."),
]
OnlyProjectOption = Annotated[
    str | None, typer.Option("--project", metavar="PROJECT", help="List only this project, by name or id.")
]
OnlyClusterOption = Annotated[
    str | None, typer.Option("--cluster", metavar="CLUSTER", help="List only this cluster, by name or id.")
]
OnlyUserOption = Annotated[
    str | None, typer.Option("--user", metavar="USER", help="List only this user, by name or id.")
]
DescriptionOption = Annotated[str, typer.Option("--description", help="Free text.")]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Read the password from the first line of FILE, or of standard input (-)."
    ),
]
# A certificate is named by at least this many digits of its fingerprint.
MIN_DIGITS = 8
# A list is printed only once it is complete, so this bounds its memory.
MAX_LINES = 100_000
LimitOption = Annotated[int, typer.Option(min=1, max=MAX_LINES, help="Maximum number of lines.")]
ListLimitOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_LINES,
        help=f"Maximum number of lines. [default: 100 for a table, otherwise {MAX_LINES}]",
    ),
]
PolicyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="Policy file, in the form that policy.file names. [default: the policy in the settings]",
    ),
]
ContextNameOption = Annotated[
    str,
    typer.Option(
        metavar="TEMPLATE",
        help="Name of context, cluster and user, from {profile}, {domain}, {project}, {cluster}, {id} (8 digits of the "
        "cluster's) and {user}.",
    ),
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Accept an address whose certificate kubectl does not check.")
]
LocalOption = Annotated[
    bool, typer.Option("--local", help="Work on the store that the settings name, without a running service.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


class CommandError(ClustercertError):
    """The command can't be run with these arguments."""


class UsageError(CommandError, status=400, code="CCE.01400001"):
    """An argument is missing or not valid."""


class NotLoggedIn(CommandError, status=401, code="CCE.01401001"):
    """There is no login, or it is no longer valid."""


class UnknownName(CommandError, status=404, code="CCE.01404001"):
    """No object has the given name."""


def home_folder() -> Path:
    """Return the user's home directory. Raises CommandError if there is none, as in a container for a user id alone."""
    try:
        return Path.home()
    except RuntimeError:
        raise CommandError("This user has no home directory. Set the variable HOME.") from None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return a sentence that names the most similar candidates, after a space, or nothing."""
    # difflib is slow to import, and most commands need no suggestion.
    from clustercert.model import suggestion

    return suggestion.did_you_mean(name, candidates)


def parse_pairs(
    texts: Sequence[str] | None, form: str, option: str, *, at_last: bool = False, may_be_empty: bool = False
) -> dict[str, str]:
    """Parse options of the form KEY=VALUE into a mapping. Raises typer.BadParameter.

    Args:
        at_last: split at the last equals sign instead of the first.
        may_be_empty: accept an empty key or value.
    """
    pairs = {}
    for text in texts or ():
        key, equals, value = text.rpartition("=") if at_last else text.partition("=")
        if not equals or not (may_be_empty or (key and value)):
            raise typer.BadParameter(f"{text!r} is not of the form {form}.", param_hint=option)
        pairs[key] = value
    return pairs


def time_ago(text: str) -> datetime:
    """Parse a duration, and return the time that long before now. Raises typer.BadParameter."""
    from clustercert.policy.lifetime import parse_lifetime

    try:
        return datetime.now(UTC) - parse_lifetime(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a duration. Write it like 90d, 12h or 2w.") from None


def past_time(text: str) -> datetime:
    """Parse a time in RFC 3339, or a duration before now. Raises typer.BadParameter."""
    return _time(text, -1)


def future_time(text: str) -> datetime:
    """Parse a time in RFC 3339, or a duration after now. Raises typer.BadParameter."""
    return _time(text, 1)


def _time(text: str, sign: int) -> datetime:
    from clustercert.policy.lifetime import parse_lifetime

    try:
        return datetime.now(UTC) + sign * parse_lifetime(text)
    except (ValueError, OverflowError):
        pass
    try:
        return parse_rfc3339(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time. Write it like 2027-01-31T18:00:00Z, or like 7d."
        ) from None


def read_file(path: Path, limit: int = 1024 * 1024) -> bytes:
    """Read a file of at most `limit` bytes. Raises CommandError if it is larger, missing or can't be read."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"The file {path} can't be read: {error.strerror}.") from error
    except OSError as error:
        raise CommandError(f"The file {path} can't be read: {error.strerror}.") from error
    if len(content) > limit:
        raise CommandError(f"The file {path} is larger than {limit // 1024} KiB.")
    return content

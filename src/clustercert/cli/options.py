"""Options that several commands share, functions that read their values, and exit codes."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.terminal.output import note_text
from clustercert.model.errors import ClustercertError, StoreFault, Unavailable
from clustercert.model.times import parse_rfc3339
from clustercert.secure_file import access_advice

if TYPE_CHECKING:
    from clustercert.client import IssueOptions

# The exit codes of all commands, besides 0 for success. USAGE: an argument is missing, wrong or malformed.
FAILED = 1
USAGE = 2
NOT_LOGGED_IN = 3
FORBIDDEN = 4
NOT_FOUND = 5
UNAVAILABLE = 6
INTERRUPTED = 130

_BY_STATUS = {
    400: USAGE,
    401: NOT_LOGGED_IN,
    403: FORBIDDEN,
    404: NOT_FOUND,
    408: UNAVAILABLE,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}


def exit_code(error: ClustercertError) -> int:
    """Return the exit code for an error, from the HTTP status of the service's response or of the error's class."""
    return _BY_STATUS.get(getattr(error, "http_status", error.status), FAILED)


def error_text(error: ClustercertError | OSError) -> str:
    """Return the message of an error with its internal reason.

    Commands may show the reason. API responses must not contain the reason.
    """
    if isinstance(error, OSError):
        if not error.filename:
            return f"{error.strerror or error}."
        return f"{error.strerror}: {error.filename}.{access_advice(error, Path(str(error.filename)))}"
    if isinstance(error, StoreFault):
        return error.reason
    detail = getattr(error, "reason", None)
    cause = error.__cause__
    # If the database can't be reached, the driver raises a plain OSError.
    if isinstance(error, Unavailable) and isinstance(cause, OSError) and cause.errno:
        detail = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror
    return f"{error.message} ({detail})" if detail else error.message


DomainOption = Annotated[
    str | None,
    typer.Option("--domain", metavar="DOMAIN", help="Domain in which names are looked up, by name or id."),
]
InDomainOption = Annotated[
    str | None,
    typer.Option("--domain", metavar="DOMAIN", help="List only objects in this domain, by name or id."),
]
ClusterArgument = Annotated[
    str, typer.Argument(metavar="CLUSTER", help="Name, DOMAIN/PROJECT/CLUSTER or id of the cluster.")
]
ClusterOption = Annotated[
    str,
    typer.Option("--cluster", metavar="CLUSTER", help="Cluster, by name, DOMAIN/PROJECT/CLUSTER or id."),
]
InProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project",
        metavar="PROJECT",
        help="Project, by name, DOMAIN/NAME or id; required if several projects have a cluster of this name.",
    ),
]
ProjectDomainOption = Annotated[
    str | None,
    typer.Option("--domain", metavar="DOMAIN", help="Domain of the project, by name or id."),
]
OnlyProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project", metavar="PROJECT", help="List results for this project, by name, DOMAIN/NAME or id."
    ),
]
OnlyClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="CLUSTER",
        help="List only results for this cluster, by name, DOMAIN/PROJECT/CLUSTER or id.",
    ),
]
OnlyUserOption = Annotated[
    str | None, typer.Option("--user", metavar="USER", help="List only results for this user, by name or id.")
]
LabelFilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="KEY=VALUE",
        help="Only clusters with this label. If repeated, a cluster must have all of the labels.",
    ),
]
DescriptionOption = Annotated[str, typer.Option("--description", metavar="TEXT", help="Free text.")]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Read the password from the first line of FILE, or of standard input (-)."
    ),
]
# The minimum number of fingerprint digits that identify a certificate.
MIN_DIGITS = 8
# The maximum number of lines in a list. Limits memory use, because a list is read completely before it is printed.
MAX_LINES = 100_000
LimitOption = Annotated[int, typer.Option(metavar="N", min=1, max=MAX_LINES, help="Maximum number of lines.")]
ListLimitOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
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
        help="Policy file, in the format of policy.file. [default: the policy in the settings]",
    ),
]
CONTEXT_NAME_HELP = (
    "Template for the names of context, cluster and user, with {profile}, {domain}, {project}, {cluster}, {id} (8 "
    "digits of the cluster's id) and {user}."
)
ContextNameOption = Annotated[str, typer.Option(metavar="TEMPLATE", help=CONTEXT_NAME_HELP)]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Accept an address whose certificate kubectl does not check.")
]
LocalOption = Annotated[
    bool, typer.Option("--local", help="Work on the store that the settings name, without a running service.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
KubeContextOption = Annotated[
    str | None,
    typer.Option(
        "--context", metavar="NAME", help="Context in the kubeconfig. [default: its current context]"
    ),
]
FollowFilesOption = Annotated[
    bool,
    typer.Option(
        "--follow-files", help="Read the files that the kubeconfig names, such as the file of the CA."
    ),
]


class InvalidOption(typer.BadParameter):
    """The value of an option or argument is not valid, or options exclude or need each other."""

    def format_message(self) -> str:
        # Without the name of an option, Typer would begin with `Invalid value:`, although no single value is wrong.
        is_named = self.param_hint is not None or self.param is not None
        message = super().format_message() if is_named else self.message
        # Typer prints this word before the message.
        return note_text(f"Error: {message}").removeprefix("Error: ")


class CommandError(ClustercertError):
    """The command can't be run with these arguments."""


class UsageError(CommandError, status=400, code="CCE.01400001"):
    """An argument is missing or not valid."""


class NotLoggedIn(CommandError, status=401, code="CCE.01401001"):
    """There is no login, or the login is no longer valid."""


class UnknownName(CommandError, status=404, code="CCE.01404001"):
    """No object has the given name."""


class NoHomeFolder(CommandError):
    """The user has no home directory, as in a container without an account."""


def home_folder(variable: str) -> Path:
    """Return the user's home directory. Raises NoHomeFolder.

    Args:
        variable: the environment variable that sets a different path. The error message names this variable.
    """
    try:
        return Path.home()
    except RuntimeError:
        raise NoHomeFolder(f"This user has no home directory. Set HOME or {variable}.") from None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return a sentence with the most similar candidates and a leading space, or an empty string."""
    # difflib is slow to import, and most commands need no suggestion.
    from clustercert.model import suggestion

    return suggestion.did_you_mean(name, candidates)


def require_kubeconfig(kube_context: str | None, *, follow_files: bool) -> None:
    """Raise InvalidOption if an option about --from-kubeconfig was given without it."""
    if kube_context is not None or follow_files:
        raise InvalidOption("--context and --follow-files require --from-kubeconfig.")


def refuse_empty(options: Mapping[str, str | None]) -> None:
    """Raise InvalidOption if the value of one of the named options is empty, for example an unset variable."""
    for option, value in options.items():
        if value == "":
            raise InvalidOption(f"{option} is empty. Give a value, or leave the option out.")


def parse_pairs(
    texts: Sequence[str] | None, form: str, option: str, *, at_last: bool = False, may_be_empty: bool = False
) -> dict[str, str]:
    """Parse options of the form KEY=VALUE into a mapping. Raises InvalidOption.

    Args:
        at_last: split at the last equals sign instead of the first.
        may_be_empty: accept an empty key or value.
    """
    pairs = {}
    for text in texts or ():
        key, equals, value = text.rpartition("=") if at_last else text.partition("=")
        if not equals or not (may_be_empty or (key and value)):
            raise InvalidOption(f"{text!r} is not of the form {form}.", param_hint=option)
        pairs[key] = value
    return pairs


def parse_labels(texts: Sequence[str] | None) -> dict[str, str]:
    """Parse labels given as KEY=VALUE. Raises InvalidOption."""
    return parse_pairs(texts, "KEY=VALUE", "--label", may_be_empty=True)


def parse_duration(text: str) -> timedelta:
    """Parse a duration such as 30s, 90d or 1h30m. Raises InvalidOption."""
    from clustercert.policy.lifetime import parse_lifetime

    try:
        return parse_lifetime(text)
    except (ValueError, OverflowError):
        raise InvalidOption(f"{text!r} is not a duration. Write it like 90d, 8h, 30s or 1h30m.") from None


def parse_seconds(text: str, longest: int) -> int:
    """Parse a duration of 1 to `longest` seconds. Raises InvalidOption."""
    seconds = int(parse_duration(text).total_seconds())
    if not 1 <= seconds <= longest:
        raise InvalidOption(f"{text!r} is out of range. Give 1s to {longest}s.")
    return seconds


def time_ago(text: str) -> datetime:
    """Parse a duration such as 90d, and subtract it from the current time. Raises InvalidOption."""
    try:
        return datetime.now(UTC) - parse_duration(text)
    except OverflowError:
        raise InvalidOption(f"{text!r} is too long.") from None


def past_time(text: str) -> datetime:
    """Parse a time in RFC 3339, or a duration before now. Raises InvalidOption."""
    return _time(text, -1)


def future_time(text: str) -> datetime:
    """Parse a time in RFC 3339, or a duration after now. Raises InvalidOption."""
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
        raise InvalidOption(
            f"{text!r} is not a time. Write it like 2027-01-31T18:00:00Z, or like 7d."
        ) from None


def read_file(path: Path, limit: int = 1024 * 1024) -> bytes:
    """Read a file of at most `limit` bytes. Raises CommandError if the file is larger, missing or unreadable."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"The file {path} can't be read: {error.strerror}.") from error
    except OSError as error:
        advice = access_advice(error, path)
        raise CommandError(f"The file {path} can't be read: {error.strerror}.{advice}") from error
    if len(content) > limit:
        raise CommandError(f"The file {path} is larger than {limit // 1024} KiB.")
    return content


# The default lifetime is one working day, so that a lost certificate expires soon.
DEFAULT_LIFETIME = timedelta(hours=8)


@dataclass(frozen=True, slots=True)
class LifetimeOptions:
    """The options for the lifetime of a new certificate."""

    duration: Annotated[
        int | None,
        typer.Option(
            metavar="DAYS",
            min=-1,
            max=1825,
            help="Lifetime in whole days, or -1 for the longest allowed lifetime.",
        ),
    ] = None
    expires_in: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Lifetime such as 30m or 8h. [default: 8h, or the policy's limit if it is shorter]",
        ),
    ] = None
    expire_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time of expiry, such as 2027-01-31T18:00:00Z.")
    ] = None

    def issue_options(self) -> "IssueOptions":
        """Return the part of a request for a certificate that sets the lifetime. Raises InvalidOption."""
        from clustercert.client import IssueOptions

        given = [each for each in (self.duration, self.expires_in, self.expire_at) if each is not None]
        if len(given) > 1:
            raise InvalidOption("Give only one of --duration, --expires-in and --expire-at.")
        if self.duration == 0:
            raise InvalidOption(
                "0 is out of range. Give 1 to 1825 days, or -1 for the longest allowed.",
                param_hint="--duration",
            )
        if self.duration is not None:
            return IssueOptions(duration=self.duration)
        if self.expire_at is not None:
            return IssueOptions(expire_at=_parse_time(self.expire_at))
        if self.expires_in is not None:
            return IssueOptions(expires_in=_parse_lifetime(self.expires_in))
        return IssueOptions(expires_in=DEFAULT_LIFETIME, shorten=True)


def _parse_lifetime(text: str) -> timedelta:
    from clustercert.policy.lifetime import (
        MAX_DAYS,
        MAX_LIFETIME,
        MIN_LIFETIME,
        lifetime_option,
        parse_lifetime,
    )

    try:
        lifetime = parse_lifetime(text)
    except (ValueError, OverflowError):
        raise InvalidOption(
            f"{text!r} is not a duration. Write it like 15m, 8h, 30d or 1h30m.", param_hint="--expires-in"
        ) from None
    if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
        raise InvalidOption(
            f"{text!r} is out of range. The lifetime must be between {lifetime_option(MIN_LIFETIME)} and {MAX_DAYS}d.",
            param_hint="--expires-in",
        )
    return lifetime


def _parse_time(text: str) -> datetime:
    try:
        return parse_rfc3339(text.strip().removesuffix(" UTC")).replace(microsecond=0)
    except ValueError:
        raise InvalidOption(
            f"{text!r} is not a time with an offset. Write it like 2027-01-31T18:00:00Z or 2027-01-31T18:00:00+01:00.",
            param_hint="--expire-at",
        ) from None

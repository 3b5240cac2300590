"""`clustercert policy replay`: decides recorded requests again, on this machine."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import administration_client, expand_options
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.lookup import clusters_of_caller, find_project, split_cluster
from clustercert.cli.options import (
    NOT_FOUND,
    CommandError,
    InvalidOption,
    LocalOption,
    UnknownName,
    UsageError,
    did_you_mean,
    exit_code,
    past_time,
)
from clustercert.cli.policy.live import replay_live
from clustercert.cli.policy.output import show_replay
from clustercert.cli.session import settings
from clustercert.cli.terminal.output import Output, OutputOption, Progress
from clustercert.client.administration import path_of
from clustercert.client.connection import ApiError
from clustercert.model.errors import Forbidden
from clustercert.model.ids import is_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject
    from clustercert.policy.replay import DecisionFilter, Replay

_COUNTED = "events read"
# The maximum number of cluster names to keep for suggestions in an error message.
_MAX_NAMES = 1000

PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="Policy file to compare with. [default: the policy in this machine's settings]",
    ),
]
SinceOption = Annotated[
    datetime,
    typer.Option(
        parser=past_time,
        metavar="TIME",
        help="Replay decisions since TIME: RFC 3339, or a duration before now such as 30d.",
    ),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option(
        parser=past_time,
        metavar="TIME",
        help="Replay decisions until TIME: RFC 3339, or a duration before now such as 1d.",
    ),
]
LogOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="PATH",
        help="Read an exported log, or events as lines of JSON, instead of the events of the service.",
    ),
]


@expand_options
def replay(
    context: typer.Context,
    login: LoginOptions,
    policy: PolicyOption = None,
    since: SinceOption = "30d",  # type: ignore[assignment] # typer parses it
    until: UntilOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help="Replay only decisions about this cluster (id, or name at the time of the decision).",
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            help="Replay only decisions in this project (name or id; with --from, only the id).",
        ),
    ] = None,
    log: LogOption = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="List the live certificates that the policy would refuse, shorten, or give fewer groups.",
        ),
    ] = False,
    local: LocalOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Decide recorded requests again with a different policy, and show which decisions would differ.

    Reads the recorded requests from the service, and decides on this machine. Changes nothing. For each request, the
    policy decides as of the time when the request was recorded. Only for operators, auditors and admins of the project.

    Examples:
        clustercert policy replay --policy new-policy.toml
        clustercert policy replay --policy new-policy.toml --live
    """
    from clustercert.policy.replay import DecisionFilter, Replay

    if cluster is not None and log is None:
        cluster, project = split_cluster(cluster, project)
    loaded = settings(context, policy)
    if not (policy or local or log or loaded.policy.model_fields_set):
        raise UsageError("Give --policy FILE, because this machine has no settings with a policy.")
    if live:
        _check_live_options(context)
        with administration_client(context, login, local=local) as client:
            replay_live(client, loaded.loaded_policy(), cluster, project, output)
        return
    result = Replay(loaded.loaded_policy())
    decision_filter = DecisionFilter(since, until, project, cluster)
    if log is not None:
        _replay_exported(log, result, decision_filter)
    else:
        with administration_client(context, login, local=local) as client:
            _replay_recorded(client, result, decision_filter)
    show_replay(result, decision_filter, output)


def _check_live_options(context: typer.Context) -> None:
    for name, option in (("since", "--since"), ("until", "--until"), ("log", "--from")):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise InvalidOption(f"Leave out {option}: --live reads the requests of all live certificates.")


def _replay_recorded(
    client: "AdministrationClient", replay: "Replay", decision_filter: "DecisionFilter"
) -> None:
    if decision_filter.project_id is not None:
        decision_filter = replace(decision_filter, project_id=_project_id(client, decision_filter.project_id))
    elif not client.reads_everything:
        raise Forbidden(
            "Only operators and auditors can replay the decisions of all projects. Add --project PROJECT."
        )
    clusters = _Clusters(decision_filter.cluster)
    with Progress(_COUNTED) as progress:
        _add(replay, _recorded_decisions(client, decision_filter), decision_filter, clusters, progress)
    if not clusters.found:
        for cluster in clusters_of_caller(client):
            clusters.add(cluster["id"], cluster["name"])
        clusters.require()


def _recorded_decisions(
    client: "AdministrationClient", decision_filter: "DecisionFilter"
) -> "Iterator[JsonObject]":
    """Read the audit events of decisions in one project or in all projects from the API.

    Yields the oldest events first.
    """
    from clustercert.policy.replay import REPEATED

    project, since, until = decision_filter.project_id, decision_filter.since, decision_filter.until
    path = path_of(*(("projects", project) if project is not None else ()), "events")
    query = {"order": "oldest"}
    if since is not None:
        query["since"] = since.isoformat()
    if until is not None:
        query["until"] = until.isoformat()
    for kind in ("certificate.*", REPEATED):
        yield from client.list_all(path, "events", kind=kind, **query)


def _replay_exported(log: Path, replay: "Replay", decision_filter: "DecisionFilter") -> None:
    from clustercert.audit.event_parsing import read_events

    clusters, has_events = _Clusters(decision_filter.cluster), False

    def events() -> "Iterator[JsonObject]":
        nonlocal has_events
        for event in read_events(log):
            has_events = has_events or "kind" in event
            yield event

    try:
        with Progress(_COUNTED) as progress:
            _add(replay, events(), decision_filter, clusters, progress)
    except FileNotFoundError as error:
        raise UsageError(f"--from: {log} can't be read: {error.strerror}.") from error
    except OSError as error:
        raise CommandError(f"--from: {log} can't be read: {error.strerror}.") from error
    if not has_events:
        raise CommandError(
            f"--from: {log} has no events. Give the folder of `audit export`, or lines of JSON."
        )
    clusters.require()


def _project_id(client: "AdministrationClient", name_or_id: str) -> str:
    """Find the id of a project. Accepts the id of a deleted project."""
    try:
        return str(find_project(client, name_or_id)["id"])
    except (UnknownName, ApiError) as error:
        if exit_code(error) == NOT_FOUND and is_id(name_or_id):
            return name_or_id
        raise


def _add(
    replay: "Replay",
    events: "Iterable[JsonObject]",
    decision_filter: "DecisionFilter",
    clusters: "_Clusters",
    progress: Progress,
) -> None:
    for event in events:
        clusters.add_from(event)
        if decision_filter.includes(event):
            replay.add(event)
        progress.advance()


class _Clusters:
    """Searches audit events for the cluster in the options, which may have been removed.

    Attributes:
        found: whether the cluster was found, or the options name no cluster.
    """

    def __init__(self, name_or_id: str | None) -> None:
        self._name_or_id = name_or_id
        self._names: set[str] = set()
        self.found = name_or_id is None

    def add(self, *names: object) -> None:
        """Remember the id and the name of a cluster."""
        self.found = self.found or self._name_or_id in names
        if len(self._names) < _MAX_NAMES:
            self._names |= {name for name in names if isinstance(name, str)}

    def add_from(self, event: "JsonObject") -> None:
        """Remember the id and the name of the cluster in an event, if the event has a cluster."""
        if self.found:
            return
        detail = event.get("detail")
        cluster = detail.get("cluster") if isinstance(detail, dict) else None
        if isinstance(cluster, dict):
            self.add(cluster.get("id"), cluster.get("name"))

    def require(self) -> None:
        """Raise UnknownName if the given cluster was not found."""
        if not self.found:
            similar = did_you_mean(str(self._name_or_id), self._names)
            raise UnknownName(
                f"There is no cluster {self._name_or_id}, and no recorded decision is about it.{similar}"
            )

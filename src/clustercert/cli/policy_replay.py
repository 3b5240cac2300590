"""`clustercert policy replay`: recorded decisions under another policy."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.options import CommandError, UnknownName, UsageError, did_you_mean, past_time
from clustercert.cli.output import Output, OutputOption, Progress
from clustercert.cli.policy_output import show_replay
from clustercert.cli.session import Operator, operate, settings
from clustercert.model.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clustercert.model import JsonObject
    from clustercert.policy.replay import DecisionFilter, Replay

_COUNTED = "events read"
# The maximum number of names to keep, from which a similar one is suggested.
_MAX_NAMES = 1000

PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE", help="Policy file to compare with. [default: the policy in the settings]"
    ),
]
SinceOption = Annotated[
    datetime,
    typer.Option(parser=past_time, metavar="TIME", help="Replay decisions since then; 30d or RFC 3339."),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option(parser=past_time, metavar="TIME", help="Replay decisions until then; 1d or RFC 3339."),
]
LogOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="PATH",
        help="Read an exported log, or events as lines of JSON, instead of the database.",
    ),
]


def replay_decisions(
    context: typer.Context,
    policy: PolicyOption = None,
    since: SinceOption = "30d",  # type: ignore[assignment] # typer parses it
    until: UntilOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER", help="Replay only decisions about this cluster, by id or name at that time."
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT", help="Replay only decisions in this project, by name or id; with --from by id."
        ),
    ] = None,
    log: LogOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Decide recorded requests again by another policy, and show what would differ.

    Changes nothing. Each request is decided as of its time.
    """
    from clustercert.policy.replay import DecisionFilter, Replay

    loaded = settings(context, policy)
    replay = Replay(loaded.loaded_policy())
    wanted = DecisionFilter(since, until, project, cluster)
    if log is None:
        operate(context, lambda operator: _replay_stored(operator, replay, wanted))
    else:
        _replay_exported(log, replay, wanted)
    show_replay(replay, wanted, output)


async def _replay_stored(operator: Operator, replay: "Replay", wanted: "DecisionFilter") -> None:
    from clustercert.audit.event_parsing import parse_body
    from clustercert.store.decision_events import DecisionEvents

    if wanted.project_id is not None:
        wanted = replace(wanted, project_id=await _project_id(operator, wanted.project_id))
    clusters, events = _Clusters(wanted.cluster), DecisionEvents(operator.parts.database)
    with Progress(_COUNTED) as progress:
        async for page in events.pages(wanted.since, wanted.until, wanted.project_id):
            _add(replay, map(parse_body, page), wanted, clusters, progress)
    if not clusters.found:
        for cluster in await operator.parts.clusters.queries.everywhere():
            clusters.note(cluster.id, cluster.name)
        clusters.require()


def _replay_exported(log: Path, replay: "Replay", wanted: "DecisionFilter") -> None:
    from clustercert.audit.event_parsing import read_events

    clusters, has_events = _Clusters(wanted.cluster), False

    def events() -> "Iterator[JsonObject]":
        nonlocal has_events
        for event in read_events(log):
            has_events = has_events or "kind" in event
            yield event

    try:
        with Progress(_COUNTED) as progress:
            _add(replay, events(), wanted, clusters, progress)
    except FileNotFoundError as error:
        raise UsageError(f"--from: {log} can't be read: {error.strerror}.") from error
    except OSError as error:
        raise CommandError(f"--from: {log} can't be read: {error.strerror}.") from error
    if not has_events:
        raise CommandError(
            f"--from: {log} has no events. Give the folder of `audit export`, or lines of JSON."
        )
    clusters.require()


async def _project_id(operator: Operator, name_or_id: str) -> str:
    """Find the id of a project. A deleted project can be given by id."""
    from clustercert.model.ids import is_id

    try:
        return (await operator.project(name_or_id)).id
    except NotFound:
        if is_id(name_or_id):
            return name_or_id
        raise


def _add(
    replay: "Replay",
    events: "Iterable[JsonObject]",
    wanted: "DecisionFilter",
    clusters: "_Clusters",
    progress: Progress,
) -> None:
    for event in events:
        clusters.note_event(event)
        if wanted.includes(event):
            replay.add(event)
        progress.advance()


class _Clusters:
    """Looks in events for the wanted cluster, which may have been removed.

    Attributes:
        found: whether the cluster was found, or none is wanted.
    """

    def __init__(self, wanted: str | None) -> None:
        self._wanted = wanted
        self._names: set[str] = set()
        self.found = wanted is None

    def note(self, *names: object) -> None:
        """Take note of the id and the name of a cluster."""
        self.found = self.found or self._wanted in names
        if len(self._names) < _MAX_NAMES:
            self._names |= {name for name in names if isinstance(name, str)}

    def note_event(self, event: "JsonObject") -> None:
        """Take note of the cluster that an event names, if it names one."""
        if self.found:
            return
        detail = event.get("detail")
        cluster = detail.get("cluster") if isinstance(detail, dict) else None
        if isinstance(cluster, dict):
            self.note(cluster.get("id"), cluster.get("name"))

    def require(self) -> None:
        """Raise UnknownName if the wanted cluster was not found."""
        if not self.found:
            similar = did_you_mean(str(self._wanted), self._names)
            raise UnknownName(
                f"There is no cluster {self._wanted}, and no recorded decision is about it.{similar}"
            )

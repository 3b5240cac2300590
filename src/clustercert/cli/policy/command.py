"""`clustercert policy`: checks the policy, and explains what it decides."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clustercert.cli.commands import on_policy
from clustercert.cli.lookup import find_cluster
from clustercert.cli.options import (
    ClusterOption,
    CommandError,
    InProjectOption,
    PolicyFileOption,
    UnknownName,
    UsageError,
    did_you_mean,
    past_time,
)
from clustercert.cli.output import (
    Output,
    OutputOption,
    Progress,
    Row,
    print_note,
    row_of,
    show_list,
    show_one,
)
from clustercert.cli.policy import explanation
from clustercert.cli.policy.output import show_replay
from clustercert.cli.session import Operator, operate, settings
from clustercert.model.errors import NotFound
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject
    from clustercert.policy.replay import DecisionFilter, Replay


_ACCESS_COLUMNS = ("user", "groups", "rule", "longest", "needs", "unless")


@on_policy
def can(
    client: "AdministrationClient",
    group: Annotated[
        str, typer.Option(metavar="GROUP", help="Kubernetes group; * stands for any characters.")
    ],
    cluster: ClusterOption,
    project: InProjectOption = None,
    since: Annotated[
        datetime,
        typer.Option(
            parser=past_time,
            metavar="TIME",
            help="Include users of OIDC issuers and Keystone who got a certificate since TIME: RFC 3339, or a duration"
            " before now such as 30d.",
        ),
    ] = "30d",  # type: ignore[assignment] # typer parses it
    output: OutputOption = Output.TABLE,
) -> None:
    """List who could get a certificate with a Kubernetes group, by which rule, and for how long at most.

    Considers every request that a user could send. The column NEEDS shows what the request must have. The column
    UNLESS shows rules that refuse some of these requests. Only for operators and auditors.
    """
    found = find_cluster(client, cluster, project)
    query = {"cluster": str(found["id"]), "group": group, "since": rfc3339(since)}
    with client.check_format():
        users = list(client.list_all("/policy/entitlements", "users", **query))
        rows = [row for user in users for row in _rows(user)]
    rows.sort(key=lambda row: (str(row["user"]), str(row["user_id"])))
    show_list(rows, output, columns=_ACCESS_COLUMNS, name="user")


def _rows(user: "dict[str, Any]") -> "Iterator[Row]":
    from clustercert.policy.lifetime import lifetime_text

    for each in user["entitlements"]:
        yield {
            "user": user["name"],
            "user_id": user["id"],
            "issuer": user["issuer"],
            "seen_at": user["seen_at"],
            "groups": each["groups"],
            "rule": each["rule"],
            "longest": lifetime_text(timedelta(seconds=each["longest_seconds"])),
            "longest_seconds": each["longest_seconds"],
            "needs": each["needs"],
            "unless": each["unless"],
        }


_COUNTED = "events read"
# The maximum number of cluster names to keep for suggestions.
_MAX_NAMES = 1000

PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE", help="Policy file to compare with. [default: the policy in the settings]"
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
            metavar="CLUSTER",
            help="Replay only decisions about this cluster: its id, or its name when it was decided.",
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
    """Decide recorded requests again with a different policy, and show which decisions would differ.

    Changes nothing. For each request, the policy decides as of the time when the request was recorded.
    """
    from clustercert.policy.replay import DecisionFilter, Replay

    loaded = settings(context, policy)
    replay = Replay(loaded.loaded_policy())
    decision_filter = DecisionFilter(since, until, project, cluster)
    if log is None:
        operate(context, lambda operator: _replay_stored(operator, replay, decision_filter))
    else:
        _replay_exported(log, replay, decision_filter)
    show_replay(replay, decision_filter, output)


async def _replay_stored(operator: Operator, replay: "Replay", decision_filter: "DecisionFilter") -> None:
    from clustercert.audit.event_parsing import parse_body
    from clustercert.store.decision_events import DecisionEvents

    if decision_filter.project_id is not None:
        decision_filter = replace(
            decision_filter, project_id=await _project_id(operator, decision_filter.project_id)
        )
    clusters, events = _Clusters(decision_filter.cluster), DecisionEvents(operator.components.database)
    with Progress(_COUNTED) as progress:
        async for page in events.pages(
            decision_filter.since, decision_filter.until, decision_filter.project_id
        ):
            _add(replay, map(parse_body, page), decision_filter, clusters, progress)
    if not clusters.found:
        for cluster in await operator.components.clusters.queries.all_clusters():
            clusters.add(cluster.id, cluster.name)
        clusters.require()


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
    """Searches events for the given cluster, which may have been removed.

    Attributes:
        found: whether the cluster was found, or no cluster was given.
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


app = typer.Typer(name="policy", help="Check the policy, and explain what it decides.", no_args_is_help=True)


@app.command("test")
def check_policy(
    context: typer.Context, policy: PolicyFileOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Check a policy, and run its examples. Exit with 1 if it is not valid or an example fails.

    Does not need the database.
    """
    from clustercert.policy.decision import policy_digest
    from clustercert.policy.examples import run_examples

    loaded = settings(context, policy)
    tested = loaded.loaded_policy()
    results = list(run_examples(tested, loaded.policy.examples))
    rows = [row_of(result, "name", "passed", "expected", "decided") for result in results]
    failed = sum(not result.passed for result in results)
    if output in (Output.JSON, Output.YAML):
        rules = [rule.name for rule in tested.rules]
        show_one({"sha256": policy_digest(tested), "rules": rules, "examples": rows}, output)
    elif rows:
        show_list(rows, output, columns=["name", "passed", "expected", "decided"])
    if output is Output.TABLE:
        print_note(f"The policy is valid: {len(tested.rules)} rules, SHA-256 {policy_digest(tested)}.")
        print_note(f"{len(rows)} examples, {failed} failed." if rows else "The policy has no examples.")
    if failed:
        raise typer.Exit(1)


app.command("explain")(explanation.explain_user)
app.command("can")(can)
app.command("replay")(replay_decisions)

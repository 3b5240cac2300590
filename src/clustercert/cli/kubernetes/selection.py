"""Selects the clusters for a command: one, several or all clusters, or the clusters with given labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from clustercert.cli.lookup import clusters_of_caller, find_cluster, full_name, has_labels, is_in
from clustercert.cli.options import (
    FAILED,
    InProjectOption,
    LabelFilterOption,
    ProjectDomainOption,
    UnknownName,
    UsageError,
    error_text,
    parse_labels,
)
from clustercert.cli.terminal.output import print_note
from clustercert.model.errors import ClustercertError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from clustercert.cli.session import Operator
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import Cluster, JsonObject

_PAGE = 500
_MAX_NAMES = 20
_NO_MATCH = "No cluster matches. `clustercert cluster list -o wide` lists all clusters."


@dataclass(frozen=True, slots=True)
class ClusterSelection:
    """The arguments and options that choose clusters."""

    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CLUSTER…", help="Names (CLUSTER or DOMAIN/PROJECT/CLUSTER) or ids of clusters."
        ),
    ] = None
    project: InProjectOption = None
    domain: ProjectDomainOption = None
    all_clusters: Annotated[
        bool, typer.Option("--all", help="All clusters, or all clusters of --project or --domain.")
    ] = False
    label: LabelFilterOption = None

    @property
    def is_one(self) -> bool:
        """Whether the user named a single cluster."""
        return self.names is not None and len(self.names) == 1 and not self.by_property

    @property
    def by_property(self) -> bool:
        """Whether the user chose clusters with `--all` or `--label`."""
        return self.all_clusters or bool(self.label)

    async def clusters(self, operator: "Operator") -> "Sequence[Cluster]":
        """Find the chosen clusters. With `--all` or `--label`, sorts the clusters by domain, project and name.

        Raises UsageError, UnknownName if no cluster matches, or an error of `Finder.cluster`.
        """
        self._check()
        if self.names:
            named = [await operator.cluster(each, self.project, self.domain) for each in self.names]
            return list({each.id: each for each in named}.values())
        labels = parse_labels(self.label)
        found = [each for each in await self._all(operator) if labels.items() <= dict(each.labels).items()]
        if not found:
            raise UnknownName(_NO_MATCH)
        return sorted(found, key=names_of)

    def clusters_of_service(self, client: "AdministrationClient") -> "list[JsonObject]":
        """Find the chosen clusters over the API. With `--all` or `--label`, sorts them like `clusters`.

        Raises UsageError, UnknownName if no cluster matches, or an error of `find_cluster`.
        """
        self._check()
        if self.names:
            named = [find_cluster(client, each, self.project, self.domain) for each in self.names]
            return list({each["id"]: each for each in named}.values())
        labels = parse_labels(self.label)
        found = [
            each
            for each in clusters_of_caller(client)
            if has_labels(each, labels) and is_in(each, self.project, self.domain)
        ]
        if not found:
            raise UnknownName(_NO_MATCH)
        return found

    def _check(self) -> None:
        """Raise UsageError unless the user either named clusters or chose them by property."""
        if bool(self.names) == self.by_property:
            raise UsageError("Give the names or ids of clusters, or --all, or --label KEY=VALUE.")

    async def _all(self, operator: "Operator") -> "list[Cluster]":
        """List all clusters, or only the clusters of the project or domain in the options."""
        owners = None
        if self.project is not None:
            owners = {(await operator.project(self.project, self.domain)).id}
        domain = await operator.domain_or_any(self.domain)
        found: list[Cluster] = []
        after = ""
        while page := await operator.clusters.reachable_page(owners, None, after, _PAGE):
            found += page
            after = page[-1].id
        if domain is None:
            return found
        return [each for each in found if each.project_name and each.project_name.domain.id == domain.id]


def names_of(cluster: "Cluster") -> tuple[str, str, str]:
    """Return the names of a cluster's domain, of its project, and of the cluster itself."""
    project = cluster.project_name
    if project is None:
        raise RuntimeError("the cluster was read without its project")
    return project.domain.name, project.name, cluster.name


def folder_of(cluster: "Cluster") -> Path:
    """Return the relative path of a cluster's own folder: `DOMAIN/PROJECT/CLUSTER`, with safe names."""
    return Path(*map(_file_name, names_of(cluster)))


def _file_name(name: str) -> str:
    """Return a safe and unique file name for the name of an object, which may contain slashes or be `..`."""
    quoted = quote(name, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


class Notes:
    """Collects notes about clusters for the user. Prints the same note about several clusters only once."""

    def __init__(self) -> None:
        self._clusters: dict[str, list[str]] = {}

    def add(self, cluster: str, note: str) -> None:
        self._clusters.setdefault(note, []).append(cluster)

    def print(self, prefix: str = "") -> None:
        for note, labels in self._clusters.items():
            more = [f"{len(labels) - _MAX_NAMES} more"] if len(labels) > _MAX_NAMES else []
            print_note(f"{prefix}{', '.join([*labels[:_MAX_NAMES], *more])}: {note}")


async def for_each(
    operator: "Operator",
    clusters: "Sequence[Cluster]",
    work: "Callable[[Cluster], Awaitable[None]]",
    report: "Callable[[int], object]" = int,
) -> None:
    """Call `work` for one cluster after the other, and continue after failures. Prints the errors at the end.

    Raises typer.Exit at the end if `work` failed for any cluster.

    Args:
        report: called before each cluster, with the number of clusters that are done.
    """
    errors, failed = Notes(), False
    try:
        for number, each in enumerate(clusters):
            report(number)
            try:
                # Read the cluster again, because the work for earlier clusters may have taken long.
                current = await operator.clusters.reachable(each.id, None)
                if current is None:
                    raise UnknownName("The cluster was removed meanwhile.")
                await work(current)
            except typer.Exit:
                failed = True
            except (ClustercertError, OSError) as error:
                failed = True
                errors.add(each.shown_name, error_text(error))
    finally:
        errors.print("Error: ")
    if failed:
        raise typer.Exit(FAILED)


def for_each_of_service(
    clusters: "Sequence[JsonObject]", work: "Callable[[JsonObject], None]", show: "Callable[[], None]"
) -> None:
    """Call `work` for one cluster after the other, and continue after failures. Then call `show`, and print the errors.

    If there is only one cluster, its error is raised instead. Otherwise raises typer.Exit at the end if `work` failed
    for any cluster.
    """
    if len(clusters) == 1:
        work(clusters[0])
        show()
        return
    errors, failed = Notes(), False
    try:
        for each in clusters:
            try:
                work(each)
            except ClustercertError as error:
                failed = True
                errors.add(full_name(each), error_text(error))
    finally:
        show()
        errors.print("Error: ")
    if failed:
        raise typer.Exit(FAILED)

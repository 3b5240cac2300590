"""`clustercert cluster`: the Kubernetes clusters for which certificates are issued."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from clustercert.cli.cluster_options import EnforcementChangeOptions, EnforcementOptions
from clustercert.cli.commands import on_service
from clustercert.cli.options import (
    ClusterArgument,
    DomainOption,
    InProjectOption,
    OnlyProjectOption,
    ProjectDomainOption,
    UsageError,
    YesOption,
)
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import confirm
from clustercert.cli.registration import AddressOptions, DetailChangeOptions, DetailOptions
from clustercert.cli.resources import RESOURCES
from clustercert.cli.session import CLUSTER_ID

if TYPE_CHECKING:
    from datetime import datetime

    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

app = typer.Typer(name="cluster", help=RESOURCES["cluster"].help, no_args_is_help=True)

_COLUMNS = ("name", "project", "version", "internal_url", "external_url", "id")
# `kubernetes ca-bundle` prints the CAs.
_HIDDEN = frozenset({"server_ca", "client_ca"})


@app.command()
@on_service
def add(
    client: "AdministrationClient",
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name, unique in the project.")],
    project: Annotated[str, typer.Option(metavar="PROJECT", help="Project that owns the cluster.")],
    address: AddressOptions,
    details: DetailOptions,
    enforcement: EnforcementOptions,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Register a cluster and create its client CA. Only for operators and admins of the project.

    Then configure the API server to trust the CA: see `clustercert kubernetes setup`.
    """
    from clustercert.cli.lookup import find_project
    from clustercert.client.administration import path_of

    if CLUSTER_ID.fullmatch(name):
        raise UsageError(f"name: {name} looks like an id. Choose another name for the cluster.")
    internal_url, ca_pem = address.read()
    if internal_url is None or ca_pem is None:
        raise typer.BadParameter("Give --internal-url and --server-ca, or --from-kubeconfig.")
    fields: JsonObject = {"internal_url": internal_url, "server_ca": ca_pem.decode("ascii", "replace")}
    fields |= details.changes({}) | enforcement.changes({})
    owner = find_project(client, project, domain)
    added = client.create(path_of("projects", str(owner["id"]), "clusters", name), fields)
    show_one(_row(added, owner["name"]), output)
    note(
        f"Next: run `clustercert kubernetes setup {added['id']} --out DIR`, and follow DIR/README.md. As a minimum, "
        "write a new file with the API server's present client CAs and the output of `clustercert kubernetes ca-bundle "
        f"{added['id']}`, name that file in --client-ca-file, and apply the output of `clustercert kubernetes rbac`. "
        "Don't append to kubeadm's ca.crt: pods and nodes also use it as the CA of the API server."
    )
    enforcement.note_next_step(added["id"])


@app.command("list")
@on_service
def list_clusters(
    client: "AdministrationClient",
    project: OnlyProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the clusters in all your projects. Operators see those of all projects."""
    from clustercert.cli.lookup import clusters_of_caller, find_project
    from clustercert.cli.output import with_domain, with_times

    owner = find_project(client, project, domain)["id"] if project is not None else None
    found = [
        with_times(each)
        for each in clusters_of_caller(client)
        if owner in (None, each["project_id"]) and domain in (None, each["domain"], each["domain_id"])
    ]
    show_list(found, output, columns=with_domain(_COLUMNS, found))


@app.command()
@on_service
def show(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show how a cluster is registered, and whether use of revoked certificates would be seen there.

    Only for operators and admins of the project.
    """
    from clustercert.certificates.controls import USE_NOT_SEEN
    from clustercert.cli.lookup import cluster_path, find_cluster
    from clustercert.cli.output import with_times
    from clustercert.model.times import is_recent, utc_now

    found = find_cluster(client, name, project, domain)
    tokens = map(with_times, client.all(cluster_path(found, "webhook-tokens"), "webhook_tokens"))
    is_seen = any(is_recent(cast("datetime | None", each["last_events_at"]), utc_now()) for each in tokens)
    use = {"use_after_revocation": "seen" if is_seen else "not seen"}
    show_one(_row(client.get(cluster_path(found)), found["project"]) | use, output)
    if not is_seen:
        note(USE_NOT_SEEN)


@app.command()
@on_service
def update(
    client: "AdministrationClient",
    name: ClusterArgument,
    address: AddressOptions,
    details: DetailChangeOptions,
    enforcement: EnforcementChangeOptions,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    rename: Annotated[str | None, typer.Option(metavar="NAME", help="New name.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a cluster. Options that you omit leave their values unchanged. The id and the client CA never change."""
    from clustercert.cli.lookup import cluster_path, find_cluster

    internal_url, ca_pem = address.read()
    fields: JsonObject = {
        "name": rename,
        "internal_url": internal_url,
        "server_ca": ca_pem.decode("ascii", "replace") if ca_pem is not None else None,
    }
    fields = {field: value for field, value in fields.items() if value is not None}
    found = find_cluster(client, name, project, domain)

    def changes(before: "JsonObject") -> "JsonObject":
        return fields | details.changes(before) | enforcement.changes(before)

    changed = client.change(cluster_path(found), changes)
    show_one(_row(changed, found["project"]), output)
    enforcement.note_next_step(changed["id"])


@app.command()
@on_service
def remove(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    yes: YesOption = False,
) -> None:
    """Remove a cluster and the key of its client CA. Its certificates stay in the ledger."""
    from clustercert.cli.certificate import preview_of_all
    from clustercert.cli.lookup import cluster_path, find_cluster

    path = cluster_path(find_cluster(client, name, project, domain))
    removed, live = client.get(path), preview_of_all(client, path)["live"]
    question = (
        f"Permanently remove the cluster {removed['name']} ({removed['id']}), which has {live} live certificates, and "
        "its client CA's key?"
    )
    confirm(question, yes=yes)
    client.delete(path)
    note(
        f"Removed the cluster {removed['name']}. Its API server accepts issued certificates until you remove the "
        "client CA from its --client-ca-file, even revoked ones unless its webhook's failurePolicy is Deny."
    )
    if removed["credential_roles"]:
        note("Its ClusterRoleBindings named clustercert:credential:… stay in the cluster. Delete them.")


def _row(cluster: "JsonObject", project: object) -> "JsonObject":
    from clustercert.cli.output import with_times

    shown = {name: value for name, value in cluster.items() if name not in _HIDDEN}
    return with_times({"id": shown.pop("id"), "name": shown.pop("name"), "project": project, **shown})

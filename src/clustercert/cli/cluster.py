"""`clustercert cluster`: the Kubernetes clusters for which certificates are issued."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.cluster_options import EnforcementChangeOptions, EnforcementOptions
from clustercert.cli.commands import on_store
from clustercert.cli.options import ClusterArgument, InProjectOption, OnlyProjectOption, YesOption
from clustercert.cli.output import Output, OutputOption, Row, note, row_of, show_list, show_one
from clustercert.cli.prompts import confirm
from clustercert.cli.registration import AddressOptions, DetailChangeOptions, DetailOptions
from clustercert.cli.session import Operator

if TYPE_CHECKING:
    from clustercert.model import Cluster

app = typer.Typer(
    name="cluster", help="Manage the clusters for which certificates are issued.", no_args_is_help=True
)


@app.command()
@on_store
async def add(
    operator: Operator,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name, unique in the project.")],
    project: Annotated[str, typer.Option(metavar="PROJECT", help="Project that owns the cluster.")],
    address: AddressOptions,
    details: DetailOptions,
    enforcement: EnforcementOptions,
    output: OutputOption = Output.TABLE,
) -> None:
    """Register a cluster and create its client CA.

    Then configure the API server to trust the CA: see `clustercert kubernetes setup`.
    """
    from clustercert.clusters.registration import Registration
    from clustercert.model import ClusterOptions

    internal_url, ca_pem = address.read()
    if internal_url is None or ca_pem is None:
        raise typer.BadParameter("Give --internal-url and --server-ca, or --from-kubeconfig.")
    enforcement.check_rules(operator.parts.settings.policy)
    registration = Registration(name=name, internal_url=internal_url, server_ca_pem=ca_pem)
    registration = replace(
        registration,
        **details.changes(registration),  # type: ignore[arg-type] # each value has its field's type
        options=enforcement.apply_to(registration.options),
    )
    enforcement.check_exemptions(operator.parts.settings.policy, ClusterOptions(), registration.options)
    owner = await operator.project(project)
    added = await operator.parts.clusters.add(owner.id, registration, actor=operator.actor)
    show_one(_row(added, {owner.id: owner.name}), output)
    note(
        f"Next: run `clustercert kubernetes setup {added.id} --out DIR` for the files that the control plane needs. "
        f"As a minimum, append the output of `clustercert kubernetes ca-bundle {added.id}` to the API server's "
        "--client-ca-file, and apply the output of `clustercert kubernetes rbac` to the cluster."
    )
    enforcement.note_next_step(added.id)


@app.command("list")
@on_store
async def list_clusters(
    operator: Operator, project: OnlyProjectOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List the clusters."""
    queries = operator.parts.clusters.queries
    if project is not None:
        owner = await operator.project(project)
        names, clusters = {owner.id: owner.name}, await queries.in_project(owner.id)
    else:
        projects = await operator.directory.projects()
        names, clusters = {each.id: each.name for each in projects}, await queries.everywhere()
    columns = ("id", "name", "project", "version", "internal_url", "external_url")
    show_list([_row(cluster, names) for cluster in clusters], output, columns=columns)


@app.command()
@on_store
async def show(
    operator: Operator,
    name: ClusterArgument,
    project: InProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a cluster."""
    show_one(await _full_row(operator, await operator.cluster(name, project)), output)


@app.command()
@on_store
async def update(
    operator: Operator,
    name: ClusterArgument,
    address: AddressOptions,
    details: DetailChangeOptions,
    enforcement: EnforcementChangeOptions,
    project: InProjectOption = None,
    rename: Annotated[str | None, typer.Option(metavar="NAME", help="New name.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a cluster. Options that you omit leave their values unchanged. The id and the client CA never change."""
    from clustercert.clusters.registration import Registration

    internal_url, ca_pem = address.read()
    enforcement.check_rules(operator.parts.settings.policy)
    cluster = await operator.cluster(name, project)
    before = Registration.of(cluster)
    registration = replace(
        before,
        name=rename if rename is not None else before.name,
        internal_url=internal_url if internal_url is not None else before.internal_url,
        server_ca_pem=ca_pem if ca_pem is not None else before.server_ca_pem,
        **details.changes(before),  # type: ignore[arg-type] # each value has its field's type
        options=enforcement.apply_to(before.options),
    )
    enforcement.check_exemptions(operator.parts.settings.policy, before.options, registration.options)
    changed = await operator.parts.clusters.update(cluster, registration, actor=operator.actor)
    show_one(await _full_row(operator, changed), output)
    enforcement.note_next_step(changed.id)


@app.command()
@on_store
async def remove(
    operator: Operator, name: ClusterArgument, project: InProjectOption = None, yes: YesOption = False
) -> None:
    """Remove a cluster and the key of its client CA. Its certificates stay in the ledger."""
    from clustercert.model import utc_now

    removed = await operator.cluster(name, project)
    live = await operator.parts.certificates.count_live(utc_now(), cluster_id=removed.id)
    question = (
        f"Permanently remove the cluster {removed.name} ({removed.id}), which has {live} live certificates, and its "
        "client CA's key?"
    )
    confirm(question, yes=yes)
    await operator.parts.clusters.remove(removed, actor=operator.actor)
    note(
        f"Removed the cluster {removed.name}. Its API server accepts issued certificates until you remove the client "
        "CA from its --client-ca-file, even revoked ones unless its webhook's failurePolicy is Deny."
    )
    if removed.options.credential_roles is not None:
        note("Its ClusterRoleBindings named clustercert:credential:… stay in the cluster. Delete them.")


async def _full_row(operator: Operator, cluster: "Cluster") -> Row:
    owner = await operator.directory.find_project(cluster.project_id)
    return _row(cluster, {owner.id: owner.name})


def _row(cluster: "Cluster", project_names: dict[str, str]) -> Row:
    from clustercert.pki.certificates import fingerprint, parse_certificates

    client_ca, addresses = cluster.client_ca, ("internal_url", "external_url", "san_urls")
    return {
        **row_of(cluster, "id", "name"),
        "project": project_names.get(cluster.project_id, ""),
        **row_of(cluster, "project_id", "version", *addresses, "labels", "signer"),
        "webhook_mode": cluster.options.mode,
        **row_of(cluster.options, "exemptions", "listed_masters", "credential_roles", "admission"),
        "server_ca_sha256": [fingerprint(ca).hex() for ca in parse_certificates(cluster.server_ca_pem)],
        "client_ca_id": client_ca.id,
        "client_ca_sha256": fingerprint(client_ca.certificate).hex(),
        "client_ca_not_after": client_ca.not_after,
        **row_of(cluster, "created_at", "updated_at"),
    }

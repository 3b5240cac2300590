"""`clustercert cluster`: the Kubernetes clusters that certificates are issued for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli import project as project_commands
from clustercert.cli.asking import agreed
from clustercert.cli.guarding import (
    AdmissionOption,
    CredentialRoleOption,
    ExemptOption,
    Guarding,
    ListedMasterOption,
    ModeOption,
    NoCredentialRolesOption,
    RemoveExemptOption,
    RemoveListedMasterOption,
)
from clustercert.cli.options import YesOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.registration import Wishes, labels
from clustercert.cli.session import Operator, UnclearError, operate, settings

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.model import Cluster

app = typer.Typer(name="cluster", help="The clusters that certificates are issued for.", no_args_is_help=True)

ClusterArgument = Annotated[str, typer.Argument(metavar="CLUSTER", help="Its name or id.")]
InProjectOption = Annotated[
    str | None,
    typer.Option("--project", metavar="PROJECT", help="The project; needed where several have the name."),
]
InternalUrlOption = Annotated[
    str | None, typer.Option(metavar="URL", help="The API server inside its network: https://host:port.")
]
ExternalUrlOption = Annotated[str | None, typer.Option(metavar="URL", help="Its public address.")]
SanUrlOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL", help="A further address that its certificate is valid for; any number of times."
    ),
]
ServerCaOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The CA of the API server's own certificate, PEM.")
]
KubeconfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Take address and CA from a kubeconfig; other options win. Nothing in it is run."
    ),
]
ContextOption = Annotated[
    str | None, typer.Option("--context", help="The context of that kubeconfig. [default: its current one]")
]
FollowOption = Annotated[
    bool,
    typer.Option(
        "--follow-files", help="Read the CA file that the kubeconfig names, if it has none in itself."
    ),
]
VersionOption = Annotated[str | None, typer.Option(help="The Kubernetes version, such as v1.32.")]
LabelOption = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label; any number of times.")
]


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, unique in the project.")],
    project: Annotated[str, typer.Option(metavar="PROJECT", help="Whose it is.")],
    internal_url: InternalUrlOption = None,
    server_ca: ServerCaOption = None,
    from_kubeconfig: KubeconfigOption = None,
    kube_context: ContextOption = None,
    follow_files: FollowOption = False,
    external_url: ExternalUrlOption = None,
    san_url: SanUrlOption = None,
    version: VersionOption = None,
    label: LabelOption = None,
    webhook_mode: ModeOption = None,
    exempt: ExemptOption = None,
    listed_master: ListedMasterOption = None,
    credential_role: CredentialRoleOption = None,
    admission: AdmissionOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Register a cluster.

    It gets a client CA of its own, which its API server has to be told of.
    """
    wishes = Wishes(internal_url, server_ca, from_kubeconfig, kube_context, follow_files)
    internal, ca_pem = wishes.address_and_ca()
    guarding = Guarding(webhook_mode, exempt, listed_master, credential_role, admission)
    _check_rules(context, guarding)

    async def work(operator: Operator) -> Row:
        from clustercert.clusters import Registration

        wanted = Registration(
            name=name,
            internal_url=internal,
            server_ca_pem=ca_pem,
            external_url=external_url,
            san_urls=tuple(san_url or ()),
            labels=labels(label),
        )
        wanted = replace(wanted, options=guarding.on_top_of(wanted.options))
        if version is not None:
            wanted = replace(wanted, version=version)
        owner = await project_commands.find(operator, project)
        added = await operator.parts.clusters.add(owner.id, wanted, **operator.who)
        return _row(added, {owner.id: owner.name})

    row = operate(context, work)
    show_one(row, output)
    note(
        f"Next: `clustercert kubernetes setup {row['id']} --out DIR` writes what its control plane needs. At least, "
        f"append the output of `clustercert kubernetes ca-bundle {row['id']}` to the file that the API server's "
        "--client-ca-file names, and apply that of `clustercert kubernetes rbac` to the cluster."
    )
    _note_next_step(guarding, row)


@app.command("list")
def list_clusters(
    context: typer.Context,
    project: Annotated[str | None, typer.Option(metavar="PROJECT", help="Only of this project.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the clusters."""

    async def work(operator: Operator) -> list[Row]:
        rows = operator.parts.clusters.rows
        if project is not None:
            owner = await project_commands.find(operator, project)
            return [_row(cluster, {owner.id: owner.name}) for cluster in await rows.in_project(owner.id)]
        names = {found.id: found.name for found in await operator.parts.identity.directory.projects()}
        return [_row(cluster, names) for cluster in await rows.everywhere()]

    columns = ("id", "name", "project", "version", "internal_url", "external_url")
    show_list(operate(context, work), output, columns=columns)


@app.command()
def show(
    context: typer.Context,
    name: ClusterArgument,
    project: InProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a cluster."""

    async def work(operator: Operator) -> Row:
        return await _shown(operator, await find(operator, name, project))

    show_one(operate(context, work), output)


@app.command()
def update(
    context: typer.Context,
    name: ClusterArgument,
    project: InProjectOption = None,
    rename: Annotated[str | None, typer.Option(metavar="NAME", help="Its new name.")] = None,
    internal_url: InternalUrlOption = None,
    server_ca: ServerCaOption = None,
    from_kubeconfig: KubeconfigOption = None,
    kube_context: ContextOption = None,
    follow_files: FollowOption = False,
    external_url: ExternalUrlOption = None,
    no_external_url: Annotated[
        bool, typer.Option("--no-external-url", help="It has no public address.")
    ] = False,
    san_url: SanUrlOption = None,
    no_san_urls: Annotated[bool, typer.Option("--no-san-urls", help="It has no further addresses.")] = False,
    version: VersionOption = None,
    label: LabelOption = None,
    remove_label: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Drop a label.")] = None,
    webhook_mode: ModeOption = None,
    exempt: ExemptOption = None,
    remove_exempt: RemoveExemptOption = None,
    listed_master: ListedMasterOption = None,
    remove_listed_master: RemoveListedMasterOption = None,
    credential_role: CredentialRoleOption = None,
    no_credential_roles: NoCredentialRolesOption = False,
    admission: AdmissionOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change what is said of a cluster. What isn't named stays; its id and its client CA stay in any case."""
    if (external_url and no_external_url) or (san_url and no_san_urls):
        raise typer.BadParameter("an option and its --no- form exclude each other.")
    internal, ca_pem = Wishes(internal_url, server_ca, from_kubeconfig, kube_context, follow_files).given()
    changes: dict[str, object] = {
        "name": rename,
        "internal_url": internal,
        "server_ca_pem": ca_pem,
        "external_url": external_url,
        "san_urls": tuple(san_url) if san_url else None,
        "version": version,
    }
    changes = {field: value for field, value in changes.items() if value is not None}
    if no_external_url:
        changes["external_url"] = None
    if no_san_urls:
        changes["san_urls"] = ()
    added, removed = labels(label), frozenset(remove_label or ())
    guarding = Guarding(
        webhook_mode,
        exempt,
        listed_master,
        credential_role,
        admission,
        remove_exempt,
        remove_listed_master,
        no_credential_roles,
    )
    _check_rules(context, guarding)

    async def work(operator: Operator) -> Row:
        from clustercert.clusters import Registration

        cluster = await find(operator, name, project)
        kept = {key: value for key, value in cluster.labels.items() if key not in removed}
        wanted = replace(Registration.of(cluster), **changes, labels={**kept, **added})  # type: ignore[arg-type] # each is its field's
        wanted = replace(wanted, options=guarding.on_top_of(wanted.options))
        changed = await operator.parts.clusters.update(cluster, wanted, **operator.who)
        return await _shown(operator, changed)

    row = operate(context, work)
    show_one(row, output)
    _note_next_step(guarding, row)


@app.command()
def remove(
    context: typer.Context, name: ClusterArgument, project: InProjectOption = None, yes: YesOption = False
) -> None:
    """Forget a cluster and the key of its client CA. What was issued stays in the ledger."""
    agreed(f"Forget the cluster {name} and its client CA's key for good?", yes=yes)

    async def work(operator: Operator) -> "Cluster":
        cluster = await find(operator, name, project)
        await operator.parts.clusters.remove(cluster, **operator.who)
        return cluster

    removed = operate(context, work)
    note(
        f"Removed the cluster {removed.name}. Its API server goes on accepting what was issued until the client CA is "
        "taken out of its --client-ca-file; also what was revoked, unless its webhook's failurePolicy is Deny."
    )
    if removed.options.credential_roles is not None:
        note("Its ClusterRoleBindings named clustercert:credential:… stay there as well: delete them.")


async def find(operator: Operator, wanted: str, project: str | None = None) -> "Cluster":
    """The cluster of that id or name. Raises NotFound, or UnclearError where several projects have it."""
    from clustercert.errors import NotFound

    owner = await project_commands.find(operator, project) if project is not None else None
    found = await operator.parts.clusters.rows.find(wanted, owner.id if owner else None)
    if not found:
        raise NotFound(f"There is no cluster {wanted}{f' in the project {owner.name}' if owner else ''}.")
    if len(found) > 1:
        raise UnclearError(
            f"Several projects have a cluster named {wanted}. Say which with --project, or use its id."
        )
    return found[0]


def _note_next_step(guarding: Guarding, row: Row) -> None:
    if step := guarding.next_step(str(row["id"])):
        note(step)


def _check_rules(context: typer.Context, guarding: Guarding) -> None:
    """Raises typer.BadParameter for a rule that the policy hasn't."""
    if not (said := guarding.roles()):
        return
    if unknown := said.keys() - {rule.role for rule in settings(context).policy.rules}:
        raise typer.BadParameter(
            f"the policy has no rule for the role {', '.join(sorted(unknown))}.",
            param_hint="--credential-role",
        )


async def _shown(operator: Operator, cluster: "Cluster") -> Row:
    owner = await operator.parts.identity.directory.find_project(cluster.project_id)
    return _row(cluster, {owner.id: owner.name})


def _row(cluster: "Cluster", project_names: dict[str, str]) -> Row:
    from clustercert.certificate import fingerprint

    client_ca = cluster.client_ca
    return {
        "id": cluster.id,
        "name": cluster.name,
        "project": project_names.get(cluster.project_id, ""),
        "project_id": cluster.project_id,
        "version": cluster.version,
        "internal_url": cluster.internal_url,
        "external_url": cluster.external_url,
        "san_urls": cluster.san_urls,
        "labels": cluster.labels,
        "signer": cluster.signer,
        "webhook_mode": cluster.options.mode,
        "exemptions": cluster.options.exemptions,
        "listed_masters": cluster.options.listed_masters,
        "credential_roles": cluster.options.credential_roles,
        "admission": cluster.options.admission,
        "server_ca_sha256": _fingerprints(cluster.server_ca_pem),
        "client_ca_id": client_ca.id,
        "client_ca_sha256": fingerprint(client_ca.certificate).hex(),
        "client_ca_not_after": client_ca.not_after,
        "created_at": cluster.created_at,
        "updated_at": cluster.updated_at,
    }


def _fingerprints(pem: bytes) -> Sequence[str]:
    from clustercert.certificate import certificates, fingerprint

    return [fingerprint(certificate).hex() for certificate in certificates(pem)]

"""`clustercert kubernetes`: prepares clusters to accept issued certificates and to enforce revocations."""

import typer

from clustercert.cli import import_audit_log, kubernetes_setup, kubernetes_verify, webhook_token
from clustercert.cli.commands import on_store
from clustercert.cli.kubernetes_setup import BindOption, invalid_options, parse_bindings
from clustercert.cli.options import ClusterArgument, InProjectOption, ProjectDomainOption
from clustercert.cli.output import write_out
from clustercert.cli.printable import printable
from clustercert.cli.session import Operator, settings

app = typer.Typer(
    name="kubernetes",
    help="Set up clusters for issued certificates and revocation.",
    no_args_is_help=True,
)
app.command("setup")(kubernetes_setup.setup)
app.command("verify")(kubernetes_verify.verify)
app.command("import-audit-log")(import_audit_log.import_audit_log)
app.add_typer(webhook_token.token)


@app.command("ca-bundle")
@on_store
async def ca_bundle(
    operator: Operator,
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
) -> None:
    """Print the client CAs of a cluster (PEM).

    Write them and the API server's present client CAs into a new file, and name that file in --client-ca-file.
    """
    from clustercert.pki.certificates import chain_pem

    cluster = await operator.cluster(name, project, domain)
    write_out(chain_pem(await operator.parts.clusters.queries.bundle(cluster.id)).decode())


@app.command()
def rbac(context: typer.Context, bind: BindOption = None) -> None:
    """Print ClusterRoleBindings for the policy's groups.

    For `kubectl apply -f -`. By default they bind admins to cluster-admin, editors to edit, and viewers to view.
    """
    from clustercert.kubernetes.setup.documents import to_yaml
    from clustercert.kubernetes.setup.rbac import bindings
    from clustercert.kubernetes.setup.resolution import bound_roles

    groups = settings(context).policy.policy().groups
    with invalid_options():
        bound = bound_roles(groups, parse_bindings(bind))
    for group in groups:
        if group not in bound:
            write_out(
                f"# The group {printable(group)} is not bound here. Bind it, or add --bind GROUP=CLUSTERROLE.\n"
            )
    write_out(to_yaml(bindings(bound)))

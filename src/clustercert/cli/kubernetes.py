"""`clustercert kubernetes`: what a cluster has to be given before issued certificates work there."""

import typer

from clustercert.cli import cluster as cluster_commands
from clustercert.cli import import_audit_log, kubernetes_setup, kubernetes_verify, webhook_token
from clustercert.cli.cluster import ClusterArgument, InProjectOption
from clustercert.cli.output import answer, printable
from clustercert.cli.session import Operator, operate, settings
from clustercert.cli.setup_options import BindOption, bound_roles

app = typer.Typer(
    name="kubernetes",
    help="What to give a cluster so that issued certificates work.",
    no_args_is_help=True,
)
app.command("setup")(kubernetes_setup.setup)
app.command("verify")(kubernetes_verify.verify)
app.command("import-audit-log")(import_audit_log.import_audit_log)
app.add_typer(webhook_token.app)


@app.command("ca-bundle")
def ca_bundle(context: typer.Context, name: ClusterArgument, project: InProjectOption = None) -> None:
    """Print the client CAs of a cluster, PEM: append them to the API server's --client-ca-file."""

    async def work(operator: Operator) -> bytes:
        from clustercert.certificate import chain_pem

        cluster = await cluster_commands.find(operator, name, project)
        return chain_pem(await operator.parts.clusters.rows.bundle(cluster.id))

    answer(operate(context, work).decode())


@app.command()
def rbac(context: typer.Context, bind: BindOption = None) -> None:
    """Print the ClusterRoleBindings for the groups of the policy, for `kubectl apply -f -`.

    Administrators get cluster-admin, editors edit, viewers view.
    """
    from clustercert.manifests import to_yaml
    from clustercert.manifests.access import bindings

    groups = settings(context).policy.policy().groups
    bound = bound_roles(groups, bind)
    for group in groups:
        if group not in bound:
            answer(
                f"# The group {printable(group)} is not bound here: bind it by hand, or add --bind GROUP=CLUSTERROLE.\n"
            )
    answer(to_yaml(bindings(bound)))

"""`clustercert kubernetes`: what a cluster has to be given before issued certificates work there."""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated

import typer

from clustercert.cli import cluster as cluster_commands
from clustercert.cli.cluster import ClusterArgument, InProjectOption
from clustercert.cli.output import answer, printable
from clustercert.cli.session import Operator, operate, settings

app = typer.Typer(
    name="kubernetes",
    help="What to give a cluster so that issued certificates work.",
    no_args_is_help=True,
)

# What the default policy's groups are for.
DEFAULT_BINDINGS = {
    "clustercert:admins": "cluster-admin",
    "clustercert:editors": "edit",
    "clustercert:viewers": "view",
}
# Kubernetes lets a binding's name be any path segment.
_NOT_IN_A_NAME = re.compile("[/%]")


@app.command("ca-bundle")
def ca_bundle(context: typer.Context, name: ClusterArgument, project: InProjectOption = None) -> None:
    """Print the client CAs of a cluster, PEM: append them to the API server's --client-ca-file."""

    async def work(operator: Operator) -> bytes:
        from clustercert.certificate import chain_pem

        cluster = await cluster_commands.find(operator, name, project)
        return chain_pem(await operator.parts.clusters.rows.bundle(cluster.id))

    answer(operate(context, work).decode())


@app.command()
def rbac(
    context: typer.Context,
    bind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP=CLUSTERROLE",
            help="Bind a group of the policy to this cluster role; wins over the defaults. Any number of times.",
        ),
    ] = None,
) -> None:
    """Print the ClusterRoleBindings for the groups of the policy, for `kubectl apply -f -`.

    Administrators get cluster-admin, editors edit, viewers view.
    """
    import yaml

    bindings = DEFAULT_BINDINGS | _bindings(bind)
    groups = dict.fromkeys(group for rule in settings(context).policy.rules for group in rule.groups)
    if unknown := _bindings(bind).keys() - groups.keys():
        raise typer.BadParameter(
            f"no rule of the policy gives {', '.join(sorted(unknown))}.", param_hint="--bind"
        )
    for group in groups:
        if group not in bindings:
            answer(
                f"# The group {printable(group)} is not bound here: bind it by hand, or add --bind GROUP=CLUSTERROLE.\n"
            )
    documents = [_binding(group, bindings[group]) for group in groups if group in bindings]
    answer(yaml.safe_dump_all(documents, sort_keys=False))


def _bindings(options: Sequence[str] | None) -> dict[str, str]:
    # The last one, since a group's name may have an equals sign and a cluster role's has none.
    pairs = [option.rpartition("=") for option in options or ()]
    if not all(group and role for group, _, role in pairs):
        raise typer.BadParameter("write it as GROUP=CLUSTERROLE.", param_hint="--bind")
    return {group: role for group, _, role in pairs}


def _name(group: str, role: str) -> str:
    """A name of its own for each group and role."""
    name = _NOT_IN_A_NAME.sub("-", group)
    if name != group:
        name += f"-{hashlib.sha256(group.encode()).hexdigest()[:8]}"
    # The role is in it, because Kubernetes refuses to change the role of a binding that exists.
    return f"{name}:{role}"


def _binding(group: str, role: str) -> dict[str, object]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {
            "name": _name(group, role),
            "labels": {"app.kubernetes.io/managed-by": "clustercert"},
        },
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
    }

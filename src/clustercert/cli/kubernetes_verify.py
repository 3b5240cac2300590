"""`clustercert kubernetes verify`: what `cluster_proof` proves, asked for and shown."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clustercert.cli import cluster as cluster_commands
from clustercert.cli.cluster import ClusterArgument, InProjectOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list
from clustercert.cli.session import Operator, operate, settings
from clustercert.cli.setup_options import BindOption, bound_roles
from clustercert.errors import InvalidRequest

if TYPE_CHECKING:
    # The command loads what makes the proof only when it is run.
    from clustercert.cli.cluster_probe import Right
    from clustercert.cli.cluster_proof import Check, Means
    from clustercert.model import ClusterOptions
    from clustercert.settings import RuleSettings, Settings

# The longest that an API server keeps an answer by default is half of it.
WAIT_SECONDS = 60.0
MAX_WAIT_SECONDS = 600.0


By = Literal["webhook", "binding", "admission"]
"""By what a revocation takes effect."""


def verify(
    context: typer.Context,
    name: ClusterArgument,
    project: InProjectOption = None,
    rule: Annotated[
        str | None,
        typer.Option(
            metavar="ROLE", help="The rule of the policy to prove, by its role. [default: the first]"
        ),
    ] = None,
    bind: BindOption = None,
    can: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VERB:RESOURCE",
            help="What its groups may do, such as list:pods or create:deployments.apps; any number of times. "
            "[default: by the cluster role they are bound to]",
        ),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Where --can is asked about.")] = "default",
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The API server. [default: the cluster's internal address]"),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, max=MAX_WAIT_SECONDS, help="How long a revocation may take."),
    ] = WAIT_SECONDS,
    by: Annotated[
        By | None,
        typer.Option(
            help="By what a revocation should take effect. [default: binding or admission where the cluster has that, "
            "else webhook]"
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Prove that issuing, rights and revocation work in a cluster.

    Issues two certificates for the user clustercert:verify, uses them at the API server, revokes one, measures the
    seconds until it is refused, and revokes the other. The service has to run. Exit code 1 if anything fails.
    """
    loaded = settings(context)
    wanted_rule = _rule(loaded, rule)
    bound = bound_roles(loaded.policy.policy().groups, bind)
    said = tuple(_right(each, namespace) for each in can or ())
    if address is not None:
        _check_address(address)

    async def work(operator: Operator) -> "list[Check]":
        from clustercert.cli.cluster_proof import Proof, Wanted

        cluster = await cluster_commands.find(operator, name, project)
        roles = (cluster.options.credential_roles or {}).get(wanted_rule.role)
        cluster_roles = [roles] if roles else [bound[group] for group in wanted_rule.groups if group in bound]
        wanted = Wanted(
            role=wanted_rule.role,
            rights=said or _rights(cluster_roles),
            means=by or _means(cluster.options),
            address=address or cluster.internal_url,
            seconds=wait,
        )
        return list(await Proof(operator, cluster, wanted).run())

    checks = operate(context, work)
    show_list(
        [_row(check) for check in checks],
        output,
        columns=("check", "result", "seconds", "detail"),
        name="check",
    )
    for check in checks:
        if check.advice:
            note(f"{check.check}: {check.advice}")
    if any(check.result == "failed" for check in checks):
        raise typer.Exit(1)


def _rule(loaded: "Settings", role: str | None) -> "RuleSettings":
    rules = loaded.policy.rules
    if not rules:
        raise typer.BadParameter("the policy has no rule.", param_hint="--rule")
    for each in rules:
        if role is None or each.role == role:
            return each
    raise typer.BadParameter(
        f"the policy has rules for {', '.join(each.role for each in rules)}.", param_hint="--rule"
    )


def _check_address(address: str) -> None:
    """Before anything is issued that would have to be revoked. Raises typer.BadParameter."""
    from clustercert.clusters import check_url

    try:
        check_url(address)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message, param_hint="--address") from error


def _rights(cluster_roles: list[str]) -> "tuple[Right, ...]":
    from clustercert.cli.cluster_probe import RIGHTS

    return tuple(RIGHTS[role] for role in cluster_roles if role in RIGHTS)


def _right(text: str, namespace: str) -> "Right":
    from clustercert.cli.cluster_probe import Right

    verb, colon, resource = text.partition(":")
    plural, _, api_group = resource.partition(".")
    if not (verb and colon and plural):
        raise typer.BadParameter("write it like list:pods or create:deployments.apps.", param_hint="--can")
    return Right(verb, plural, api_group, namespace)


def _means(options: "ClusterOptions") -> "Means":
    """By what a revocation takes effect in a cluster with these options."""
    if options.credential_roles:
        return "binding"
    return "admission" if options.admission else "webhook"


def _row(check: "Check") -> Row:
    return {
        "check": check.check,
        "result": check.result,
        "seconds": check.seconds,
        "detail": check.detail,
        "advice": check.advice,
    }

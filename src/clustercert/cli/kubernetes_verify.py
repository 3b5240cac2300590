"""`clustercert kubernetes verify`: proves that issuing, permissions and revocation work in a cluster."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.kubernetes_setup import BindOption, parse_bindings, self_made_ca
from clustercert.cli.options import ClusterArgument, InProjectOption, ProjectDomainOption
from clustercert.cli.output import Output, OutputOption, print_note, show_list
from clustercert.cli.session import Operator
from clustercert.model.choices import RevocationControl
from clustercert.model.errors import ClustercertError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clustercert.kubernetes.verify.certificates import VerifiedService
    from clustercert.kubernetes.verify.expectation import Expectation
    from clustercert.kubernetes.verify.probe import Permission
    from clustercert.model import Caller, Cluster, ClusterOptions, Issued, IssueRequest
    from clustercert.policy.rule_settings import PolicySettings, RuleSettings

# How long to wait: twice the longest time for which an API server caches a response by default.
WAIT_SECONDS = 60.0
MAX_WAIT_SECONDS = 600.0


def _parse_address(text: str) -> str:
    from clustercert.clusters.registration import check_url

    try:
        check_url(text)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from error
    return text


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options for the expected behavior of the cluster."""

    rule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Policy rule to test. [default: the first that needs only a role; without one, the certificates have "
            "no groups]",
        ),
    ] = None
    bind: BindOption = None
    can: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VERB:RESOURCE",
            help="Permission to test: list:pods, create:deployments.apps. Repeatable. "
            "[default: one that the bound cluster role grants]",
        ),
    ] = None
    namespace: Annotated[str, typer.Option(help="Namespace for --can.")] = "default"
    address: Annotated[
        str | None,
        typer.Option(
            parser=_parse_address, metavar="URL", help="API server. [default: the cluster's internal address]"
        ),
    ] = None
    wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=1, max=MAX_WAIT_SECONDS, help="Time limit for a revocation to take effect."
        ),
    ] = WAIT_SECONDS
    by: Annotated[
        RevocationControl | None,
        typer.Option(
            help="Mechanism to test. [default: binding or admission if the cluster uses that, else webhook]"
        ),
    ] = None

    def expectation(self, policy: "PolicySettings", cluster: "Cluster") -> "Expectation":
        """Return how the cluster is expected to behave. Raises typer.BadParameter if an option is invalid."""
        from clustercert.kubernetes.setup.resolution import bound_roles
        from clustercert.kubernetes.verify.expectation import Expectation
        from clustercert.kubernetes.verify.probe import ROLE_PERMISSIONS

        control = self.by or _default_control(cluster.options)
        address = self.address or cluster.internal_url
        rule = self._find_rule(policy.all_rules)
        if rule is None:
            if control != "webhook" or self.can:
                raise typer.BadParameter(
                    "No rule of the policy needs only a role, so the certificates have no groups, and test only the "
                    "webhook. Use --by webhook without --can, or add a rule that needs only a role.",
                    param_hint="--rule",
                )
            return Expectation(None, (), control, address, self.wait)
        role = (cluster.options.credential_roles or {}).get(rule.name)
        bound = bound_roles(policy.policy().groups, parse_bindings(self.bind))
        roles = [role] if role else [bound[group] for group in rule.granted_groups if group in bound]
        given = tuple(_parse_permission(each, self.namespace) for each in self.can or ())
        return Expectation(
            role=rule.tested_role,
            permissions=given or tuple(ROLE_PERMISSIONS[each] for each in roles if each in ROLE_PERMISSIONS),
            control=control,
            address=address,
            seconds=self.wait,
        )

    def _find_rule(self, rules: "Sequence[RuleSettings]") -> "RuleSettings | None":
        """Return the rule that the option names, or else the first that needs only a role, if there is one."""
        if not rules:
            raise typer.BadParameter("The policy has no rule.", param_hint="--rule")
        if self.rule is None:
            return next((each for each in rules if each.tested_role is not None), None)
        found = next((each for each in rules if each.name == self.rule), None)
        if found is None:
            raise typer.BadParameter(
                f"The policy has no rule {self.rule}. Its rules are {', '.join(each.name for each in rules)}.",
                param_hint="--rule",
            )
        if found.tested_role is None:
            raise typer.BadParameter(
                f"The rule {found.name} can't be tested: it denies, has conditions besides a role, or grants"
                " only groups from templates. Choose another.",
                param_hint="--rule",
            )
        return found


@on_store
async def verify(
    operator: Operator,
    name: ClusterArgument,
    options: VerifyOptions,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Prove that issuing, permissions and revocation work.

    The service must be running. This command issues two certificates for the user clustercert:verify, uses them at
    the API server, revokes one, measures the seconds until it is refused, and revokes the other. It exits with 1 if
    a check fails.
    """
    from clustercert.certificates.controls import USE_NOT_SEEN
    from clustercert.kubernetes.verify.verification import ClusterVerification

    cluster = await operator.cluster(name, project, domain)
    expectation = options.expectation(operator.parts.settings.policy, cluster)
    results = await ClusterVerification(_service(operator, cluster), cluster, expectation).run()
    columns = ("check", "result", "seconds", "detail")
    show_list([asdict(result) for result in results], output, columns=columns, name="check")
    if not await operator.parts.inventory.access.sees_use(cluster):
        print_note(USE_NOT_SEEN)
    for result in results:
        if result.advice:
            print_note(f"{result.check}: {result.advice}")
    if any(result.result == "failed" for result in results):
        raise typer.Exit(1)


def _service(operator: Operator, cluster: "Cluster") -> "VerifiedService":
    from clustercert.certificates.recorder import Reason
    from clustercert.kubernetes.verify.certificates import NOTE, VerifiedService

    parts, recorder, actor = operator.parts, operator.parts.revocation.recorder, operator.actor

    async def record_denial(caller: "Caller", request: "IssueRequest", error: ClustercertError) -> None:
        await parts.denials.certificate(caller, cluster.project_id, cluster.id, request, error)

    async def revoke(issued: "Issued") -> None:
        certificate = await recorder.find_certificate(issued.fingerprint)
        await recorder.revoke_certificate(certificate, Reason("cessationOfOperation", NOTE), actor=actor)

    loaded, ca_file = parts.settings, self_made_ca(parts.settings)
    # Only the API server has the client certificate that the webhook may require.
    url = loaded.webhook.public_url or loaded.server.public_url if loaded.webhook.client_ca is None else None
    return VerifiedService(
        issuer=parts.issuance,
        record_denial=record_denial,
        revoke=revoke,
        tokens=parts.webhook.tokens,
        webhook_url=url,
        webhook_ca_pem=ca_file.read_text() if ca_file is not None else None,
        origin=actor.origin,
    )


def _parse_permission(text: str, namespace: str) -> "Permission":
    from clustercert.kubernetes.verify.probe import Permission

    verb, colon, resource = text.partition(":")
    plural, _, api_group = resource.partition(".")
    if not (verb and colon and plural):
        raise typer.BadParameter(
            f"{text!r} is not valid. Write it like list:pods or create:deployments.apps.", param_hint="--can"
        )
    return Permission(verb, plural, api_group, namespace)


def _default_control(options: "ClusterOptions") -> RevocationControl:
    if options.credential_roles:
        return "binding"
    return "admission" if options.admission else "webhook"

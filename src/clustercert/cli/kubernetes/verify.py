"""`clustercert kubernetes verify`: proves that issuing, permissions and revocation work in a cluster."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.kubernetes.setup import BindOption, parse_bindings, self_made_ca
from clustercert.cli.options import ClusterArgument, InProjectOption, ProjectDomainOption
from clustercert.cli.output import Output, OutputOption, print_note, show_list
from clustercert.cli.session import Operator
from clustercert.model.choices import RevocationControl
from clustercert.model.errors import ClustercertError, InvalidRequest
from clustercert.model.times import utc_now

if TYPE_CHECKING:
    from clustercert.kubernetes.verify.certificates import VerifiedService
    from clustercert.model import Caller, Cluster, Issued, IssueRequest

# How long to wait for a revocation: twice the longest time that an API server caches a response by default.
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
            help="Policy rule to test. [default: the first rule that needs only a role; without such a rule, the "
            "certificates have no groups]",
        ),
    ] = None
    bind: BindOption = None
    can: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VERB:RESOURCE",
            help="Permission to test: list:pods, create:deployments.apps. Repeatable. "
            "[default: a permission that the bound cluster role grants]",
        ),
    ] = None
    namespace: Annotated[str, typer.Option(help="Namespace for --can.")] = "default"
    address: Annotated[
        str | None,
        typer.Option(
            parser=_parse_address,
            metavar="URL",
            help="Address of the API server. [default: the cluster's internal address]",
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
            help="Revocation mechanism to test. [default: binding or admission if the cluster uses one of them, else"
            " webhook]"
        ),
    ] = None


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
    from clustercert.kubernetes.verify.expectation import expect
    from clustercert.kubernetes.verify.verification import ClusterVerification

    cluster = await operator.cluster(name, project, domain)
    given = asdict(options) | {"bind": parse_bindings(options.bind)}
    expectation = expect(operator.components.settings.policy, cluster, **given)
    results = await ClusterVerification(_service(operator, cluster), cluster, expectation).run()
    columns = ("check", "result", "seconds", "detail")
    show_list([asdict(result) for result in results], output, columns=columns, name="check")
    if not await operator.components.inventory.access.sees_use(cluster):
        print_note(USE_NOT_SEEN)
    for result in results:
        if result.advice:
            print_note(f"{result.check}: {result.advice}")
    if any(result.result == "failed" for result in results):
        raise typer.Exit(1)
    await operator.clusters.record_verification(cluster.id, utc_now())


def _service(operator: Operator, cluster: "Cluster") -> "VerifiedService":
    from clustercert.certificates.recorder import Reason
    from clustercert.kubernetes.verify.certificates import NOTE, VerifiedService

    components, recorder, actor = operator.components, operator.components.revocation.recorder, operator.actor

    async def record_denial(caller: "Caller", request: "IssueRequest", error: ClustercertError) -> None:
        await components.denials.certificate(caller, cluster.project_id, cluster.id, request, error)

    async def revoke(issued: "Issued") -> None:
        certificate = await recorder.find_certificate(issued.fingerprint)
        await recorder.revoke_certificate(certificate, Reason("cessationOfOperation", NOTE), actor=actor)

    loaded, ca_file = components.settings, self_made_ca(components.settings)
    # Don't call a webhook that requires a client certificate, which only the API server has.
    url = loaded.webhook.public_url or loaded.server.public_url if loaded.webhook.client_ca is None else None
    return VerifiedService(
        issuer=components.issuance,
        record_denial=record_denial,
        revoke=revoke,
        tokens=components.webhook.tokens,
        webhook_url=url,
        webhook_ca_pem=ca_file.read_text() if ca_file is not None else None,
        origin=actor.origin,
    )

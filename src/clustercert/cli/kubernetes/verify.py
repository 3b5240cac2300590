"""`clustercert kubernetes verify`: proves that issuing, permissions and revocation work in a cluster."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.kubernetes.administrator import AdministratorOptions
from clustercert.cli.kubernetes.selection import ClusterSelection, Notes, for_each, names_of
from clustercert.cli.kubernetes.setup import BindOption, parse_bindings, webhook_ca
from clustercert.cli.options import FAILED, InvalidOption, UsageError, error_text, parse_seconds
from clustercert.cli.session import Operator
from clustercert.cli.terminal.output import Output, OutputOption, Progress, print_note, show_list, with_domain
from clustercert.model.choices import RevocationControl
from clustercert.model.errors import ClustercertError, Conflict, InvalidRequest, NotFound
from clustercert.model.times import utc_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from clustercert.kube_api import KubeApi
    from clustercert.kubernetes.verify.certificates import VerifiedService
    from clustercert.kubernetes.verify.token_verification import TokenVerification
    from clustercert.kubernetes.verify.verification import CheckResult, ClusterVerification
    from clustercert.model import Caller, Cluster, Issued, IssueRequest

T = TypeVar("T")

# How long to wait until a revocation takes effect. By default, an API server caches a webhook's response for at most
# half this time.
WAIT = "60s"
MAX_WAIT_SECONDS = 600


def _parse_wait(text: str) -> int:
    return parse_seconds(text, MAX_WAIT_SECONDS)


def _parse_address(text: str) -> str:
    from clustercert.clusters.registration import check_url

    try:
        check_url(text)
    except InvalidRequest as error:
        raise InvalidOption(error.message) from error
    return text


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options that say what to verify, and how the cluster is expected to behave."""

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
    namespace: Annotated[str, typer.Option(metavar="NAME", help="Namespace for --can.")] = "default"
    address: Annotated[
        str | None,
        typer.Option(
            parser=_parse_address,
            metavar="URL",
            help="Address of the API server. [default: the cluster's internal address]",
        ),
    ] = None
    wait: Annotated[
        int,
        typer.Option(
            parser=_parse_wait,
            metavar="DURATION",
            help="Time limit for a revocation to take effect, at most 600s.",
        ),
    ] = WAIT  # type: ignore[assignment] # typer parses it
    by: Annotated[
        RevocationControl | None,
        typer.Option(
            help="Revocation mechanism to test. [default: binding or admission if the cluster uses one of them, else"
            " webhook]"
        ),
    ] = None
    measure_rate: Annotated[
        bool,
        typer.Option(
            "--measure-rate",
            help="Also measure how many certificates a second the signer signs: for 5 seconds, at most 200.",
        ),
    ] = False

    @property
    def for_certificates(self) -> list[str]:
        """The given options that only a cluster with certificates can have."""
        given = {
            "--rule": self.rule,
            "--bind": self.bind,
            "--can": self.can,
            "--address": self.address,
            "--by": self.by,
            "--measure-rate": self.measure_rate or None,
        }
        return [option for option, value in given.items() if value is not None]


@on_store
async def verify(
    operator: Operator,
    selection: ClusterSelection,
    options: VerifyOptions,
    kubeconfig: AdministratorOptions,
    output: OutputOption = Output.TABLE,
) -> None:
    """Prove that issuing, permissions and revocation work.

    The service must be running. This command issues two certificates for the user clustercert:verify, uses them at the
    API server, revokes one, measures the seconds until the API server refuses this certificate, and revokes the other.
    It exits with status 1 if a check fails. For several clusters, it prints one line for each.

    If the cluster's credentials are tokens, it issues two tokens instead, and compares their rights with the roles of
    the cluster's groups. With --from-kubeconfig, it also says who else could act as the accounts of these tokens.

    Examples:
        clustercert kubernetes verify prod
        clustercert kubernetes verify --all --label stage=prod
    """
    chosen = await selection.clusters(operator)
    if not selection.is_one:
        if kubeconfig.is_given:
            raise UsageError("--from-kubeconfig is for one cluster. Give the name of one cluster.")
        await _verify_all(operator, chosen, options, output)
        return
    verification = await _verification(operator, chosen[0], options, kubeconfig)
    # Print the problem before the verification waits for the effect of a revocation.
    if (problem := verification.webhook_problem()) is not None:
        print_note(f"Warning: {problem}")
    with Progress("checks done", at_once=True) as progress:
        results = await _run(operator, chosen[0], verification, options, progress.reach)
    columns = ("check", "result", "seconds", "detail")
    show_list([asdict(result) for result in results], output, columns=columns, name="check", keep=("result",))
    for note in await _notes(operator, chosen[0], verification, results):
        print_note(note)
    if not _is_good(results):
        raise typer.Exit(FAILED)


async def _verify_all(
    operator: Operator, clusters: "Sequence[Cluster]", options: VerifyOptions, output: Output
) -> None:
    """Verify the clusters, and print a line for each. If interrupted, print the lines of finished clusters."""
    from clustercert.kubernetes.verify.verification import CheckResult

    if options.address is not None:
        raise UsageError("--address is the address of one API server. Give the name of one cluster.")
    rows: list[dict[str, object]] = []
    notes = Notes()

    async def verify_one(cluster: "Cluster") -> None:
        domain, project, name = names_of(cluster)
        place = {"cluster": name, "project": project, "domain": domain, "id": cluster.id}
        try:
            verification = await _verification(operator, cluster, options)
            results = await _run(operator, cluster, verification, options)
        except (ClustercertError, OSError) as error:
            rows.append(place | asdict(CheckResult("prepare", "failed", None, error_text(error))))
            notes.add(cluster.shown_name, error_text(error))
            raise typer.Exit(FAILED) from error
        rows.append(place | _summary(results))
        for note in await _notes(operator, cluster, verification, results):
            notes.add(cluster.shown_name, note)
        if not _is_good(results):
            raise typer.Exit(FAILED)

    try:
        with Progress("clusters verified", at_once=True) as progress:
            await for_each(operator, clusters, verify_one, lambda done: progress.reach(done, len(clusters)))
    finally:
        if rows:
            columns = with_domain(("cluster", "project", "result", "check", "seconds", "detail"), rows)
            show_list(rows, output, columns=columns, name="id", keep=("cluster", "result", "check"))
        notes.print()


async def _verification(
    operator: Operator,
    cluster: "Cluster",
    options: VerifyOptions,
    kubeconfig: "AdministratorOptions | None" = None,
) -> "ClusterVerification | TokenVerification":
    """Prepare the verification of a cluster. Raises InvalidRequest or UsageError if an option is invalid."""
    if cluster.credential_kind == "token":
        return await _token_verification(operator, cluster, options, kubeconfig)
    from clustercert.kubernetes.verify.expectation import expect
    from clustercert.kubernetes.verify.verification import ClusterVerification

    if kubeconfig is not None and kubeconfig.is_given:
        raise UsageError("--from-kubeconfig is for clusters whose credentials are tokens. Leave it out.")
    given = asdict(options) | {"bind": parse_bindings(options.bind)}
    expectation = expect(operator.components.settings.policy, cluster, **given)
    return ClusterVerification(_service(operator, cluster), cluster, expectation)


async def _token_verification(
    operator: Operator,
    cluster: "Cluster",
    options: VerifyOptions,
    kubeconfig: "AdministratorOptions | None",
) -> "TokenVerification":
    from clustercert.kubernetes.verify.token_verification import TokenVerification, VerifiedTokens
    from clustercert.model.kubernetes import installation_id

    if options.for_certificates:
        raise UsageError(
            f"{', '.join(options.for_certificates)}: the credentials of the cluster {cluster.name} are tokens, which "
            "have no such option. Leave it out."
        )
    components = operator.components
    installation = installation_id((await components.log_sealer.verifier_key()).public_key)
    administrator = kubeconfig.administrator(cluster) if kubeconfig is not None else None

    async def as_administrator(work: "Callable[[KubeApi], Awaitable[T]]") -> "T":
        if administrator is None:
            raise RuntimeError("there is no kubeconfig")
        return await administrator.call(installation, lambda installed: work(installed.api))

    service = VerifiedTokens(
        issuer=components.issuance,
        revoke=_revoker(operator),
        connections=components.connections,
        installation=installation,
        origin=operator.actor.origin,
    )
    return TokenVerification(
        service, cluster, options.wait, as_administrator if administrator is not None else None
    )


async def _run(
    operator: Operator,
    cluster: "Cluster",
    verification: "ClusterVerification | TokenVerification",
    options: VerifyOptions,
    report: "Callable[[int, int], object]" = lambda _done, _total: None,
) -> "Sequence[CheckResult]":
    """Run a verification. If no check failed at the registered address, stores the time of this verification.

    Args:
        report: called before each check, with the number of finished checks and the number of all checks.
    """
    results = await verification.run(report)
    if _is_good(results) and options.address is None:
        await operator.clusters.record_verification(cluster, utc_now())
    return results


def _is_good(results: "Sequence[CheckResult]") -> bool:
    return all(result.result != "failed" for result in results)


def _summary(results: "Sequence[CheckResult]") -> dict[str, object]:
    """Return a table row for a cluster: the first failed check, or else the check that measured the revocation."""
    failed = (each for each in results if each.result == "failed")
    return asdict(next(failed, None) or next(each for each in results if each.seconds is not None))


async def _notes(
    operator: Operator,
    cluster: "Cluster",
    verification: "ClusterVerification | TokenVerification",
    results: "Sequence[CheckResult]",
) -> list[str]:
    """Return notes for the operator about the verification of a cluster."""
    notes = []
    if cluster.credential_kind == "certificate":
        use_not_seen = await operator.components.inventory.access.use_not_seen(cluster)
        notes += [] if use_not_seen is None else [use_not_seen]
    notes += verification.notes
    notes += await _rotation_notes(operator, cluster)
    for each in results:
        if each.result == "failed":
            # Repeat the details, because a narrow terminal does not show the column `detail`.
            notes += [f"{each.check}: {text}" for text in (each.detail, each.advice) if text]
    return notes


async def _rotation_notes(operator: Operator, cluster: "Cluster") -> list[str]:
    # A cluster whose credentials are tokens has no client CA.
    with suppress(Conflict, NotFound):
        rotation = await operator.components.ca_rotations.status(cluster)
        if rotation.rotation.is_running:
            return [f"A rotation of the client CA is {rotation.rotation.state}. {rotation.next_step}"]
    return []


def _revoker(operator: Operator) -> "Callable[[Issued], Awaitable[None]]":
    """Return a function that revokes a temporary credential."""
    from clustercert.certificates.recorder import Reason
    from clustercert.kubernetes.verify.certificates import NOTE

    recorder = operator.components.revocation.recorder

    async def revoke(issued: "Issued") -> None:
        certificate = await recorder.find_certificate(issued.fingerprint)
        reason = Reason("cessationOfOperation", NOTE)
        await recorder.revoke_certificate(certificate, reason, actor=operator.actor)

    return revoke


def _service(operator: Operator, cluster: "Cluster") -> "VerifiedService":
    from clustercert.kubernetes.verify.certificates import VerifiedService

    components, actor = operator.components, operator.actor

    async def record_denial(caller: "Caller", request: "IssueRequest", error: ClustercertError) -> None:
        await components.denials.certificate(caller, cluster.project_id, cluster.id, request, error)

    loaded = components.settings
    # Don't call a webhook that requires a client certificate, which only the API server has.
    url = loaded.webhook.public_url or loaded.server.public_url if loaded.webhook.client_ca is None else None
    return VerifiedService(
        issuer=components.issuance,
        record_denial=record_denial,
        revoke=_revoker(operator),
        tokens=components.webhook.tokens,
        webhook_url=url,
        webhook_ca_pem=webhook_ca(loaded),
        origin=actor.origin,
    )

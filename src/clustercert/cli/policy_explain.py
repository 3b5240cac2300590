"""`clustercert policy explain`: what the policy decides on a request, and why."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clustercert.cli.commands import expand_options
from clustercert.cli.options import ClusterOption, DomainOption, InProjectOption, PolicyFileOption
from clustercert.cli.output import Output, OutputOption, show_list, show_one
from clustercert.cli.policy_explain_output import show_explanation
from clustercert.cli.session import Operator, operate, settings
from clustercert.model.errors import InvalidRequest, NotFound
from clustercert.model.keys import KeyType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clustercert.cli.output import Row
    from clustercert.issuance.explanations import ExplainedRequest, Question
    from clustercert.settings import Settings

_COLUMNS = ("name", "outcome", "first_false")


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The options that describe the request."""

    expires_in: Annotated[
        str | None, typer.Option(metavar="TIME", help="Lifetime such as 30m or 8h. [default: the longest]")
    ] = None
    duration: Annotated[
        int | None, typer.Option(metavar="DAYS", help="Whole days, or -1 for the longest allowed.")
    ] = None
    csr: Annotated[bool, typer.Option("--csr", help="The request has a CSR.")] = False
    key_type: Annotated[
        KeyType | None,
        typer.Option(help="Type of the CSR's key. [default: ec-p256 with --csr]", show_choices=True),
    ] = None
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="The request's reason.")] = None
    auth_method: Annotated[
        str | None, typer.Option(metavar="METHOD", help="token or access_key. [default: token]")
    ] = None
    source: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="IP address of the request. [default: none]")
    ] = None

    def question(self, max_days: int) -> "Question":
        """Return the question. Raises typer.BadParameter."""
        from clustercert.http import query
        from clustercert.http.api import policy_bodies

        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "csr"}
        texts = {name: str(value) for name, value in given.items() if value is not None}
        if self.csr:
            texts["csr"] = "true"
        try:
            return policy_bodies.question(query.parsed(texts, policy_bodies.EXPLAIN, others=()), max_days)
        except InvalidRequest as error:
            raise _bad_option(error.message, texts) from None


def _bad_option(message: str, names: "Iterable[str]") -> typer.BadParameter:
    """Name the options instead of the fields of the API that the message begins with."""
    text, _, rest = message.partition(": ")
    found = text.split(", ")
    if not rest or not set(found) <= set(names):
        return typer.BadParameter(message)
    options = ", ".join(f"--{field.replace('_', '-')}" for field in found)
    return typer.BadParameter(rest[:1].upper() + rest[1:], param_hint=options)


async def _user_id(operator: Operator, user: str, domain: str | None, loaded: "Settings") -> str:
    """Return the id of a user of the built-in identity. Raises NotFound."""
    try:
        return (await operator.user(user, domain)).id
    except NotFound as error:
        if not loaded.identity.issuers and loaded.identity.keystone is None:
            raise
        raise NotFound(
            f"{error.message} Users of an OIDC issuer or of Keystone can only ask about themselves, with"
            " GET /clustercert/v1/policy/explain: their roles come with their credentials."
        ) from None


@expand_options
def explain(
    context: typer.Context,
    user: Annotated[str, typer.Option(metavar="USER", help="The user, by name or id.")],
    cluster: ClusterOption,
    request: RequestOptions,
    project: InProjectOption = None,
    domain: DomainOption = None,
    policy: PolicyFileOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Explain what the policy decides on a user's request. Exit with 1 if it is refused.

    Shows what would be signed, what each rule needs, and which rule is nearest to allowing a refused request. Signs and
    records nothing.
    """
    from clustercert.http.api.policy_bodies import explanation_body

    loaded = settings(context, policy)
    question = request.question(loaded.api.max_duration)

    async def work(operator: Operator) -> "ExplainedRequest":
        explanations = operator.parts.explanations
        explanations.policy = loaded.policy.policy(loaded.issuing.key_type)
        registered = await operator.cluster(cluster, project)
        user_id = await _user_id(operator, user, domain, loaded)
        return await explanations.explain_user(registered, user_id, question)

    explained = operate(context, work)
    body = explanation_body(explained)
    match output:
        case Output.JSON | Output.YAML:
            show_one(body, output)
        case Output.TABLE:
            show_explanation(explained)
        case _:
            show_list(cast("Sequence[Row]", body["rules"]), output, columns=_COLUMNS)
    if not body["allowed"]:
        raise typer.Exit(1)

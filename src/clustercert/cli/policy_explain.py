"""`clustercert policy explain`: what the policy decides on a request, and why."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clustercert.cli.commands import expand_options
from clustercert.cli.options import ClusterOption, DomainOption, InProjectOption, PolicyFileOption
from clustercert.cli.output import Output, OutputOption, show_list, show_one
from clustercert.cli.policy_output import show_explanation
from clustercert.cli.session import Operator, operate, settings
from clustercert.model import KnownUser
from clustercert.model.errors import Conflict, InvalidRequest, NotFound
from clustercert.model.ids import is_id, is_user_id
from clustercert.model.keys import KeyType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clustercert.cli.output import Row
    from clustercert.issuance.explanations import ExplainedRequest, Question

_CONDITION_COLUMNS = ("name", "outcome", "first_false")


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
        from clustercert.http import policy, query

        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "csr"}
        texts = {name: str(value) for name, value in given.items() if value is not None}
        if self.csr:
            texts["csr"] = "true"
        try:
            return policy.question(query.parsed(texts, policy.EXPLAIN, others=()), max_days)
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


async def _user(operator: Operator, name_or_id: str, domain: str | None) -> "KnownUser":
    """Find a user of any identity system. Raises NotFound or Conflict."""
    from clustercert.store.known_users import KnownUserQueries

    users = KnownUserQueries(operator.parts.database)
    if is_user_id(name_or_id):
        return await users.with_id(name_or_id) or KnownUser(name_or_id, name_or_id, "", "")
    if domain is not None and is_id(domain):
        domain = (await operator.directory.find_domain(domain)).name
    found = [each for each in await users.named(name_or_id) if domain in (None, each.domain)]
    if not found:
        raise NotFound(f"There is no user {name_or_id}.")
    if len(found) > 1:
        ids = ", ".join(f"{each.id} (domain {each.domain})" for each in found)
        raise Conflict(f"Several users are named {name_or_id}: {ids}. Give the id, or --domain.")
    return found[0]


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
    from clustercert.http.policy import explanation_body

    loaded = settings(context, policy)
    question = request.question(loaded.api.max_duration)

    async def work(operator: Operator) -> "ExplainedRequest":
        explanations = operator.parts.explanations
        explanations.policy = loaded.loaded_policy()
        registered = await operator.cluster(cluster, project)
        asked = await _user(operator, user, domain)
        try:
            return await explanations.explain_user(registered, asked.id, question)
        except NotFound:
            # Only for users of issuers and of Keystone, because the others were found.
            raise NotFound(
                f"No request of {asked.name} for the project of the cluster {registered.name} is recorded, so their "
                "groups and roles are not known: they come with their credentials."
            ) from None

    explained = operate(context, work)
    body = explanation_body(explained)
    match output:
        case Output.JSON | Output.YAML:
            show_one(body, output)
        case Output.TABLE:
            show_explanation(explained)
        case _:
            show_list(cast("Sequence[Row]", body["rules"]), output, columns=_CONDITION_COLUMNS)
    if not body["allowed"]:
        raise typer.Exit(1)

"""The route that explains how the policy decides on a request for a certificate."""

import ipaddress
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import (
    AfterValidator,
    AliasPath,
    BaseModel,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)
from starlette.responses import Response

from clustercert.http import OWN, query, responses
from clustercert.http.dependencies import CallDep
from clustercert.http.openapi import ERRORS, described
from clustercert.http.paging import KeyPageDep, PageBody, numbered_page
from clustercert.http.responses import ResponseBody, Time
from clustercert.issuance.explanations import ExplainedRequest
from clustercert.model import IssueRequest, JsonObject, KeyType
from clustercert.model.choices import CredentialKind
from clustercert.model.errors import InvalidRequest
from clustercert.model.requests import AUTH_METHODS
from clustercert.pki.keys import sample_key
from clustercert.policy.decision import how_to_ask
from clustercert.policy.explanation import RuleCheck, RuleOutcome
from clustercert.policy.lifetime import (
    LONGEST,
    MAX_DAYS,
    MAX_LIFETIME,
    MIN_LIFETIME,
    lifetime_option,
    parse_lifetime,
)
from clustercert.policy.templates import MAX_REASON, reason_problem

DEFAULT_CSR_KEY: KeyType = "ec-p256"


def _lifetime(text: str) -> timedelta:
    try:
        lifetime = parse_lifetime(text)
    except (ValueError, OverflowError) as error:
        raise ValueError("write it like 30m, 8h or 30d") from error
    if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
        raise ValueError(f"must be {lifetime_option(MIN_LIFETIME)} to {MAX_DAYS}d")
    return lifetime


def _days(text: str) -> int:
    if text == str(LONGEST):
        return LONGEST
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_DAYS)) and int(text) > 0):
        raise ValueError("must be whole days, or -1 for the longest allowed")
    return int(text)


def _reason(text: str) -> str:
    if (problem := reason_problem(text)) is not None:
        raise ValueError(problem)
    return text


def _auth_method(text: str) -> str:
    if text not in AUTH_METHODS:
        raise ValueError(f"must be {' or '.join(AUTH_METHODS)}")
    return text


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise ValueError("must be an IP address") from error


Lifetime = Annotated[
    timedelta, BeforeValidator(_lifetime), WithJsonSchema({"type": "string", "maxLength": 20})
]
Days = Annotated[
    int, BeforeValidator(_days), WithJsonSchema({"type": "string", "pattern": r"^(-1|[1-9]\d{0,3})$"})
]
RequestReason = Annotated[
    str, AfterValidator(_reason), WithJsonSchema({"type": "string", "maxLength": MAX_REASON})
]
Method = Annotated[
    str, AfterValidator(_auth_method), WithJsonSchema({"type": "string", "enum": list(AUTH_METHODS)})
]
Address = Annotated[str, AfterValidator(_address), WithJsonSchema({"type": "string", "maxLength": 64})]


class EntitlementParameters(BaseModel):
    """The query parameters of a search for users who could get a Kubernetes group."""

    cluster: query.Text = Field(description="The cluster, by id.")
    group: query.Text = Field(description="The Kubernetes group; an asterisk matches any characters.")
    since: query.Time | None = Field(
        default=None,
        description="Leave out users of OIDC issuers and Keystone who got no certificate for the project since this"
        " time, RFC 3339. By default, 30 days ago.",
    )

    @model_validator(mode="before")
    @classmethod
    def _require_all(cls, sent: Mapping[str, str]) -> Mapping[str, str]:
        if missing := [name for name in ("cluster", "group") if name not in sent]:
            raise ValueError(f"{missing[0]}: send the id of a cluster, and the name of a Kubernetes group")
        return sent


class ExplainParameters(BaseModel):
    """The query parameters that describe the request to explain."""

    cluster: query.Text = Field(description="The cluster, by id.")
    user: query.Text | None = Field(default=None, description="The user, by id. By default, the caller.")
    expires_in: Lifetime | None = Field(
        default=None,
        description="A lifetime, such as `30m`, `8h` or `30d`.",
    )
    duration: Days | None = Field(
        default=None,
        description="Whole days, or -1 for the longest allowed, which is the default. Send either expires_in or"
        " duration.",
    )
    csr: Literal["true", "false"] | None = Field(default=None, description="Whether the request has a CSR.")
    key_type: KeyType | None = Field(
        default=None, description="The type of the CSR's key; `ec-p256` by default."
    )
    reason: RequestReason | None = Field(default=None, description="The request's reason.")
    auth_method: Method | None = Field(
        default=None,
        description="The method by which the user logs in. By default, for the caller, the method of this request; for"
        " users of an OIDC issuer or Keystone, the method of their last recorded request; for other users, `token`.",
    )
    source: Address | None = Field(
        default=None,
        description="The source IP address of the request; by default, the caller's address. Only for project admins,"
        " operators and auditors.",
    )
    access_request: query.Text | None = Field(
        default=None, description="The id of the user's access request whose groups are requested."
    )

    @model_validator(mode="before")
    @classmethod
    def _require_cluster(cls, sent: Mapping[str, str]) -> Mapping[str, str]:
        if "cluster" not in sent:
            raise ValueError("cluster: send the id of a cluster")
        return sent

    def request(self, max_days: int) -> IssueRequest:
        """Return the request to explain.

        Raises InvalidRequest if parameters conflict or the duration is too long.
        """
        if self.expires_in is not None and self.duration is not None:
            raise InvalidRequest("expires_in, duration: send only one of them.")
        duration = self.duration if self.duration is not None else LONGEST
        if duration > max_days:
            raise InvalidRequest(f"duration: must be 1 to {max_days} days, or -1 for the longest allowed.")
        if self.key_type is not None and self.csr == "false":
            raise InvalidRequest("key_type: the request has no CSR. Send csr=true, or leave key_type out.")
        key_type = self.key_type or (DEFAULT_CSR_KEY if self.csr == "true" else None)
        return IssueRequest(
            duration=duration if self.expires_in is None else None,
            expires_in=self.expires_in,
            public_key=sample_key(key_type) if key_type is not None else None,
            reason=self.reason,
            access_request=self.access_request,
        )


class ChangeBody(ResponseBody):
    """Something that must change for the request to be allowed."""

    wanted: str
    found: str = Field(description="What the request contains instead; empty if there is no description.")


class ConditionBody(ChangeBody):
    """A rule's condition in words, cut to 200 characters."""

    met: bool | None = Field(description="Null if the condition can't be evaluated; `found` says why.")


Seconds = Annotated[int, BeforeValidator(timedelta.total_seconds)]


class OfferBody(ResponseBody):
    """A policy rule's groups that can be requested, and the terms. Times are in seconds."""

    rule: str
    groups: list[str] = Field(description="The Kubernetes groups that can be requested.")
    max_lifetime: Seconds = Field(description="The longest access, and the longest extension.")
    min_reason_length: int
    approvals: list[str] = Field(
        validation_alias="clauses",
        description="The conditions for the approvers, in words; each condition needs a different person.",
    )
    before_approval: bool = Field(
        description="Whether the access may be used before the approval (break-glass)."
    )
    uses_before_approval: int = Field(
        description="The number of times in 24 hours that a user may use such access to a cluster before an approval."
    )
    approve_within: Seconds = Field(description="The longest time between the request and its last approval.")
    claim_within: Seconds = Field(
        description="The longest time between the approval and the first certificate."
    )


class RuleBody(ResponseBody):
    """A policy rule, compared with the request."""

    name: str = Field(validation_alias=AliasPath("rule", "name"))
    outcome: RuleOutcome = Field(
        description="`offers`: the user can create an access request for the rule's groups. `fails`: an expression"
        " can't be evaluated, so the request is refused. `not_reached`: an earlier rule denies or fails."
    )
    groups: list[str] = Field(
        description="The Kubernetes groups that the rule adds to the certificate; empty if the rule does not"
        " grant. If the outcome is `offers`, the groups that can be requested."
    )
    denies: bool = Field(description="Whether the rule denies requests, instead of giving groups.")
    offer: OfferBody | None = Field(description="The terms of the offer, if the outcome is `offers`.")
    deny: str | None = Field(description="The rule's message if it denies the request.")
    first_false: str | None = Field(description="The rule's first condition that is not met.")
    conditions: list[ConditionBody] = Field(
        description="Operators and auditors get all conditions, and other callers get only unmet conditions."
    )


class NearestRuleBody(ResponseBody):
    """The rule that would allow the request after the fewest changes."""

    rule: str
    changes: list[ChangeBody]


class LimitBody(ResponseBody):
    """The longest lifetime that is allowed."""

    until: Time
    by: Literal["rule", "policy", "ca", "access_request"] = Field(
        description="What sets the limit: a rule, policy.max_lifetime (`policy`), the end of the client CA (`ca`), or"
        " the end of the access request."
    )
    rule: str | None = Field(
        description="The matching rule with the shortest lifetime; null if policy.max_lifetime is shorter."
    )


class WouldSignBody(ResponseBody):
    """The content of the certificate that would be signed, or of the token. Times are in the format of RFC 3339."""

    common_name: str = Field(validation_alias="username")
    organizations: list[str] = Field(
        description="The Kubernetes groups. The credential group has a placeholder instead of its number. For a token,"
        " the groups whose roles would be bound."
    )
    left_out: list[str] = Field(
        description="The policy's groups that a token would lack, because they have no role in the cluster."
    )
    not_before: Time
    not_after: Time
    key_type: str = Field(description="Empty for a token.")
    shortened: bool = Field(description="Whether the requested lifetime is shortened to the limit.")
    limit: LimitBody


class ExplainedUserBody(ResponseBody):
    """The user who would send the request."""

    id: str
    name: str
    domain: str
    roles: list[str] = Field(description="The user's roles in the cluster's project.")


class ExplainedClusterBody(ResponseBody):
    """The requested cluster."""

    id: str
    name: str
    shown_name: str = Field(description="The name as `DOMAIN/PROJECT/CLUSTER`.")
    credential: CredentialKind = Field(validation_alias="credential_kind")
    project_id: str


class ExplanationBody(ResponseBody):
    """What the policy decides on a request. Rate limits and quotas are not considered."""

    allowed: bool
    status: int = Field(description="The HTTP status of the response to such a request.")
    message: str | None = Field(
        description="Why the request is refused, or why the user can't log in (status 401); null if the"
        " request is allowed."
    )
    user: ExplainedUserBody
    seen_at: Time | None = Field(
        description="For a user of an OIDC issuer or Keystone: the time of the recorded request from which the"
        " groups and roles are taken."
    )
    cluster: ExplainedClusterBody
    auth_method: str = Field(validation_alias=AliasPath("caller", "method"))
    source: str = Field(validation_alias=AliasPath("caller", "origin", "address"))
    access_request: str | None = Field(
        validation_alias=AliasPath("request", "access_request"),
        description="The id of the user's access request; null without an access request.",
    )
    would_sign: WouldSignBody | None
    rules: list[RuleBody] = Field(description="The rules, in the order of the policy.")
    how_to_ask: str | None = Field(
        description="Which groups the user can request, and a command that requests one of them; null if the policy"
        " offers the user no groups."
    )
    complete: bool = Field(
        validation_alias="is_complete",
        description="False for callers other than operators and auditors: such callers see only rules that"
        " the user meets, or would meet with a different request or different roles.",
    )
    nearest: NearestRuleBody | None = Field(
        validation_alias=AliasPath("explanation", "nearest"),
        description="Null if the request is allowed, or if changes for a single rule would not be enough.",
    )

    @classmethod
    def render(cls, source: ExplainedRequest, **_others: object) -> JsonObject:
        """Return the JSON object of an explained request."""
        error, caller = source.explanation.error, source.caller
        user = ExplainedUserBody(
            id=caller.user.id,
            name=caller.user.name,
            domain=caller.user.domain.name,
            roles=list(caller.roles_in(source.cluster.project_id)),
        )
        return super().render(
            source,
            allowed=error is None,
            status=error.status if error is not None else 200,
            message=error.message if error is not None else None,
            user=user,
            would_sign=_would_sign(source),
            rules=[_rule(each, is_complete=source.is_complete) for each in source.explanation.rules],
            how_to_ask=_how_to_ask(source),
        )


class EntitlementBody(ResponseBody):
    """How a user could get the Kubernetes group."""

    rule: str
    groups: list[str] = Field(description="The rule's groups that match the requested group.")
    longest_seconds: Seconds = Field(
        validation_alias="lifetime", description="The longest lifetime of a certificate with these groups."
    )
    needs: list[str] = Field(description="The conditions that the request must meet.")
    unless: list[str] = Field(
        description="The names of rules that refuse some of the requests that meet `needs`."
    )


class EntitledUserBody(ResponseBody):
    """A user who could get the Kubernetes group."""

    id: str = Field(validation_alias=AliasPath("caller", "user", "id"))
    name: str = Field(
        validation_alias=AliasPath("caller", "user", "shown_name"),
        description="The name with the domain or the issuer's name, such as `Default/alice`.",
    )
    issuer: str = Field(
        validation_alias=AliasPath("caller", "issuer"),
        description="The URL of the issuer or of Keystone, or `built-in`.",
    )
    seen_at: Time | None = Field(
        description="For a user of an OIDC issuer or Keystone: the time of the recorded request that contained the"
        " user's groups and roles."
    )
    entitlements: list[EntitlementBody]


class EntitledUserListBody(PageBody):
    """A page of users, sorted by id. A page may have few or no users even if there is a next page."""

    users: list[EntitledUserBody]
    left_out: list[str] = Field(
        description="The ids of users of OIDC issuers and Keystone who got a certificate, but for whom the search"
        " found no recorded request. The groups and roles of these users are not known, so these users may be"
        " entitled too."
    )


def _would_sign(explained: ExplainedRequest) -> WouldSignBody | None:
    found = explained.explanation
    if found.grant is None:
        return None
    trace = found.grant.trace
    limit = {
        "until": datetime.fromisoformat(str(trace["allowed_until"])),
        "by": trace["allowed_by"],
        "rule": found.strictest.name if found.strictest is not None else None,
    }
    return WouldSignBody.read(
        found.grant,
        organizations=explained.organizations,
        key_type=found.key_type if explained.cluster.credential_kind == "certificate" else "",
        shortened=trace["shortened"],
        limit=limit,
    )


def _how_to_ask(explained: ExplainedRequest) -> str | None:
    offers = [each.rule for each in explained.explanation.rules if each.outcome == "offers"]
    return how_to_ask(offers, explained.cluster) if offers else None


def _rule(check: RuleCheck, *, is_complete: bool) -> RuleBody:
    return RuleBody.read(
        check,
        denies=check.rule.deny is not None,
        deny=check.rule.deny if check.outcome == "denies" else None,
        offer=OfferBody.read(check.rule.offer, rule=check.rule.name) if check.outcome == "offers" else None,
        first_false=check.unmet[0].wanted if check.unmet else None,
        # Conditions that are met can also name other users, so only operators and auditors see them.
        conditions=check.conditions if is_complete else check.unmet,
    )


router = APIRouter(tags=["Policy"])


@router.get(
    OWN + "/policy/explain",
    responses=described("The explained decision.", ExplanationBody),
)
async def explain(call: CallDep, parameters: Annotated[ExplainParameters, Query()]) -> Response:
    """Explain what the policy decides on a request for a certificate.

    Signs and records nothing. Users may ask about themselves in all their projects, whatever the token's scope. Project
    admins may ask about users with a role in their project. Operators and auditors may ask about all users. Only
    operators and auditors see all rules.
    """
    explained = await call.services.explanations.explain(
        call.caller,
        parameters.cluster,
        parameters.user,
        parameters.request(call.services.options.max_duration),
        auth_method=parameters.auth_method,
        source=parameters.source,
    )
    return responses.private(ExplanationBody.render(explained))


@router.get(
    OWN + "/policy/entitlements",
    responses=described(
        "A page of users.",
        EntitledUserListBody,
        errors=ERRORS | {409: "Certificates for this cluster have no groups of the policy."},
    ),
)
async def list_entitlements(
    call: CallDep, page: KeyPageDep, parameters: Annotated[EntitlementParameters, Query()]
) -> Response:
    """List the users who could get a certificate with a Kubernetes group, and by which rules.

    Considers every request that a user could send. For a user of an OIDC issuer or Keystone, uses the groups and roles
    of the user's last recorded request. Sorted by user id. Only for operators and auditors.
    """
    found = await call.services.explanations.entitled_users(
        call.caller,
        parameters.cluster,
        parameters.group,
        parameters.since,
        after=page.after,
        limit=page.limit,
    )
    body = numbered_page(
        "users",
        found.users,
        EntitledUserBody.render,
        lambda each: each.caller.user.id,
        found.following,
        page.max_bytes,
    )
    # A page that became too large ends before some of these users.
    left_out = [each for each in found.left_out if body["next"] is None or each <= str(body["next"])]
    return responses.private(body | {"left_out": left_out})

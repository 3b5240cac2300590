"""Route that explains what the policy decides."""

import ipaddress
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from clustercert.http import OWN, query, responses
from clustercert.http.cce.clustercert import MAX_REASON
from clustercert.http.dependencies import CallDep
from clustercert.http.openapi import described
from clustercert.issuance.explanations import ExplainedRequest, Question
from clustercert.model import JsonObject, KeyType, rfc3339
from clustercert.model.errors import InvalidRequest
from clustercert.model.requests import AUTH_METHODS
from clustercert.policy.explanation import Explanation, RuleCheck, RuleOutcome
from clustercert.policy.lifetime import LONGEST, MAX_DAYS, MAX_LIFETIME, MIN_LIFETIME, parse_lifetime
from clustercert.policy.templates import is_plain_text

DEFAULT_CSR_KEY: KeyType = "ec-p256"


def _lifetime(name: str, value: str) -> timedelta:
    try:
        lifetime = parse_lifetime(value)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name}: write it like 30m, 8h or 30d.") from error
    if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
        raise InvalidRequest(f"{name}: must be 15m to {MAX_DAYS}d.")
    return lifetime


def _days(name: str, value: str) -> int:
    if value == str(LONGEST):
        return LONGEST
    if not (value.isascii() and value.isdecimal() and len(value) <= len(str(MAX_DAYS)) and int(value) > 0):
        raise InvalidRequest(f"{name}: must be whole days, or -1 for the longest allowed.")
    return int(value)


def _reason(name: str, value: str) -> str:
    if len(value) > MAX_REASON or not is_plain_text(value):
        raise InvalidRequest(
            f"{name}: must have at most {MAX_REASON} characters, without control or bidirectional characters."
        )
    return value


def _address(name: str, value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise InvalidRequest(f"{name}: must be an IP address.") from error


EXPLAIN = (
    query.Parameter("cluster", "The cluster, by id.", query.plain_text, {"maxLength": query.MAX_TEXT}, True),
    query.text("user", "The user, by id. By default, the caller."),
    query.Parameter("expires_in", "A lifetime, such as `30m`, `8h` or `30d`.", _lifetime, {"maxLength": 20}),
    query.Parameter(
        "duration",
        "Whole days, or -1 for the longest allowed, which is the default. Send expires_in or duration.",
        _days,
        {"pattern": r"^(-1|[1-9]\d{0,3})$"},
    ),
    query.choice("csr", "Whether the request has a CSR.", ("true", "false")),
    query.choice("key_type", "The type of the CSR's key; `ec-p256` by default.", get_args(KeyType)),
    query.Parameter("reason", "The request's reason.", _reason, {"maxLength": MAX_REASON}),
    query.choice("auth_method", "How the user logs in; by default, as the caller or by token.", AUTH_METHODS),
    query.Parameter(
        "source",
        "The IP address of the request; by default the caller's. Only for project admins and operators.",
        _address,
        {"maxLength": 64},
    ),
)


class ChangeBody(BaseModel):
    """Something that must change for the request to be allowed."""

    wanted: str
    found: str = Field(description="What the request has instead; empty if it can't be said in words.")


class ConditionBody(ChangeBody):
    """A rule's condition in words, cut to 200 characters."""

    met: bool | None = Field(description="Null if an expression fails; `found` says why.")


class RuleBody(BaseModel):
    """A policy rule, compared with the request."""

    name: str
    outcome: RuleOutcome = Field(
        description="`fails` refuses the request: an expression can't be evaluated. `not_reached`: a rule before it"
        " denies or fails."
    )
    deny: str | None = Field(description="The rule's message if it denies the request.")
    first_false: str | None = Field(description="Its first condition that is not met.")
    conditions: list[ConditionBody] = Field(description="Operators get all, other callers those not met.")


class NearestRuleBody(BaseModel):
    """The rule that would allow the request after the fewest changes."""

    rule: str
    changes: list[ChangeBody]


class LimitBody(BaseModel):
    """The longest lifetime that is allowed."""

    until: str
    by: Literal["rule", "policy", "ca"] = Field(
        description="Whether a rule, policy.max_lifetime or the end of the client CA is the limit."
    )
    rule: str | None = Field(
        description="The matching rule with the shortest lifetime; null if policy.max_lifetime is shorter."
    )


class WouldSignBody(BaseModel):
    """What would be signed. Times are RFC 3339."""

    common_name: str
    organizations: list[str] = Field(description="The credential group has no number yet.")
    not_before: str
    not_after: str
    key_type: str
    shortened: bool = Field(description="Whether the requested lifetime is shortened to the limit.")
    limit: LimitBody


class ExplainedUserBody(BaseModel):
    """The user who would send the request."""

    id: str
    name: str
    domain: str
    roles: list[str] = Field(description="Their roles in the cluster's project.")


class ExplainedClusterBody(BaseModel):
    """The requested cluster."""

    id: str
    name: str
    project_id: str


class ExplanationBody(BaseModel):
    """What the policy decides on a request. Limits on rates and numbers of certificates are left out."""

    allowed: bool
    status: int = Field(description="The status of the answer to such a request.")
    message: str | None = Field(description="The message of the refusal, or why the user can't log in (401).")
    user: ExplainedUserBody
    seen_at: str | None = Field(
        description="For a user of another issuer, the time of the last request, whose groups and roles are used."
    )
    cluster: ExplainedClusterBody
    auth_method: str
    source: str
    would_sign: WouldSignBody | None
    rules: list[RuleBody] = Field(description="In order.")
    complete: bool = Field(
        description="False for callers other than operators: they see only rules that the user meets, or would meet"
        " with another request or other roles."
    )
    nearest: NearestRuleBody | None = Field(
        description="Null if no change to the conditions of one rule would allow the request."
    )


def question(values: dict[str, Any], max_days: int) -> Question:
    """Return the question from parsed parameters. Raises InvalidRequest."""
    if "expires_in" in values and "duration" in values:
        raise InvalidRequest("expires_in, duration: send only one of them.")
    duration = values.get("duration", LONGEST)
    if duration > max_days:
        raise InvalidRequest(f"duration: must be 1 to {max_days} days, or -1 for the longest allowed.")
    key_type = values.get("key_type")
    if key_type is not None and values.get("csr") == "false":
        raise InvalidRequest("key_type: needs a CSR.")
    if values.get("csr") == "true":
        key_type = key_type or DEFAULT_CSR_KEY
    return Question(
        duration=duration,
        expires_in=values.get("expires_in"),
        csr_key_type=key_type,
        reason=values.get("reason"),
        auth_method=values.get("auth_method"),
        source=values.get("source"),
    )


def explanation_body(explained: ExplainedRequest) -> JsonObject:
    """Return the JSON object of an explanation, see `ExplanationBody`."""
    found, caller, cluster = explained.explanation, explained.caller, explained.cluster
    nearest = found.nearest
    return {
        "allowed": found.error is None,
        "status": found.error.status if found.error is not None else 200,
        "message": found.error.message if found.error is not None else None,
        "user": {
            "id": caller.user.id,
            "name": caller.user.name,
            "domain": caller.user.domain.name,
            "roles": list(caller.roles_in(cluster.project_id)),
        },
        "seen_at": rfc3339(explained.seen_at) if explained.seen_at is not None else None,
        "cluster": {"id": cluster.id, "name": cluster.name, "project_id": cluster.project_id},
        "auth_method": caller.method,
        "source": caller.origin.address,
        "would_sign": _would_sign(found, explained.organizations),
        "rules": [_rule(each, is_complete=explained.is_complete) for each in found.rules],
        "complete": explained.is_complete,
        "nearest": nearest
        and {
            "rule": nearest.rule,
            "changes": [{"wanted": each.wanted, "found": each.found} for each in nearest.changes],
        },
    }


def _would_sign(found: Explanation, organizations: tuple[str, ...]) -> JsonObject | None:
    grant = found.grant
    if grant is None:
        return None
    trace = grant.trace
    return {
        "common_name": grant.username,
        "organizations": list(organizations),
        "not_before": rfc3339(grant.not_before),
        "not_after": rfc3339(grant.not_after),
        "key_type": found.key_type,
        "shortened": trace["truncated"],
        "limit": {
            "until": rfc3339(datetime.fromisoformat(str(trace["allowed_until"]))),
            "by": trace["allowed_by"],
            "rule": found.strictest.name if found.strictest is not None else None,
        },
    }


def _rule(check: RuleCheck, *, is_complete: bool) -> JsonObject:
    return {
        "name": check.rule.name,
        "outcome": check.outcome,
        "deny": check.rule.deny if check.outcome == "denies" else None,
        "first_false": check.unmet[0].wanted if check.unmet else None,
        "conditions": [
            {"wanted": each.wanted, "found": each.found, "met": each.met}
            # Conditions that are met can also name other users, so only operators see them.
            for each in (check.conditions if is_complete else check.unmet)
        ],
    }


router = APIRouter(tags=["Policy"])


@router.get(
    OWN + "/policy/explain",
    responses=described("The explained decision.", ExplanationBody),
    openapi_extra=query.described(EXPLAIN),
)
async def explain(call: CallDep) -> Response:
    """Explain what the policy decides on a request for a certificate.

    Signs and records nothing. Users may ask about themselves, project admins about users with a role in their project,
    operators about everybody. Only operators see all rules.
    """
    values = query.parsed(call.request.query_params, EXPLAIN, others=())
    if "cluster" not in values:
        raise InvalidRequest("cluster: send the id of a cluster.")
    asked = question(values, call.services.options.max_duration)
    explained = await call.services.explanations.explain(
        call.caller, values["cluster"], values.get("user"), asked
    )
    return responses.private(explanation_body(explained))

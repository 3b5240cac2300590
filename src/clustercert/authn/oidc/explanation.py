"""Explains to operators whether a token is accepted: the result of each check, and the token's user."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clustercert.authn.federated import FederatedUser
from clustercert.authn.oidc.claims import MAX_SHOWN, TokenRefused, claim_texts, claim_value, shown
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.mapping import federated_user, mapped_groups
from clustercert.authn.oidc.token_reviews import REVIEW
from clustercert.authn.oidc.tokens import UnverifiedToken, claim_results
from clustercert.model.errors import Unavailable

if TYPE_CHECKING:
    from clustercert.authn.oidc.verification import Verifier

# The longest time that an explanation waits for an issuer's keys.
KEYS_SECONDS = 0.8


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check of a token.

    Attributes:
        came: the value in the token, shortened, if the check failed.
        expected: the values that the check accepts, if the check failed.
    """

    check: str
    passed: bool
    came: str = ""
    expected: str = ""


@dataclass(frozen=True, slots=True)
class RoleRuleResult:
    """Whether a rule of the issuer's settings gives the rule's role to the token's user.

    Attributes:
        projects: the projects for which the rule gives the role; `None` means all projects of the issuer's users.
        service: whether the rule gives the role in the whole service.
        unmet: the conditions that the user does not meet; empty if the user gets the role.
    """

    role: str
    projects: tuple[str, ...] | None
    service: bool
    unmet: tuple[CheckResult, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which checks a token passes, and which user the token describes.

    Attributes:
        issuer: the settings of the token's issuer, even if the signature is wrong; None if the issuer is unknown.
        checks: the results, in the order of the checks. If the check of a claim fails, the other claims are still
            checked.
        user: the user described by the token; None if a check failed.
        role_rules: the issuer's rules for roles, in the order of the settings; empty if a check failed.
    """

    issuer: OidcIssuer | None
    checks: tuple[CheckResult, ...]
    user: FederatedUser | None
    role_rules: tuple[RoleRuleResult, ...] = ()


# The maximum number of claims that a caller without a role is shown.
MAX_ROLE_CLAIMS = 20


@dataclass(frozen=True, slots=True)
class RoleClaim:
    """A claim that the issuer's rules for roles read, for a user to whom no rule gives a role.

    Attributes:
        value: the user's own value, shortened; empty if the token does not have the claim.
        is_met: whether the claim meets its condition in the nearest of the rules that name this user, see
            `missed_role_claims`; None if this rule does not read the claim, or if there is no such rule.
    """

    claim: str
    value: str
    is_met: bool | None


def missed_role_claims(issuer: OidcIssuer, token: UnverifiedToken) -> tuple[RoleClaim, ...] | None:
    """Return the claims that the issuer's rules for roles in projects read; None if a rule gives the user a role.

    The user sees the result, so the result must neither reveal rules for other users nor contain accepted values. The
    result reveals whether a claim meets a condition only for rules that name the user's own identity, such as the
    `project_id` of their repository, because nobody can choose their own identity.
    """
    claims, groups = token.claims, mapped_groups(issuer, token.claims)
    if any(rule.is_granted(claims, groups) for rule in issuer.roles):
        return None
    rules = [rule for rule in issuer.roles if not rule.service]
    unmet = [{each.check for each in rule.unmet_conditions(claims, groups)} for rule in rules]
    identity = issuer.identity_claims
    own = [
        (missing, rule.claim_names)
        for rule, missing in zip(rules, unmet, strict=True)
        if not identity.isdisjoint(rule.claim_names) and missing.isdisjoint(identity)
    ]
    missing, read = min(own, key=lambda each: len(each[0]), default=(set[str](), ()))
    names = dict.fromkeys(name for rule in rules for name in rule.claim_names)

    def is_met(name: str) -> bool | None:
        if not own:
            readers = [
                missing for rule, missing in zip(rules, unmet, strict=True) if name in rule.claim_names
            ]
            return False if name in identity and all(name in missing for missing in readers) else None
        return name not in missing if name in read else None

    def value(name: str) -> object:
        return groups if name == "groups" else claim_value(claims, name)

    return tuple(
        RoleClaim(name, _text(value(name)), is_met(name)) for name in itertools.islice(names, MAX_ROLE_CLAIMS)
    )


def _text(value: object) -> str:
    """Return a claim's value as printable ASCII, shortened. Joins the entries of a list."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = claim_texts(list(values))
    text = ", ".join(texts) if texts is not None else shown(value)
    text = ascii(text)[1:-1]
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


async def explain(verifier: "Verifier", text: str) -> Explanation:
    """Check a token without authenticating anyone. Nothing is stored or logged."""
    issuer = None
    try:
        issuer, token = verifier.issued(text)
        async with asyncio.timeout(KEYS_SECONDS):
            token = await verifier.verify_signature(issuer, token)
    except TokenRefused as refusal:
        return Explanation(issuer, (_failed(refusal),), None)
    except Unavailable as error:
        return _without_keys(issuer, str(error.__cause__ or error))
    except TimeoutError:
        return _without_keys(issuer, f"no response within {KEYS_SECONDS:g} seconds")
    results = [CheckResult(REVIEW if issuer.token_review else "signature", passed=True)]
    for name, failure in claim_results(issuer, token, verifier.now()):
        results.append(CheckResult(name, passed=True) if failure is None else _failed(failure))
    if not all(each.passed for each in results):
        return Explanation(issuer, tuple(results), None)
    return _mapped(issuer, token, results)


def _without_keys(issuer: OidcIssuer | None, reason: str) -> Explanation:
    return Explanation(issuer, (CheckResult("keys", False, reason, "the keys of the issuer"),), None)


def _mapped(issuer: OidcIssuer, token: UnverifiedToken, results: list[CheckResult]) -> Explanation:
    try:
        user = federated_user(issuer, token)
    except TokenRefused as refusal:
        return Explanation(issuer, (*results, _failed(refusal)), None)
    passed = (*results, CheckResult("mapping", passed=True))
    return Explanation(issuer, passed, user, tuple(_role_rules(issuer, token)))


def _role_rules(issuer: OidcIssuer, token: UnverifiedToken) -> Iterator[RoleRuleResult]:
    groups = mapped_groups(issuer, token.claims)
    for rule in issuer.roles:
        projects = tuple(sorted(rule.projects)) if rule.projects is not None else None
        unmet = tuple(map(_failed, rule.unmet_conditions(token.claims, groups)))
        yield RoleRuleResult(rule.role, projects, rule.service, unmet)


def _failed(refusal: TokenRefused) -> CheckResult:
    return CheckResult(refusal.check, False, refusal.came, refusal.expected)

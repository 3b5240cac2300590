"""Explains to operators whether a token is accepted: the result of each check, and the token's user."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clustercert.authn.federated import FederatedUser
from clustercert.authn.oidc.claims import TokenRefused
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
    """Whether a rule of the issuer's settings gives its role to the token's user.

    Attributes:
        projects: the projects for which the rule gives the role; `None` for all projects of the issuer's users.
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

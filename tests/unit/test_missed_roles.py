"""What a job learns whose token no rule of its issuer gives a role: its own values, and nothing of others' rules."""

from typing import Any

import pytest

from clustercert.authn.oidc.explanation import RoleClaim, missed_role_claims
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.tokens import UnverifiedToken
from support.issuer_tokens import GITLAB, fresh
from support.oidc import claims_of

OWN, OTHER = {"project_id": ["20"]}, {"project_id": ["21"]}
MAIN = {"ref_path": ["refs/heads/main"]}
PRODUCTION = {"environment": ["secret-production"]}


def gitlab(*conditions: dict[str, list[str]], **changed: Any) -> OidcIssuer:
    return OidcIssuer.model_validate(
        {
            "name": "gitlab",
            "preset": "gitlab",
            "issuer": GITLAB["iss"],
            "audiences": ["clustercert"],
            "domain": "Default",
            "claims": {"namespace_id": ["72"]},
            "roles": [{"role": "member", "claims": each} for each in conditions],
        }
        | changed
    )


def missed(issuer: OidcIssuer, **claims: object) -> tuple[RoleClaim, ...] | None:
    token = UnverifiedToken("", "", None, issuer.url, fresh(GITLAB, **claims))
    return missed_role_claims(issuer, token)


def test_a_job_of_the_wrong_branch_learns_that_the_branch_does_not_match() -> None:
    issuer = gitlab(OWN | MAIN, OTHER)
    assert missed(issuer, ref_path="refs/heads/dev") == (
        RoleClaim("project_id", "20", True),
        RoleClaim("ref_path", "refs/heads/dev", False),
    )


def test_a_job_of_another_project_learns_that_its_project_does_not_match() -> None:
    issuer = gitlab(OWN | MAIN, OTHER | PRODUCTION)
    assert missed(issuer, project_id="22", ref_path="refs/heads/main", environment="secret-production") == (
        RoleClaim("project_id", "22", False),
        RoleClaim("ref_path", "refs/heads/main", None),
        RoleClaim("environment", "secret-production", None),
    )


@pytest.mark.parametrize("environment", ["secret-production", "guess"])
@pytest.mark.parametrize("project", ["20", "22"])
def test_no_value_that_a_job_chooses_tells_it_about_the_rules_of_others(
    project: str, environment: str
) -> None:
    issuer = gitlab(OWN | MAIN, OTHER | PRODUCTION, PRODUCTION | MAIN)
    found = missed(issuer, project_id=project, environment=environment, ref_path="refs/heads/dev")
    assert found is not None
    shown = {each.claim: each.is_met for each in found}
    assert shown["environment"] is None
    text = repr(found)
    assert all(secret not in text for secret in ("21", "main"))


def test_the_nearest_of_the_jobs_own_rules_counts() -> None:
    issuer = gitlab(
        OWN | {"ref_path": ["refs/heads/main"], "ref_protected": ["true"]}, OWN | {"ref_protected": ["true"]}
    )
    found = missed(issuer, ref_path="refs/heads/dev")
    assert found == (
        RoleClaim("project_id", "20", True),
        RoleClaim("ref_path", "refs/heads/dev", None),
        RoleClaim("ref_protected", "false", False),
    )


def test_a_namespace_is_an_identity_too() -> None:
    found = missed(gitlab({"namespace_id": ["72"]} | MAIN), ref_path="refs/heads/dev")
    assert found == (RoleClaim("namespace_id", "72", True), RoleClaim("ref_path", "refs/heads/dev", False))


def test_a_token_that_gets_a_role_misses_nothing() -> None:
    assert missed(gitlab(OWN | MAIN), ref_path="refs/heads/main") is None
    # A role in the whole service is a role too, and how to get one is nobody's business.
    operators = [{"role": "operator", "service": True, "claims": {"user_login": ["root"]}}]
    assert missed(gitlab(roles=operators), user_login="root") is None
    assert missed(gitlab(roles=operators)) == ()


def test_without_rules_there_is_no_claim_to_name() -> None:
    assert missed(gitlab()) == ()


def test_a_person_sees_their_groups() -> None:
    roles = [{"role": "member", "groups": ["team-red"]}]
    issuer = gitlab(roles=roles, preset=None, claims={}, groups="groups")
    token = UnverifiedToken("", "", None, issuer.url, claims_of(groups=["team-blue", "all"]))
    assert missed_role_claims(issuer, token) == (RoleClaim("groups", "all, team-blue", None),)


def test_values_are_printable_and_short() -> None:
    found = missed(gitlab(OWN | MAIN), ref_path="\x1b[31m" + "é" * 500)
    assert found is not None
    value = found[1].value
    assert value.isascii()
    assert value.isprintable()
    assert len(value) <= 130
    [missing] = [each for each in missed(gitlab(OWN | {"absent": ["x"]})) or () if each.claim == "absent"]
    assert (missing.value, missing.is_met) == ("", False)

"""Claims that name the only projects of a user."""

import pytest

from clustercert.authn.federated import FederatedUser
from clustercert.authn.oidc.issuer_settings import IssuerSettings
from clustercert.authn.oidc.mapping import federated_user
from clustercert.authn.oidc.refusal import TokenRefused
from clustercert.authn.oidc.tokens import UnverifiedToken
from support.oidc import AUDIENCE, URL, claims_of

ONE, OTHER = "1" * 32, "2" * 32
IDS = '("projects" in claims ? claims.projects : []).map(each, each.id)'


def user_with(projects: object, **settings: str) -> FederatedUser:
    """The user whom a token with this claim `projects` describes."""
    values = {"name": "sso", "issuer": URL, "audiences": [AUDIENCE], "domain": "acme", **settings}
    issuer = IssuerSettings.model_validate(values).configured()
    return federated_user(issuer, UnverifiedToken("", "ES256", None, URL, claims_of(projects=projects)))


def test_a_claim_or_an_expression_names_the_projects() -> None:
    both = frozenset({ONE, OTHER})
    assert user_with([ONE]).only_projects is None
    assert user_with([ONE, OTHER], projects_claim="projects").only_projects == both
    assert user_with([{"id": ONE}, {"id": OTHER}], projects_cel=IDS).only_projects == both


def test_a_user_without_the_claim_has_no_project() -> None:
    assert user_with(None, projects_claim="projects").only_projects == frozenset()
    assert user_with(None, projects_cel=IDS).only_projects == frozenset()


@pytest.mark.parametrize("value", [ONE, None, 5, {ONE: True}, [ONE, 5], [None], [[ONE]], True])
def test_an_expression_for_projects_must_give_a_list_of_strings(value: object) -> None:
    with pytest.raises(TokenRefused) as caught:
        user_with({"ids": value}, projects_cel="claims.projects.ids")
    assert caught.value.check == "projects"


def test_an_expression_over_a_missing_claim_refuses_the_token() -> None:
    with pytest.raises(TokenRefused) as caught:
        user_with(None, projects_cel="claims.projects")
    assert caught.value.check == "mapping"

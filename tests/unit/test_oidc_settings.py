"""Settings of issuers: what is refused at the start of the service."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.identity.federation import login_of
from clustercert.model import IssueRequest, Origin
from clustercert.model.errors import Forbidden, NotFound
from clustercert.policy.examples import run_examples
from clustercert.settings import SettingsError, load
from clustercert.store.identity.known_users import FederatedAccess
from support.identity_page import NAMED_PROJECT, PROJECT, recipe, recipe_lines, recipes
from support.issuer_tokens import GITHUB, KEYCLOAK, KUBERNETES, user_of
from support.samples import NOW, cluster

CLUSTER = "2f6d3bd5-4a3c-4bd1-8d3c-6b1f4f6a2f10"
GITHUB_URL = "https://token.actions.githubusercontent.com"
MINIMAL: Mapping[str, object] = {
    "name": "sso",
    "issuer": "https://sso.example.com",
    "audiences": ["clustercert"],
    "projects": [PROJECT],
}


def problem(**changed: object) -> str:
    with pytest.raises(ValidationError) as caught:
        OidcIssuer.model_validate(dict(MINIMAL) | changed)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"projects": []}, "name the projects or the domain"),
        ({"audiences": []}, "audiences"),
        ({"issuer": "http://sso.example.com"}, "https"),
        ({"jwks_uri": "http://sso.example.com/keys"}, "https"),
        ({"discovery_url": "ftp://sso.example.com"}, "https"),
        ({"algorithms": []}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"leeway": "1h"}, "leeway"),
        ({"name": "SSO"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"preset": "okta"}, "preset"),
        *(
            (
                {"projects": [each]},
                "write a project such as Default/eu-de, or its id from `clustercert project",
            )
            for each in ("*", "eu-de", "Default/", "/eu-de", "1" * 31, "a/b\u202e")
        ),
        ({"groups": "a", "groups_cel": "claims.a"}, "not both"),
        ({"subject": []}, "subject"),
        *(({name: "claims.a"}, name) for name in ("username_cel", "projects_cel", "projects_claim")),
        ({"keys_file": "a", "jwks_uri": "https://sso.example.com/keys"}, "not both"),
        ({"groups_cel": "claims."}, "syntax error"),
        ({"groups_cel": "user.name"}, "valid variables are claims"),
        ({"roles": [{"role": "member", "cel": "true"}]}, "roles.0.cel"),
        ({"roles": [{"role": "member", "projects": ["2" * 32]}]}, "not among the issuer's projects"),
        ({"roles": [{"role": "operator", "service": True}]}, "needs groups or claims"),
        ({"roles": [{"role": "operator"}]}, "add service = true"),
        ({"roles": [{"role": "auditor"}]}, "add service = true"),
        ({"redirect_uris": []}, "redirect_uris"),
        ({"redirect_uris": ["https://127.0.0.1/callback"]}, "expected an address like"),
        ({"redirect_uris": ["http://sso.example.com/callback"]}, "expected an address like"),
        ({"redirect_uris": ["http://127.0.0.1.example.com/"]}, "expected an address like"),
        ({"redirect_uris": ["http://127.0.0.1/callback?a=b"]}, "expected an address like"),
        ({"redirect_uris": ["http://alice@127.0.0.1/"]}, "expected an address like"),
        ({"login_token": "refresh"}, "login_token"),
        ({"console": {}}, "client_id"),
        ({"console": {"client_id": "a", "client_secret": "b"}}, "client_secret"),
        ({"console": {"client_id": "a", "scopes": ["profile"]}}, "add openid"),
        ({"console": {"client_id": "a", "parameters": {"state": "b"}}}, "sets this parameter itself"),
        ({"console": {"client_id": "a", "login_time": "exp"}}, "login_time"),
        (
            {"console": {"client_id": "a"}, "cluster": CLUSTER, "preset": "kubernetes"},
            "either cluster or console",
        ),
        ({"login_parameters": {"redirect_uri": "https://evil.example.com"}}, "sets this parameter itself"),
        ({"login_parameters": {"a b": "c"}}, "login_parameters"),
        ({"login_parameters": {"resource": "https://a.example.com"}}, "sets this parameter itself"),
        ({"resource": "https://a.example.com"}, 'set login_token = "access"'),
        (
            {"resource": "https://a.example.com", "login_token": "access"},
            "accept only tokens for the resource",
        ),
        *(
            ({"resource": each, "login_token": "access", "audiences": [each]}, "resource")
            for each in ("a", "https://a#b")
        ),
        ({"roles": [{"role": "a", "service": True, "projects": [PROJECT]}]}, "not both"),
    ],
)
def test_settings_that_are_refused(changed: dict[str, object], text: str) -> None:
    assert text in problem(**changed)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"repository": ["octo-org/octo-repo"]},
        {"repository_owner_id": ["*"]},
        {"repository_id": ["1", "?*"]},
    ],
)
def test_an_issuer_that_serves_everybody_must_be_pinned(claims: dict[str, list[str]]) -> None:
    assert "everybody can get a token" in problem(preset="github", issuer=GITHUB_URL, claims=claims)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"algorithms": ["none"]}, r"algorithms\.0: write 'RS256', .* or 'EdDSA', not \"none\""),
        ({"algorithms": []}, "algorithms: write at least one entry"),
        ({"audiences": "x"}, r'audiences: write a list, such as \["a", "b"\], not a text'),
        (
            {"claims": {"email_verified": [True]}},
            r"claims\.email_verified\.0: write a text in quotes, not true",
        ),
        ({"username": 7}, r'username: write a list, such as \["a", "b"\], not 7'),
        ({"prefix_names": "no"}, 'prefix_names: write true or false, not "no"'),
        ({"token_review": "yes"}, 'token_review: write true or false, not "yes"'),
        ({"roles": [{"role": "a", "service": 1}]}, r"roles\.0\.service: write true or false, not 1"),
    ],
)
def test_a_value_of_another_type_is_named_once(changed: dict[str, object], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, identity={"issuers": [dict(MINIMAL) | changed]})
    [_, only] = str(caught.value).splitlines()
    assert re.fullmatch(rf"  identity\.issuers\.0\.{line}", only)


@pytest.mark.parametrize("changed", [{"name": "other"}, {"issuer": "https://other.example.com"}])
def test_two_issuers_have_two_names_and_urls(changed: dict[str, object]) -> None:
    issuers = [dict(MINIMAL), dict(MINIMAL) | changed]
    with pytest.raises(SettingsError, match="two issuers have the"):
        load(None, identity={"issuers": issuers})


async def granted(
    name: str, claims: dict[str, Any], cluster_name: str = "production", **changed: object
) -> str:
    """The groups in the certificate that a recipe's policy gives for a token, or the name of the error."""
    settings = load(None, **tomllib.loads(recipe(name)))
    user = await user_of(settings.identity.issuers[0], claims, **changed)
    access = FederatedAccess({PROJECT: NAMED_PROJECT}, blocked=False, name_taken=False)
    caller = login_of(user, access).caller(user, Origin("192.0.2.1", "0" * 32))
    where = replace(cluster(), project_id=PROJECT, name=cluster_name)
    try:
        grant = settings.policy.policy().decide(caller, where, IssueRequest(duration=-1), NOW)
    except (Forbidden, NotFound) as error:
        return type(error).__name__
    return " ".join(grant.groups)


async def test_keycloak_groups_become_teams() -> None:
    assert await granted("keycloak", KEYCLOAK) == "team:sso/team-blue"
    assert await granted("keycloak", KEYCLOAK, groups=["/team-red", "/team-blue"]) == (
        "team:sso/team-blue team:sso/team-red"
    )
    assert await granted("keycloak", KEYCLOAK, groups=["/platform"]) == "NotFound"


def test_the_examples_of_a_recipe_pass() -> None:
    settings = load(None, **tomllib.loads(recipe("keycloak")))
    [one] = run_examples(settings.policy.policy(), settings.policy.examples)
    assert one.passed


async def test_a_github_repository_gets_one_group() -> None:
    assert await granted("github", GITHUB) == "ci:deploy"
    assert await granted("github", GITHUB, ref="refs/heads/feature") == "NotFound"
    assert await granted("github", GITHUB, repository_id="7") == "NotFound"
    assert await granted("github", GITHUB, event_name="pull_request_target") == "NotFound"


async def test_a_service_account_of_one_cluster_reads_another() -> None:
    assert await granted("kubernetes", KUBERNETES, "cluster-b") == "clustercert:viewers"
    assert await granted("kubernetes", KUBERNETES, "cluster-c") == "Forbidden"
    other = KUBERNETES["kubernetes.io"] | {"namespace": "default"}
    assert await granted("kubernetes", KUBERNETES, "cluster-b", **{"kubernetes.io": other}) == "NotFound"


def test_the_lines_for_a_resource_are_valid() -> None:
    text = recipe("login", {'audiences = ["clustercert"]\n': recipe_lines("resource")})
    [issuer] = load(None, **tomllib.loads(text)).identity.issuers
    login = issuer.login
    assert login is not None
    assert (login.resource, login.bearer) == ("https://clustercert.example.com", "access")


def test_every_block_on_the_page_is_valid() -> None:
    names = [*recipes()]
    assert names == [
        *("keycloak", "login", "console", "github", "pipelines", "kubernetes", "expressions"),
        "keystone-service",
    ]
    for name in names:
        settings = load(None, **tomllib.loads(recipe(name)))
        assert settings.identity.issuers or settings.identity.keystone
        settings.check_examples()

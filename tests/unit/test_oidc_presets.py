"""The presets, on tokens with the claims in each issuer's documentation."""

import tomllib
from typing import Any

import pytest

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.issuers import OidcIssuer, derived_id
from clustercert.settings import load
from support.identity_page import recipe
from support.issuer_tokens import DEX, ENTRA, GITHUB, GITLAB, KEYCLOAK, KUBERNETES, user_of
from support.oidc import AUDIENCE

PINNED: dict[str, dict[str, list[str]]] = {
    "github": {"repository_owner_id": ["9919"]},
    "gitlab": {"namespace_id": ["72"]},
}
CLAIMS = {
    "keycloak": KEYCLOAK,
    "dex": DEX,
    "entra": ENTRA,
    "github": GITHUB,
    "gitlab": GITLAB,
    "kubernetes": KUBERNETES,
}


def configured(preset: str, **changed: object) -> OidcIssuer:
    values = {
        "name": "idp",
        "preset": preset,
        "issuer": CLAIMS[preset]["iss"],
        "audiences": [AUDIENCE],
        "projects": ["a" * 32],
        "claims": PINNED.get(preset, {}),
    }
    return OidcIssuer.model_validate(values | changed)


@pytest.mark.parametrize(
    ("preset", "subject", "name", "groups"),
    [
        ("keycloak", [KEYCLOAK["sub"]], "alice", ["platform/sre", "team-blue"]),
        ("dex", [DEX["sub"]], DEX["sub"], ["acme:team-blue", "admins"]),
        ("entra", [ENTRA["tid"], ENTRA["oid"]], ENTRA["oid"], ENTRA["groups"]),
        ("github", ["1296269"], "octo-org/octo-repo", []),
        ("gitlab", ["20"], "my-group/my-project", []),
        (
            "kubernetes",
            [KUBERNETES["sub"], "a087d5a0-e1dd-43ec-93ac-f13d89cd13af"],
            "monitoring/prometheus",
            [],
        ),
    ],
)
async def test_a_documented_token_becomes_a_user(
    preset: str, subject: list[str], name: str, groups: list[str]
) -> None:
    user = await user_of(configured(preset), CLAIMS[preset])
    assert user.user.id == derived_id("user", CLAIMS[preset]["iss"], *subject)
    assert user.user.name == f"idp/{name}"
    assert [group.name for group in user.groups] == [f"idp/{group}" for group in groups]


@pytest.mark.parametrize(
    ("preset", "changed", "check"),
    [
        ("entra", {"groups": None, "_claim_names": {"groups": "src1"}}, "groups"),
        ("entra", {"groups": None, "hasgroups": True}, "groups"),
        ("entra", {"oid": None}, "oid"),
        ("github", {"repository_owner_id": "1"}, "repository_owner_id"),
        ("github", {"repository_id": None}, "repository_id"),
        ("gitlab", {"namespace_id": "73"}, "namespace_id"),
        ("gitlab", {"project_id": None}, "project_id"),
        ("kubernetes", {"kubernetes.io": {"namespace": "monitoring"}}, "/kubernetes.io/serviceaccount/name"),
        ("kubernetes", {"kubernetes.io": None}, "/kubernetes.io/namespace"),
        ("keycloak", {"preferred_username": None}, "preferred_username"),
    ],
)
async def test_a_token_that_lacks_what_the_preset_needs_is_refused(
    preset: str, changed: dict[str, object], check: str
) -> None:
    with pytest.raises(TokenRefused) as caught:
        await user_of(configured(preset), CLAIMS[preset], **changed)
    assert caught.value.check == check


@pytest.mark.parametrize("preset", ["dex", "entra"])
async def test_a_name_that_the_user_can_choose_is_no_user_name(preset: str) -> None:
    alice = await user_of(configured(preset), CLAIMS[preset])
    mallory = await user_of(
        configured(preset),
        CLAIMS[preset],
        sub="mallory",
        oid="mallory",
        name="Alice",
        preferred_username="alice",
    )
    again = await user_of(configured(preset), CLAIMS[preset], name="Bob", preferred_username="bob")
    assert (mallory.user.name, again.user.name) == ("idp/mallory", alice.user.name)


async def test_roles_of_entra_replace_groups_that_do_not_fit_into_the_token() -> None:
    issuer = configured("entra", groups="roles")
    for elsewhere in ({"hasgroups": True}, {"_claim_names": {"groups": "src1"}}):
        user = await user_of(issuer, ENTRA, groups=None, roles=["Deployer"], **elsewhere)
        assert [group.name for group in user.groups] == ["idp/Deployer"]


async def test_github_users_are_repositories_in_both_forms_of_sub() -> None:
    issuer = configured("github")
    before = await user_of(issuer, GITHUB)
    new_form = "repo:octo-org@9919/octo-repo@1296269:ref:refs/heads/main"
    renamed = await user_of(issuer, GITHUB, sub=new_form, repository="octo-org/new-name")
    assert (renamed.user.id, renamed.user.name) == (before.user.id, "idp/octo-org/new-name")
    other: Any = await user_of(issuer, GITHUB, repository_id="1296270")
    assert other.user.id != before.user.id


@pytest.mark.parametrize(
    "url",
    [
        "https://token.actions.githubusercontent.com/acme",
        "https://github.example.com/_services/token",
        "https://token.actions.octocorp.ghe.com",
    ],
)
async def test_the_github_preset_serves_enterprises(url: str) -> None:
    issuer = configured("github", issuer=url)
    before = await user_of(issuer, GITHUB, iss=url)
    after = await user_of(
        issuer, GITHUB, iss=url, sub="repo:octo-org/octo-repo:ref:refs/heads/x", ref="refs/heads/x"
    )
    assert before.user.id == after.user.id == derived_id("user", url, "1296269")


@pytest.mark.parametrize("preset", ["entra", "github", "gitlab"])
async def test_a_long_sub_that_nothing_uses_refuses_nobody(preset: str) -> None:
    user = await user_of(configured(preset), CLAIMS[preset], sub="project_path:" + "group/" * 100)
    assert user.user.id == (await user_of(configured(preset), CLAIMS[preset])).user.id


# Source: HCP Terraform, "Workload Identity Tokens", "Token Specification".
TERRAFORM: dict[str, Any] = {
    "iss": "https://app.terraform.io",
    "sub": "organization:my-org:project:Default Project:workspace:my-ws:run_phase:plan",
    "terraform_organization_id": "org-GRNbCjYNpBB6NEBH",
    "terraform_organization_name": "my-org",
    "terraform_workspace_id": "ws-mbsd5E3Ktt5Rg2Xm",
    "terraform_workspace_name": "my-ws",
    "terraform_run_phase": "plan",
}
# Source: Buildkite, "OpenID Connect (OIDC)", "Claims".
COMMIT = "9f3182061f1e2cca4702c368cbc039b7dc9d4485"
BUILDKITE: dict[str, Any] = {
    "iss": "https://agent.buildkite.com",
    "sub": f"organization:acme-inc:pipeline:super-duper-app:ref:refs/heads/main:commit:{COMMIT}:step:build",
    "organization_slug": "acme-inc",
    "organization_id": "018f9b43-1f1c-4f6e-8a52-3e9d9c1a2b3c",
    "pipeline_slug": "super-duper-app",
    "pipeline_id": "018f9b44-7d5e-4c6f-9b63-4fae0d2b3c4d",
    "build_commit": COMMIT,
}
# Source: CircleCI, "Using OpenID Connect tokens in jobs", "Format of the OpenID Connect token".
CIRCLECI: dict[str, Any] = {
    "iss": "https://oidc.circleci.com/org/3b0b1a7e-0f6b-4c6a-9df5-6c8a1f2e3d4c",
    "sub": "org/3b0b1a7e/project/7c1d/user/1f2e3d4c",
    "oidc.circleci.com/project-id": "7c1d2e3f-4a5b-4c6d-8e9f-0a1b2c3d4e5f",
}
OF_RUNS: dict[str, tuple[dict[str, Any], dict[str, object]]] = {
    "terraform": (
        TERRAFORM,
        {"sub": TERRAFORM["sub"].replace("plan", "apply"), "terraform_run_phase": "apply"},
    ),
    "buildkite": (
        BUILDKITE,
        {"sub": BUILDKITE["sub"].replace("main", "dependabot/" + "x" * 90), "build_commit": "0" * 40},
    ),
    "circleci": (CIRCLECI, {"sub": CIRCLECI["sub"].replace("1f2e3d4c", "4d3c2b1a")}),
}


@pytest.mark.parametrize("name", OF_RUNS)
async def test_a_pipeline_is_one_user_in_all_of_its_runs(name: str) -> None:
    claims, changed = OF_RUNS[name]
    issuers = load(None, **tomllib.loads(recipe("pipelines"))).identity.issuers
    [issuer] = [each for each in issuers if each.name == name]
    one, other = await user_of(issuer, claims), await user_of(issuer, claims, **changed)
    assert (one.user.id, one.user.name) == (other.user.id, other.user.name)
    by_sub = OidcIssuer.model_validate(issuer.model_dump() | {"subject": ("sub",)})
    assert (await user_of(by_sub, claims)).user.id != (await user_of(by_sub, claims, **changed)).user.id


async def test_a_service_account_that_is_made_again_is_another_user() -> None:
    issuer = configured("kubernetes")
    again = KUBERNETES["kubernetes.io"] | {"serviceaccount": {"name": "prometheus", "uid": "another"}}
    one, other = (
        await user_of(issuer, KUBERNETES),
        await user_of(issuer, KUBERNETES, **{"kubernetes.io": again}),
    )
    assert (one.user.name, one.user.id != other.user.id) == (other.user.name, True)


async def test_settings_replace_values_of_the_preset() -> None:
    issuer = configured("entra", groups="roles", username=["tid", "oid"], max_age="1h")
    user = await user_of(issuer, ENTRA, roles=["Deployer"])
    assert user.user.name == f"idp/{ENTRA['tid']}/{ENTRA['oid']}"
    assert [group.name for group in user.groups] == ["idp/Deployer"]
    with pytest.raises(TokenRefused) as caught:
        await user_of(issuer, ENTRA, iat=1)
    assert caught.value.check == "iat"

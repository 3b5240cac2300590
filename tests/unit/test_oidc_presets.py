"""The presets, on tokens with the claims in each issuer's documentation."""

from typing import Any

import pytest

from clustercert.authn.oidc.issuer_settings import IssuerSettings
from clustercert.authn.oidc.issuers import Issuer, derived_id
from clustercert.authn.oidc.refusal import TokenRefused
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


def configured(preset: str, **changed: object) -> Issuer:
    values = {
        "name": "idp",
        "preset": preset,
        "issuer": CLAIMS[preset]["iss"],
        "audiences": [AUDIENCE],
        "projects": ["a" * 32],
        "claims": PINNED.get(preset, {}),
    }
    return IssuerSettings.model_validate(values | changed).configured()


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
    assert user.user.id == derived_id(CLAIMS[preset]["iss"], *subject)
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

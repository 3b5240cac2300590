"""Tokens with the claims that the documentation of well-known issuers shows, and the users they become."""

import json
import time
from datetime import UTC, datetime
from typing import Any

from clustercert.authn.federated import FederatedUser
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.keys import IssuerKeys, parse_key_set
from clustercert.authn.oidc.mapping import federated_user
from clustercert.authn.oidc.verification import Verifier
from support.oidc import AUDIENCE, key_set, new_key, signed

KEY = new_key("first", "RSA")

# Source: Keycloak, server administration guide; an access token of a public client with two mappers.
KEYCLOAK: dict[str, Any] = {
    "jti": "onrtac:4a5f8e3c",
    "iss": "https://sso.example.com/realms/acme",
    "sub": "0f2b5a0e-6a2b-4d8c-9d0b-5a2f0d1e7c11",
    "typ": "Bearer",
    "azp": "clustercert",
    "sid": "5c0f6c9c-6f0d-4a43-8d9a-3ad1b5f9e0a1",
    "acr": "1",
    "realm_access": {"roles": ["offline_access", "uma_authorization"]},
    "scope": "openid profile email",
    "email_verified": True,
    "name": "Alice Example",
    "groups": ["/team-blue", "/platform/sre"],
    "preferred_username": "alice",
    "email": "alice@example.com",
}
# Source: Dex, "Custom scopes, claims and client features".
DEX: dict[str, Any] = {
    "iss": "https://dex.example.com/dex",
    "sub": "Cg0wLTM4NS0yODA4OS0wEgRtb2Nr",
    "at_hash": "X5Zs1XoTGMJ9LlRyBz9xIQ",
    "email": "alice@example.com",
    "email_verified": True,
    "groups": ["admins", "acme:team-blue"],
    "name": "Alice Example",
    "federated_claims": {"connector_id": "mock", "user_id": "0-385-28089-0"},
}
# Source: Microsoft identity platform, "ID token claims reference".
ENTRA: dict[str, Any] = {
    "ver": "2.0",
    "iss": "https://login.microsoftonline.com/9122040d-6c67-4c5b-b112-36a304b66dad/v2.0",
    "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
    "name": "Alice Example",
    "preferred_username": "alice@example.onmicrosoft.com",
    "oid": "00000000-0000-0000-66f3-3332eca7ea81",
    "tid": "9122040d-6c67-4c5b-b112-36a304b66dad",
    "groups": ["85a8f4b1-5b3c-4c0c-9a3d-0c1c5c1f5f11"],
    "uti": "fqiBqXLPj0eQa82S-IYFAA",
}
# Source: GitHub Docs, "OpenID Connect reference". The form of `sub` is the one before 15 July 2026.
GITHUB: dict[str, Any] = {
    "jti": "example-id",
    "sub": "repo:octo-org/octo-repo:environment:prod",
    "environment": "prod",
    "iss": "https://token.actions.githubusercontent.com",
    "ref": "refs/heads/main",
    "sha": "example-sha",
    "repository": "octo-org/octo-repo",
    "repository_owner": "octo-org",
    "actor_id": "12",
    "repository_visibility": "private",
    "repository_id": "1296269",
    "repository_owner_id": "9919",
    "run_id": "example-run-id",
    "run_number": "10",
    "run_attempt": "2",
    "runner_environment": "github-hosted",
    "actor": "octocat",
    "workflow": "example-workflow",
    "head_ref": "",
    "base_ref": "",
    "event_name": "workflow_dispatch",
    "ref_type": "branch",
    "job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
}
# Source: GitLab Docs, "OpenID Connect (OIDC) authentication using ID tokens", "Token payload".
GITLAB: dict[str, Any] = {
    "namespace_id": "72",
    "namespace_path": "my-group",
    "project_id": "20",
    "project_path": "my-group/my-project",
    "user_id": "1",
    "user_login": "sample-user",
    "user_email": "sample-user@example.com",
    "user_identities": [{"provider": "github", "extern_uid": "2435223452345"}],
    "pipeline_id": "574",
    "pipeline_source": "push",
    "job_id": "302",
    "ref": "feature-branch-1",
    "ref_type": "branch",
    "ref_path": "refs/heads/feature-branch-1",
    "ref_protected": "false",
    "groups_direct": ["mygroup/mysubgroup"],
    "environment": "test-environment2",
    "environment_protected": "false",
    "deployment_tier": "testing",
    "runner_id": 1,
    "runner_environment": "self-hosted",
    "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
    "project_visibility": "public",
    "ci_config_ref_uri": "gitlab.example.com/my-group/my-project//.gitlab-ci.yml@refs/heads/main",
    "jti": "235b3a54-b797-45c7-ae9a-f72d7bc6ef5b",
    "iss": "https://gitlab.example.com",
    "sub": "project_path:my-group/my-project:ref_type:branch:ref:feature-branch-1",
}
# Source: Kubernetes, "Managing Service Accounts", "Schema for service account private claims".
KUBERNETES: dict[str, Any] = {
    "iss": "https://kubernetes.default.svc.cluster.local",
    "jti": "aed34954-b33a-4142-b1ec-389d6bbb4936",
    "kubernetes.io": {
        "namespace": "monitoring",
        "node": {"name": "127.0.0.1", "uid": "58456cb0-dd00-45ed-b797-5578fdceaced"},
        "pod": {"name": "prometheus-69cbfb9798-jv9gn", "uid": "778a530c-b3f4-47c0-9cd5-ab018fb64f33"},
        "serviceaccount": {"name": "prometheus", "uid": "a087d5a0-e1dd-43ec-93ac-f13d89cd13af"},
        "warnafter": 1700081020,
    },
    "sub": "system:serviceaccount:monitoring:prometheus",
}


def fresh(claims: dict[str, Any], **changed: object) -> dict[str, Any]:
    """The claims with times and audience of a token that was just issued. A value of None leaves a claim out."""
    now = int(time.time())
    times = {"iat": now, "nbf": now, "exp": now + 600, "aud": AUDIENCE}
    return {name: value for name, value in (claims | times | changed).items() if value is not None}


async def user_of(issuer: OidcIssuer, claims: dict[str, Any], **changed: object) -> FederatedUser:
    """The user whom a token becomes. Raises TokenRefused."""

    async def fetch() -> Any:
        return parse_key_set(key_set(KEY))

    keys = {issuer.url: IssuerKeys(issuer.name, fetch)}
    text = signed(json.dumps(fresh(claims, **changed)).encode(), KEY)
    return federated_user(*await Verifier({issuer.url: issuer}, keys, lambda: datetime.now(UTC)).verify(text))

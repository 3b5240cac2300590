"""Responses to valid and invalid generated requests conform to the OpenAPI document."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Any, TypeAlias

import httpx2
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from clustercert.model import Actor, Origin
from clustercert.wiring import open_components
from support import world as worlds
from support.access_table import new_session
from support.administration import new_key, put_new, wanted
from support.kubernetes_messages import audit_event, credential_id, event_list, review
from support.request_client import ASKED, OFFERED_TO_ALL, REASON, REQUESTS, RequestClient
from support.service import BASE_URL, Service
from support.stores import execute, rows
from support.wait import eventually
from support.world import ACTOR, Person, World

AnyCase: TypeAlias = Case[Any]
Operations: TypeAlias = dict[str, Any]  # of schemathesis' APIOperation, by method and path

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
# A request succeeds only if all these parameters are valid. The first example of hypothesis is valid in all of them.
OFTEN = st.sampled_from([True, True, True, False])
BOUNDED = settings(
    # 5 in the profile `quick`. An example takes about 20 ms, and there are 150 operations.
    max_examples=settings().max_examples // 5,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CLUSTERS = "/api/v3/projects/{project_id}/clusters"
OWN_CLUSTER = "/clustercert/v1/projects/{project_id}/clusters/{cluster_id}"
ROTATION = "/clustercert/v1/projects/{project_id}/clusters/{cluster}/client-ca-rotation"
OPERATIONS = [
    f"GET {CLUSTERS}",
    f"GET {CLUSTERS}/{{cluster_id}}",
    f"GET {CLUSTERS}/{{cluster_id}}/openapi",
    f"GET {CLUSTERS}/{{cluster_id}}/clustercert",
    f"POST {CLUSTERS}/{{cluster_id}}/clustercert",
    "POST /autopilot/v3/projects/{project_id}/clusters/{cluster_id}/clustercert",
    f"POST {CLUSTERS}/{{cluster_id}}/clustercertrevoke",
    f"POST {OWN_CLUSTER}/revoke",
    f"POST {OWN_CLUSTER}/users/{{user_id}}/revoke",
    f"POST {OWN_CLUSTER}/certificates/{{certificate}}/revoke",
    f"GET {OWN_CLUSTER}/revocations",
    f"GET {OWN_CLUSTER}/users-by-name",
    "GET /clustercert/v1/domains/{name}/logins",
    "GET /clustercert/v1/projects/{name}/logins",
    "GET /clustercert/v1/issuers",
    "GET /clustercert/v1/caller",
    "POST /clustercert/v1/caller/logout",
    "GET /clustercert/v1/caller/access-keys",
    "DELETE /clustercert/v1/caller/access-keys/{access_key}",
    "GET /clustercert/v1/caller/sessions",
    "DELETE /clustercert/v1/caller/sessions/{session_id}",
    "POST /clustercert/v1/identity/explain",
    "POST /clustercert/v1/users/{user_id}/block",
    "POST /clustercert/v1/users/{user_id}/unblock",
    "POST /clustercert/v1/users/{user_id}/revoke",
    "GET /clustercert/v1/users/{user_id}/revocations",
    "GET /clustercert/v1/projects/{project_id}/revocations",
    "GET /clustercert/v1/revocations",
    "GET /clustercert/v1/users-by-name",
    "POST /clustercert/v1/revocations/{revocation_id}/undo",
    "POST /clustercert/v1/certificates/{certificate}/revoke-with-key",
    "GET /clustercert/v1/projects/{project_id}/certificates",
    f"GET {OWN_CLUSTER}/certificates",
    f"GET {OWN_CLUSTER}/certificates/{{certificate}}",
    f"GET {OWN_CLUSTER}/access",
    "GET /clustercert/v1/policy/explain",
    "GET /clustercert/v1/policy/entitlements",
    f"GET {REQUESTS}",
    f"POST {REQUESTS}",
    f"GET {REQUESTS}/{{access_request_id}}",
    *(f"POST {REQUESTS}/{{access_request_id}}/{step}" for step in ("approve", "deny", "extend", "end")),
    "GET /clustercert/v1/clusters",
    "GET /clustercert/v1/clusters/{cluster_id}/kubeconfig",
    "GET /clustercert/v1/clusters/{cluster_id}/offers",
    "GET /clustercert/v1/certificates",
    "GET /clustercert/v1/certificates/{certificate}",
    "POST /clustercert/v1/certificates/{certificate}/revoke",
    "GET /clustercert/v1/projects/{project_id}/certificates/{certificate}",
    "GET /clustercert/v1/clusters/{cluster_id}/client-cas/{ca_id}/crl",
    "GET /clustercert/v1/projects/{project_id}/events",
    "GET /clustercert/v1/projects/{project_id}/events/{leaf_index}",
    "GET /clustercert/v1/projects/{project_id}/events/{leaf_index}/proof",
    "GET /clustercert/v1/events",
    "GET /clustercert/v1/events/{leaf_index}",
    "GET /clustercert/v1/events/{leaf_index}/proof",
    *(
        operation.format(kind)
        for kind in ("domains", "projects", "users", "groups", "roles")
        for operation in (
            "GET /clustercert/v1/{}",
            "GET /clustercert/v1/{}/{{name}}",
            "PUT /clustercert/v1/{}/{{name}}",
            "DELETE /clustercert/v1/{}/{{name}}",
        )
    ),
    *(
        operation.format(place)
        for place in ("", "/projects/{project_id}")
        for operation in (
            "GET /clustercert/v1{}/assignments",
            "GET /clustercert/v1{}/assignments/{{role}}/{{assignees}}/{{name}}",
            "PUT /clustercert/v1{}/assignments/{{role}}/{{assignees}}/{{name}}",
            "DELETE /clustercert/v1{}/assignments/{{role}}/{{assignees}}/{{name}}",
        )
    ),
    "PUT /clustercert/v1/users/{name}/password",
    "GET /clustercert/v1/users/{name}/projects",
    "GET /clustercert/v1/groups/{name}/members",
    "PUT /clustercert/v1/groups/{name}/members/{user}",
    "DELETE /clustercert/v1/groups/{name}/members/{user}",
    "GET /clustercert/v1/users/{name}/access-keys",
    "POST /clustercert/v1/users/{name}/access-keys",
    "GET /clustercert/v1/access-keys/{access_key}",
    "PUT /clustercert/v1/access-keys/{access_key}",
    "DELETE /clustercert/v1/access-keys/{access_key}",
    "GET /clustercert/v1/projects/{project_id}/clusters",
    "GET /clustercert/v1/projects/{project_id}/clusters/{cluster}",
    "PUT /clustercert/v1/projects/{project_id}/clusters/{cluster}",
    "DELETE /clustercert/v1/projects/{project_id}/clusters/{cluster}",
    "GET /clustercert/v1/projects/{project_id}/clusters/{cluster}/client-ca",
    "GET /clustercert/v1/projects/{project_id}/clusters/{cluster}/client-cas",
    "GET /clustercert/v1/projects/{project_id}/clusters/{cluster}/client-cas/bundle",
    f"GET {ROTATION}",
    f"POST {ROTATION}",
    f"POST {ROTATION}/complete",
    f"POST {ROTATION}/abort",
    f"POST {ROTATION}/certificates",
    f"POST {ROTATION}/proofs",
    "GET /clustercert/v1/projects/{project_id}/clusters/{cluster}/unknown-credentials",
    "POST /clustercert/v1/projects/{project_id}/clusters/{cluster}/unknown-credentials",
    "GET /clustercert/v1/projects/{project_id}/client-ca-rotations",
    "GET /clustercert/v1/overview",
    "GET /clustercert/v1/fleet",
    "GET /clustercert/v1/fleet/clusters",
    "GET /clustercert/v1/client-ca-rotations",
    "GET /clustercert/v1/projects/{project_id}/clusters/{cluster}/webhook-tokens",
    "POST /clustercert/v1/projects/{project_id}/clusters/{cluster}/webhook-tokens",
    "GET /clustercert/v1/projects/{project_id}/clusters/{cluster}/webhook-tokens/{token_id}",
    "DELETE /clustercert/v1/projects/{project_id}/clusters/{cluster}/webhook-tokens/{token_id}",
    "GET /clustercert/v1/audit/log/checkpoint",
    "GET /clustercert/v1/audit/log/key",
    "GET /clustercert/v1/audit/log/consistency",
    "GET /clustercert/v1/audit/log/tile/{tile_path}",
    "GET /v3",
    "POST /clustercert/v1/kubernetes/clusters/{cluster_id}/authorize",
    "POST /clustercert/v1/kubernetes/clusters/{cluster_id}/audit-events",
    "POST /v3/auth/tokens",
    "GET /v3/users/{user_id}",
    "POST /v3/users/{user_id}/password",
    "GET /v3/auth/tokens",
    "HEAD /v3/auth/tokens",
    "DELETE /v3/auth/tokens",
    "GET /v3/projects",
    "GET /v3/projects/{project_id}",
    "GET /v3/auth/projects",
    "GET /v3/auth/catalog",
    "GET /v3/auth/domains",
    "POST /v3.0/OS-CREDENTIAL/securitytokens",
    "GET /",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
]
# These need a second token, which no generator can guess,
NEED_MORE = {"GET /v3/auth/tokens", "HEAD /v3/auth/tokens", "DELETE /v3/auth/tokens"} | {
    # or a password, which a success would change,
    "POST /v3/users/{user_id}/password",
    # or a rotation that has started,
    f"GET {ROTATION}",
    *(f"POST {ROTATION}/{step}" for step in ("complete", "abort", "certificates", "proofs")),
    # or the number of credentials that wait,
    "POST /clustercert/v1/projects/{project_id}/clusters/{cluster}/unknown-credentials",
    # or a signature, or an existing revocation to undo.
    "POST /clustercert/v1/revocations/{revocation_id}/undo",
    "POST /clustercert/v1/certificates/{certificate}/revoke-with-key",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Data of its own, because the requests create and change objects of all kinds."""
    made = worlds.make(tmp_path_factory.mktemp("schemathesis"))
    # The service connects to the API servers of a rotation.
    execute(made.database, "UPDATE cluster SET api_servers = '[\"https://127.0.0.1:1\"]'")
    return made


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx2.Client]:
    with Service(world.settings(policy=OFFERED_TO_ALL)).running() as service:
        yield service.client


@pytest.fixture(scope="module")
def operations(client: httpx2.Client) -> Operations:
    """What the OpenAPI document of the running service describes."""
    described: Any = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    found = [result.ok() for result in described.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def send(client: httpx2.Client, case: AnyCase, credential: dict[str, str] | None) -> httpx2.Response:
    """Send a case with the bytes that `requests` would send. A credential replaces the generated ones."""
    sent = requests.Request(**case.as_transport_kwargs(BASE_URL)).prepare()
    pairs = [(_bytes(name), _bytes(value)) for name, value in sent.headers.items()]
    if credential is not None:
        pairs = [pair for pair in pairs if pair[0].lower() not in (b"x-auth-token", b"authorization")]
        pairs += [(_bytes(name), _bytes(value)) for name, value in credential.items()]
    return client.request(
        sent.method or "GET", sent.url or "", headers=pairs, content=_bytes(sent.body or b"")
    )


def _bytes(text: object) -> bytes:
    assert isinstance(text, str | bytes)
    return text.encode() if isinstance(text, str) else text


def login(person: Person) -> dict[str, object]:
    user = {"id": person.user.id, "password": person.password}
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}


def make_administration_fit(case: AnyCase) -> None:
    """Remove what could name a domain that does not exist, and preconditions. Send a valid body."""
    case.query = {}
    case.headers.clear()
    if case.method in {"PUT", "POST"}:
        case.media_type, case.body = "application/json", wanted(case.path)


def test_every_operation_is_tried(operations: Operations) -> None:
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.fixture(scope="module")
def webhook_token(world: World) -> str:
    """The webhook token of the cluster `sans`."""

    async def created() -> str:
        async with open_components(world.settings()) as components:
            origin = Origin(address="local", request_id="e" * 32)
            issued = await components.webhook.tokens.create(
                world.clusters["sans"], actor=Actor(ACTOR, origin)
            )
            return issued.text

    return asyncio.run(created())


def sealed_event(world: World) -> str:
    """Return the leaf index of a sealed event in the project."""
    query = "SELECT leaf_index FROM audit_place WHERE project_id = ? LIMIT 1"
    found = eventually(lambda: rows(world.database, query, world.project.id))
    return str(found[0][0])


def issued(client: httpx2.Client, world: World) -> str:
    """Issue a certificate for the cluster `sans`, and return its fingerprint."""
    headers = world.people["reader"].headers
    response = client.post(world.path("sans"), json={"duration": -1}, headers=headers)
    return response.headers["x-clustercert-fingerprint"]


def federated(client: httpx2.Client, world: World, *, blocked: bool) -> str:
    """Return the id of a user of an OIDC issuer."""
    user_id, headers = secrets.token_hex(16), world.people["operator"].headers
    if blocked:
        client.post(f"/clustercert/v1/users/{user_id}/block", headers=headers).raise_for_status()
    return user_id


def valid_parameters(client: httpx2.Client, world: World, name: str) -> dict[str, str]:
    """Return values for the parameters in an operation's path."""
    there = {
        "project_id": world.project.id,
        "cluster_id": world.clusters["sans"].id,
        "ca_id": world.clusters["sans"].client_ca.id,
        "tile_path": "entries/000.p/1",
    }
    if "{leaf_index}" in name:
        there["leaf_index"] = sealed_event(world)
    if "{certificate}" in name:
        there["certificate"] = issued(client, world)
    if "{access_request_id}" in name:
        requests = RequestClient(world, client)
        requests.end_all()
        is_used = name.endswith("/extend")
        there["access_request_id"] = (
            requests.used("reader", "free") if is_used else requests.created("reader", "asked")
        )
    if name.startswith("DELETE /clustercert/v1/caller/access-keys"):
        there["access_key"] = new_key(client, world, "operator")
    if "{session_id}" in name:
        there["session_id"] = new_session(world, "operator")
    if name == "GET /v3/users/{user_id}":
        there["user_id"] = world.people["reader"].user.id
    if name.endswith("block"):
        there["user_id"] = federated(client, world, blocked=name.endswith("unblock"))
    return there


def credential_for(name: str, world: World, webhook_token: str) -> dict[str, str]:
    """Return a credential for an operation. Permissions are tested elsewhere."""
    if "/kubernetes/" in name:
        return {"Authorization": f"Bearer {webhook_token}"}
    if name.endswith("/logout"):
        # A success ends the token, so it is one that no other operation uses.
        return world.people["stranger"].headers
    if REQUESTS in name or name.endswith("/offers"):
        return world.people["admin" if name.endswith(("/approve", "/deny")) else "reader"].headers
    return world.people["operator" if " /clustercert/v1/" in name else "reader"].headers


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_request_is_answered_as_described(
    operations: Operations, client: httpx2.Client, world: World, webhook_token: str, name: str
) -> None:
    operation = operations[name]
    cases = st.one_of(
        operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
        operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
    )
    # Valid paths and bodies, so that not all requests are refused.
    there = valid_parameters(client, world, name)
    administers = "Administration" in operation.definition.raw.get("tags", ())
    if administers:
        there |= put_new(client, world, operation.path)
    reader = world.people["reader"]
    credential = credential_for(name, world, webhook_token)
    right: dict[str, Any] = {
        "access-requests": ASKED | {"cluster_id": world.clusters["sans"].id, "groups": ["asked"]},
        "approve": REASON,
        "deny": REASON,
        "extend": ASKED,
        "end": REASON,
        "clustercert": {"duration": 30},
        "clustercertrevoke": {"userId": reader.user.id},
        "revoke": {"reason": "superseded", "note": "a note"},
        "undo": {},
        "logout": {"keys": False},
        "block": {},
        "unblock": {},
        "explain": {"token": "a.b.c"},
        "revoke-with-key": {"signature": "c2lnbmVk"},
        "tokens": login(reader),
        "password": {"user": {"original_password": "wrong", "password": "another"}},
        "securitytokens": {"auth": {"identity": {"methods": ["token"], "token": {}}}},
        "authorize": json.loads(review(credential_id(bytes(32)))),
        "audit-events": json.loads(event_list(audit_event(credential_id(bytes(32))))),
    }

    queries = {
        "POST /clustercert/v1/caller/logout": {"dryRun": "All"},
        "GET /clustercert/v1/users-by-name": {"name": "reader"},
        f"GET {OWN_CLUSTER}/users-by-name": {"name": "reader"},
        "GET /clustercert/v1/audit/log/consistency": {"from": "0", "to": "1"},
        "GET /clustercert/v1/policy/entitlements": {"cluster": world.clusters["sans"].id, "group": "*"},
        "GET /clustercert/v1/policy/explain": {
            "cluster": world.clusters["sans"].id,
            "user": reader.user.id,
            "expires_in": "8h",
        },
    }

    @given(
        case=cases,
        known=OFTEN,
        at_home=OFTEN,
        fit=OFTEN,
        yaml=st.booleans(),
    )
    @BOUNDED
    def asked(case: AnyCase, *, known: bool, at_home: bool, fit: bool, yaml: bool) -> None:
        if at_home:
            placed = {key: there.get(key, value) for key, value in (case.path_parameters or {}).items()}
            case.path_parameters = placed
        if fit and administers:
            make_administration_fit(case)
        elif fit and case.method == "POST":
            case.media_type, case.body = "application/json", right[case.path.split("/")[-1]]
        if fit and name in queries:
            case.query = queries[name]
        if yaml:
            case.headers["Accept"] = "application/yaml"
        response = send(client, case, credential if known else None)
        met.add(response.status_code)
        case.validate_response(response, checks=list(CHECKS))

    met: set[int] = set()
    asked()
    assert met & {200, 201, 204, 300} or name in NEED_MORE

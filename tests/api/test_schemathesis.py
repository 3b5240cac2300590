"""Everything that the OpenAPI document allows, and much that it doesn't, is answered as the document says."""

import asyncio
import json
from typing import Any, TypeAlias

import httpx
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

from clustercert.app.wiring import components
from clustercert.model import Origin
from inprocess import BASE_URL
from kubernetes_bytes import audit_event, credential_id, event_list, review
from stores import rows
from waiting import eventually
from world import ACTOR, Person, World

AnyCase: TypeAlias = Case[Any]
Described: TypeAlias = Any  # schemathesis.BaseSchema, which is generic in what it does not export

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
# A request succeeds only if all of these are right, and at least one of forty requests must succeed.
OFTEN = st.sampled_from([True, True, True, False])
BOUNDED = settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CLUSTERS = "/api/v3/projects/{project_id}/clusters"
OWN_CLUSTER = "/clustercert/v1/projects/{project_id}/clusters/{cluster_id}"
OPERATIONS = [
    f"GET {CLUSTERS}",
    f"GET {CLUSTERS}/{{cluster_id}}",
    f"GET {CLUSTERS}/{{cluster_id}}/openapi",
    f"GET {CLUSTERS}/{{cluster_id}}/clustercert",
    f"POST {CLUSTERS}/{{cluster_id}}/clustercert",
    "POST /autopilot/v3/projects/{project_id}/clusters/{cluster_id}/clustercert",
    f"POST {CLUSTERS}/{{cluster_id}}/clustercertrevoke",
    f"POST {OWN_CLUSTER}/revoke",
    f"POST {OWN_CLUSTER}/certificates/{{certificate}}/revoke",
    f"GET {OWN_CLUSTER}/revocations",
    "POST /clustercert/v1/users/{user_id}/revoke",
    "GET /clustercert/v1/users/{user_id}/revocations",
    "POST /clustercert/v1/revocations/{revocation_id}/undo",
    "POST /clustercert/v1/certificates/{certificate}/revoke-with-key",
    "GET /clustercert/v1/projects/{project_id}/certificates",
    f"GET {OWN_CLUSTER}/certificates",
    f"GET {OWN_CLUSTER}/certificates/{{certificate}}",
    f"GET {OWN_CLUSTER}/access",
    "GET /clustercert/v1/certificates",
    "GET /clustercert/v1/certificates/{certificate}",
    "GET /clustercert/v1/clusters/{cluster_id}/client-cas/{ca_id}/crl",
    "GET /clustercert/v1/projects/{project_id}/events",
    "GET /clustercert/v1/projects/{project_id}/events/{event_id}",
    "GET /clustercert/v1/projects/{project_id}/events/{event_id}/proof",
    "GET /clustercert/v1/events",
    "GET /clustercert/v1/events/{event_id}",
    "GET /clustercert/v1/events/{event_id}/proof",
    "GET /clustercert/v1/audit/log/checkpoint",
    "GET /clustercert/v1/audit/log/key",
    "GET /clustercert/v1/audit/log/consistency",
    "GET /clustercert/v1/audit/log/tile/{tile_path}",
    "GET /v3",
    "POST /clustercert/v1/kubernetes/clusters/{cluster_id}/authorize",
    "POST /clustercert/v1/kubernetes/clusters/{cluster_id}/audit-events",
    "POST /v3/auth/tokens",
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
    "HEAD /healthz",
    "GET /readyz",
    "HEAD /readyz",
    "GET /metrics",
]
# Those that ask for a second token, which no generator finds.
NEED_MORE = {"GET /v3/auth/tokens", "HEAD /v3/auth/tokens", "DELETE /v3/auth/tokens"} | {
    # Or a signature, or something that is there to be undone.
    "POST /clustercert/v1/revocations/{revocation_id}/undo",
    "POST /clustercert/v1/certificates/{certificate}/revoke-with-key",
}


@pytest.fixture(scope="session")
def described(client: httpx.Client) -> Described:
    """What the running service says of itself."""
    return schemathesis.openapi.from_dict(client.get("/openapi.json").json())


def operations(described: Described) -> dict[str, Any]:
    found = [result.ok() for result in described.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def send(client: httpx.Client, case: AnyCase, credential: dict[str, str] | None) -> httpx.Response:
    """What the case says, byte for byte as requests would send it; with a credential, that one alone."""
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


def test_every_operation_is_tried(described: Described) -> None:
    assert sorted(operations(described)) == sorted(OPERATIONS)


@pytest.fixture(scope="session")
def webhook_token(world: World) -> str:
    """What the API server of the cluster `sans` has."""

    async def created() -> str:
        async with components(world.settings()) as parts:
            origin = Origin(address="local", request_id="e" * 32)
            issued = await parts.webhook.tokens.create(world.clusters["sans"], actor=ACTOR, origin=origin)
            return issued.text

    return asyncio.run(created())


def sealed_event(world: World) -> str:
    """The id of an event of the project that has its place in the log."""
    query = "SELECT event_id FROM audit_place WHERE project_id = ? LIMIT 1"
    found = eventually(lambda: rows(world.database, query, world.project.id))
    return str(found[0][0])


def issued(client: httpx.Client, world: World) -> str:
    """The fingerprint of a certificate of the cluster `sans`."""
    headers = world.people["reader"].headers
    response = client.post(world.path("sans"), json={"duration": -1}, headers=headers)
    return response.headers["x-clustercert-fingerprint"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_request_is_answered_as_described(
    described: Described, client: httpx.Client, world: World, webhook_token: str, name: str
) -> None:
    operation = operations(described)[name]
    cases = st.one_of(
        operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
        operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
    )
    # Places and bodies that are right, so that more is met than refusals.
    there = {
        "project_id": world.project.id,
        "cluster_id": world.clusters["sans"].id,
        "event_id": sealed_event(world),
        "certificate": issued(client, world),
        "ca_id": world.clusters["sans"].client_ca.id,
        "tile_path": "entries/000.p/1",
    }
    reader = world.people["reader"]
    credential = reader.headers
    if "/kubernetes/" in name:
        credential = {"Authorization": f"Bearer {webhook_token}"}
    elif " /clustercert/v1/" in name:
        # Who may ask for what is another test's business.
        credential = world.people["operator"].headers
    right: dict[str, Any] = {
        "clustercert": {"duration": 30},
        "clustercertrevoke": {"userId": reader.user.id},
        "revoke": {"reason": "superseded", "note": "a note"},
        "undo": {},
        "revoke-with-key": {"signature": "c2lnbmVk"},
        "tokens": login(reader),
        "securitytokens": {"auth": {}},
        "authorize": json.loads(review(credential_id(bytes(32)))),
        "audit-events": json.loads(event_list(audit_event(credential_id(bytes(32))))),
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
        if fit and case.method == "POST":
            case.media_type, case.body = "application/json", right[case.path.split("/")[-1]]
        if fit and name.endswith("/log/consistency"):
            case.query = {"from": "0", "to": "1"}
        if yaml:
            case.headers["Accept"] = "application/yaml"
        response = send(client, case, credential if known else None)
        met.add(response.status_code)
        case.validate_response(response, checks=list(CHECKS))

    met: set[int] = set()
    asked()
    assert met & {200, 201, 204, 300} or name in NEED_MORE

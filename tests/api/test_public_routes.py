"""What all routes check first: the credential, unless they are public, and then the names of query parameters."""

from collections import defaultdict

import pytest

from clustercert.http.openapi import document
from support.service import Service
from support.world import World

PUBLIC = {
    ("GET", "/"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    # Require a token of their own.
    ("GET", "/metrics"),
    ("GET", "/v3"),
    ("POST", "/v3/auth/tokens"),
    ("POST", "/v3/users/{user_id}/password"),
    # Also takes a token in its body.
    ("POST", "/v3.0/OS-CREDENTIAL/securitytokens"),
    ("GET", "/clustercert/v1/issuers"),
    ("GET", "/clustercert/v1/audit/log/checkpoint"),
    ("GET", "/clustercert/v1/audit/log/key"),
    ("GET", "/clustercert/v1/audit/log/consistency"),
    ("GET", "/clustercert/v1/audit/log/tile/{tile_path}"),
    ("GET", "/clustercert/v1/clusters/{cluster_id}/client-cas/{ca_id}/crl"),
    ("POST", "/clustercert/v1/certificates/{certificate}/revoke-with-key"),
}


def routes(service: Service) -> set[tuple[str, str]]:
    """Return method and path template of each documented route."""
    app = service.app.app.default  # type: ignore[attr-defined]
    return {
        (method.upper(), path) for path, operations in document(app)["paths"].items() for method in operations
    }


@pytest.mark.parametrize("query", ["", "?limit=0&cursor=x&dryRun=x&unknown=1"])
def test_every_other_route_requires_a_credential_first(service: Service, world: World, query: str) -> None:
    assert routes(service) >= PUBLIC
    ids = defaultdict(lambda: "nothing", project_id=world.project.id)
    for method, template in sorted(routes(service) - PUBLIC):
        # The body would be a 400, too.
        response = service.client.request(method, template.format_map(ids) + query, content=b"{")
        assert response.status_code == 401, (method, template)


def test_our_own_api_refuses_an_unknown_query_parameter(service: Service, world: World) -> None:
    own = {each for each in routes(service) - PUBLIC if each[1].startswith("/clustercert/v1/")}
    # API servers authenticate at these by a token of their own.
    own -= {(method, path) for method, path in own if path.startswith("/clustercert/v1/kubernetes/")}
    ids = defaultdict(lambda: "nothing", project_id=world.project.id)
    headers = world.people["operator"].headers
    for method, template in sorted(own):
        response = service.client.request(method, template.format_map(ids) + "?nmae=x", headers=headers)
        assert response.status_code == 400, (method, template)
        assert response.json()["message"].startswith("nmae: unknown query parameter. ")


def test_the_other_apis_ignore_an_unknown_query_parameter(service: Service, world: World) -> None:
    headers = world.people["admin"].headers
    for path in ("/v3/projects", f"/api/v3/projects/{world.project.id}/clusters"):
        assert service.client.get(f"{path}?nmae=x", headers=headers).status_code == 200

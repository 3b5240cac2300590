"""Every route but the public ones requires a credential, before it checks anything else."""

from collections import defaultdict

import pytest

from clustercert.http.openapi import document
from support.service import Service
from support.world import World

PUBLIC = {
    ("GET", "/"),
    ("GET", "/healthz"),
    ("HEAD", "/healthz"),
    ("GET", "/readyz"),
    ("HEAD", "/readyz"),
    # Requires a token of its own.
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


@pytest.mark.parametrize("query", ["", "?limit=0&cursor=x&dryRun=x&unknown=1"])
def test_every_other_route_requires_a_credential_first(service: Service, world: World, query: str) -> None:
    app = service.app.app.default  # type: ignore[attr-defined]
    routes = {
        (method.upper(), path) for path, operations in document(app)["paths"].items() for method in operations
    }
    assert routes >= PUBLIC
    ids = defaultdict(lambda: "nothing", project_id=world.project.id)
    for method, template in sorted(routes - PUBLIC):
        # The body would be a 400, too.
        response = service.client.request(method, template.format_map(ids) + query, content=b"{")
        assert response.status_code == 401, (method, template)

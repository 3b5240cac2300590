"""Every route checks the limits once."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from clustercert.http.openapi import document
from clustercert.limits import Limiter, RouteClass
from clustercert.model import Caller
from clustercert.model.errors import TooManyRequests
from support.service import Service
from support.world import World

OPERATIONS = {"/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"}
FAMILIES: dict[str, RouteClass] = {
    "/api/v3/": "cce",
    "/autopilot/v3/": "cce",
    "/v3": "keystone",
    "/clustercert/v1/kubernetes/": "webhook",
    "/clustercert/v1/": "api",
}
ANONYMOUS = {
    "/v3",
    "/v3/",
    "/v3/users/{user_id}/password",
    "/clustercert/v1/issuers",
    "/clustercert/v1/audit/log/checkpoint",
    "/clustercert/v1/audit/log/key",
    "/clustercert/v1/audit/log/consistency",
    "/clustercert/v1/audit/log/tile/{tile_path}",
    "/clustercert/v1/clusters/{cluster_id}/client-cas/{ca_id}/crl",
    "/clustercert/v1/certificates/{certificate}/revoke-with-key",
    "/clustercert/v1/kubernetes/clusters/{cluster_id}/authorize",
    "/clustercert/v1/kubernetes/clusters/{cluster_id}/audit-events",
}


@dataclass
class Recording:
    """A limiter that records each check. With `refuses`, it rejects every request."""

    refuses: bool = False
    checks: list[tuple[RouteClass, str, Caller | None]] = field(default_factory=list)

    async def check(self, route: RouteClass, address: str, caller: Caller | None) -> None:
        self.checks.append((route, address, caller))
        if self.refuses:
            raise TooManyRequests("The limit is reached. Try again in 7 seconds.", retry_after=7)


def application(service: Service) -> Any:
    app: Any = service.app
    return app.app.default


@pytest.fixture
def limiter(service: Service) -> Iterator[Recording]:
    app, recording = application(service), Recording()
    before = app.state.services
    app.state.services = replace(before, limiter=recording)
    yield recording
    app.state.services = before


def calls(service: Service) -> list[tuple[str, str]]:
    """Return method and path template of each route with limits."""
    documented = document(application(service))["paths"].items()
    return [
        ("GET", "/v3/"),
        *(
            (method.upper(), path)
            for path, operations in documented
            if path not in OPERATIONS
            for method in operations
        ),
    ]


def send(service: Service, world: World, method: str, template: str) -> httpx.Response:
    path = template.format_map(
        defaultdict(lambda: "nothing")
        | {
            "project_id": world.project.id,
            # Not a cluster of the world, because some routes revoke.
            "cluster_id": "00000000-0000-4000-8000-000000000000",
            "tile_path": "0/000",
            "user_id": world.people["reader"].user.id,
            "certificate": "ab" * 32,
            "event_id": "1",
            "revocation_id": "999999",
            "ca_id": "a" * 32,
        }
    )
    body: dict[str, object] | None = {} if method in {"POST", "PUT"} else None
    # Otherwise the admin's token would end.
    params = {"dryRun": "All"} if template.endswith("/caller/logout") else None
    return service.client.request(
        method, path, params=params, headers=world.people["admin"].headers, json=body
    )


def is_anonymous(method: str, template: str) -> bool:
    return template in ANONYMOUS or (method, template) == ("POST", "/v3/auth/tokens")


def test_every_route_passes_the_limiter_once(service: Service, world: World, limiter: Recording) -> None:
    families = set()
    for method, template in calls(service):
        limiter.checks.clear()
        send(service, world, method, template)
        [(route, address, caller)] = limiter.checks
        assert route == next(name for prefix, name in FAMILIES.items() if template.startswith(prefix))
        assert address == "127.0.0.1"
        expected = None if is_anonymous(method, template) else world.people["admin"].user.id
        assert (caller.user.id if caller else None) == expected, (method, template)
        families.add(route)
    assert families == {"cce", "keystone", "api", "webhook"}


def test_a_request_over_its_limit_is_a_429(service: Service, world: World, limiter: Recording) -> None:
    limiter.refuses = True
    for method, template in calls(service):
        response = send(service, world, method, template)
        assert (response.status_code, response.headers["Retry-After"]) == (429, "7"), (method, template)
        if method != "HEAD" and not template.startswith("/v3"):
            assert response.json()["errorCode"] == "CCE.02429001"


@pytest.mark.parametrize("refuses", [False, True])
def test_a_failed_authentication_passes_the_limiter_too(
    service: Service, world: World, limiter: Recording, refuses: bool
) -> None:
    limiter.refuses = refuses
    response = service.client.post(world.path(), headers={"X-Auth-Token": "x"}, json={"duration": 1})
    assert response.status_code == (429 if refuses else 401)
    assert limiter.checks == [("cce", "127.0.0.1", None)]


def test_by_default_nothing_is_limited(service: Service) -> None:
    limiter: Limiter = application(service).state.services.limiter
    assert type(limiter).__name__ == "Unlimited"

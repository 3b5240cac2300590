"""An API server, registered as a cluster of a running demo."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import httpx2

from support.installed_demo import Demo, Tenant, operator
from support.wait import SECONDS, eventually


class Addressed(Protocol):
    """The address of an API server, and the PEM file of its serving CA."""

    url: str
    server_ca: Path


@dataclass(frozen=True, slots=True)
class RegisteredCluster:
    """The tenant, with this cluster instead of the demo's."""

    tenant: Tenant
    ca_bundle_pem: bytes

    def issue(self, accept: str = "application/json") -> httpx2.Response:
        """POST clustercert. Retries while a newly registered cluster is not found."""

        def found() -> httpx2.Response | None:
            answer = self.post(self.tenant.clustercert_path, {"duration": 1}, accept)
            return None if answer.status_code == 404 else answer

        answer = eventually(found)
        assert answer is not None
        assert answer.status_code == 200, answer.text
        return answer

    def kubeconfig(self) -> dict[str, Any]:
        document: dict[str, Any] = self.issue().json()
        return document

    def post(self, path: str, body: object, accept: str = "application/json") -> httpx2.Response:
        """POST as the tenant's user. The caller checks the response."""
        return httpx2.post(
            self.tenant.url + path,
            json=body,
            headers={"X-Auth-Token": self.tenant.token, "Accept": accept},
            verify=self.tenant.verify,
            timeout=SECONDS,
        )

    def get(self, path: str) -> Any:
        """GET as the tenant's user. Returns the JSON."""
        answer = httpx2.get(
            self.tenant.url + path,
            headers={"X-Auth-Token": self.tenant.token},
            verify=self.tenant.verify,
            timeout=SECONDS,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()


def register(demo: Demo, name: str, apiserver: Addressed, *more: str) -> RegisteredCluster:
    """Register the cluster as the operator. Its API server does not trust the client CA yet."""
    tenant = demo.own
    added = operator(
        demo, "cluster", "add", name, "--project", tenant.project_id, "--internal-url", apiserver.url,
        "--server-ca", apiserver.server_ca, *more, "--output", "json",
    )  # fmt: skip
    cluster_id = json.loads(added)["id"]
    bundle_pem = operator(demo, "cluster", "ca", "show", cluster_id, "--bundle").encode()
    client_ca = apiserver.server_ca.with_name(f"{name}-client-ca.pem")
    client_ca.write_bytes(bundle_pem)
    return RegisteredCluster(replace(tenant, cluster_id=cluster_id, client_ca=client_ca), bundle_pem)

"""Accounts and bindings of credentials in the memory of a double of an API server, and in a ledger."""

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast
from urllib.parse import quote

from clustercert.http_client import UnreadableResponse
from clustercert.kube_api import MAX_OBJECT_BYTES, ApiServerRefused, KubeApi
from clustercert.model import CertificateRecord, ClientCA, Cluster, ClusterOptions, JsonObject
from clustercert.model.errors import RemoteFailed
from clustercert.model.group_roles import RoleGrant
from clustercert.model.kubernetes import USERS_NAMESPACE
from clustercert.model.token_objects import ACCOUNTS_PATH, TokenObjects, bindings_path
from support.samples import CLUSTER_ID, NOW, client_ca, cluster
from support.stores import certificate_record

T = TypeVar("T")
GROUP_ROLES = {"clustercert:admins": ("clusterrole/view", "clusterrole/edit@blue")}
ROLES = tuple(map(RoleGrant.parse, GROUP_ROLES["clustercert:admins"]))
VIEW, EDIT = ROLES


def token_cluster(number: int = 0, group_roles: Mapping[str, tuple[str, ...]] = GROUP_ROLES) -> Cluster:
    """A cluster whose credentials are tokens."""
    cluster_id = CLUSTER_ID if not number else f"{number:08x}{CLUSTER_ID[8:]}"
    ca = ClientCA(
        id=f"{number:032x}", cluster_id=cluster_id, certificate=None, sealed_key=b"sealed", signer="token"
    )
    return replace(
        cluster(client_ca()),
        id=cluster_id,
        name=f"tokens-{number}",
        client_ca=ca,
        signer="token",
        options=ClusterOptions(group_roles=group_roles),
    )


def token_record(**changed: object) -> CertificateRecord:
    """A token as the ledger records it."""
    record, _ = certificate_record()
    token = replace(
        record,
        serial=os.urandom(16).hex(),
        cluster_id=CLUSTER_ID,
        groups=("clustercert:admins",),
        der=b"",
        key_type="",
        key_origin="none",
        kind="token",
        not_before=NOW,
        not_after=NOW + timedelta(hours=8),
    )
    return replace(token, **changed)  # type: ignore[arg-type] # as the tests say


def token_objects(record: CertificateRecord, installation: str) -> TokenObjects:
    return TokenObjects(
        installation, record.credential_number, record.user_id, record.user_name, record.not_after
    )


@dataclass
class MemoryApi:
    """An API server that lists and deletes objects.

    Attributes:
        objects: path -> object.
        failures: path, or beginning of a path, -> status of all requests.
        on_request: called before each request with the method and the path.
        page: the number of objects in a page, whatever the client asks for.
        longest: the longest list that the client reads, in bytes.
    """

    objects: dict[str, JsonObject] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    on_request: Callable[[str, str], Awaitable[None]] | None = None
    page: int = 250
    longest: int = MAX_OBJECT_BYTES

    async def call(self, _cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        return await work(cast("KubeApi", self))

    def add(self, collection: str, document: JsonObject) -> str:
        metadata: Any = document["metadata"]
        path = f"{collection}/{quote(metadata['name'], safe='')}"
        self.objects[path] = deepcopy(document)
        return path

    def issue(self, objects: TokenObjects, roles: tuple[RoleGrant, ...] = ROLES) -> list[str]:
        """Create the objects of a credential. Returns their paths, first the account's."""
        paths = [self.add(ACCOUNTS_PATH, objects.account_document())]
        return paths + [
            self.add(bindings_path(role), document)
            for role, document in zip(roles, objects.binding_documents(roles), strict=True)
        ]

    async def get(
        self, path: str, parameters: Mapping[str, str] | None = None, *, max_bytes: int = MAX_OBJECT_BYTES
    ) -> JsonObject:
        await self._request("GET", path)
        query = parameters or {}
        found = [
            document
            for name, document in sorted(self.objects.items())
            if name.rpartition("/")[0] == path and _selected(document, query.get("labelSelector", ""))
        ]
        start = int(query.get("continue", "0"))
        end = start + min(self.page, int(query.get("limit", str(self.page))))
        metadata = {"continue": str(end)} if end < len(found) else {}
        if len(json.dumps(found[start:end])) > min(self.longest, max_bytes):
            raise RemoteFailed("The cluster's API server sent too much.") from UnreadableResponse("too much")
        return {"metadata": metadata, "items": found[start:end]}

    async def delete(self, path: str) -> None:
        await self._request("DELETE", path)
        self.objects.pop(path, None)

    async def _request(self, method: str, path: str) -> None:
        self.requests.append((method, path))
        if self.on_request is not None:
            await self.on_request(method, path)
        for prefix, status in self.failures.items():
            if f"{method} {path}".startswith(prefix):
                raise ApiServerRefused(status, "refused by the test")


def _selected(document: JsonObject, selector: str) -> bool:
    metadata: Any = document["metadata"]
    labels = metadata.get("labels") or {}
    equal, _, listed = selector.partition("clustercert/credential in (")
    pairs = [part.split("=") for part in equal.split(",") if part]
    return all(labels.get(name) == value for name, value in pairs) and (
        not listed or labels.get("clustercert/credential") in listed.rstrip(")").split(",")
    )


def default_account() -> JsonObject:
    """What Kubernetes creates in each namespace."""
    return {"metadata": {"name": "default", "namespace": USERS_NAMESPACE}}


def service_account_binding(name: str, account: str, **metadata: object) -> JsonObject:
    """A binding that somebody else created for an account of the namespace of users."""
    return {
        "metadata": {"name": name, **metadata},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": USERS_NAMESPACE}],
    }


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)

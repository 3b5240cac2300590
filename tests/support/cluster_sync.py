"""A store and an API-server double whose bindings are synchronized."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from clustercert.kubernetes.api_client import ClientIdentity, KubeApi
from clustercert.kubernetes.bindings import Binding, bind, list_fingerprints
from clustercert.kubernetes.reconcile import Sync
from clustercert.model import CertificateRecord, Cluster, ClusterOptions
from support.apiserver import ApiServer
from support.credential_ledger import CredentialLedger
from support.managed_cluster import REVOKED, ROLES
from support.samples import cluster
from support.stores import NOW, Store

T = TypeVar("T")


@dataclass
class Root:
    """Connects to the API server as `system:masters`."""

    double: ApiServer

    async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        pem = self.double._own_ca.client_identity_pem("root", ("system:masters",))
        async with KubeApi(
            self.double.url, self.double.server_ca.read_bytes(), ClientIdentity(pem, b"")
        ) as api:
            return await work(api)


@dataclass
class Scene:
    """A cluster, its ledger and its API server."""

    certificates: CredentialLedger
    root: Root
    store: Store
    room: int = 8000
    clock: float = 1000.0
    now: datetime = NOW
    sync: Sync = field(init=False)

    def __post_init__(self) -> None:
        self.sync = Sync(
            self.certificates.queries,
            self.root,
            self.certificates.database.record,
            lambda: self.now,
            clock=lambda: self.clock,
            room=self.room,
        )

    async def done(self, **options: Any) -> None:
        said = ClusterOptions(**(options or {"credential_roles": ROLES}))
        await self.sync.sync_cluster(replace(cluster(), options=said))

    async def bound(self) -> set[str]:
        return set(await self.root.call(cluster(), list_fingerprints))

    async def bind(self, record: CertificateRecord) -> None:
        await self.root.call(cluster(), lambda api: bind(api, binding(record)))

    async def listed(self) -> dict[str, str]:
        found: Any = await self.root.call(cluster(), lambda api: api.get(REVOKED))
        return dict(found.get("data") or {})


def binding(record: CertificateRecord, role: str = "cluster-admin") -> Binding:
    return Binding(number(record), role, record.fingerprint.hex(), record.not_after)


def number(record: CertificateRecord) -> str:
    """In certificates from older versions, the serial is the number."""
    return record.credential_number or record.serial


def name(record: CertificateRecord) -> str:
    return f"clustercert:credential:{number(record)}"

"""A cluster whose credentials are tokens: the double of kube-apiserver, with the service's account in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from clustercert.issuance.signers.token import TokenSigner
from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.kubernetes.setup.token_access import token_access
from clustercert.model import ClientCA, Cluster, ClusterOptions
from clustercert.model.clusters import Registration
from clustercert.model.group_roles import roles_of_groups
from clustercert.model.kubernetes import ACCESS_NAMESPACE, ISSUER_ACCOUNT, TOKEN_SIGNER, USERS_NAMESPACE
from clustercert.model.token_objects import binding_number
from clustercert.pki.signer import CaRequest, TokenOrder
from support.apiserver import ApiServer, kinds
from support.apiserver.storage import Document
from support.ring_sealer import RingSealer
from support.samples import CLUSTER_ID, NOW, USER_ID
from support.samples import cluster as sample_cluster
from support.signing_cluster import MemoryClusters

GROUP_ROLES: Mapping[str, tuple[str, ...]] = {
    "team:blue": ("clusterrole/view", "clusterrole/edit@blue", "role/pods@blue"),
    "team:red": ("clusterrole/view",),
}
BINDINGS = (kinds.CLUSTER_ROLE_BINDINGS, kinds.ROLE_BINDINGS)


def give_access(
    double: ApiServer,
    installation: str = "0" * 32,
    group_roles: Mapping[str, tuple[str, ...]] = GROUP_ROLES,
) -> None:
    """Create the objects of `token_access`, like an administrator, and the mapped namespace and role."""
    double.add_namespace("blue")
    pods = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    double.storage.create(kinds.ROLES, "blue", {"metadata": {"name": "pods"}, "rules": pods})
    by_name = {kind.name: kind for kind in kinds.KINDS}
    for each in token_access(installation, group_roles, allow_cluster_admin=False):
        document: Any = {**each}
        namespace = document["metadata"].get("namespace", "")
        double.storage.create(by_name[document["kind"]], namespace, document)


def first_token(double: ApiServer, namespace: str = ACCESS_NAMESPACE, name: str = ISSUER_ACCOUNT) -> bytes:
    """What `kubectl create token` prints."""
    return double.tokens.token(namespace, name, (double.tokens.issuer,)).encode() + b"\n"


def registration_of(
    double: ApiServer, group_roles: Mapping[str, tuple[str, ...]] = GROUP_ROLES
) -> Registration:
    return Registration(
        "prod",
        double.url,
        double.server_ca.read_bytes(),
        signer=TOKEN_SIGNER,
        options=ClusterOptions(group_roles=group_roles),
    )


def accounts_in(double: ApiServer) -> list[str]:
    """The names of the accounts in the namespace of the credentials."""
    found = double.storage.all(kinds.SERVICE_ACCOUNTS, USERS_NAMESPACE)
    return [name for each in found if (name := each["metadata"]["name"]) != "default"]


def bindings_in(double: ApiServer) -> list[Document]:
    """The bindings of credentials in the whole cluster."""
    found = [each for kind in BINDINGS for each in double.storage.all(kind)]
    return [each for each in found if binding_number(each["metadata"]["name"])]


async def status_of(double: ApiServer, token: str, path: str = "/api/v1/namespaces") -> int:
    """The status of a GET with a token."""
    async with KubeApi(double.url, double.server_ca.read_bytes(), None) as api:
        api.use_token(token)
        try:
            await api.get(path)
        except ApiServerRefused as refused:
            return refused.http_status
    return 200


@dataclass
class Looks:
    """The looks at clusters: which were made, and the problem that they find."""

    problem: str | None = None
    made: list[tuple[Registration, str]] = field(default_factory=list)

    async def __call__(self, api: Any, cluster: Registration, installation: str) -> str | None:
        self.made.append((cluster, installation))
        await api.get("/version")
        return self.problem


@dataclass
class TokenSite:
    """A cluster, and a signer that creates accounts in it."""

    double: ApiServer
    clusters: MemoryClusters
    ring: RingSealer
    looks: Looks
    signer: TokenSigner
    ca: ClientCA

    @property
    def cluster(self) -> Cluster:
        return replace(
            sample_cluster(self.ca),
            internal_url=self.double.url,
            server_ca_pem=self.double.server_ca.read_bytes(),
            signer=TOKEN_SIGNER,
            options=ClusterOptions(group_roles=GROUP_ROLES),
        )

    @property
    def token(self) -> str:
        """The token of the service's account that is stored."""
        return self.ring.ring.unseal(self.clusters.sealed[self.ca.id], f"client_ca:{self.ca.id}").decode()

    def order(self, lifetime: timedelta = timedelta(hours=8), *groups: str) -> TokenOrder:
        return TokenOrder(
            self.cluster,
            (uuid4().hex + uuid4().hex)[:40],
            USER_ID,
            "Anna Blume",
            roles_of_groups(groups or ("team:blue",), GROUP_ROLES),
            self.double.now().replace(microsecond=0) + lifetime,
        )

    def at(self, now: datetime) -> None:
        self.double.now = lambda: now

    async def left(self) -> list[str]:
        """The names of all objects of credentials, once the deletions under way have ended."""
        for connection in self.signer._connections:
            await connection.tasks.close()
        return [*accounts_in(self.double), *(each["metadata"]["name"] for each in bindings_in(self.double))]


def new_signer(double: ApiServer, clusters: MemoryClusters, ring: RingSealer, looks: Looks) -> TokenSigner:
    """A signer with the clock of the double, whose own tokens live for 10 hours."""
    return TokenSigner(clusters, ring, timedelta(hours=10), looks, lambda: double.now())  # noqa: PLW0108 - it may be replaced later


async def token_site(double: ApiServer) -> TokenSite:
    """Register the double."""
    give_access(double)
    double.now = lambda: NOW.replace(microsecond=0)
    clusters, ring, looks = MemoryClusters(double, signer=TOKEN_SIGNER), RingSealer(), Looks()
    signer = new_signer(double, clusters, ring, looks)
    request = ca_request(double, first_token(double))
    return TokenSite(double, clusters, ring, looks, signer, clusters.store(await signer.create_ca(request)))


def ca_request(double: ApiServer, secret: bytes | None) -> CaRequest:
    """A request for the cluster's `ClientCA`."""
    return CaRequest(CLUSTER_ID, registration_of(double), "ec-p256", NOW, timedelta(days=1), secret)

"""A managed cluster, whose API server's flags are fixed: the double of kube-apiserver with our manifests applied."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar, cast

from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.kube_api import ApiServerRefused, ClientIdentity, KubeApi
from clustercert.kubernetes.setup.admission import CONFIG_MAP, NAMESPACE, admission
from clustercert.kubernetes.setup.rbac import service_access
from clustercert.model import Actor, Cluster, ClusterOptions, JsonObject, Origin
from clustercert.model.clusters import Registration
from clustercert.wiring import open_components
from support.apiserver import ApiServer
from support.wait import SECONDS
from support.world import World

T = TypeVar("T")

ROLES = {"admin": "cluster-admin", "member": "edit"}
NAMESPACES = "/api/v1/namespaces"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
REVOKED = f"{NAMESPACES}/{NAMESPACE}/configmaps/{CONFIG_MAP}"

PATHS = {
    "Namespace": NAMESPACES,
    "ConfigMap": f"{NAMESPACES}/{NAMESPACE}/configmaps",
    "ServiceAccount": f"{NAMESPACES}/{NAMESPACE}/serviceaccounts",
    "Role": f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles",
    "RoleBinding": f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": BINDINGS,
    "ValidatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
}


def registration(double: ApiServer, name: str, options: ClusterOptions) -> Registration:
    """The registration of the double as a cluster."""
    return Registration(
        name=name,
        internal_url=double.url,
        server_ca_pem=double.server_ca.read_bytes(),
        options=options,
    )


def register(world: World, double: ApiServer, name: str, options: ClusterOptions | None = None) -> Cluster:
    """Register the double in the world's project. It trusts the cluster's client CA."""

    async def added() -> Cluster:
        async with open_components(world.settings()) as components:
            wanted = registration(double, name, options or ClusterOptions())
            actor = Actor("cli:test", Origin.local())
            return await components.clusters.add(world.project.id, wanted, actor=actor)

    cluster = asyncio.run(added())
    double.trust(cluster.client_ca.ca_certificate.public_bytes(Encoding.PEM))
    return cluster


def set_up(double: ApiServer, roles: Iterable[str] = ROLES.values()) -> None:
    """Apply the manifests like an operator."""
    apply(double, [*admission(), *service_access(roles)])


def apply(double: ApiServer, documents: Iterable[JsonObject]) -> None:
    """Create objects like an operator with `kubectl apply`."""
    for document in documents:
        path = path_of(document)
        as_admin(double, lambda api, path=path, document=document: api.create(path, document))  # type: ignore[misc] # the lambda has no types


def path_of(document: JsonObject) -> str:
    """The path to create an object at, in the namespace that the object names."""
    path, metadata = PATHS[str(document["kind"])], cast("JsonObject", document["metadata"])
    return path.replace(f"/{NAMESPACE}/", f"/{metadata.get('namespace', NAMESPACE)}/")


def as_admin(double: ApiServer, work: Callable[[KubeApi], Awaitable[T]]) -> T:
    """Run requests as a member of system:masters."""
    pem = double._own_ca.client_identity_pem("kubernetes-admin", ("system:masters",))
    return _done(double, ClientIdentity(pem, b""), work)


def as_user(double: ApiServer, kubeconfig: Any, work: Callable[[KubeApi], Awaitable[T]]) -> T:
    """Run requests with an issued kubeconfig."""
    user = kubeconfig["users"][0]["user"]
    identity = ClientIdentity(
        base64.b64decode(user["client-certificate-data"]), base64.b64decode(user["client-key-data"])
    )
    return _done(double, identity, work)


def status(double: ApiServer, kubeconfig: Any, path: str = NAMESPACES) -> int:
    """The status of a GET with a kubeconfig."""
    try:
        as_user(double, kubeconfig, lambda api: api.get(path))
    except ApiServerRefused as refused:
        return refused.http_status
    return 200


def write_status(double: ApiServer, kubeconfig: Any, name: str) -> int:
    """The status of creating a namespace with a kubeconfig."""
    try:
        as_user(double, kubeconfig, lambda api: api.create(NAMESPACES, {"metadata": {"name": name}}))
    except ApiServerRefused as refused:
        return refused.http_status
    return 201


def bindings(double: ApiServer) -> dict[str, JsonObject]:
    """The bindings that the service made for credential groups, by name."""
    listed: Any = as_admin(double, lambda api: api.get(BINDINGS))
    found = {item["metadata"]["name"]: item for item in listed["items"] if "labels" in item["metadata"]}
    return {name: item for name, item in found.items() if name.startswith("clustercert:credential:")}


def revoked(double: ApiServer) -> dict[str, str]:
    """The data of the ConfigMap of revoked ids."""
    found: Any = as_admin(double, lambda api: api.get(REVOKED))
    return dict(found.get("data") or {})


def _done(double: ApiServer, identity: ClientIdentity, work: Callable[[KubeApi], Awaitable[T]]) -> T:
    async def run() -> T:
        ca = double.server_ca.read_bytes()
        async with KubeApi(double.url, ca, identity, seconds=SECONDS) as api:
            return await work(api)

    return asyncio.run(run())

"""A cluster whose credentials are tokens: the double of kube-apiserver, with our objects and people with rights."""

import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2

from clustercert.kube_api import ClientIdentity, tls_context
from clustercert.kubernetes.setup.token_access import token_access
from clustercert.model import JsonObject
from clustercert.model.group_roles import RoleGrant, roles_of_groups
from clustercert.model.kubernetes import ACCESS_NAMESPACE, ISSUER_ACCOUNT, USERS_NAMESPACE
from clustercert.model.token_objects import ACCOUNTS_PATH, RBAC, TokenObjects, bindings_path
from support.apiserver import ApiServer, kinds
from support.apiserver.service_accounts import ISSUER
from support.managed_cluster import apply

INSTALLATION = "1" * 32
NUMBER = "ab" * 20
GROUP_ROLES: Mapping[str, tuple[str, ...]] = {
    "viewers": ("clusterrole/view",),
    "devs": ("clusterrole/edit@shop", "clusterrole/admin@team"),
    "leads": ("role/deployer@team",),
}
CLUSTER_ROLES = f"/apis/{RBAC}/v1/clusterroles"


@dataclass
class TokenCluster:
    """The double with namespaces `shop`, `team` and `people`, and what `token_access` returns.

    Attributes:
        root: the token of an administrator, by a ClusterRoleBinding.
        issuer: the token of the service's own account.
    """

    double: ApiServer
    group_roles: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: GROUP_ROLES)

    def __post_init__(self) -> None:
        for name in ("shop", "team", "people"):
            self.double.add_namespace(name)
        rules = [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["update"]}]
        self.double.storage.create(kinds.ROLES, "team", {"metadata": {"name": "deployer"}, "rules": [*rules]})
        context = ssl.create_default_context(cafile=str(self.double.server_ca))
        self._http = httpx2.Client(base_url=self.double.url, verify=context, trust_env=False)
        self.root = self.person("root", "cluster-admin")

    def set_up(self, *, allow_cluster_admin: bool = False) -> None:
        """Apply all objects as `system:masters`."""
        apply(
            self.double,
            token_access(INSTALLATION, self.group_roles, allow_cluster_admin=allow_cluster_admin),
        )
        self.issuer = self.double.tokens.token(ACCESS_NAMESPACE, ISSUER_ACCOUNT, [ISSUER])

    def close(self) -> None:
        self._http.close()

    def person(self, name: str, role: str, namespace: str = "", *, of: str = "people") -> str:
        """Create an account with a role, in a namespace or in the whole cluster. Returns the account's token."""
        self.double.add_service_account(of, name)
        kind = kinds.ROLE_BINDINGS if namespace else kinds.CLUSTER_ROLE_BINDINGS
        binding = {
            "metadata": {"name": f"person-{name}"},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": of}],
        }
        self.double.storage.create(kind, namespace, binding)
        return self.double.tokens.token(of, name, [ISSUER], 10_000_000)

    def ask(
        self,
        token: str,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> httpx2.Response:
        """Send one request with a bearer token."""
        return self._http.request(
            method,
            path,
            content=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": content_type,
                **(headers or {}),
            },
        )

    def with_certificate(self, username: str) -> httpx2.Client:
        """A client with a certificate of the cluster's own CA."""
        pem = self.double._own_ca.client_identity_pem(username, ())
        context = tls_context(self.double.server_ca.read_bytes(), ClientIdentity(pem, b""))
        return httpx2.Client(base_url=self.double.url, verify=context, trust_env=False)

    def objects(
        self, number: str = NUMBER, user: str = "alice", installation: str = INSTALLATION
    ) -> TokenObjects:
        return TokenObjects(installation, number, "f" * 32, user, datetime(2099, 1, 1, tzinfo=UTC))

    def issue(self, groups: Sequence[str], number: str = NUMBER, user: str = "alice") -> str:
        """Create a credential with the service's account, as the service does. Returns its token."""
        objects, roles = self.objects(number, user), roles_of_groups(groups, self.group_roles)
        made = [self.ask(self.issuer, "POST", ACCOUNTS_PATH, objects.account_document())]
        token = self.ask(self.issuer, "POST", f"{ACCOUNTS_PATH}/{objects.account}/token", token_request(3600))
        made += [
            self.ask(self.issuer, "POST", bindings_path(role), document)
            for role, document in zip(roles, objects.binding_documents(roles), strict=True)
        ]
        assert [answer.status_code for answer in (*made, token)] == [201] * (len(made) + 1), [
            answer.text for answer in (*made, token)
        ]
        return str(token.json()["status"]["token"])

    def end_bindings(self, groups: Sequence[str], number: str = NUMBER) -> list[int]:
        """Delete the bindings of a credential with the service's account. Returns the statuses."""
        roles = roles_of_groups(groups, self.group_roles)
        documents: list[Any] = self.objects(number).binding_documents(roles)
        return [
            self.ask(
                self.issuer, "DELETE", f"{bindings_path(role)}/{document['metadata']['name']}"
            ).status_code
            for role, document in zip(roles, documents, strict=True)
        ]

    def snapshot(self) -> Sequence[object]:
        """All objects that a credential's rights depend on."""
        of_access = (
            kinds.SERVICE_ACCOUNTS,
            kinds.SECRETS,
            kinds.PODS,
            kinds.DEPLOYMENTS,
            kinds.ROLES,
            kinds.ROLE_BINDINGS,
        )
        cluster = (kinds.CLUSTER_ROLES, kinds.CLUSTER_ROLE_BINDINGS, kinds.NAMESPACES)
        policies = (kinds.POLICIES, kinds.POLICY_BINDINGS)
        storage = self.double.storage
        return [
            *(storage.all(kind, USERS_NAMESPACE) for kind in of_access),
            *(storage.all(kind, ACCESS_NAMESPACE) for kind in of_access),
            *(storage.all(kinds.ROLE_BINDINGS, namespace) for namespace in ("shop", "team", "kube-system")),
            *(storage.all(kind) for kind in (*cluster, *policies)),
        ]


def token_request(seconds: int) -> JsonObject:
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": seconds},
    }


def binding_document(
    name: str,
    role: RoleGrant,
    subjects: Sequence[Mapping[str, object]],
    labels: Mapping[str, str] | None = None,
) -> JsonObject:
    """A ClusterRoleBinding or RoleBinding of any name, labels and subjects."""
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding" if role.namespace else "ClusterRoleBinding",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "roleRef": {"apiGroup": RBAC, "kind": role.kind, "name": role.name},
        "subjects": [*subjects],
    }

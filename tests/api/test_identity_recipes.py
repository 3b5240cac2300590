"""The recipes of docs/identity.md with issuers and clusters: from a token to what its certificate may do there."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from clustercert.kubernetes.setup.rbac import token_review_access
from clustercert.model import Cluster
from clustercert.settings import load
from support import world as worlds
from support.apiserver import ApiServer, kinds
from support.apiserver.service_accounts import JWKS
from support.identity_page import NAMED_PROJECT, recipe_file, recipe_lines
from support.issuer_login import Login
from support.issuer_tokens import GITHUB, fresh
from support.managed_cluster import apply, as_admin, register, status, write_status
from support.oidc import IssuerServer, signed
from support.real_issuers import oidc_provider
from support.service import Service
from support.world import World

pytestmark = pytest.mark.slow

AUDIENCES = 'audiences = ["clustercert"]'
NAMESPACES = "/api/v1/namespaces"
BLUE = f"{NAMESPACES}/blue/configmaps"


@dataclass(frozen=True)
class Place:
    """A world and a cluster's API server, which trusts the client CA of the cluster."""

    world: World
    double: ApiServer
    cluster: Cluster

    @contextmanager
    def serving(self, name: str, replaced: dict[str, str]) -> Iterator[Service]:
        """The service with a recipe as its settings file."""
        file = recipe_file(self.world.folder, name, {NAMED_PROJECT: "tests/eu-de"} | replaced)
        settings = load(file, data_dir=self.world.folder / "data", kek_file=self.world.folder / "kek")
        with Service(settings).running() as service:
            yield service

    def issue(self, service: Service, token: str) -> httpx2.Response:
        path = f"/api/v3/projects/{self.cluster.project_id}/clusters/{self.cluster.id}/clustercert"
        return service.client.post(path, json={"duration": -1}, headers={"Authorization": f"Bearer {token}"})

    def kubeconfig(self, service: Service, token: str) -> Any:
        response = self.issue(service, token)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = worlds.make(tmp_path)
    (tmp_path / "cluster-b").mkdir()
    with ApiServer(tmp_path / "cluster-b") as double:
        yield Place(world, double, register(world, double, "cluster-b"))


def test_a_keycloak_group_may_edit_its_teams_namespace(place: Place) -> None:
    """As `kubectl create rolebinding` on the page says."""
    place.double.add_namespace("blue")
    binding: dict[str, object] = {
        "metadata": {"name": "team-blue"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "team:sso/team-blue"}
        ],
    }
    path = "/apis/rbac.authorization.k8s.io/v1/namespaces/blue/rolebindings"
    as_admin(place.double, lambda api: api.create(path, binding))
    groups = {"alice": ["/team-blue", "/platform"], "bob": ["/platform"]}
    with oidc_provider(place.world.folder, groups) as issuer:
        replaced = {
            "https://sso.example.com/realms/acme": issuer.url,
            AUDIENCES: f'{AUDIENCES}\nca_file = "{issuer.ca_file}"',
        }
        with place.serving("keycloak", replaced) as service:
            kubeconfig = place.kubeconfig(service, Login(issuer).by_code("alice")["id_token"])
            assert place.issue(service, Login(issuer).by_code("bob")["id_token"]).status_code == 404
    assert status(place.double, kubeconfig, BLUE) == 200
    assert status(place.double, kubeconfig, f"{NAMESPACES}/default/configmaps") == 403


def test_a_github_repository_gets_one_group(place: Place) -> None:
    place.double.bind("ci:deploy", "edit")
    (place.world.folder / "github").mkdir()
    with IssuerServer(place.world.folder / "github").running() as keys:
        more = f'{AUDIENCES}\njwks_uri = "{keys.url}/keys"\nca_file = "{keys.ca_file}"'
        with place.serving("github", {AUDIENCES: more}) as service:

            def token(**changed: object) -> str:
                return signed(fresh(GITHUB, **changed), keys.keys[-1])

            kubeconfig = place.kubeconfig(service, token())
            assert place.issue(service, token(ref="refs/heads/feature")).status_code == 404
            assert place.issue(service, token(repository_owner_id="1")).status_code == 401
    assert status(place.double, kubeconfig, f"{NAMESPACES}/default/configmaps") == 200
    assert status(place.double, kubeconfig, "/version") == 200
    assert write_status(place.double, kubeconfig, "other") == 403


def test_a_service_account_of_cluster_a_reads_cluster_b(place: Place) -> None:
    place.double.bind("clustercert:viewers", "view")
    folder = place.world.folder / "cluster-a"
    folder.mkdir()
    with ApiServer(folder) as cluster_a:
        for namespace, name in (("monitoring", "prometheus"), ("default", "prometheus")):
            cluster_a.add_service_account(namespace, name)
        keys = folder / "cluster-a.jwks"
        keys.write_text(json.dumps(as_admin(cluster_a, lambda api: api.get(JWKS))))
        with place.serving("kubernetes", {"/etc/clustercert/cluster-a.jwks": str(keys)}) as service:
            token = cluster_a.tokens.token("monitoring", "prometheus", ["clustercert"])
            kubeconfig = place.kubeconfig(service, token)
            other = cluster_a.tokens.token("default", "prometheus", ["clustercert"])
            assert place.issue(service, other).status_code == 404
            for_cluster_a = cluster_a.tokens.token("monitoring", "prometheus", [cluster_a.tokens.issuer])
            assert place.issue(service, for_cluster_a).status_code == 401
    assert status(place.double, kubeconfig) == 200
    assert write_status(place.double, kubeconfig, "other") == 403


def test_a_service_account_of_a_registered_cluster_reads_cluster_b(place: Place) -> None:
    """With the rights of `kubernetes setup --service-accounts review`, as the page says."""
    place.double.bind("clustercert:viewers", "view")
    folder = place.world.folder / "cluster-a"
    folder.mkdir()
    with ApiServer(folder) as cluster_a:
        cluster_a.add_service_account("monitoring", "prometheus")
        registered = register(place.world, cluster_a, "cluster-a")
        apply(cluster_a, token_review_access())
        example = re.search(r'cluster = "(.+)"', recipe_lines("token-review"))
        assert example is not None
        lines = recipe_lines("token-review").replace(example[1], registered.id)
        with place.serving("kubernetes", {'keys_file = "/etc/clustercert/cluster-a.jwks"': lines}) as service:
            token = cluster_a.tokens.token("monitoring", "prometheus", ["clustercert"])
            kubeconfig = place.kubeconfig(service, token)
            cluster_a.storage.delete(kinds.SERVICE_ACCOUNTS, "monitoring", "prometheus")
            later = cluster_a.tokens.signed("monitoring", "prometheus", "the-uid", ["clustercert"])
            assert place.issue(service, later).status_code == 401
    assert status(place.double, kubeconfig) == 200
    assert write_status(place.double, kubeconfig, "other") == 403

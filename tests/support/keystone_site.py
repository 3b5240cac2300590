"""A service that trusts a double of Keystone, and requests of its users."""

import base64
import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert.wiring import Components, open_components
from support import world as worlds
from support.keystone_double import KeystoneDouble
from support.service import Service
from support.wait import eventually
from support.world import World

RULES = [
    {"name": "blue", "when": {"groups": ["keystone/acme/team-*"]}, "grant": {"groups": ["team:{group}"]}},
    {"name": "alice", "when": {"users": ["alice", "acme/alice"]}, "grant": {"groups": ["built-in-alice"]}},
    {"name": "apps", "when": {"auth_methods": ["keystone_app"]}, "grant": {"groups": ["apps"]}},
    {"name": "admin", "when": {"roles": ["admin"]}, "grant": {"groups": ["clustercert:admins"]}},
    {"name": "member", "when": {"roles": ["member"]}, "grant": {"groups": ["clustercert:members"]}},
]


@dataclass
class Site:
    """A service that trusts a Keystone."""

    world: World
    keystone: KeystoneDouble
    service: Service
    operator: Components

    @property
    def client(self) -> httpx2.Client:
        return self.service.client

    def user(self, *roles: str, groups: tuple[str, ...] = (), project: str | None = None) -> str:
        user_id = self.keystone.add_user(f"user-{secrets.token_hex(4)}", groups=groups)
        self.keystone.roles[user_id, project or self.world.project.id] = list(roles)
        return user_id

    def token(self, user_id: str, **changed: object) -> str:
        return self.keystone.add_token(user_id, self.world.project.id, **changed)

    def post(self, token: str, cluster: str = "plain", header: str = "X-Auth-Token") -> httpx2.Response:
        headers = {header: token if header == "X-Auth-Token" else f"Bearer {token}"}
        return self.client.post(self.world.path(cluster), json={"duration": 1}, headers=headers)

    def events(self, subject: str, kind: str) -> list[dict[str, Any]]:
        headers = self.world.people["operator"].headers

        def found() -> list[dict[str, Any]]:
            answer = self.client.get("/clustercert/v1/events", params={"limit": 500}, headers=headers).json()
            return [
                event
                for event in answer["events"]
                if subject in (event["subject"], event["actor"]) and event["kind"] == kind
            ]

        return eventually(found)


@contextlib.contextmanager
def running(folder: Path, **changed: object) -> Iterator[Site]:
    """A site. `changed`: settings of Keystone."""
    world = worlds.make(folder)
    with KeystoneDouble().running() as keystone:
        keystone.add_project(world.project.id)
        keystone.add_project(world.other_project.id)
        own = keystone.settings(projects=[world.project.id], system_roles={"admin": "operator"}, **changed)
        identity = {"region": worlds.REGION, "keystone": own}
        settings = world.settings(identity=identity, policy={"rules": RULES}, console={"enabled": True})
        with Service(settings).running() as service:
            opened = open_components(settings)
            yield Site(world, keystone, service, service.run(opened.__aenter__()))
            service.run(opened.__aexit__(None, None, None))


def names(response: httpx2.Response, kind: x509.ObjectIdentifier) -> list[str]:
    assert response.status_code == 200, response.text
    pem = base64.b64decode(response.json()["users"][0]["user"]["client-certificate-data"])
    found = x509.load_pem_x509_certificate(pem).subject.get_attributes_for_oid(kind)
    return [str(each.value) for each in found if not str(each.value).startswith("clustercert:credential:")]


def groups(response: httpx2.Response) -> list[str]:
    return sorted(names(response, NameOID.ORGANIZATION_NAME))

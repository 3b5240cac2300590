"""The administrator of a real Keystone, and the people whom they create there."""

import hashlib
import json
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from support.real_keystone import RealKeystone
from support.wait import SECONDS

SYSTEM = {"system": {"all": True}}


@dataclass(frozen=True, slots=True)
class Person:
    """A user of Keystone who has a password."""

    id: str
    name: str
    password: str
    domain_id: str

    @property
    def identity(self) -> dict[str, Any]:
        """The part of a login that says who it is."""
        return {
            "methods": ["password"],
            "password": {"user": {"id": self.id, "password": self.password}},
        }


@dataclass(frozen=True, slots=True)
class Key:
    """An EC2 credential. `id` is the one of the credential in Keystone."""

    id: str
    access_key: str
    secret_key: str


def _credential_id(access_key: str) -> str:
    return hashlib.sha256(access_key.encode()).hexdigest()


def in_project(project_id: str) -> dict[str, Any]:
    return {"project": {"id": project_id}}


class Administrator:
    """What the administrator does through Keystone's API. Everything new has a name of its own.

    Attributes:
        roles: the ids of the roles, by name.
    """

    def __init__(self, keystone: RealKeystone) -> None:
        # A test may stop Keystone, which ends the connections that are open.
        unkept = httpx2.Limits(max_keepalive_connections=0)
        tls = ssl.create_default_context(cafile=keystone.ca)
        self.http = httpx2.Client(base_url=keystone.url, verify=tls, timeout=SECONDS, limits=unkept)
        self.renew()
        self.roles = {role["name"]: role["id"] for role in self.call("GET", "roles")["roles"]}

    def renew(self) -> None:
        """Log in, again if Keystone forgot its tokens."""
        who = {"name": "admin", "domain": {"id": "default"}, "password": "admin"}
        self.token = self.log_in({"methods": ["password"], "password": {"user": who}}, SYSTEM)

    def call(self, method: str, path: str, body: object = None, token: str | None = None) -> Any:
        """The answer's document; None if it has none. Fails unless the request succeeds."""
        answer = self.http.request(method, path, json=body, headers={"X-Auth-Token": token or self.token})
        assert answer.is_success, (method, path, answer.text)
        return answer.json() if answer.content else None

    def log_in(self, identity: Mapping[str, Any], scope: object = None) -> str:
        """A new token."""
        auth = {"identity": identity} | ({} if scope is None else {"scope": scope})
        answer = self.http.post("auth/tokens", json={"auth": auth})
        assert answer.status_code == 201, answer.text
        return answer.headers["X-Subject-Token"]

    def revoke(self, token: str) -> None:
        headers = {"X-Auth-Token": self.token, "X-Subject-Token": token}
        assert self.http.delete("auth/tokens", headers=headers).status_code == 204

    def new(self, kind: str, /, **fields: object) -> str:
        """The id of a new domain, project, group and so on."""
        body = {kind: {"name": f"{kind}-{secrets.token_hex(4)}", **fields}}
        return str(self.call("POST", f"{kind}s", body)[kind]["id"])

    def change(self, kind: str, id_: str, /, **fields: object) -> None:
        self.call("PATCH", f"{kind}s/{id_}", {kind: fields})

    def new_person(self, domain_id: str, name: str | None = None) -> Person:
        name, password = name or f"user-{secrets.token_hex(4)}", secrets.token_hex(8)
        id_ = self.new("user", name=name, domain_id=domain_id, password=password)
        return Person(id_, name, password, domain_id)

    def new_endpoint(self, service_type: str, url: str, region: str) -> None:
        """Put a service into the catalog."""
        region_id = self.call("PUT", f"regions/{region}", {"region": {}})["region"]["id"]
        service_id = self.new("service", type=service_type)
        endpoint = {"interface": "public", "url": url, "service_id": service_id, "region_id": region_id}
        self.call("POST", "endpoints", {"endpoint": endpoint})

    def add_to_group(self, group_id: str, person: Person) -> None:
        self.call("PUT", f"groups/{group_id}/users/{person.id}")

    def grant(self, role: str, who: str, where: str) -> None:
        """Grant a role: grant("member", "users/…", "projects/…"). `where` may be "system"."""
        self.call("PUT", f"{where}/{who}/roles/{self.roles[role]}")

    def take(self, role: str, who: str, where: str) -> None:
        """Take back what `grant` granted."""
        self.call("DELETE", f"{where}/{who}/roles/{self.roles[role]}")

    def new_key(self, person: Person, project_id: str) -> Key:
        """An access key for a person, made with a token of theirs as `openstack ec2 credentials create` does."""
        token = self.log_in(person.identity, in_project(project_id))
        path = f"users/{person.id}/credentials/OS-EC2"
        made = self.call("POST", path, {"tenant_id": project_id}, token)["credential"]
        return Key(_credential_id(made["access"]), made["access"], made["secret"])

    def new_odd_key(self, person: Person, project_id: str, kind: str = "ec2", **blob: object) -> Key:
        """An access key as Keystone stores it, with a blob of which parts are given."""
        whole = {"access": secrets.token_hex(16), "secret": secrets.token_hex(16), **blob}
        fields = {
            "type": kind,
            "user_id": person.id,
            "project_id": project_id,
            "blob": json.dumps(whole),
        }
        made = self.call("POST", "credentials", {"credential": fields})["credential"]
        return Key(made["id"], str(whole["access"]), str(whole["secret"]))

    def delete_key(self, key: Key) -> None:
        self.call("DELETE", f"credentials/{key.id}")

    def new_application_credential(self, person: Person, project_id: str, **fields: object) -> dict[str, Any]:
        """The part of a login that says who it is, for a new application credential."""
        token = self.log_in(person.identity, in_project(project_id))
        body = {"application_credential": {"name": secrets.token_hex(4), **fields}}
        made = self.call("POST", f"users/{person.id}/application_credentials", body, token)
        known = {name: made["application_credential"][name] for name in ("id", "secret")}
        return {"methods": ["application_credential"], "application_credential": known}

    def new_trust(self, trustor: Person, trustee: Person, project_id: str, *roles: str) -> str:
        """The id of a trust with impersonation."""
        token = self.log_in(trustor.identity, in_project(project_id))
        fields = {
            "trustor_user_id": trustor.id,
            "trustee_user_id": trustee.id,
            "project_id": project_id,
            "impersonation": True,
            "roles": [{"name": role} for role in roles],
        }
        return str(self.call("POST", "OS-TRUST/trusts", {"trust": fields}, token)["trust"]["id"])

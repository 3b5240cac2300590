"""A running application with built-in identity, and requests to its Keystone API."""

from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import httpx2

from clustercert.identity.directory import Directory
from clustercert.model import Actor, Domain, Origin, Project, User
from clustercert.pki.request_signature import SignatureCredential, SignedParts, payload_hash, sign
from clustercert.wiring import Components, initialise, open_components
from support.service import BASE_URL, Service
from support.wait import eventually
from support.world import settings

T = TypeVar("T")


class _By(TypedDict):
    actor: Actor


BY: _By = {"actor": Actor("cli:test", Origin(address="local", request_id="0" * 32))}
PASSWORD = "correct horse"
UNAUTHORIZED = {
    "error": {
        "code": 401,
        "message": "The request you have made requires authentication.",
        "title": "Unauthorized",
    },
    "error_code": "CCE.01401001",
    "error_msg": "The request you have made requires authentication.",
}


@dataclass(frozen=True)
class KeystoneData:
    """What is in a new store, in this folder."""

    folder: Path
    domain: Domain
    project: Project
    alice: User


async def new_data(folder: Path) -> KeystoneData:
    """A domain, a project, and alice as its admin. The key-encryption key is there."""
    await initialise(settings(folder), **BY)
    async with open_components(settings(folder)) as operator:
        directory = operator.identity.directory
        domain = await directory.create_domain("OTC1", **BY)
        project = await directory.create_project("eu-de", domain, **BY)
        alice = await directory.create_user("alice", domain, password=PASSWORD, **BY)
        await operator.identity.roles.assign("admin", alice, project, **BY)
    return KeystoneData(folder, domain, project, alice)


@dataclass
class Keystone:
    """A running application, and an operator who works on its store like another process."""

    service: Service
    operator: Components
    domain: Domain
    project: Project
    alice: User

    @property
    def http(self) -> httpx2.Client:
        return self.service.client

    @property
    def directory(self) -> Directory:
        return self.operator.identity.directory

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the operator."""
        return self.service.run(work)

    def new_user(self, name: str, password: str | None = PASSWORD, domain: Domain | None = None) -> User:
        return self.do(self.directory.create_user(name, domain or self.domain, password=password, **BY))

    def new_project(self, name: str, domain: Domain | None = None) -> Project:
        return self.do(self.directory.create_project(name, domain or self.domain, **BY))

    def assign(self, role: str, user: User, project: Project | None) -> None:
        self.do(self.operator.identity.roles.assign(role, user, project, **BY))

    def new_key(self, user: User) -> tuple[str, str]:
        """AK and SK."""
        issued = self.do(self.operator.identity.access_keys.create(user, **BY))
        return issued.key.id, issued.secret

    def login(self, user: User | None = None, scope: object = None) -> str:
        """A token."""
        response = self.http.post("/v3/auth/tokens", json=login_body(user or self.alice, scope))
        assert response.status_code == 201, response.text
        return response.headers["x-subject-token"]

    def signed(
        self,
        method: str,
        path: str,
        key: tuple[str, str],
        *,
        query: str = "",
        body: bytes = b"",
        more: dict[str, str] | None = None,
    ) -> httpx2.Response:
        """Send a request signed like the vendors' Python SDK; `more` are unsigned headers."""
        date = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        headers = ((b"host", BASE_URL.removeprefix("http://").encode()), (b"x-sdk-date", date.encode()))
        parts = SignedParts(method, path, query, headers, payload_hash(body))
        authorization = sign(parts, SignatureCredential("flat", key[0]), key[1].encode())
        url = f"{path}?{query}" if query else path
        return self.http.request(
            method,
            url,
            content=body,
            headers={"X-Sdk-Date": date, "Authorization": authorization, **(more or {})},
        )

    def eventually_refused(self, token: str) -> None:
        """Wait until the application has seen the change of another process."""
        headers = {"X-Auth-Token": token}
        eventually(lambda: self.http.get("/v3/auth/projects", headers=headers).status_code == 401)


def login_body(user: User, scope: object = None, password: str = PASSWORD) -> dict[str, Any]:
    identity: dict[str, object] = {
        "methods": ["password"],
        "password": {"user": {"id": user.id, "password": password}},
    }
    auth: dict[str, object] = {"identity": identity}
    return {"auth": auth if scope is None else {**auth, "scope": scope}}


def in_project(project: Project) -> dict[str, Any]:
    return {"project": {"id": project.id}}

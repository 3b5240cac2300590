"""The permission tables of the documentation, and a request for each cell."""

import base64
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.certificates.revocation import statement_to_sign
from clustercert.model import PrivateKey
from clustercert.pki.certificates import fingerprint
from support.administration import new_key, put_new, unique, wanted
from support.ca_rotation import set_draining
from support.keystone import PASSWORD
from support.kubernetes_messages import audit_event, credential_id, event_list, review
from support.leaf_checks import leaf_of
from support.request_client import ASKED, REASON, RequestClient
from support.stores import execute, rows
from support.wait import eventually
from support.world import World

# Parameters of the paths of the administration API, and its paths of lists that callers add to.
ADMINISTRATION = re.compile(r"\{(name|cluster|access_key)\}|/(access-keys|webhook-tokens)$")
DOCUMENT = Path(__file__).parents[2] / "docs" / "rights.md"
PEOPLE = ("anonymous", "reader", "member", "admin", "operator", "auditor", "stranger")
API_SERVERS = ("anonymous", "person", "own token", "another's token")


@dataclass(frozen=True)
class Cell:
    """One request and the status that the documentation promises.

    Attributes:
        about: owner of the object: `own`, `another's`, or empty if it makes no difference.
        who: the column, which names the caller.
    """

    operation: str
    about: str
    who: str
    status: int

    def __str__(self) -> str:
        return " ".join(filter(None, (self.operation, self.about, self.who)))


def cells(heading: str, columns: tuple[str, ...]) -> list[Cell]:
    """The cells of the table under a heading. Its first two columns are the operation and the owner of the object."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n##")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    found = []
    for operation, about, *statuses in lines:
        assert len(statuses) == len(columns), operation
        found += [
            Cell(operation.strip("` "), about.strip(" -"), who, int(status))
            for who, status in zip(columns, statuses, strict=True)
        ]
    return found


@dataclass
class CellRequests:
    """Sends the request of a cell to a service.

    Attributes:
        tokens: webhook tokens of the clusters `plain` and `eip`, by column.
        key: the key of certificates that are revoked by their key.
    """

    world: World
    client: httpx2.Client
    tokens: dict[str, str] = field(default_factory=dict)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def ask(self, cell: Cell) -> httpx2.Response:
        method, template = cell.operation.split(" ")
        whose = self._whose(cell)
        own = {}
        if template.startswith("/clustercert/v1/caller/access-keys"):
            own = {"access_key": new_key(self.client, self.world, whose)}
        elif ADMINISTRATION.search(template):
            own = put_new(self.client, self.world, template)
        rotated = self._rotated(cell.operation, own) if "{cluster}/client-ca-rotation" in template else {}
        path = re.sub(
            r"\{(\w+)\}", lambda match: own.get(match[1]) or self._placed(match[1], template, whose), template
        )
        query = self._query(path, whose, cell.about)
        headers = self._credential(cell.who)
        if "/auth/tokens" in path and method != "POST":
            headers |= {"X-Subject-Token": self.login(whose)}
        body = self._body(method, path, whose) if not rotated else _rotation_body(path, rotated)
        content = json.dumps(body).encode() if body is not None else b""
        return self.client.request(
            method,
            path,
            params=query,
            content=content,
            headers=headers | {"Content-Type": "application/json"},
        )

    def _query(self, path: str, whose: str, about: str) -> dict[str, str]:
        world = self.world
        if path.endswith("/identity/explain"):
            return {}
        return {
            "certificates": {"own": "true"} if about == "own" else {},
            "consistency": {"from": "0", "to": "1"},
            # Otherwise the person's token would end.
            "logout": {"dryRun": "All"},
            "users-by-name": {"name": world.people[whose].user.name},
            "entitlements": {"cluster": world.clusters["plain"].id, "group": "*"},
            "explain": {"cluster": world.clusters["plain"].id, "user": world.people[whose].user.id},
        }.get(path.rsplit("/", 1)[-1], {})

    def _rotated(self, operation: str, own: Mapping[str, str]) -> Any:
        """Start the rotation that the operation is about. Only a draining rotation can be completed."""
        # The service connects to the API servers of a rotation.
        refusing = "UPDATE cluster SET api_servers = '[\"https://127.0.0.1:1\"]' WHERE id = ? OR name = ?"
        execute(self.world.database, refusing, own["cluster"], own["cluster"])
        if operation.startswith("POST") and operation.endswith("rotation"):
            return {}
        path = (
            f"/clustercert/v1/projects/{self.world.project.id}/clusters/{own['cluster']}/client-ca-rotation"
        )
        made = self.client.post(path, headers=self.world.people["operator"].headers).raise_for_status().json()
        if operation.endswith("complete"):
            set_draining(self.world.database, made["id"])
        return made

    def login(self, who: str) -> str:
        """A new token of this person."""
        return self.client.post("/v3/auth/tokens", json=self._proof(who)).headers["x-subject-token"]

    def _whose(self, cell: Cell) -> str:
        if cell.about == "own" and cell.who != "anonymous":
            return cell.who
        return "reader" if cell.who == "member" else "member"

    def _credential(self, who: str) -> dict[str, str]:
        if who in self.tokens:
            return {"Authorization": f"Bearer {self.tokens[who]}"}
        if who == "person":
            return self.world.people["admin"].headers
        return self.world.people[who].headers if who in self.world.people else {}

    def _placed(self, name: str, template: str, whose: str) -> str:
        world = self.world
        if name == "certificate":
            by_key = template.endswith("revoke-with-key")
            return self.issued("member", self.key) if by_key else self.issued(whose)
        if name == "user_id" and template.endswith("block"):
            return self.federated(blocked=template.endswith("unblock"))
        if name in ("access_request_id", "session_id"):
            in_use = template.endswith("extend")
            return new_session(world, whose) if name == "session_id" else self.requested(whose, in_use=in_use)
        if template == "/v3/users/{user_id}/password":
            return self.with_password()
        if name == "revocation_id":
            path = f"/clustercert/v1/users/{world.people['reader'].user.id}/revoke"
            return str(self.client.post(path, headers=world.people["operator"].headers).json()["id"])
        return {
            "project_id": world.project.id,
            "cluster_id": world.clusters["plain"].id,
            "user_id": world.people[whose].user.id,
            "ca_id": world.clusters["plain"].client_ca.id,
            "leaf_index": self.sealed_event(),
            "tile_path": "entries/000.p/1",
        }[name]

    def federated(self, *, blocked: bool) -> str:
        """The id of a user of an OIDC issuer."""
        user_id, headers = secrets.token_hex(16), self.world.people["operator"].headers
        if blocked:
            path = f"/clustercert/v1/users/{user_id}/block"
            self.client.post(path, headers=headers).raise_for_status()
        return user_id

    def with_password(self) -> str:
        """The id of a new user, whose password is PASSWORD."""
        path, headers = f"/clustercert/v1/users/{unique()}", self.world.people["operator"].headers
        made = self.client.put(path, json={"password": PASSWORD}, headers=headers)
        return str(made.raise_for_status().json()["id"])

    def issued(self, who: str, key: PrivateKey | None = None) -> str:
        """The fingerprint of a new certificate. Without a role in the project, the admin's certificate is used."""
        has_role = who in ("reader", "member", "admin")
        headers = self.world.people[who if has_role else "admin"].headers
        body: dict[str, object] = {"duration": 1}
        if key is not None:
            body["csr"] = csr(key)
        answer = self.client.post(self.world.path("plain"), json=body, headers=headers)
        return fingerprint(leaf_of(answer.json())).hex()

    def requested(self, who: str, *, in_use: bool) -> str:
        """The id of a new access request. Without a role in the project, the admin's request is used."""
        requests = RequestClient(self.world, self.client)
        requests.end_all()
        asker = who if who in ("reader", "member", "admin") else "admin"
        return requests.used(asker, "free") if in_use else requests.created(asker, "asked")

    def sealed_event(self) -> str:
        """The id of a sealed event of the project."""
        query = "SELECT leaf_index FROM audit_place WHERE project_id = ? LIMIT 1"
        found = eventually(lambda: rows(self.world.database, query, self.world.project.id))
        return str(found[0][0])

    def _proof(self, who: str) -> dict[str, object]:
        person = self.world.people[who]
        user = {"id": person.user.id, "password": person.password}
        return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}

    def _body(self, method: str, path: str, whose: str) -> object:
        if method == "PUT" or (method == "POST" and ADMINISTRATION.search(path)):
            return wanted(path)
        if method != "POST":
            return None
        last = path.rsplit("/", 1)[-1]
        if last == "revoke-with-key":
            statement = statement_to_sign("clustercert", path.split("/")[-2])
            return {"signature": base64.b64encode(self.key.sign(statement)).decode()}
        if last == "access-requests":
            RequestClient(self.world, self.client).end_all()
        return {
            "access-requests": {"cluster_id": self.world.clusters["plain"].id, "groups": ["asked"]} | ASKED,
            "unknown-credentials": {"count": 0},
            "approve": REASON,
            "deny": REASON,
            "extend": ASKED,
            "clustercert": {"duration": 1},
            "password": {"user": {"original_password": PASSWORD, "password": f"new {PASSWORD}"}},
            "explain": {"token": "a.b.c"},
            "clustercertrevoke": {"userId": self.world.people[whose].user.id},
            "tokens": self._proof(whose),
            "securitytokens": {"auth": {"identity": {"methods": ["token"], "token": {}}}},
            "authorize": json.loads(review(credential_id(bytes(32)))),
            "audit-events": json.loads(event_list(audit_event(credential_id(bytes(32))))),
        }.get(last)


def _rotation_body(path: str, rotation: Any) -> object:
    """The body of a request about a rotation that has started."""
    result = {
        "client_ca_id": rotation["new_ca"]["id"],
        "address": rotation["api_servers"][0]["address"],
        "outcome": "accepted",
    }
    bodies: dict[str, object] = {
        "certificates": {"csr": csr(Ed25519PrivateKey.generate())},
        "proofs": {"results": [result]},
    }
    return bodies.get(path.rsplit("/", 1)[-1])


def new_session(world: World, who: str) -> str:
    """The id of a new session in the console."""
    session_id, now = secrets.token_hex(32), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"
    execute(
        world.database,
        "INSERT INTO console_session (id, user_id, issuer, method, address, created_at, seen_at)"
        " VALUES (?, ?, 'built-in', 'token', '192.0.2.1', ?, ?)",
        *(session_id, world.people[who].user.id, now, now),
    )
    return session_id


def csr(key: PrivateKey) -> str:
    """A certificate request, PEM."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    digest = None if isinstance(key, Ed25519PrivateKey) else SHA256()
    return request.sign(key, digest).public_bytes(Encoding.PEM).decode()


def operations(document: dict[str, dict[str, Iterable[str]]]) -> set[str]:
    """The operations of an OpenAPI document."""
    return {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}

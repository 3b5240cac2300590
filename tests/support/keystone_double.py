"""A double of Keystone on loopback, whose answers have the form of a real one's. Tests change what it knows."""

import contextlib
import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

from support import ports

if TYPE_CHECKING:
    import socket

DOMAIN = {"id": "3a8616d857504b0fac16ba47dc5327ea", "name": "acme"}
PASSWORD = "of-the-service"


@dataclass
class Answer:
    """A response. `work` runs before it is sent."""

    body: object
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    work: Callable[[], object] = lambda: None

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Request:
    """A request that the double received."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


def problem(status: int) -> Answer:
    return Answer({"error": {"code": status, "message": "…", "title": "…"}}, status)


def rfc3339(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class KeystoneDouble:
    """Users with roles and groups, their tokens and credentials, and the service's user.

    Attributes:
        passwords: of users who log in themselves, by their ids.
        system_roles: role names of users in the scope `system`, by their ids.
        overrides: answers by the beginning of a path, instead of what is known.
        requests: those received so far.
    """

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, list[dict[str, Any]]] = {}
        self.roles: dict[tuple[str, str], list[str]] = {}
        self.domains: dict[str, dict[str, Any]] = {DOMAIN["id"]: {**DOMAIN, "enabled": True}}
        self.projects: dict[str, dict[str, Any]] = {}
        self.passwords: dict[str, str] = {}
        self.system_roles: dict[str, list[str]] = {}
        self.tokens: dict[str, dict[str, Any]] = {}
        self.credentials: dict[str, dict[str, Any]] = {}
        self.service_tokens: dict[str, dict[str, Any]] = {}
        self.service_lifetime = timedelta(hours=1)
        self.overrides: dict[str, Callable[[Request], Answer]] = {}
        self.requests: list[Request] = []
        self._reserved: socket.socket | None = None
        self._http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{ports.port_of(self._reserved) if self._reserved else 0}/v3"

    def settings(self, **changed: object) -> dict[str, Any]:
        """The settings of this Keystone."""
        service = {"username": "clustercert", "password": PASSWORD}
        return {"url": self.url, "service": service} | changed

    def asked(self, path: str) -> int:
        """How often it was asked for paths that begin so, without logins."""
        return sum(each.method == "GET" and each.path.startswith(path) for each in self.requests)

    @property
    def log_ins(self) -> int:
        return sum(each.method == "POST" for each in self.requests)

    def add_project(self, project_id: str, *, enabled: bool = True, domain: str = DOMAIN["id"]) -> None:
        self.projects[project_id] = {
            "id": project_id,
            "name": "eu-de",
            "domain_id": domain,
            "enabled": enabled,
            "is_domain": False,
        }

    def add_user(self, name: str, user_id: str | None = None, *, groups: tuple[str, ...] = ()) -> str:
        user_id = user_id or secrets.token_hex(16)
        self.users[user_id] = {
            "id": user_id,
            "name": name,
            "domain_id": DOMAIN["id"],
            "enabled": True,
            "password_expires_at": None,
            "options": {},
        }
        self.groups[user_id] = [self.group(group) for group in groups]
        return user_id

    def group(self, name: str, domain: str = DOMAIN["id"]) -> dict[str, Any]:
        own_id = hashlib.sha256(f"{domain}/{name}".encode()).hexdigest()[:32]
        return {"id": own_id, "name": name, "domain_id": domain, "description": ""}

    def add_token(self, user_id: str, project_id: str | None = None, **changed: object) -> str:
        """A new token of the user, for a project or without scope. A value of None leaves a member out."""
        now = datetime.now(UTC)
        user = self.users[user_id]
        domain = self.domains[user["domain_id"]]
        body: dict[str, Any] = {
            "methods": ["password"],
            "user": {
                "domain": {"id": domain["id"], "name": domain["name"]},
                "id": user_id,
                "name": user["name"],
                "password_expires_at": None,
            },
            "audit_ids": ["VKWjVQDyTJWUgS-4SGMiEg"],
            "expires_at": rfc3339(now + timedelta(hours=1)),
            "issued_at": rfc3339(now),
        }
        if project_id is not None:
            names = self.roles.get((user_id, project_id), [])
            body |= {
                "project": {"domain": DOMAIN, "id": project_id, "name": "eu-de"},
                "is_domain": False,
                "roles": [{"id": secrets.token_hex(16), "name": name} for name in names],
            }
        body |= changed
        text = f"gAAAAA{secrets.token_urlsafe(140)}"
        self.tokens[text] = {name: value for name, value in body.items() if value is not None}
        return text

    def add_credential(self, user_id: str, project_id: str | None, **changed: object) -> tuple[str, str]:
        """A new EC2 credential. Returns its access key and secret. `changed`: members of its blob."""
        access, secret = secrets.token_hex(16), secrets.token_hex(16)
        blob = {"access": access, "secret": secret, "trust_id": None} | changed
        own_id = hashlib.sha256(access.encode()).hexdigest()
        self.credentials[own_id] = {
            "id": own_id,
            "user_id": user_id,
            "project_id": project_id,
            "type": "ec2",
            "blob": json.dumps(blob),
        }
        return access, secret

    def credential_id(self, access: str) -> str:
        return hashlib.sha256(access.encode()).hexdigest()

    @contextlib.contextmanager
    def running(self) -> Iterator["KeystoneDouble"]:
        self.start()
        try:
            yield self
        finally:
            self.stop()
            if self._reserved is not None:
                self._reserved.close()

    def start(self) -> None:
        """Listen, at the same address as before if it was stopped."""
        # The port stays reserved while it is stopped.
        self._reserved = self._reserved or ports.reserve()
        self._http = _Server(("127.0.0.1", ports.port_of(self._reserved)), _handler(self))
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening, and close all connections."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def answer(self, request: Request) -> Answer:
        """Answer like Keystone."""
        for path, override in list(self.overrides.items()):
            if request.path.startswith(path) and request.method == "GET":
                return override(request)
        if request.method == "POST":
            return self._log_in(request)
        if request.path == "/v3/auth/projects" and (token := request.headers["x-auth-token"]) in self.tokens:
            user_id = self.tokens[token]["user"]["id"]
            own = [project for user, project in self.roles if user == user_id and self.roles[user, project]]
            return Answer({"projects": [self.projects[project] for project in own], "links": {}})
        if request.headers.get("x-auth-token") not in self.service_tokens:
            return problem(401)
        return self.known(request)

    def known(self, request: Request) -> Answer:
        """Answer a question of the service's user."""
        match request.path.removeprefix("/v3/").split("/"):
            case ["auth", "tokens"]:
                text = request.headers.get("x-subject-token", "")
                body = self.tokens.get(text) or self.service_tokens.get(text)
                return Answer({"token": body}, headers={"X-Subject-Token": text}) if body else problem(404)
            case ["users", user_id, "groups"] if user_id in self.users:
                links = {"next": None, "self": f"{self.url}/users/{user_id}/groups", "previous": None}
                return Answer({"groups": self.groups[user_id], "links": links})
            case [kind, own_id]:
                kinds = {
                    "users": self.users,
                    "domains": self.domains,
                    "projects": self.projects,
                    "credentials": self.credentials,
                }
                found = kinds.get(kind, {}).get(own_id)
                return Answer({kind.removesuffix("s"): found}) if found else problem(404)
            case ["role_assignments"] if "effective" in request.query:
                return self._assignments(request.query["user.id"][0], request.query["scope.project.id"][0])
        return problem(404)

    def _assignments(self, user_id: str, project_id: str) -> Answer:
        found = [
            {
                "scope": {"project": {"id": project_id, "name": "eu-de", "domain": DOMAIN}},
                "user": {"id": user_id, "name": self.users[user_id]["name"], "domain": DOMAIN},
                "role": {"id": secrets.token_hex(16), "name": name},
                "links": {},
            }
            for name in self.roles.get((user_id, project_id), [])
        ]
        return Answer({"role_assignments": found, "links": {"next": None, "self": "…", "previous": None}})

    def _log_in(self, request: Request) -> Answer:
        identity = request.body["auth"]["identity"]
        if (user_id := self._person(identity)) is not None:
            return self._token_of_person(user_id, request.body["auth"].get("scope"))
        if "password" not in identity or identity["password"]["user"].get("password") != PASSWORD:
            return problem(401)
        now = datetime.now(UTC)
        text = f"gAAAAA{secrets.token_urlsafe(140)}"
        body = {
            "methods": ["password"],
            "user": {"domain": DOMAIN, "id": "5" * 32, "name": "clustercert", "password_expires_at": None},
            "audit_ids": ["1Hg_imARTtOvVAdDxX4QQw"],
            "expires_at": rfc3339(now + self.service_lifetime),
            "issued_at": rfc3339(now),
            "roles": [{"id": "9" * 32, "name": "reader"}],
            "system": {"all": True},
        }
        self.service_tokens[text] = body
        return Answer({"token": body}, 201, {"X-Subject-Token": text})

    def _person(self, identity: Any) -> str | None:
        """The id of the user who logs in with their own password or token, or None."""
        if "token" in identity:
            return str(self.tokens[identity["token"]["id"]]["user"]["id"])
        sent = identity.get("password", {}).get("user", {})
        for user_id, password in self.passwords.items():
            user = self.users[user_id]
            names = (user["name"], self.domains[user["domain_id"]]["name"])
            if (sent.get("name"), sent.get("domain", {}).get("name")) == names:
                return user_id if sent["password"] == password else None
        return None

    def _token_of_person(self, user_id: str, scope: Any) -> Answer:
        changed: dict[str, object] = {}
        project_id = None
        if scope == {"system": {"all": True}}:
            names = self.system_roles.get(user_id, [])
            changed = {"system": {"all": True}, "roles": [{"id": "9" * 32, "name": name} for name in names]}
            if not names:
                return problem(401)
        elif scope is not None:
            wanted = scope["project"]
            named = [each["id"] for each in self.projects.values() if each["name"] == wanted.get("name")]
            project_id = wanted.get("id") or next(iter(named), "")
            if not self.roles.get((user_id, project_id)):
                return problem(401)
        text = self.add_token(user_id, project_id, **changed)
        return Answer({"token": self.tokens[text]}, 201, {"X-Subject-Token": text})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, *given: Any) -> None:
        self.open: set[Any] = set()
        super().__init__(*given)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def server_close(self) -> None:
        super().server_close()
        for each in list(self.open):
            with contextlib.suppress(OSError):
                each.shutdown(2)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error."""


def _handler(double: KeystoneDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(
                self.command,
                parts.path,
                parse_qs(parts.query, keep_blank_values=True),
                {name.lower(): value for name, value in self.headers.items()},
                json.loads(content) if content else None,
            )
            double.requests.append(request)
            answer = double.answer(request)
            answer.work()
            body = answer.content
            self.send_response(answer.status)
            standard = {"Content-Type": "application/json", "Content-Length": str(len(body))}
            for name, value in (standard | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    return cast("type[BaseHTTPRequestHandler]", Handler)

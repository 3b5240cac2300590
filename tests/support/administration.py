"""Requests to the administration API, and the rows and events that they leave in the database."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
from sqlalchemy import Table, func, select

from clustercert.store import tables
from clustercert.store.engine.database import Database
from support.samples import server_ca_pem
from support.service import Service
from support.world import World

OWN = "/clustercert/v1"

_numbers = itertools.count(1)


def unique(prefix: str = "new") -> str:
    """A name that no other test uses."""
    return f"{prefix}-{next(_numbers)}"


CLUSTER = {"internal_url": "https://192.168.1.7:5443", "server_ca": server_ca_pem().decode()}


def wanted(path: str) -> dict[str, Any]:
    """A valid body for a PUT or POST, given its path or template."""
    last = path.partition("?")[0].split("/")
    if last[-1] == "password":
        return {"password": "correct horse"}
    return dict(CLUSTER) if last[-2] == "clusters" else {}


def new_key(client: httpx2.Client, world: World, who: str) -> str:
    """The id of a new access key of this person."""
    user, headers = world.people[who].user, world.people["operator"].headers
    path, query = f"/clustercert/v1/users/{user.name}/access-keys", {"domain": user.domain.name}
    made = client.post(path, params=query, json={}, headers=headers).raise_for_status()
    return str(made.json()["access_key"])


def put_new(client: httpx2.Client, world: World, template: str) -> dict[str, str]:
    """Create the objects that a template of a path names, and return their names by parameter."""
    headers = world.people["operator"].headers | {"Content-Type": "application/json"}

    def send(path: str, method: str = "PUT") -> Any:
        content = json.dumps(wanted(path)).encode()
        answer = client.request(method, OWN + path, content=content, headers=headers)
        return answer.raise_for_status().json()

    def named(kind: str) -> str:
        return str(send(f"/{kind}/{unique()}")["name"])

    found = {"project_id": world.project.id}
    if "{cluster}" in template:
        found["cluster"] = str(send(f"/projects/{world.project.id}/clusters/{unique()}")["name"])
    if "{token_id}" in template:
        path = f"/projects/{world.project.id}/clusters/{found['cluster']}/webhook-tokens"
        found["token_id"] = send(path, "POST")["id"]
    if "{access_key}" in template:
        found["access_key"] = send(f"/users/{named('users')}/access-keys", "POST")["access_key"]
    if "{role}" in template:
        found |= {"role": "reader", "assignees": "users", "name": named("users")}
        where = f"/projects/{world.project.id}" if "{project_id}" in template else ""
        send(f"{where}/assignments/reader/users/{found['name']}")
    elif "{name}" in template:
        found["name"] = named(template.split("/")[3])
    if "{user}" in template:
        found["user"] = named("users")
        send(f"/groups/{found['name']}/members/{found['user']}")
    return found


@dataclass(frozen=True)
class Administration:
    """A client of a service's administration API. The operator sends its requests unless another person is named."""

    world: World
    service: Service

    def send(
        self, method: str, path: str, body: object = None, who: str = "operator", **headers: str
    ) -> httpx2.Response:
        """Send a request. Underscores in names of headers become hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = b"" if body is None else json.dumps(body).encode()
        credential = self.world.people[who].headers if who else {}
        return self.service.client.request(
            method,
            OWN + path,
            content=content,
            headers={"Content-Type": "application/json", **credential, **named},
        )

    def get(self, path: str, who: str = "operator") -> httpx2.Response:
        return self.send("GET", path, who=who)

    def put(self, path: str, body: object = None, who: str = "operator", **headers: str) -> httpx2.Response:
        return self.send("PUT", path, {} if body is None else body, who, **headers)

    def post(self, path: str, body: object = None, who: str = "operator") -> httpx2.Response:
        return self.send("POST", path, {} if body is None else body, who)

    def delete(self, path: str, who: str = "operator", **headers: str) -> httpx2.Response:
        return self.send("DELETE", path, who=who, **headers)

    def put_at_once(self, path: str, body: object, times: int = 10) -> list[httpx2.Response]:
        """Send equal requests at the same time."""
        with ThreadPoolExecutor(times) as threads:
            return list(threads.map(lambda _: self.put(path, body), range(times)))

    def events(self, subject: str) -> list[dict[str, Any]]:
        """The audit events about an object, oldest first."""
        query = select(tables.audit_event.c.body).where(tables.audit_event.c.subject == subject)
        rows = self._read(query.order_by(tables.audit_event.c.id))
        return [json.loads(row.body) for row in rows]

    def kinds(self, subject: str) -> list[str]:
        """The kinds of the audit events about an object."""
        return [event["kind"] for event in self.events(subject)]

    def event_count(self) -> int:
        return int(self._read(select(func.count()).select_from(tables.audit_event))[0][0])

    def rows(self, table: Table, **values: object) -> list[Any]:
        """The rows of a table with these values."""
        return self._read(select(table).filter_by(**values))

    def _read(self, query: Any) -> list[Any]:
        async def read() -> list[Any]:
            database = Database(self.world.settings().store_url)
            try:
                async with database.read() as connection:
                    return list((await connection.execute(query)).all())
            finally:
                await database.close()

        return self.service.run(read())

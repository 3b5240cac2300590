"""A service that logs to standard output while clients or an API server send requests. Arguments: SCENARIO FOLDER.

A separate process, because logging is set up once per process.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path

import httpx2

from clustercert.model import Actor, Origin
from clustercert.wiring import open_components
from support import world as worlds
from support.console import Browser
from support.kubernetes_messages import credential_id, review
from support.service import Service
from support.stores import execute
from support.world import ACTOR, World


def send_requests(service: Service, world: World) -> list[str]:
    """Send them; returns the secrets that were sent and received."""
    client, admin, browser = service.client, world.people["admin"], Browser(service.client)
    secrets = [admin.token, admin.password, world.access_key[1]]
    answers = [
        client.post(world.path(), json={"duration": 1, "reason": "why"}, headers=admin.headers),
        client.post(
            world.path(), json={"duration": 1}, headers=admin.headers | {"Accept": "application/yaml"}
        ),
        client.get(world.path(), headers={"Authorization": f"Bearer {admin.token}"}),
        client.post(world.path() + f"?token={admin.token}", json={"duration": 0}, headers=admin.headers),
        client.post(world.path(), content=f'{{"csr": "{admin.token}"', headers=admin.headers),
        client.post(world.path(), json={"duration": admin.password}, headers=admin.headers),
        client.post(world.path(), json={"duration": 1}, headers=world.people["inspector"].headers),
        client.get(world.path(), headers={"X-Auth-Token": f"{admin.token}x"}),
        client.get(world.path(), headers=admin.headers | {"Authorization": f"Bearer {admin.password}"}),
        client.get(world.path(), headers={"Authorization": f"SDK-HMAC-SHA256 {world.access_key[1]}"}),
        client.get("/nope%0A%22forged%22%3A%20%1b[31m", headers=admin.headers),
        _login(client, world, [admin.password]),
        _login(client, world, {"password": admin.password}),
        client.post("/v3/auth/tokens", json={"auth": {"identity": admin.password}}),
        client.post("/v3/auth/tokens", json={"auth": {"identity": {"methods": [admin.token]}}}),
        _login(client, world, admin.password),
        _login(client, world, admin.password + "x"),
        client.post(
            world.path(tail="/clustercertrevoke"),
            json={"userId": world.people["member"].user.id},
            headers=admin.headers,
        ),
        _login(client, world, admin.password, name=admin.password),
        _login(client, world, "another", name=admin.password),
        browser.log_in(world.people["operator"], user=admin.password),
        browser.log_in(world.people["operator"]),
        browser.get("/console/clusters"),
    ]
    assert {answer.status_code for answer in answers} >= {200, 201, 400, 401, 403, 404}, answers
    for answer in answers[:3]:
        document = answer.text if answer.headers["content-type"] == "application/json" else ""
        user = json.loads(document)["users"][0]["user"] if document else {}
        for value in user.values():
            secrets += [value, *base64.b64decode(value).decode().splitlines()[1:-1]]
    secrets += [answers[-8].headers["X-Subject-Token"], *browser.cookies.values()]
    # An internal error: the log has its traceback without the values of variables.
    execute(world.database, "drop table audit_event")
    failed = client.post(world.path(), json={"duration": 1}, headers=admin.headers)
    assert failed.status_code in (500, 503)
    return secrets


def _login(client: httpx2.Client, world: World, password: object, name: str | None = None) -> httpx2.Response:
    """Log in as the admin or, with a name, as a user of the admin's domain."""
    admin = world.people["admin"].user
    who = {"id": admin.id} if name is None else {"name": name, "domain": {"name": admin.domain.name}}
    user = who | {"password": password}
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
    return client.post("/v3/auth/tokens", json=body)


def client_requests(folder: Path) -> None:
    """Leaves the list of secrets that must not be in the log in `secrets.json`.

    Leaves the domain and name of each person by the person's id in `people.json`.
    """
    world = worlds.make(folder)
    with Service(
        world.settings(log={"level": "debug", "format": "json"}, console={"enabled": True})
    ).running() as service:
        secrets = send_requests(service, world)
    secrets += [line.split()[0] for line in (folder / "kek").read_text().splitlines()]
    (folder / "secrets.json").write_text(json.dumps(secrets))
    users = [person.user for person in world.people.values()]
    people = {user.id: f"{user.domain.name}/{user.name}" for user in users}
    (folder / "people.json").write_text(json.dumps(people))


async def _token(world: World) -> str:
    async with open_components(world.settings()) as components:
        origin = Origin(address="local", request_id="e" * 32)
        return (
            await components.webhook.tokens.create(world.clusters["plain"], actor=Actor(ACTOR, origin))
        ).text


def webhook_requests(folder: Path) -> None:
    world = worlds.make(folder)
    execute(world.database, "UPDATE cluster SET options = ?", '{"mode": "known-only"}')
    headers = {"Authorization": f"Bearer {asyncio.run(_token(world))}"}
    path = f"/clustercert/v1/kubernetes/clusters/{world.clusters['plain'].id}/authorize"
    with Service(world.settings(log={"level": "info", "format": "json"})).running() as service:
        for credential in (credential_id(bytes(32)), "JTI=x", credential_id(bytes(32))):
            answer = service.client.post(path, content=review(credential), headers=headers)
            assert answer.status_code == 200


SCENARIOS = {"client-requests": client_requests, "webhook-requests": webhook_requests}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](Path(sys.argv[2]))

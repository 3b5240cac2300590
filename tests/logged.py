"""A service and its log: asks it for all sorts of things, and leaves beside the log a list of what must not be in it.

A process of its own, since a logger is set up once: `python tests/logged.py FOLDER`.
"""

import base64
import json
import sys
from pathlib import Path

import httpx

import world as worlds
from inprocess import Service
from stores import execute
from world import World


def requests(service: Service, world: World) -> list[str]:
    """Make them; the secrets that went back and forth."""
    client, admin = service.client, world.people["admin"]
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
    ]
    assert {answer.status_code for answer in answers} >= {200, 201, 400, 401, 404}, answers
    for answer in answers[:3]:
        document = answer.text if answer.headers["content-type"] == "application/json" else ""
        user = json.loads(document)["users"][0]["user"] if document else {}
        for value in user.values():
            secrets += [value, *base64.b64decode(value).decode().splitlines()[1:-1]]
    secrets.append(answers[-2].headers["X-Subject-Token"])
    # A failure inside: its traceback is in the log, and what stood in its variables is not.
    execute(world.database, "drop table audit_event")
    failed = client.post(world.path(), json={"duration": 1}, headers=admin.headers)
    assert failed.status_code in (500, 503)
    return secrets


def _login(client: httpx.Client, world: World, password: object) -> httpx.Response:
    user = {"id": world.people["admin"].user.id, "password": password}
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
    return client.post("/v3/auth/tokens", json=body)


def main(folder: Path) -> None:
    world = worlds.make(folder)
    with Service(world.settings(log={"level": "debug", "format": "json"})).running() as service:
        secrets = requests(service, world)
    secrets += [line.split()[0] for line in (folder / "kek").read_text().splitlines()]
    (folder / "secrets.json").write_text(json.dumps(secrets))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

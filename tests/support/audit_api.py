"""Requests to the audit API: events, checkpoints."""

from typing import Any

import httpx2

from clustercert.merkle.notes import Checkpoint, VerifierKey, verify_checkpoint
from support.wait import eventually
from support.world import World

LOG = "/clustercert/v1/audit/log"
EVERYWHERE = "/clustercert/v1/events"


def of_project(world: World) -> str:
    return f"/clustercert/v1/projects/{world.project.id}/events"


def issue(client: httpx2.Client, world: World, who: str = "admin") -> str:
    """The fingerprint of a new certificate."""
    response = client.post(world.path(), headers=world.people[who].headers, json={"duration": 1})
    assert response.status_code == 200, response.text
    return str(response.headers["x-clustercert-fingerprint"])


def got(client: httpx2.Client, world: World, path: str, who: str = "operator", **query: str) -> Any:
    response = client.get(path, headers=world.people[who].headers, params=query)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return response.json()


def sealed(
    client: httpx2.Client, world: World, subject: str, who: str = "operator", **query: str
) -> dict[str, Any]:
    """The event about this subject. Waits until it is sealed."""
    path = EVERYWHERE if who == "operator" else of_project(world)
    event = eventually(lambda: got(client, world, path, who, subject=subject, **query)["events"])[0]
    assert isinstance(event, dict)
    return event


def head(client: httpx2.Client) -> Checkpoint:
    """The newest checkpoint, verified. Waits for the first one."""
    key = VerifierKey.parse(client.get(f"{LOG}/key").text)

    def begun() -> httpx2.Response | None:
        answer = client.get(f"{LOG}/checkpoint")
        return None if answer.status_code == 503 else answer

    response = eventually(begun)
    assert response is not None
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["cache-control"] == "public, max-age=1"
    return verify_checkpoint(response.text, key)

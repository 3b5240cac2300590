"""A service that is asked by an API server, and its log.

A process of its own, since a logger is set up once: `python tests/logged_webhook.py FOLDER`.
"""

import asyncio
import sys
from pathlib import Path

import world as worlds
from clustercert.app.wiring import components
from clustercert.model import Origin
from inprocess import Service
from kubernetes_bytes import credential_id, review
from stores import execute
from world import ACTOR, World


async def _token(world: World) -> str:
    async with components(world.settings()) as parts:
        origin = Origin(address="local", request_id="e" * 32)
        return (await parts.webhook.tokens.create(world.clusters["plain"], actor=ACTOR, origin=origin)).text


def main(folder: Path) -> None:
    world = worlds.make(folder)
    execute(world.database, "UPDATE cluster SET options = ?", '{"mode": "known-only"}')
    headers = {"Authorization": f"Bearer {asyncio.run(_token(world))}"}
    path = f"/clustercert/v1/kubernetes/clusters/{world.clusters['plain'].id}/authorize"
    with Service(world.settings(log={"level": "info", "format": "json"})).running() as service:
        for credential in (credential_id(bytes(32)), "JTI=x", credential_id(bytes(32))):
            answer = service.client.post(path, content=review(credential), headers=headers)
            assert answer.status_code == 200


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Requests for certificates, and what was recorded about them."""

from copy import deepcopy
from typing import Any

import httpx

from support.stores import rows
from support.world import World


def ask(
    client: httpx.Client, world: World, cluster: str = "plain", who: str = "admin", **sent: Any
) -> httpx.Response:
    sent.setdefault("json", {"duration": 30})
    headers = world.people[who].headers | sent.pop("headers", {})
    query = sent.pop("query", "")
    return client.post(world.path(cluster) + query, headers=headers, **sent)


def recorded(world: World) -> tuple[int, int]:
    """Return the numbers of recorded certificates and of `certificate.issued` events."""
    certificates = rows(world.database, "select count(*) from certificate")
    events = rows(world.database, "select count(*) from audit_event where kind = 'certificate.issued'")
    return int(str(certificates[0][0])), int(str(events[0][0]))


def without_data(document: Any) -> Any:
    blank = deepcopy(document)
    for entry in [item["cluster"] for item in blank["clusters"]] + [item["user"] for item in blank["users"]]:
        for name in entry:
            if name.endswith("-data"):
                entry[name] = ""
    return blank

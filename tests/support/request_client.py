"""Access requests over the API, with a policy that offers groups."""

from dataclasses import dataclass
from typing import Any

import httpx2

from support.world import World

REQUESTS = "/clustercert/v1/access-requests"
REASON: dict[str, object] = {"reason": "INC-42: the shop is down"}
ASKED = REASON | {"duration": 900}
POLICY: dict[str, Any] = {
    "rules": [
        {
            "name": "view",
            "when": {"roles": ["member"]},
            "grant": {"groups": ["viewers"], "max_lifetime": "8h"},
        },
        {
            "name": "edit",
            "when": {"roles": ["member"]},
            "offer": {
                "groups": ["editors", "debuggers"],
                "max_lifetime": "4h",
                "min_reason_length": 8,
                "approvals": [{"role": "admin"}, {"role": "inspector"}],
            },
        },
        {
            "name": "break-glass",
            "when": {"roles": ["reader"]},
            "offer": {
                "groups": ["oncall"],
                "max_lifetime": "1h",
                "approvals": [{"role": "admin"}],
                "approve_within": "2h",
                "before_approval": True,
            },
        },
        {
            "name": "alone",
            "when": {"roles": ["admin"]},
            "offer": {"groups": ["maintainers"], "max_lifetime": "1h", "approvals": []},
        },
    ]
}


_EVERYBODY = {"roles": ["reader", "member", "admin"]}
# Beside the groups of roles: everybody can request `asked` and `free`.
OFFERED_TO_ALL: dict[str, Any] = {
    "role_groups": True,
    "rules": [
        {
            "name": name,
            "when": _EVERYBODY,
            "offer": {"groups": [name], "max_lifetime": "1h", "approvals": approvals},
        }
        for name, approvals in (("asked", [{"role": "admin"}]), ("free", []))
    ],
}


@dataclass(frozen=True)
class RequestClient:
    """Sends requests of the people in a world, by their name."""

    world: World
    client: httpx2.Client

    def create(
        self,
        who: str = "member",
        *groups: str,
        cluster: str = "plain",
        duration: int = 3600,
        **others: object,
    ) -> httpx2.Response:
        body = {
            "cluster_id": self.world.clusters[cluster].id,
            "groups": groups or ["editors"],
            "duration": duration,
        }
        return self.post(who, REQUESTS, body | REASON | others)

    def created(self, who: str = "member", *groups: str, **others: Any) -> str:
        """The id of a new request."""
        made = self.create(who, *groups, **others)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    def used(self, who: str, *groups: str) -> str:
        """The id of a new request that needs no approval and has a certificate."""
        request_id = self.created(who, *groups)
        self.issue(who, request_id).raise_for_status()
        return request_id

    def step(self, who: str, request_id: str, step: str, **body: object) -> httpx2.Response:
        return self.post(who, f"{REQUESTS}/{request_id}/{step}", REASON | body)

    def done(self, who: str, request_id: str, step: str, **body: object) -> Any:
        """The request after a step that must succeed."""
        answer = self.step(who, request_id, step, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def show(self, who: str, request_id: str) -> Any:
        return self.get(who, f"{REQUESTS}/{request_id}").raise_for_status().json()

    def listed(self, who: str, **filters: str) -> list[str]:
        """The ids of the requests on all pages."""
        found, cursor = list[str](), dict[str, str]()
        while True:
            page = self.get(who, REQUESTS, **filters, **cursor).raise_for_status().json()
            found += [each["id"] for each in page["access_requests"]]
            if page["next"] is None:
                return found
            cursor = {"cursor": page["next"]}

    def issue(
        self, who: str, request_id: str | None, cluster: str = "plain", **body: object
    ) -> httpx2.Response:
        sent = {"duration": -1} | body
        if request_id is not None:
            sent["access_request"] = request_id
        return self.post(who, self.world.path(cluster), sent)

    def end_all(self, **filters: str) -> None:
        """End all open requests, so that a test can begin anew."""
        for request_id in self.listed("operator", state="open", **filters):
            self.done("operator", request_id, "end")

    def get(self, who: str, path: str, **query: str) -> httpx2.Response:
        return self.client.get(path, headers=self.world.people[who].headers, params=query)

    def post(self, who: str, path: str, body: object) -> httpx2.Response:
        return self.client.post(path, headers=self.world.people[who].headers, json=body)

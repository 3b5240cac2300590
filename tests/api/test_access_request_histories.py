"""Any history of an access request over the API, on both databases, compared with a model of the rules."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.request_client import POLICY, RequestClient
from support.service import Service
from support.stores import Store
from support.world import World

APPROVERS = {"admin", "inspector"}
# The asker, both approvers, those who may see or end but not approve, and those who may not see the request.
PEOPLE = ("member", "admin", "inspector", "admin", "inspector", "operator", "auditor", "reader", "stranger")
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["create", "approve", "approve", "approve", "deny", "end", "issue", "issue", "extend"]
        ),
        st.sampled_from(PEOPLE),
    ),
    min_size=8,
    max_size=40,
)


@pytest.fixture(scope="module")
def running(own_world: World) -> Iterator[RequestClient]:
    with Service(own_world.settings(policy=POLICY)).running() as service:
        yield RequestClient(own_world, service.client)


@dataclass
class Model:
    """What the rules say about the request of the member.

    Attributes:
        decisions: who approved (True) or denied which part.
    """

    state: str = "closed"
    extension: str | None = None
    decisions: dict[tuple[str, str], bool] = field(default_factory=dict)

    @property
    def open_part(self) -> str | None:
        if self.state == "pending":
            return "access"
        return "extension" if self.state == "active" and self.extension == "pending" else None

    def answer(self, action: str, who: str) -> int:
        """Make a step. Returns the status of the answer."""
        if action == "issue":
            return self._issue() if who == "member" else 404
        if who in ("reader", "stranger"):
            return 404
        if action == "end":
            if who == "auditor":
                return 403
            self.state = "closed"
            return 200
        if action == "extend":
            return self._extend() if who == "member" else 403
        may = APPROVERS if action == "approve" else APPROVERS | {"operator"}
        return self._decide(who, approves=action == "approve") if who in may else 403

    def _issue(self) -> int:
        if self.state not in ("approved", "active"):
            return 409
        self.state = "active"
        return 200

    def _extend(self) -> int:
        if self.extension is not None:
            return 409 if self.extension == "denied" else 200
        if self.state != "active":
            return 409
        self.extension = "pending"
        return 200

    def _decide(self, who: str, *, approves: bool) -> int:
        part = self.open_part or "access"
        if self.decisions.get((who, part)) == approves:
            return 200
        if self.open_part is None:
            return 409
        self.decisions[who, part] = approves
        is_complete = all(self.decisions.get((each, part)) for each in APPROVERS)
        if part == "extension":
            self.extension = "denied" if not approves else "approved" if is_complete else "pending"
        elif not approves:
            self.state = "closed"
        elif is_complete:
            self.state = "approved"
        return 200


# 8 in the profile `quick`, with about 20 steps each.
@settings(suppress_health_check=list(HealthCheck), max_examples=settings().max_examples // 3)
@given(actions=ACTIONS)
def test_every_step_is_answered_as_the_rules_say(
    running: RequestClient, actions: Sequence[tuple[str, str]]
) -> None:
    running.end_all()
    forget_creations(running)
    model, request_id = Model(), ""
    for action, who in actions:
        if action == "create" or not request_id:
            made = running.create()
            assert made.status_code == (201 if model.state == "closed" else 200)
            if made.status_code == 201:
                model, request_id = Model("pending"), made.json()["id"]
            continue
        answer = (
            running.issue(who, request_id)
            if action == "issue"
            else running.step(who, request_id, action, **({"duration": 900} if action == "extend" else {}))
        )
        assert answer.status_code == model.answer(action, who), (action, who, model, answer.text)
        shown = running.show("member", request_id)
        is_closed = shown["state"] in ("denied", "ended")
        assert ("closed" if is_closed else shown["state"]) == model.state
        assert not (is_closed and shown["certificates"])
        assert {(each["by_name"], each["part"]): each["approves"] for each in shown["decisions"]} == {
            (f"tests/{by}", part): approves for (by, part), approves in model.decisions.items()
        }
    if request_id:
        assert_consistent(running, request_id)


def forget_creations(requests: RequestClient) -> None:
    """Let the requests of earlier histories not count for the limit of new requests in a day."""
    store = Store(requests.world.settings().store_url)
    two_days_ago = store.time(datetime.now(UTC) - timedelta(days=2))
    store.execute("UPDATE access_request SET created_at = ?", two_days_ago)


def assert_consistent(requests: RequestClient, request_id: str) -> None:
    """The database has one event for each change, and no live certificate of a closed request."""
    store = Store(requests.world.settings().store_url)
    kinds = [
        str(each["kind"]).removeprefix("access_request.")
        for each in store.events()
        if each["subject"] == request_id
    ]
    request = requests.show("member", request_id)
    certificates = store.rows(
        "SELECT not_after, revoked_at FROM certificate WHERE access_request_id = ?", request_id
    )
    assert kinds[0] == "created"
    assert kinds.count("started") == (1 if certificates else 0)
    assert ("started" in kinds) == (request["started_at"] is not None)
    assert ("approved" in kinds) == (request["approved_at"] is not None)
    closing = {"denied": ["denied"], "ended": ["ended"]}.get(request["state"], [])
    assert [kind for kind in kinds if kind in ("denied", "ended", "expired", "finished")] == closing
    if closing:
        assert all(revoked_at is not None for _, revoked_at in certificates)

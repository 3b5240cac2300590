"""`kill -9` of all processes at random moments while access requests are created, decided, used and ended."""

import json
import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from support import postgres, world
from support.request_client import POLICY, RequestClient
from support.serve_process import Serving, serving
from support.stores import Store
from support.wait import SECONDS, eventually
from support.world import World

# test_kill.py kills the service once in `make test-all`, and tests/store/test_access_requests.py each of the steps.
pytestmark = pytest.mark.long
CLUSTERS = ("plain", "eip", "sans")


@dataclass
class Answers:
    """What clients were told: the steps of requests, and the fingerprints of certificates."""

    steps: list[tuple[str, str, str]] = field(default_factory=list)
    certificates: list[tuple[str, str]] = field(default_factory=list)


def live_until_killed(requests: RequestClient, answers: Answers, cluster: str, who: str) -> None:
    """Create, approve, use and end one request after the other."""
    groups, approvers = (
        (("oncall",), ("admin",)) if who == "reader" else (("editors",), ("admin", "inspector"))
    )

    def step(by: str, request_id: str, name: str) -> None:
        answer = requests.step(by, request_id, name)
        assert answer.status_code in (200, 409, 503), answer.text
        if answer.status_code == 200:
            answers.steps.append((request_id, name, requests.world.people[by].user.id))

    def issue(request_id: str) -> None:
        answer = requests.issue(who, request_id, cluster)
        assert answer.status_code in (200, 409, 503), answer.text
        if answer.status_code == 200:
            answers.certificates.append((request_id, answer.headers["x-clustercert-fingerprint"]))

    try:
        while True:
            made = requests.create(who, *groups, cluster=cluster)
            assert made.status_code in (200, 201, 503), made.text
            if made.status_code == 503:
                continue
            request_id = made.json()["id"]
            answers.steps.append((request_id, "create", requests.world.people[who].user.id))
            issue(request_id)
            for approver in approvers:
                step(approver, request_id, "approve")
            issue(request_id)
            # Certificates are issued while another client ends the request.
            issuing = threading.Thread(target=ignoring_the_kill, args=(issue, request_id))
            issuing.start()
            step(random.choice((who, "operator", "admin")), request_id, "end")
            issuing.join(SECONDS)
    except httpx2.TransportError:
        return


def ignoring_the_kill(work: Callable[[str], None], request_id: str) -> None:
    try:
        work(request_id)
    except httpx2.TransportError:
        return


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    server: postgres.Server | None = (
        request.getfixturevalue("server") if request.param == "postgresql" else None
    )
    return world.make(tmp_path, database_url=server.create() if server is not None else None)


def test_no_answered_step_is_lost_and_no_ended_request_has_a_live_certificate(place: World) -> None:
    answers = Answers()
    for _ in range(3):
        enough = len(answers.steps) + random.randint(15, 60)
        with (
            serving(place, "--workers", "2", POLICY=json.dumps(POLICY)) as running,
            client_of(running) as client,
        ):
            requests = RequestClient(place, client)
            threads = [
                threading.Thread(target=live_until_killed, args=(requests, answers, cluster, who))
                for cluster in CLUSTERS
                for who in ("member", "reader")
            ]
            for thread in threads:
                thread.start()
            eventually(lambda enough=enough: len(answers.steps) >= enough)  # type: ignore[misc] # the lambda has no types
            os.killpg(running.process.pid, signal.SIGKILL)
            for thread in threads:
                thread.join(SECONDS)
    with serving(place, POLICY=json.dumps(POLICY)) as running, client_of(running) as client:
        requests = RequestClient(place, client)
        for request_id in {each for each, _, _ in answers.steps}:
            assert requests.show("operator", request_id)["id"] == request_id
    assert_nothing_is_lost(Store(place.settings().store_url), answers)


def client_of(running: Serving) -> httpx2.Client:
    return httpx2.Client(base_url=running.url, timeout=SECONDS, trust_env=False)


def assert_nothing_is_lost(store: Store, answers: Answers) -> None:
    events = [
        (str(each["subject"]), str(each["kind"]).removeprefix("access_request."), each["actor"])
        for each in store.events()
    ]
    kinds: dict[str, list[str]] = {}
    for subject, kind, _ in events:
        kinds.setdefault(subject, []).append(kind)
    decided = set(store.rows('SELECT request_id, "by" FROM access_decision WHERE approves'))
    for request_id, step, by in answers.steps:
        assert kinds[request_id][0] == "created"
        if step == "approve":
            assert (request_id, by) in decided
            assert {"approval_given", "approved"} & set(kinds[request_id])
        if step == "end":
            assert "ended" in kinds[request_id]
    for of, decider in decided:
        assert any((of, kind, decider) in events for kind in ("approval_given", "approved"))
    certificates = store.rows(
        "SELECT c.access_request_id, c.fingerprint, c.revoked_at, r.state, r.started_at, r.ends_at, c.not_after"
        " FROM certificate c JOIN access_request r ON r.id = c.access_request_id"
    )
    recorded = {(str(row[0]), bytes(row[1]).hex()) for row in certificates}  # type: ignore[call-overload] # a BLOB
    assert set(answers.certificates) <= recorded
    for of, _, revoked_at, state, started_at, ends_at, not_after in certificates:
        assert kinds[str(of)].count("started") == 1
        assert started_at is not None
        assert not_after <= ends_at  # type: ignore[operator] # times of one type
        assert state == "active" or (state == "ended" and revoked_at is not None)
    for of, state in store.rows("SELECT id, state FROM access_request"):
        closing = [kind for kind in kinds[str(of)] if kind in ("ended", "denied", "expired", "finished")]
        assert closing == (["ended"] if state == "ended" else [])
    print(f"{len(answers.steps)} answered steps, {len(certificates)} certificates")

"""Messages about access requests from a served process, also over TLS and after `kill -9`."""

import contextlib
import ipaddress
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from support import world as worlds
from support.certificate_authority import Authority
from support.message_receiver import SECRET, MessageReceiver, Received, message_receiver
from support.request_client import POLICY, RequestClient
from support.serve_process import Serving, serving
from support.stores import blob, rows
from support.wait import SECONDS, eventually
from support.world import World

ROUNDS = 3
REQUESTS_IN_A_ROUND = 12


@contextlib.contextmanager
def notifying(
    world: World, there: MessageReceiver, ca: Path | None = None
) -> Iterator[tuple[Serving, RequestClient]]:
    """A served process that tells the receiver, and a client of its API."""
    secret = world.folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    settings: dict[str, str | Path | None] = {
        "POLICY__RULES": json.dumps(POLICY["rules"]),
        "REQUESTS__WEBHOOK_URL": f"{there.url}/hook",
        "REQUESTS__WEBHOOK_SECRET_FILE": secret,
        "REQUESTS__WEBHOOK_CA": ca,
    }
    with (
        serving(world, **settings) as running,
        httpx2.Client(base_url=running.url, timeout=SECONDS, trust_env=False) as client,
    ):
        yield running, RequestClient(world, client)


def metric(client: httpx2.Client, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(client.get("/metrics").raise_for_status().text):
        for sample in family.samples:
            if (sample.name, sample.labels) == (name, labels):
                return sample.value
    raise AssertionError(name)


def test_each_step_of_a_request_is_told_over_tls(tmp_path: Path) -> None:
    ca, identity = tmp_path / "ca.pem", tmp_path / "identity.pem"
    authority = Authority("receivers")
    ca.write_bytes(authority.certificate_pem)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    identity.write_bytes(authority.server_identity_pem("receiver", [address]))
    world = worlds.make(tmp_path)
    with (
        message_receiver(identity=identity) as there,
        notifying(world, there, ca) as (_, requests),
    ):
        # Messages begin at the end of the log that the leader finds.
        eventually(lambda: rows(world.database, "SELECT 1 FROM progress WHERE name = 'notifications'"))
        request_id = requests.created("member")
        assert metric(requests.client, "clustercert_access_requests", state="pending") == 1
        requests.done("inspector", request_id, "approve")
        requests.done("admin", request_id, "approve", reason="go ahead")
        requests.issue("member", request_id).raise_for_status()
        requests.done("operator", request_id, "end", reason="not needed")
        eventually(lambda: len(there.confirmed) == 5)
    assert there.refused == []
    told = [each.body for each in there.confirmed]
    assert [(each["type"], each["data"]["actor_name"], each["data"].get("reason")) for each in told] == [
        ("access_request.created", "tests/member", "INC-42: the shop is down"),
        ("access_request.approval_given", "tests/inspector", "INC-42: the shop is down"),
        ("access_request.approved", "tests/admin", "go ahead"),
        ("access_request.started", "tests/member", None),
        ("access_request.ended", "tests/operator", "not needed"),
    ]
    assert {each["data"]["user_name"] for each in told} == {"tests/member"}
    assert told[-1]["data"]["certificates"] == 1


def test_access_before_the_approval_is_told_and_counted(tmp_path: Path) -> None:
    world = worlds.make(tmp_path)
    with message_receiver() as there, notifying(world, there) as (_, requests):
        eventually(lambda: rows(world.database, "SELECT 1 FROM progress WHERE name = 'notifications'"))
        request_id = requests.created("reader", "oncall")
        requests.issue("reader", request_id).raise_for_status()
        assert metric(requests.client, "clustercert_access_before_approval_total") == 1
        requests.done("admin", request_id, "deny", reason="no")
        assert metric(requests.client, "clustercert_access_requests_closed_total", outcome="ended") == 1
        eventually(lambda: len(there.confirmed) == 3)
    started = there.confirmed[1].body
    assert (started["type"], started["data"]["is_approved"]) == ("access_request.started", False)


@pytest.mark.long
def test_every_step_is_told_in_order_although_processes_are_killed(tmp_path: Path) -> None:
    world = worlds.make(tmp_path)
    tried = set[str]()

    def answer(received: Received) -> tuple[int, dict[str, str]]:
        """Refuse one message in three at first."""
        if received.id not in tried and int(received.id, 16) % 3 == 0:
            tried.add(received.id)
            return 503, {}
        return 200, {}

    with message_receiver(answer) as there:
        for number in range(ROUNDS):
            confirmed = len(there.confirmed)
            enough = confirmed + random.randint(0, 2 * REQUESTS_IN_A_ROUND)
            with notifying(world, there) as (running, requests):
                eventually(
                    lambda: rows(world.database, "SELECT 1 FROM progress WHERE name = 'notifications'")
                )
                asking = threading.Thread(target=_ask, args=(requests, f"round {number}: the shop is down"))
                asking.start()
                eventually(lambda enough=enough: len(there.confirmed) >= enough)  # type: ignore[misc] # the lambda has no types
                running.process.kill()
                asking.join(SECONDS)
        with notifying(world, there):
            query = (
                "SELECT commitment, subject FROM audit_event WHERE kind GLOB 'access_request.*' ORDER BY id"
            )
            recorded = [
                (blob(commitment).hex(), subject) for commitment, subject in rows(world.database, query)
            ]
            eventually(lambda: {each.id for each in there.confirmed} >= {id_ for id_, _ in recorded})
    assert there.refused == []
    first = list({each.id: each.access_request for each in there.confirmed}.items())
    assert sorted(first) == sorted(recorded)
    for subject in {subject for _, subject in recorded}:
        of_request = [each for each in recorded if each[1] == subject]
        assert [each for each in first if each[1] == subject] == of_request


def _ask(requests: RequestClient, reason: str) -> None:
    """Create, approve and end requests until the service is killed."""
    with contextlib.suppress(httpx2.TransportError):
        requests.end_all()
        for _ in range(REQUESTS_IN_A_ROUND):
            request_id = requests.created(reason=reason)
            requests.done("inspector", request_id, "approve")
            requests.done("admin", request_id, "approve")
            requests.done("member", request_id, "end")

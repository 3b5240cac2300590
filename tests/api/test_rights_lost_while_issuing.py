"""Rights that end while another worker signs or records a certificate. The slow step may take seconds."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from clustercert.issuance.signers.ca_keys import KeySigner
from clustercert.pki.keys import new_key
from clustercert.store.certificates.ledger import Ledger
from support.access_table import csr
from support.revocation_client import OWN, RevocationClient
from support.service import Service
from support.stores import Store
from support.wait import SECONDS, eventually
from support.world import World

pytestmark = pytest.mark.usefixtures("quick_propagation")

_numbers = itertools.count(1)


@dataclass
class SlowStep:
    """A step of issuing that takes as long as the test wants."""

    count: int = 0
    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def slowed(self, real: Callable[..., Any]) -> Callable[..., Any]:
        async def slow(*args: Any, **named: Any) -> Any:
            self.count += 1
            self.begun.set()
            while not self.go_on.is_set():
                await asyncio.sleep(0.01)
            return await real(*args, **named)

        return slow


@pytest.fixture(params=[(KeySigner, "sign"), (Ledger, "record")], ids=["signer", "ledger"])
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStep]:
    owner, method = request.param
    step = SlowStep()
    monkeypatch.setattr(owner, method, step.slowed(getattr(owner, method)))
    yield step
    step.go_on.set()


@pytest.fixture(scope="module")
def worker(own_world: World) -> Iterator[httpx2.Client]:
    """Another worker, which issues the certificates."""
    with Service(own_world.settings(server={"request_timeout": SECONDS})).running() as service:
        yield service.client


@dataclass(frozen=True)
class Person:
    """A new user with a token for the first project."""

    place: RevocationClient
    worker: httpx2.Client
    id: str
    headers: dict[str, str]

    def send(self, method: str, path: str, body: object = None) -> None:
        """Send a request as the operator, who uses the other worker."""
        headers = self.place.world.people["operator"].headers
        self.place.client.request(method, f"{OWN}{path}", json=body, headers=headers).raise_for_status()

    def role(self, name: str) -> str:
        return f"/projects/{self.place.world.project.id}/assignments/{name}/users/{self.id}"

    def issue(self, query: str = "") -> httpx2.Response:
        # With a CSR, a caller could use a certificate that they only find in the list.
        body = {"duration": 1, "csr": csr(new_key("ec-p256"))}
        return self.worker.post(self.place.world.path() + query, json=body, headers=self.headers)

    @contextmanager
    def issuing(self, slow: SlowStep) -> Iterator["Future[httpx2.Response]"]:
        """Request a certificate in a thread, and run the block while the slow step lasts."""
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(self.issue)
            assert slow.begun.wait(SECONDS)
            try:
                yield answer
            finally:
                slow.go_on.set()

    def states(self) -> list[str]:
        headers = self.place.world.people["operator"].headers
        found = self.place.client.get(f"{OWN}/certificates", params={"user": self.id}, headers=headers)
        return [each["state"] for each in found.json()["certificates"]]


@pytest.fixture
def person(place: RevocationClient, worker: httpx2.Client) -> Person:
    """A member of the first project, whom the issuing worker has in its cache."""
    operator = place.world.people["operator"].headers
    name, password = f"slow-{next(_numbers)}", "correct horse"
    made = place.client.put(f"{OWN}/users/{name}?domain=tests", json={"password": password}, headers=operator)
    user = Person(place, worker, str(made.json()["id"]), {})
    user.send("PUT", user.role("member"), {})
    identity = {"methods": ["password"], "password": {"user": {"id": user.id, "password": password}}}
    scope = {"project": {"id": place.world.project.id}}
    login = place.client.post("/v3/auth/tokens", json={"auth": {"identity": identity, "scope": scope}})
    user.headers["X-Auth-Token"] = login.headers["x-subject-token"]
    assert worker.get(f"{OWN}/caller", headers=user.headers).status_code == 200
    return user


def test_a_lost_role_gives_no_certificate(person: Person, slow: SlowStep) -> None:
    with person.issuing(slow) as answer:
        # This ends after the second revocation.
        person.send("DELETE", f"{person.role('member')}?revoke=true")
    assert answer.result(SECONDS).status_code == 404
    assert "live" not in person.states()


def test_a_logout_everywhere_ends_a_request_in_progress(person: Person, slow: SlowStep) -> None:
    with person.issuing(slow) as answer:
        out = person.place.client.post(f"{OWN}/caller/logout", headers=person.headers)
        assert out.status_code == 200, out.text
    assert answer.result(SECONDS).status_code == 401
    assert "live" not in person.states()


def test_a_disabled_user_gets_no_certificate(person: Person, slow: SlowStep) -> None:
    with person.issuing(slow) as answer:
        person.send("PUT", f"/users/{person.id}", {"enabled": False})
        eventually(lambda: person.worker.get(f"{OWN}/caller", headers=person.headers).status_code == 401)
    assert answer.result(SECONDS).status_code == 401
    assert "live" not in person.states()


def test_a_lesser_role_needs_a_new_request(person: Person, slow: SlowStep) -> None:
    with person.issuing(slow) as answer:
        person.send("PUT", person.role("reader"), {})
        person.send("DELETE", f"{person.role('member')}?revoke=true")
    refused = answer.result(SECONDS)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "live" not in person.states()
    assert person.issue().status_code == 200
    assert person.states()[0] == "live"


def test_other_changes_do_not_disturb(person: Person, slow: SlowStep) -> None:
    with person.issuing(slow) as answer:
        person.send("PUT", person.role("inspector"), {})
        # This takes until every worker knows of it.
        person.send("DELETE", f"{person.role('inspector')}?revoke=true")
    assert answer.result(SECONDS).status_code == 200
    assert (person.states(), slow.count) == (["live"], 1)


def test_a_certificate_that_was_recorded_too_late_is_revoked(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rights end after the last check before the commit."""
    slow = SlowStep()
    monkeypatch.setattr(Ledger, "record", slow.slowed(Ledger.record))
    with person.issuing(slow):
        person.send("DELETE", person.role("member"))
        eventually(lambda: person.issue("?dryRun=All").status_code == 404)
    assert person.states() == ["revoked"]
    store = Store(person.place.world.settings().store_url)
    revoked = [said for said in store.events() if said["kind"] == "certificate.revoked"][-1]
    detail = revoked["detail"]
    assert isinstance(detail, dict)
    assert (detail["user_id"], detail["reason"]) == (person.id, "affiliationChanged")

"""A real Keystone that goes away, hangs and comes back, and a service whose own login there changes."""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from support.keystone_installation import Service, Site
from support.wait import eventually

FIRST_REQUESTS = 50
LONGEST_CACHE = 60
"""In seconds."""
PAUSE_SECONDS = 0.05
"""Between two requests of the load."""


@pytest.fixture(scope="module")
def own(site: Site) -> Iterator[Service]:
    """A service that caches for long. Only tests that stop Keystone use it."""
    with site.serving(site.settings(cache=LONGEST_CACHE)) as service:
        yield service


class Load:
    """Requests for certificates, one after the other in each thread.

    Attributes:
        wrong: what was answered to tokens that Keystone never accepts.
        known: what was answered to a token that the service knows.
    """

    def __init__(self, service: Service, known: str, revoked: str) -> None:
        self._service = service
        self._over = threading.Event()
        self.wrong: list[httpx2.Response] = []
        self.known: list[httpx2.Response] = []
        self._work = [
            (self.known, lambda: known),
            (self.wrong, lambda: revoked),
            (self.wrong, lambda: f"gAAAAA{secrets.token_hex(90)}"),
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(len(self._work)) as pool:
            threads = [pool.submit(self._send, *work) for work in self._work]
            try:
                yield
            finally:
                self._over.set()
            for thread in threads:
                thread.result()

    def _send(self, answers: list[httpx2.Response], token: Callable[[], str]) -> None:
        while not self._over.wait(PAUSE_SECONDS):
            answers.append(self._service.issue(token()))


def test_keystone_is_stopped_and_started_under_load(site: Site, own: Service) -> None:
    known, unknown, revoked = (site.token(site.person()) for _ in range(3))
    cached_at = time.monotonic()
    assert own.status(known) == 200
    site.admin.revoke(revoked)
    load = Load(own, known, revoked)

    with load.running():
        eventually(lambda: len(load.known) > 3 and len(load.wrong) > 6)
        with site.keystone.stopped():
            eventually(lambda: own.status(unknown) == 503)
            away = own.issue(unknown)
            during = len(load.known)
            eventually(lambda: len(load.known) > during + 10)
            while_away = [*load.known]
            is_cached = time.monotonic() < cached_at + LONGEST_CACHE
        eventually(lambda: own.status(unknown) == 200)
        eventually(lambda: own.status(revoked) == 401)

    assert away.status_code == 503
    assert 1 <= int(away.headers["Retry-After"]) <= 60
    # A busy machine may take longer than the cache.
    assert {answer.status_code for answer in while_away} <= ({200} if is_cached else {200, 503})
    # Nothing is cached for longer than a minute, and Keystone may take that long to start.
    assert {answer.status_code for answer in load.known} <= {200, 503}
    assert {answer.status_code for answer in load.wrong} <= {401, 503}


def test_a_keystone_that_hangs_holds_up_nobody_else(site: Site) -> None:
    known, unknown = (site.token(site.person()) for _ in range(2))
    with site.serving(site.settings(cache=LONGEST_CACHE, timeout=3)) as service:
        eventually(lambda: service.status(known) == 200)

        with site.keystone.hanging(), ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(service.issue, unknown) for _ in range(8)]
            assert service.issue(known).status_code == 200
            answers = [each.result() for each in waiting]

        assert {answer.status_code for answer in answers} == {503}
        assert all("Retry-After" in answer.headers for answer in answers)
        eventually(lambda: service.status(unknown) == 200)
    # After the hang, the server may drop new connections, so the next test gets a new server.
    with site.keystone.stopped():
        pass


def test_a_keystone_that_forgot_its_tokens_costs_no_request(site: Site, own: Service) -> None:
    """The service's own token gets a 401, and so the service logs in again."""
    person, old = site.person(), site.token(site.person())
    assert own.status(site.token(person)) == 200
    with site.keystone.stopped():
        site.keystone.forget_tokens()
    site.admin.renew()

    assert own.status(site.token(person)) == 200
    assert own.status(old) == 401


def test_first_requests_with_one_token_make_one_lookup(site: Site, own: Service) -> None:
    token = site.token(site.person())
    with ThreadPoolExecutor(FIRST_REQUESTS) as pool:
        statuses = list(pool.map(own.status, [token] * FIRST_REQUESTS))

    assert statuses == [200] * FIRST_REQUESTS
    assert own.lookups(token) == 1


def test_a_service_starts_without_keystone(site: Site) -> None:
    token = site.token(site.person())
    with contextlib.ExitStack() as later:
        with site.keystone.stopped():
            service = later.enter_context(site.serving())
            assert service.http.get("/healthz").status_code == 200
            assert service.status(token) == 503
        eventually(lambda: service.status(token) == 200)


def test_a_changed_password_of_the_service_needs_no_restart(site: Site) -> None:
    """The service's token ends with the password. The file of the new one is read for the next login."""
    reader = site.admin.new_person("default")
    site.admin.grant("reader", f"users/{reader.id}", "system")
    file = site.folder / f"password-{reader.id}"
    file.write_text(reader.password)
    settings = site.settings(service=f'user_id = "{reader.id}"\npassword_file = "{file}"')
    with site.serving(settings) as service:
        assert service.status(site.token(site.person())) == 200
        password = secrets.token_hex(8)
        file.write_text(password)
        site.admin.change("user", reader.id, password=password)

        # Keystone also voids the tokens that it issues in the same second.
        eventually(lambda: service.status(site.token(site.person())) == 200)


def test_the_service_logs_in_with_an_application_credential(site: Site) -> None:
    """With the role `service` in a project, for tokens alone."""
    admin = site.admin
    owner = admin.new_person("default")
    services = admin.new("project", domain_id="default")
    admin.grant("service", f"users/{owner.id}", f"projects/{services}")
    made = admin.new_application_credential(owner, services)["application_credential"]
    settings = site.settings(
        "groups = false\naccess_keys = false",
        f'application_credential_id = "{made["id"]}"\napplication_credential_secret = "{made["secret"]}"',
    )
    with site.serving(settings) as service:
        assert service.issue(site.token(site.person())).status_code == 200
        assert service.status("gAAAAAB") == 401


def test_a_service_without_rights_answers_503_and_says_why(site: Site) -> None:
    powerless = site.admin.new_person("default")
    site.admin.grant("member", f"users/{powerless.id}", f"projects/{site.project_id}")
    credential = (
        f'user_id = "{powerless.id}"\npassword = "{powerless.password}"\nproject_id = "{site.project_id}"'
    )
    with site.serving(site.settings(service=credential)) as service:
        answer = service.issue(site.token(site.person()))

        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
        (line,) = [line for line in service.log if line["event"] == "keystone answer not usable"]
    assert "lacks a right" in line["reason"]

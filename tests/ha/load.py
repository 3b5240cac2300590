"""Issues, revokes and reviews certificates at a steady rate, and records every answer with its times.

Times are of the monotonic clock, in seconds. A request does not wait for the answer to another request.
"""

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
from cryptography import x509

from support.kubernetes_messages import credential_id, review
from support.leaf_checks import leaf_of
from support.world import World

Kind = Literal["issue", "revoke", "review"]
KINDS: tuple[Kind, ...] = ("issue", "revoke", "review")
# Of both services together, per second.
RATES: dict[Kind, float] = {"issue": 20, "revoke": 2, "review": 20}
# An API server waits for 3 seconds by default. Other clients wait longer.
PATIENCE: dict[Kind, float] = {"issue": 30, "revoke": 30, "review": 3}
# A revocation applies everywhere within this time after its answer.
REVOKED_WITHIN = 1.0
# Reviews are about this many of the latest certificates.
RECENT = 100

Outcome = Literal["done", "denied", "no opinion", "unavailable", "broken", "other"]
_SUCCESS = {"done", "denied", "no opinion"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request.

    Attributes:
        service: the number of the service.
        outcome: `unavailable` is status 503, or 429; `broken` is no answer, or none in time.
        revoked: of a review, whether the certificate's revocation had been answered when the review was sent.
    """

    kind: Kind
    service: int
    sent: float
    received: float
    outcome: Outcome
    revoked: bool = False

    @property
    def succeeded(self) -> bool:
        return self.outcome in _SUCCESS


@dataclass(slots=True, eq=False)
class Certificate:
    """A certificate that a client received.

    Attributes:
        serial: its credential number, too.
        received, revocation_sent, revocation_answered: when; None if it did not happen.
    """

    fingerprint: str
    serial: str
    received: float
    revocation_sent: float | None = None
    revocation_answered: float | None = None


@dataclass
class Load:
    """The clients of some services.

    Attributes:
        urls: of the services.
        token: of the user who issues and revokes.
        webhook_token: of the cluster's API server.
        allowed_late: reviews that allowed a certificate although they were sent more than a second after the answer to
            its revocation.
        denied_live: reviews that denied a certificate that nobody had tried to revoke.
        other: answers that the service should never give.
    """

    world: World
    urls: Sequence[str]
    token: str
    webhook_token: str
    answers: list[Answer] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)
    allowed_late: list[str] = field(default_factory=list)
    denied_live: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    subject: tuple[str, tuple[str, ...]] | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _broken: list[BaseException] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Send requests during the block, from another thread. Waits for the last answers."""
        self._stop.clear()
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
        if self._broken:
            raise self._broken[0]

    @property
    def revoked(self) -> list[Certificate]:
        """The certificates whose revocation was answered."""
        return [each for each in list(self.certificates) if each.revocation_answered is not None]

    def _run(self) -> None:
        try:
            asyncio.run(self._send_all())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._broken.append(error)

    async def _send_all(self) -> None:
        # Each request has a connection of its own, so that every worker answers.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        async with (
            httpx2.AsyncClient(limits=limits, trust_env=False, timeout=None) as client,
            asyncio.TaskGroup() as group,
        ):
            for kind in KINDS:
                group.create_task(self._send(group, client, kind))

    async def _send(self, group: asyncio.TaskGroup, client: httpx2.AsyncClient, kind: Kind) -> None:
        due = time.monotonic()
        for service in itertools.cycle(range(len(self.urls))):
            if self._stop.is_set():
                return
            group.create_task(self._one(client, kind, service))
            due = max(due + 1 / RATES[kind], time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _one(self, client: httpx2.AsyncClient, kind: Kind, service: int) -> None:
        if kind == "issue":
            await self._issue(client, service)
        elif kind == "revoke":
            await self._revoke(client, service)
        elif certificate := self._to_review():
            await self.review(client, service, certificate)

    async def _issue(self, client: httpx2.AsyncClient, service: int) -> None:
        sent = time.monotonic()
        answer = await self._post(client, service, "issue", self.world.path(), json={"duration": 1})
        received = time.monotonic()
        if isinstance(answer, httpx2.Response) and answer.status_code == httpx2.codes.OK:
            if self.subject is None:
                self.subject = _subject(leaf_of(answer.json()))
            self.certificates.append(
                Certificate(
                    answer.headers["X-Clustercert-Fingerprint"],
                    answer.headers["X-Clustercert-Serial"],
                    received,
                )
            )
        self._record("issue", service, sent, received, answer)

    async def _revoke(self, client: httpx2.AsyncClient, service: int) -> None:
        untouched = [each for each in self.certificates[-RECENT:] if each.revocation_sent is None]
        if not untouched:
            return
        certificate = random.choice(untouched)
        cluster = self.world.clusters["plain"]
        path = (
            f"/clustercert/v1/projects/{cluster.project_id}/clusters/{cluster.id}"
            f"/certificates/{certificate.fingerprint}/revoke"
        )
        sent = certificate.revocation_sent = time.monotonic()
        answer = await self._post(client, service, "revoke", path, json={"reason": "superseded"})
        received = time.monotonic()
        if isinstance(answer, httpx2.Response) and answer.status_code == httpx2.codes.OK:
            certificate.revocation_answered = received
        self._record("revoke", service, sent, received, answer)

    def _to_review(self) -> Certificate | None:
        """By turns a revoked certificate and a valid one, if there is one. New ones are as likely as old ones."""
        revoked = random.random() < 0.5
        recent = self.certificates[-RECENT:]
        fitting = [each for each in recent if (each.revocation_answered is not None) == revoked]
        if revoked and random.random() < 0.5:
            fitting = self.revoked
        return random.choice(fitting) if fitting else None

    async def review(
        self, client: httpx2.AsyncClient, service: int, certificate: Certificate
    ) -> Answer | None:
        """Send one review, and compare its answer with what is known about the certificate."""
        if self.subject is None:
            return None
        sent = time.monotonic()
        answered = certificate.revocation_answered
        username, groups = self.subject
        body = review(
            credential_id(certificate.fingerprint),
            user=username,
            groups=(*groups, f"clustercert:credential:{certificate.serial}"),
        )
        cluster = self.world.clusters["plain"]
        path = f"/clustercert/v1/kubernetes/clusters/{cluster.id}/authorize"
        answer = await self._post(client, service, "review", path, content=body)
        received = time.monotonic()
        result = self._record("review", service, sent, received, answer, revoked=answered is not None)
        if result.outcome == "no opinion" and answered is not None and sent > answered + REVOKED_WITHIN:
            self.allowed_late.append(
                f"service {service} allowed {certificate.serial} {sent - answered:.2f} s after its revocation"
            )
        if result.outcome == "denied" and certificate.revocation_sent is None:
            self.denied_live.append(f"service {service} denied {certificate.serial}: {_text(answer)}")
        return result

    async def _post(
        self, client: httpx2.AsyncClient, service: int, kind: Kind, path: str, **content: Any
    ) -> httpx2.Response | Exception:
        headers = (
            {"Authorization": f"Bearer {self.webhook_token}", "Content-Type": "application/json"}
            if kind == "review"
            else {"X-Auth-Token": self.token}
        )
        try:
            async with asyncio.timeout(PATIENCE[kind]):
                return await client.post(self.urls[service] + path, headers=headers, **content)
        except (httpx2.HTTPError, TimeoutError) as error:
            return error

    def _record(
        self,
        kind: Kind,
        service: int,
        sent: float,
        received: float,
        answer: httpx2.Response | Exception,
        *,
        revoked: bool = False,
    ) -> Answer:
        outcome = _outcome(kind, answer)
        if outcome == "other":
            self.other.append(f"{kind}: {_text(answer)}")
        recorded = Answer(kind, service, sent, received, outcome, revoked)
        self.answers.append(recorded)
        return recorded


def _outcome(kind: Kind, answer: httpx2.Response | Exception) -> Outcome:
    if isinstance(answer, Exception):
        return "broken"
    if answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
        # The webhook's answers have none: an API server would wait instead of applying its failurePolicy.
        return "unavailable" if kind == "review" or answer.headers.get("Retry-After") else "other"
    if answer.status_code != httpx2.codes.OK:
        return "other"
    if kind != "review":
        return "done"
    return "denied" if answer.json()["status"].get("denied") else "no opinion"


def _text(answer: httpx2.Response | Exception) -> str:
    return f"{answer.status_code} {answer.text}" if isinstance(answer, httpx2.Response) else repr(answer)


def _subject(leaf: x509.Certificate) -> tuple[str, tuple[str, ...]]:
    """The common name, and the organizations without the credential group."""
    names = {
        oid: [str(each.value) for each in leaf.subject.get_attributes_for_oid(oid)]
        for oid in (x509.NameOID.COMMON_NAME, x509.NameOID.ORGANIZATION_NAME)
    }
    groups = names[x509.NameOID.ORGANIZATION_NAME]
    return names[x509.NameOID.COMMON_NAME][0], tuple(groups[:-1])


def longest_gap(answers: Sequence[Answer], kind: Kind, start: float, end: float, services: int) -> float:
    """The longest time in which a client of one service got no successful answer of a kind, in seconds.

    Counts from the last success before `start`, to the first one after `end`. A service that never answers again has
    no end: the gap lasts until the last answer of any kind.
    """
    longest = 0.0
    for service in range(services):
        times = sorted(
            each.received
            for each in answers
            if each.kind == kind and each.service == service and each.succeeded
        )
        last = max((each.received for each in answers), default=end)
        for before, after in itertools.pairwise([*times, last]):
            if after >= start and before <= end:
                longest = max(longest, after - before)
    return longest


def unanswered_reviews(
    answers: Sequence[Answer], start: float, end: float, services: int
) -> tuple[float, int]:
    """How long the reviews of one service failed in total, at most; and how many of revoked certificates failed.

    A period begins when the first review that fails is sent, and ends when the next one that is answered is sent. In
    this time, NoOpinion lets revoked certificates in, or some of them if only one worker fails.
    """
    longest, failed = 0.0, 0
    for service in range(services):
        reviews = sorted(
            (each for each in answers if each.kind == "review" and each.service == service),
            key=lambda each: each.sent,
        )
        total, begun = 0.0, None
        for each in reviews:
            if not start <= each.sent <= end:
                continue
            if not each.succeeded:
                failed += each.revoked
                begun = each.sent if begun is None else begun
            elif begun is not None:
                total += each.sent - begun
                begun = None
        longest = max(longest, total if begun is None else total + end - begun)
    return longest, failed

"""This service's own way into a cluster: what it shows there, when it gets another, and that none is left open."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.kubernetes.cluster_connections import MAX_OPEN, ClusterConnections
from clustercert.model import ClientCA, Cluster
from clustercert.model.errors import SignerError, Unavailable
from support.apiserver import ApiServer
from support.issuance_doubles import MemoryLedger, issuance
from support.samples import CA_KEY, NOW, client_ca, cluster

T = TypeVar("T")

ALLOWED = "/version"
FORBIDDEN = "/api/v1/namespaces"


@dataclass
class Scene:
    """A cluster at the double, by a clock that the test turns; `revoked` says whether what is shown is."""

    double: ApiServer
    known: Cluster
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    now: datetime = NOW
    revoked: bool = False
    asked: int = 0
    connections: ClusterConnections = field(init=False)

    def __post_init__(self) -> None:
        issuer = issuance(ledger=self.ledger, now=lambda: self.now)
        self.connections = ClusterConnections(issuer, self.is_revoked, lambda: self.now)

    async def is_revoked(self, fingerprint: bytes) -> bool:
        self.asked += 1
        assert fingerprint in {record.fingerprint for record, _ in self.ledger.entries}
        return self.revoked

    async def gets(self, path: str = ALLOWED) -> None:
        await self.connections.call(self.known, lambda api: api.get(path))

    @property
    def issued(self) -> int:
        return len(self.ledger.entries)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


@pytest.fixture
def scene(double: ApiServer) -> Scene:
    ca = client_ca(CA_KEY)
    double.trust(ca.ca_certificate.public_bytes(Encoding.PEM))
    known = replace(cluster(ca), internal_url=double.url, server_ca_pem=double.server_ca.read_bytes())
    made = Scene(double, known)
    # The double looks at its own clock.
    double.now = lambda: made.now
    return made


async def test_one_certificate_serves_until_shortly_before_its_end(scene: Scene) -> None:
    for _ in range(3):
        await scene.gets()
    scene.now += timedelta(minutes=9, seconds=59)
    await scene.gets()
    assert scene.issued == 1
    scene.now += timedelta(seconds=1)
    await scene.gets()
    assert scene.issued == 2
    await scene.connections.close()


async def test_it_is_recorded_as_the_services_own_before_it_is_used(scene: Scene) -> None:
    await scene.gets()
    ((record, event),) = scene.ledger.entries
    assert (record.user_id, record.groups, record.auth_method) == (
        "clustercert:service",
        ("clustercert:service",),
        "service",
    )
    assert record.not_after - NOW.replace(microsecond=0) == timedelta(minutes=15)
    assert record.rule is None
    assert (event.kind, event.actor.id, event.subject) == (
        "certificate.issued",
        "clustercert:service",
        record.fingerprint.hex(),
    )
    seen = scene.double.seen[-1].identity
    assert seen is not None
    assert seen.extra["authentication.kubernetes.io/credential-id"] == [
        f"X509SHA256={record.fingerprint.hex()}"
    ]
    await scene.connections.close()


async def test_what_is_not_recorded_is_not_used(scene: Scene) -> None:
    scene.ledger.failure = Unavailable("The database is away.")
    before = len(scene.double.seen)
    with pytest.raises(Unavailable):
        await scene.gets()
    assert len(scene.double.seen) == before


async def test_those_that_ask_at_once_share_one(scene: Scene) -> None:
    await asyncio.gather(*(scene.gets() for _ in range(10)))
    assert scene.issued == 1
    await scene.connections.close()


async def test_a_refusal_of_what_was_revoked_is_answered_by_another_certificate(scene: Scene) -> None:
    await scene.gets()
    scene.revoked = True
    with pytest.raises(ApiServerRefused):
        await scene.gets(FORBIDDEN)
    assert scene.issued == 2
    await scene.connections.close()


async def test_a_refusal_for_another_cause_makes_no_certificate_for_each_request(scene: Scene) -> None:
    for _ in range(5):
        with pytest.raises(ApiServerRefused):
            await scene.gets(FORBIDDEN)
    assert (scene.issued, scene.asked) == (1, 5)
    scene.now += timedelta(seconds=60)
    with pytest.raises(ApiServerRefused):
        await scene.gets(FORBIDDEN)
    assert scene.issued == 2
    await scene.connections.close()


async def test_while_everything_is_refused_few_certificates_are_issued(scene: Scene) -> None:
    for _ in range(60):
        with pytest.raises(ApiServerRefused):
            await scene.gets(FORBIDDEN)
        scene.now += timedelta(minutes=1)
    # Besides one every ten minutes, three more before the longer waits.
    assert scene.issued <= 6 + 3
    await scene.gets()
    issued = scene.issued
    scene.now += timedelta(minutes=1)
    with pytest.raises(ApiServerRefused):
        await scene.gets(FORBIDDEN)
    assert scene.issued == issued + 1, "after a success, a new certificate is tried at once"
    await scene.connections.close()


async def test_other_failures_are_only_passed_on(scene: Scene) -> None:
    scene.revoked = True

    async def fails(api: KubeApi) -> None:
        raise ApiServerRefused(409, "")

    with pytest.raises(ApiServerRefused):
        await scene.connections.call(scene.known, fails)
    assert (scene.issued, scene.asked) == (1, 0)
    await scene.connections.close()


async def test_a_cluster_that_moved_or_has_another_ca_gets_another(scene: Scene) -> None:
    await scene.gets()
    scene.known = replace(scene.known, client_ca=replace(scene.known.client_ca, id="a" * 32))
    await scene.gets()
    scene.known = replace(scene.known, internal_url=scene.double.url.replace("127.0.0.1", "localhost"))
    await scene.gets()
    assert scene.issued == 3
    await scene.connections.close()


async def test_what_is_retired_is_closed_by_the_last_who_uses_it(scene: Scene) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()
    used: list[KubeApi] = []

    async def slow(api: KubeApi) -> None:
        used.append(api)
        inside.set()
        await go_on.wait()
        await api.get(ALLOWED)

    working = asyncio.create_task(scene.connections.call(scene.known, slow))
    await inside.wait()
    await scene.connections.close()
    assert not used[0]._http._http.is_closed
    go_on.set()
    await working
    assert used[0]._http._http.is_closed


async def test_only_so_many_stay_open(scene: Scene) -> None:
    opened: list[KubeApi] = []

    async def look(api: KubeApi) -> None:
        opened.append(api)

    for number in range(MAX_OPEN + 2):
        await scene.connections.call(replace(scene.known, id=f"{number:036x}"), look)
    assert [api._http._http.is_closed for api in opened] == [True, True] + MAX_OPEN * [False]
    assert len(scene.connections._locks) == MAX_OPEN
    await scene.connections.close()
    assert all(api._http._http.is_closed for api in opened)


async def test_a_dropped_connection_stays_open_for_its_users(scene: Scene) -> None:
    closed: list[bool] = []

    async def look(api: KubeApi) -> None:
        closed.append(api._http._http.is_closed)

    def known(number: int) -> Cluster:
        return replace(scene.known, id=f"{number:036x}")

    for number in range(MAX_OPEN):
        await scene.connections.call(known(number), look)
    inside, go_on = asyncio.Event(), asyncio.Event()
    connection, *_ = scene.connections._connections.values()
    oldest = connection.api

    class Slow:
        """The oldest connection, whose end takes its time."""

        async def close(self) -> None:
            inside.set()
            await go_on.wait()
            await oldest.close()

    connection.api = Slow()  # type: ignore[assignment] # what is closed of it
    closed.clear()
    waiting = asyncio.create_task(scene.connections.call(known(MAX_OPEN), look))
    await inside.wait()
    for number in range(MAX_OPEN + 1, 2 * MAX_OPEN + 1):
        await scene.connections.call(known(number), look)
    go_on.set()
    await waiting
    assert closed == [False] * (MAX_OPEN + 1)
    assert not any(each.users for each in scene.connections._connections.values())
    await scene.connections.close()


async def test_an_expired_ca_and_a_missing_signer_are_said_to_be(scene: Scene) -> None:
    scene.now = NOW + timedelta(days=4000)
    with pytest.raises(Unavailable):
        await scene.gets()
    scene.now, scene.known = (
        NOW,
        replace(scene.known, client_ca=replace(scene.known.client_ca, signer="another")),
    )
    with pytest.raises(SignerError):
        await scene.gets()
    assert scene.issued == 0


async def test_it_never_outlives_its_ca(scene: Scene) -> None:
    ends = scene.known.client_ca.ca_certificate.not_valid_after_utc
    scene.now = ends - timedelta(minutes=7)
    await scene.gets()
    assert scene.ledger.entries[0][0].not_after == ends
    await scene.connections.close()


@dataclass
class AccountSigner:
    """Connects with an account of its own."""

    cas: list[ClientCA] = field(default_factory=list)

    async def call(self, ca: ClientCA, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        self.cas.append(ca)
        async with KubeApi("https://127.0.0.1:1", b"", None) as api:
            return await work(api)


async def test_a_cluster_with_tokens_is_reached_with_the_account_of_its_signer(scene: Scene) -> None:
    signer = AccountSigner()
    ca = replace(scene.known.client_ca, certificate=None, signer="token")
    known = replace(scene.known, signer="token", client_ca=ca)

    async def answer(_api: KubeApi) -> str:
        return "answer"

    with_token = replace(scene.connections, signers={"token": signer})
    assert await with_token.call(known, answer) == "answer"
    assert signer.cas == [ca]
    for signers in ({}, {"token": object()}):
        with pytest.raises(SignerError, match="signer token is not installed"):
            await replace(scene.connections, signers=signers).call(known, answer)
    assert scene.issued == 0

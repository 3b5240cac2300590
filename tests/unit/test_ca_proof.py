"""Proofs of client CAs at the double of kube-apiserver, and the addresses that a cluster tells."""

import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.kubernetes import ca_proof
from clustercert.kubernetes.ca_proof import LIFETIME, MAX_DETAIL, NOT_REACHED, CaProver
from clustercert.kubernetes.verify.probe import AuthenticatedUser, Denied, Probe
from clustercert.model import Cluster, ClusterOptions, Origin
from clustercert.model.errors import Conflict, RemoteFailed, Unavailable
from support.apiserver import ApiServer
from support.issuance_doubles import MemoryLedger, issuance
from support.log_capture import captured_logs
from support.samples import CA_KEY, NOW, client_ca, cluster

T = TypeVar("T")
SILENT = "https://127.0.0.1:1"


@dataclass
class Scene:
    """A cluster at the double, by a clock that the test turns.

    Attributes:
        answer: what the cluster answers to a request for its EndpointSlices, or the error.
        asked: how often the cluster was asked.
    """

    double: ApiServer
    known: Cluster
    now: datetime = NOW
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    answer: Any = None
    asked: int = 0
    prover: CaProver = field(init=False)

    def __post_init__(self) -> None:
        issuer = issuance(ledger=self.ledger, now=lambda: self.now)
        self.prover = CaProver(issuer, self, lambda: self.now)

    async def call(self, _cluster: Cluster, _work: Callable[[KubeApi], Awaitable[T]]) -> T:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        answer: T = self.answer
        return answer

    async def outcomes(self, *addresses: str) -> list[str]:
        proofs = await self.prover.prove(self.known, self.known.client_ca, addresses or [self.double.url])
        return [each.outcome for each in proofs]

    def trust(self) -> None:
        self.double.trust(self.known.client_ca.ca_certificate.public_bytes(Encoding.PEM))


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


@pytest.fixture
def scene(double: ApiServer) -> Scene:
    double.trust(b"")
    double.now = lambda: NOW
    known = replace(
        cluster(client_ca(CA_KEY)), internal_url=double.url, server_ca_pem=double.server_ca.read_bytes()
    )
    return Scene(double, known)


async def test_each_address_accepts_refuses_or_is_silent(scene: Scene) -> None:
    assert await scene.outcomes() == ["refused"]
    scene.trust()
    assert await scene.outcomes(scene.double.url, SILENT) == ["accepted", "failed"]
    [(record, _)] = scene.ledger.entries
    assert (record.user_id, record.groups, record.auth_method) == ("clustercert:ca-proof", (), "service")


async def test_an_untrusted_server_proves_nothing(scene: Scene) -> None:
    scene.trust()
    scene.known = replace(scene.known, server_ca_pem=cluster().server_ca_pem)
    assert await scene.outcomes() == ["failed"]


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        (AuthenticatedUser("somebody", frozenset(), ()), "failed"),
        (AuthenticatedUser("clustercert:ca-proof", frozenset({"clustercert:credential:0"}), ()), "failed"),
        (Denied('HTTP 403 User "clustercert:ca-proof:NAME" cannot create', ""), "accepted"),
        (Denied('HTTP 403 User "clustercert:ca-proof" cannot create', ""), "failed"),
        (Denied('HTTP 403 User "system:anonymous" cannot create', ""), "failed"),
    ],
    ids=["a proxy's user", "another certificate", "denied", "no certificate", "anonymous"],
)
async def test_only_the_certificates_own_identity_is_a_proof(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, result: AuthenticatedUser | Denied, outcome: str
) -> None:
    async def who_am_i(_: Probe) -> AuthenticatedUser:
        if isinstance(result, Denied):
            [(issued, _event)] = scene.ledger.entries
            raise Denied(result.message.replace("clustercert:ca-proof:NAME", str(issued.username)), "")
        return result

    monkeypatch.setattr(Probe, "who_am_i", who_am_i)
    assert await scene.outcomes() == [outcome]


async def test_what_a_server_says_is_printable_and_short(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def who_am_i(_: Probe) -> AuthenticatedUser:
        raise Denied("HTTP 403 \x1b[2J\ud800" + "x" * 1000, "")

    monkeypatch.setattr(Probe, "who_am_i", who_am_i)
    [proof] = await scene.prover.prove(scene.known, scene.known.client_ca, [scene.double.url])
    assert proof.detail == "HTTP 403 ?[2J?" + "x" * (MAX_DETAIL - 14)


async def test_one_certificate_serves_many_proofs(scene: Scene) -> None:
    scene.trust()
    for _ in range(3):
        assert await scene.outcomes() == ["accepted"]
    assert len(scene.ledger.entries) == 1
    scene.now += LIFETIME
    scene.double.now = lambda: scene.now
    assert await scene.outcomes() == ["accepted"]
    assert len(scene.ledger.entries) == 2


async def test_an_expired_ca_issues_nothing(scene: Scene) -> None:
    scene.now = scene.known.client_ca.not_after
    with pytest.raises(Conflict, match="expired"):
        await scene.prover.issue(scene.known, scene.known.client_ca, None, Origin.local())


async def test_a_certificate_ends_with_its_ca(scene: Scene) -> None:
    scene.now = scene.known.client_ca.not_after - timedelta(minutes=1)
    issued = await scene.prover.issue(scene.known, scene.known.client_ca, None, Origin.local())
    assert issued.grant.not_after == scene.known.client_ca.not_after


# The addresses that a cluster tells

CONNECTED = ClusterOptions(admission=True, discover_api_servers=True)


def slices(*addresses: str, name: str = "https", port: object = 6443) -> dict[str, Any]:
    """The list of EndpointSlices that an API server with these addresses returns."""
    endpoints = [{"addresses": [each], "conditions": {"ready": True}} for each in addresses]
    return {"items": [{"endpoints": endpoints, "ports": [{"name": name, "port": port, "protocol": "TCP"}]}]}


async def test_the_operators_list_takes_precedence(scene: Scene) -> None:
    known = replace(scene.known, api_servers=("https://a:6443",), options=CONNECTED)
    assert await scene.prover.api_servers(known) == ("https://a:6443",)
    assert scene.asked == 0


async def test_only_an_operator_lets_the_cluster_name_addresses(scene: Scene) -> None:
    for options in (ClusterOptions(), ClusterOptions(admission=True), ClusterOptions(credential_roles={})):
        known = replace(scene.known, options=options)
        assert await scene.prover.api_servers(known) == (scene.known.internal_url,)
    assert scene.asked == 0


async def test_the_cluster_tells_its_api_servers(scene: Scene) -> None:
    scene.answer = slices("10.0.0.2", "10.0.0.1", "fd00::1")
    found = await scene.prover.api_servers(replace(scene.known, options=CONNECTED))
    assert found == ("https://10.0.0.1:6443", "https://10.0.0.2:6443", "https://[fd00::1]:6443")


@pytest.mark.parametrize("answer", [ApiServerRefused(403, "forbidden"), Unavailable("away")])
async def test_no_api_server_is_left_out_when_the_cluster_does_not_tell_them(
    scene: Scene, answer: object
) -> None:
    """The cluster's own address may lead to only one of them."""
    scene.answer = answer
    with pytest.raises(Unavailable, match="--api-server"):
        await scene.prover.api_servers(replace(scene.known, options=CONNECTED))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"items": None},
        {"items": [{"endpoints": []}]},
        slices("a.example/x?"),
        *(slices("10.0.0.1", port=port) for port in ("x", "6443", 0, -5, 65536, 999999, True, 6443.0, None)),
        slices(*(f"10.0.0.{number}" for number in range(65))),
        slices(),
        slices("10.0.0.1", name="other"),
    ],
)
async def test_a_strange_answer_is_an_error(scene: Scene, answer: object) -> None:
    scene.answer = answer
    with pytest.raises(RemoteFailed, match="EndpointSlice"):
        await scene.prover.api_servers(replace(scene.known, options=CONNECTED))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.10", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "::", "fe80::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0", "fe80::1%eth0", "fd00::1%1"),
    ],
)
async def test_a_cluster_leads_to_no_address_of_this_machine_or_its_link(scene: Scene, address: str) -> None:
    scene.answer = slices("10.0.0.1", address)
    with pytest.raises(RemoteFailed, match=r"EndpointSlice names the address .*--api-server"):
        await scene.prover.api_servers(replace(scene.known, options=CONNECTED))


async def test_every_failure_to_connect_reads_the_same(scene: Scene) -> None:
    """What listens at an address is in the log only."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        untrusted = replace(scene.known, server_ca_pem=cluster().server_ca_pem)
        proofs = [
            *await scene.prover.prove(scene.known, scene.known.client_ca, [SILENT, "https://127.0.0.2:1"]),
            *await scene.prover.prove(untrusted, scene.known.client_ca, [scene.double.url]),
        ]

        def hang_up() -> None:
            silent.accept()[0].close()

        threading.Thread(target=hang_up).start()
        plain = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with captured_logs(ca_proof) as lines:
            proofs += await scene.prover.prove(scene.known, scene.known.client_ca, [plain])
    assert {(each.outcome, each.detail) for each in proofs} == {("failed", NOT_REACHED)}
    failed = [each["address"] for each in lines if each["event"] == "api server not reached for a proof"]
    assert failed == [plain]


async def test_no_server_knows_the_name_in_a_certificate_that_it_was_not_shown(scene: Scene) -> None:
    scene.trust()
    assert await scene.outcomes() == ["accepted"]
    seen = scene.double.seen[-1].identity
    assert seen is not None
    assert re.fullmatch("clustercert:ca-proof:[0-9a-f]{32}", seen.username)
    scene.now += LIFETIME
    scene.double.now = lambda: scene.now
    assert await scene.outcomes() == ["accepted"]
    other = scene.double.seen[-1].identity
    assert other is not None
    assert other.username != seen.username


async def test_a_long_list_of_ports_is_not_combined_with_each_address(scene: Scene) -> None:
    """Combined, these 30,000 addresses and ports would take minutes and gigabytes."""
    scene.answer = slices(*(["10.0.0.1"] * 30_000))
    scene.answer["items"][0]["ports"] *= 30_000
    with pytest.raises(RemoteFailed, match="more than 64"):
        await scene.prover.api_servers(replace(scene.known, options=CONNECTED))
    scene.answer["items"][0]["endpoints"] = [{"addresses": []}] * 30_000
    with pytest.raises(RemoteFailed, match="names no API server"):
        await scene.prover.api_servers(replace(scene.known, options=CONNECTED))

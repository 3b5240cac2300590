"""The rotation of client CAs by the running service: one at a kube-apiserver, and many while the leader is killed."""

import asyncio
import base64
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bench import ca_rotation
from clustercert.clusters.ca_rotation import RotationOptions
from clustercert.kube_api import ApiServerRefused, ClientIdentity, KubeApi
from clustercert.model import Actor, Origin
from clustercert.model.ca_rotation import RotationStatus
from clustercert.pki.certificates import chain_pem
from clustercert.settings import load
from clustercert.wiring import Components, open_components
from support.apiserver import ApiServer
from support.installation import Installation
from support.installed_demo import Demo, start, stop
from support.kube_apiserver import ASSETS, KubeApiServer, assets
from support.wait import SECONDS, eventually

T = TypeVar("T")
BY = Actor("cli:test", Origin.local())

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The service, with TLS and two workers."""
    one = start(tmp_path_factory.mktemp("demo"), "--tls", "--workers", "2")
    yield one
    stop(one)


@pytest.fixture(
    params=[
        "double",
        pytest.param(
            "kube-apiserver",
            marks=pytest.mark.skipif(
                assets() is None, reason=f"{ASSETS} names no folder with kube-apiserver, etcd and kubectl"
            ),
        ),
    ]
)
def apiserver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ApiServer | KubeApiServer]:
    programs = assets()
    if request.param == "double" or programs is None:
        with ApiServer(tmp_path) as double:
            yield double
    else:
        with KubeApiServer(programs, tmp_path) as real:
            yield real


def test_a_replaced_ca_locks_nobody_out_and_is_refused_in_the_end(
    demo: Demo, apiserver: ApiServer | KubeApiServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The service, its leader and the requests of holders are real. The operator uses the service's store."""
    installation = Installation(demo, apiserver, tmp_path, f"rotated-{request.node.callspec.id}")
    installation.trust()
    apiserver.serve()
    operator = Operator(installation)
    old = identity_of(installation)
    operator.start()
    with used(installation, old) as seen:
        installation.cluster.trust(operator.bundle())
        operator.reach("draining")
        new = identity_of(installation)
        while not operator.status().new.certificates:
            # A worker may still have the former CA in its cache.
            new = identity_of(installation)
        assert status_of(installation, new) == 200
        count = len(seen)
        eventually(lambda: len(seen) > count)
        operator.complete()
    assert set(seen) == {200}

    installation.cluster.trust(operator.bundle())
    operator.reach("complete")
    assert status_of(installation, old) == 401
    assert status_of(installation, new) == 200


class Operator:
    """Rotates the CA of the installation's cluster."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation

    def start(self) -> None:
        self._run(lambda it, cluster: it.ca_rotations.start(cluster, RotationOptions(), actor=BY))

    def complete(self) -> None:
        """Force completion, because certificates of the old CA are valid for a day."""
        held = self.status().old.certificates
        self._run(
            lambda it, cluster: it.ca_rotations.complete(cluster, holders=held, deny_old=None, actor=BY)
        )

    def status(self) -> RotationStatus:
        return self._run(lambda it, cluster: it.ca_rotations.status(cluster))

    def bundle(self) -> bytes:
        return chain_pem(self._run(lambda it, cluster: it.clusters.queries.bundle(cluster.id)))

    def reach(self, state: str) -> None:
        eventually(lambda: self.status().rotation.state == state)

    def _run(self, work: Callable[[Components, Any], Awaitable[T]]) -> T:
        return asyncio.run(self._done(work))

    async def _done(self, work: Callable[[Components, Any], Awaitable[T]]) -> T:
        demo = self._installation.demo
        settings = load(None, data_dir=demo.data_dir, kek_file=demo.data_dir / "kek")
        async with open_components(settings) as components:
            [cluster] = await components.clusters.queries.clusters_with_ids([self._installation.id])
            return await work(components, cluster)


def identity_of(installation: Installation) -> ClientIdentity:
    """A new certificate of the tenant's user, and its key."""
    user = installation.registered.kubeconfig()["users"][0]["user"]
    return ClientIdentity(*(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))


def status_of(installation: Installation, identity: ClientIdentity) -> int:
    """The status of a request with a certificate, on a new connection."""
    return asyncio.run(requested(installation.cluster.url, installation.cluster.server_ca, identity))


async def requested(url: str, server_ca: Path, identity: ClientIdentity) -> int:
    async with KubeApi(url, server_ca.read_bytes(), identity, seconds=SECONDS) as api:
        try:
            await api.get("/version")
        except ApiServerRefused as refused:
            return refused.http_status
    return 200


@contextlib.contextmanager
def used(installation: Installation, identity: ClientIdentity) -> Iterator[list[int]]:
    """Use a certificate again and again during the block. Yields the statuses so far."""
    seen: list[int] = []
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            seen.append(status_of(installation, identity))

    thread = threading.Thread(target=use)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@pytest.mark.long
def test_a_hundred_rotations_go_on_after_kills(tmp_path: Path) -> None:
    """The short form of `python -m bench.ca_rotation`."""
    figures = asyncio.run(ca_rotation.rotate(tmp_path, clusters=100, kills=50))
    assert figures.faults == []
    assert figures.kills >= 50
    assert figures.used > 0

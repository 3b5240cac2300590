"""The rotation of a client CA from end to end, for the double and for a real kube-apiserver."""

import asyncio
import base64
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from clustercert.clusters.ca_rotation import RotationOptions
from clustercert.kube_api import ClientIdentity, KubeApi, Refused
from clustercert.model import Actor, Origin
from clustercert.model.ca_rotation import RotationStatus
from clustercert.pki.certificates import chain_pem
from clustercert.settings import load
from clustercert.wiring import Components, open_components
from support.installation import Installation
from support.wait import SECONDS, eventually

T = TypeVar("T")
BY = Actor("cli:test", Origin.local())


def a_replaced_ca_locks_nobody_out_and_is_refused_in_the_end(installation: Installation) -> None:
    """The service, its leader and the requests of holders are real. The operator uses the service's store."""
    operator = _Operator(installation)
    old = _identity(installation)
    operator.start()
    with _used(installation, old) as seen:
        installation.cluster.trust(operator.bundle())
        operator.reach("draining")
        new = _identity(installation)
        while not operator.status().new.certificates:
            # A worker may still have the former CA in its cache.
            new = _identity(installation)
        assert _status(installation, new) == 200
        count = len(seen)
        eventually(lambda: len(seen) > count)
        operator.complete()
    assert set(seen) == {200}

    installation.cluster.trust(operator.bundle())
    operator.reach("complete")
    assert _status(installation, old) == 401
    assert _status(installation, new) == 200


class _Operator:
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


def _identity(installation: Installation) -> ClientIdentity:
    """A new certificate of the tenant's user, and its key."""
    user = installation.registered.kubeconfig()["users"][0]["user"]
    return ClientIdentity(*(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))


def _status(installation: Installation, identity: ClientIdentity) -> int:
    """The status of a request with a certificate, on a new connection."""
    return asyncio.run(_requested(installation.cluster.url, installation.cluster.server_ca, identity))


async def _requested(url: str, server_ca: Path, identity: ClientIdentity) -> int:
    async with KubeApi(url, server_ca.read_bytes(), identity, seconds=SECONDS) as api:
        try:
            await api.get("/version")
        except Refused as refused:
            return refused.http_status
    return 200


@contextlib.contextmanager
def _used(installation: Installation, identity: ClientIdentity) -> Iterator[list[int]]:
    """Use a certificate again and again during the block. Yields the statuses so far."""
    seen: list[int] = []
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            seen.append(_status(installation, identity))

    thread = threading.Thread(target=use)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()

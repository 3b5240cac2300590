"""The rotation of client CAs by the running service: one at a kube-apiserver, and many while the leader is killed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import ca_rotation
from support.apiserver import ApiServer
from support.ca_rotation_scenario import a_replaced_ca_locks_nobody_out_and_is_refused_in_the_end
from support.installation import Installation
from support.installed_demo import Demo, start, stop
from support.kube_apiserver import ASSETS, KubeApiServer, assets

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
    installation = Installation(demo, apiserver, tmp_path, f"rotated-{request.node.callspec.id}")
    installation.trust()
    apiserver.serve()
    a_replaced_ca_locks_nobody_out_and_is_refused_in_the_end(installation)


@pytest.mark.long
def test_a_hundred_rotations_go_on_after_kills(tmp_path: Path) -> None:
    """The short form of `python -m bench.ca_rotation`."""
    figures = asyncio.run(ca_rotation.rotate(tmp_path, clusters=100, kills=50))
    assert figures.faults == []
    assert figures.kills >= 50
    assert figures.used > 0

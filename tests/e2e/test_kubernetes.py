"""Revocation at a real kube-apiserver: the scenarios that tests/clients tells of the double, once more.

They run where KUBEBUILDER_ASSETS names an envtest folder with kube-apiserver, etcd and kubectl.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import altered_copy_scenarios, removal_scenario, revocation_scenarios
from support.installation import Installation
from support.installed_demo import Demo, start, stop
from support.kube_apiserver import ASSETS, KubeApiServer, assets
from support.ports import port_of, reserve

Scenario = Callable[[Installation], None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        assets() is None, reason=f"{ASSETS} names no folder with kube-apiserver, etcd and kubectl"
    ),
]


def new_apiserver(folder: Path) -> KubeApiServer:
    programs = assets()
    assert programs is not None
    return KubeApiServer(programs, folder)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The service, with TLS and two workers."""
    one = start(tmp_path_factory.mktemp("demo"), "--tls", "--workers", "2")
    yield one
    stop(one)


@pytest.fixture(scope="module")
def installation(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """With the webhook."""
    folder = tmp_path_factory.mktemp("webhook")
    with new_apiserver(folder) as apiserver:
        one = Installation(demo, apiserver, folder, "with-a-webhook")
        one.join(webhook=True)
        yield one


@pytest.mark.parametrize(
    "scenario",
    [*revocation_scenarios.WITH_A_WEBHOOK, *altered_copy_scenarios.WITH_A_WEBHOOK],
    ids=lambda scenario: scenario.__name__,
)
def test_with_the_webhook(installation: Installation, scenario: Scenario) -> None:
    scenario(installation)


@pytest.mark.parametrize(
    ("option", "scenario"),
    [
        (("--admission",), revocation_scenarios.the_admission_policy_stops_writes_and_no_reads),
        (
            ("--credential-role", "admin=cluster-admin"),
            revocation_scenarios.a_credentials_own_binding_ends_with_it,
        ),
        *altered_copy_scenarios.WHERE_FLAGS_CANNOT_BE_TOUCHED,
    ],
    ids=["admission", "credential-role", "admission-copies", "credential-role-copies"],
)
def test_where_the_flags_cannot_be_touched(
    demo: Demo,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    option: tuple[str, ...],
    scenario: Scenario,
) -> None:
    with new_apiserver(tmp_path) as apiserver:
        # All of them register at one demo, so each needs its own name.
        one = Installation(demo, apiserver, tmp_path, request.node.callspec.id, *option)
        one.join(webhook=False)

        scenario(one)


def test_clustercert_leaves_a_cluster(demo: Demo, tmp_path: Path) -> None:
    with new_apiserver(tmp_path) as apiserver:
        one = Installation(demo, apiserver, tmp_path, "left", *removal_scenario.OPTIONS)
        one.join(webhook=True)

        removal_scenario.the_steps_of_the_removal_leave_nothing_behind(one)


def test_without_the_service_the_failure_policy_decides(tmp_path: Path) -> None:
    folder = tmp_path / "apiserver"
    folder.mkdir()
    with reserve() as reserved, new_apiserver(folder) as apiserver:
        one = Installation(
            start(tmp_path, "--tls", "--port", str(port_of(reserved))), apiserver, folder, "lonely"
        )
        try:
            one.join(webhook=True)

            revocation_scenarios.without_the_service_the_failure_policy_decides(one)
        finally:
            # The scenario stops it for a while, and may fail meanwhile.
            if one.demo.process.poll() is None:
                stop(one.demo)

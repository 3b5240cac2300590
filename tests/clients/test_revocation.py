"""Revocation from end to end: the service, its command line, a real kubectl, and the double of kube-apiserver."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import altered_copy_scenarios, removal_scenario, revocation_scenarios
from support.apiserver import ApiServer
from support.installation import Installation, installation_with_webhook
from support.installed_demo import Demo, replica_with_tls, start, stop
from support.ports import port_of, reserve

Scenario = Callable[[Installation], None]


@pytest.fixture(scope="module")
def installation(tls_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation_with_webhook(tls_demo, tmp_path_factory.mktemp("webhook"), "with-a-webhook") as one:
        yield one


@pytest.mark.parametrize(
    "scenario", revocation_scenarios.WITH_A_WEBHOOK, ids=lambda scenario: scenario.__name__
)
def test_with_the_webhook(installation: Installation, scenario: Scenario) -> None:
    scenario(installation)


def test_a_newer_release_asks_another_replica_over_tls(tls_demo: Demo, tmp_path: Path) -> None:
    """The revocation comes in at the one, and the other answers."""
    replica = tmp_path / "replica"
    with ApiServer(tmp_path, "1.36") as apiserver, replica_with_tls(tls_demo, replica) as url:
        one = Installation(tls_demo, apiserver, tmp_path, "newer")
        one.service = ("--webhook-url", url, "--webhook-ca", replica / "tls-ca.pem")
        one.join(webhook=True)

        revocation_scenarios.one_revoked_certificate_is_refused_within_the_ttl(one)

        assert apiserver.webhook_calls > 0


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
    tls_demo: Demo,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    option: tuple[str, ...],
    scenario: Scenario,
) -> None:
    with ApiServer(tmp_path) as apiserver:
        # All of them register at one demo, so each needs its own name.
        one = Installation(tls_demo, apiserver, tmp_path, request.node.callspec.id, *option)
        one.join(webhook=False)

        scenario(one)


def test_clustercert_leaves_a_cluster(tls_demo: Demo, tmp_path: Path) -> None:
    with ApiServer(tmp_path) as apiserver:
        one = Installation(tls_demo, apiserver, tmp_path, "left", *removal_scenario.OPTIONS)
        one.join(webhook=True)

        removal_scenario.the_steps_of_the_removal_leave_nothing_behind(one)


def test_without_the_service_the_failure_policy_decides(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "apiserver"
    folder.mkdir()
    with reserve() as reserved, ApiServer(folder) as apiserver:
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

"""Altered copies and forged certificates from end to end: the service, kubectl, and the double of kube-apiserver."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import altered_certificates
from support import altered_copy_scenarios as scenarios
from support.altered_copy_scenarios import certificate
from support.apiserver import ApiServer
from support.apiserver_clients import Presenter
from support.installation import Holder, Installation, installation_with_webhook
from support.installed_demo import Demo
from support.wait import eventually

Scenario = Callable[[Installation], None]
NAMESPACES = "/api/v1/namespaces"


@pytest.fixture(scope="module")
def installation(tls_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation_with_webhook(tls_demo, tmp_path_factory.mktemp("altered"), "altered-copies") as one:
        yield one


@pytest.mark.parametrize("scenario", scenarios.WITH_A_WEBHOOK, ids=lambda scenario: scenario.__name__)
def test_with_the_webhook(installation: Installation, scenario: Scenario) -> None:
    scenario(installation)


@pytest.mark.parametrize(
    ("option", "scenario"), scenarios.WHERE_FLAGS_CANNOT_BE_TOUCHED, ids=["admission", "credential-role"]
)
def test_where_the_flags_cannot_be_touched(
    tls_demo: Demo, tmp_path: Path, option: tuple[str, ...], scenario: Scenario
) -> None:
    with ApiServer(tmp_path) as apiserver:
        one = Installation(tls_demo, apiserver, tmp_path, f"altered{option[0]}", *option)
        one.join(webhook=False)

        scenario(one)


def test_the_webhook_denies_what_only_go_takes(installation: Installation) -> None:
    """Each kind of copy, presented in a header."""
    assert isinstance(installation.cluster, ApiServer)
    lost, kept = installation.issue(), installation.issue()
    copies, of_kept = (altered_certificates.copies(certificate(holder)) for holder in (lost, kept))
    with Presenter(installation.cluster, identity(lost)) as presenter:
        for kind, copy in copies.items():
            assert "altered copy" in presenter.get(NAMESPACES, copy).json()["message"], kind
        installation.revoke(lost)
        eventually(lambda: presenter.get(NAMESPACES).status_code == 403)
        for kind, copy in copies.items():
            answered = presenter.get(NAMESPACES, copy)
            # What the API server kept of the answer before says another reason for two seconds more.
            assert answered.status_code == 403, kind
            assert answered.json()["message"].startswith("namespaces is forbidden"), kind
    with Presenter(installation.cluster, identity(kept)) as presenter:
        assert presenter.get(NAMESPACES, of_kept["null"]).status_code == 403
        assert presenter.get(NAMESPACES).status_code == 200


def identity(holder: Holder) -> bytes:
    """Certificate and key, PEM."""
    user = json.loads(holder.kubeconfig.read_text())["users"][0]["user"]
    return b"".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key"))

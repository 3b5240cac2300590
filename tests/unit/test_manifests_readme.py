"""What the README.md of a set-up says of releases, of the token, and of writing the files again."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from clustercert.manifests.authorization import Asking
from clustercert.manifests.control_plane import Placed
from clustercert.manifests.readme import Told, readme

ASKING = Asking(
    mode="default",
    groups=("clustercert:admins",),
    unnumbered_until=None,
    exemptions=("system:*",),
    failure_policy="NoOpinion",
    authorized_ttl="5s",
    unauthorized_ttl="2s",
    timeout="3s",
    kubeconfig="/etc/k/webhook.kubeconfig",
)
PLACED = Placed("/etc/k", "/etc/k/cas.pem", "/etc/k/a.yaml", "/etc/k/p.yaml", "/etc/k/audit.kubeconfig")
TOLD = Told(
    name="prod",
    cluster_id="0f-1e",
    cluster_mode="default",
    asking=ASKING,
    placed=PLACED,
    admission=False,
    in_the_cluster=["rbac.yaml"],
    on_the_control_plane=["client-ca.pem"],
)
UNTIL = datetime(2026, 12, 24, 18, 30, tzinfo=UTC)


def test_older_releases_are_served_where_every_certificate_has_its_group() -> None:
    text = readme(TOLD)
    assert "apiserver.config.k8s.io/v1beta1" in text
    assert "can't be\nrevoked there" not in text


def test_known_only_needs_the_release_that_tells_certificates() -> None:
    text = readme(replace(TOLD, asking=replace(ASKING, mode="known-only")))
    assert "Mode known-only takes Kubernetes 1.32 or newer" in text
    assert "v1beta1" not in text


@pytest.mark.parametrize("until", [None, UNTIL])
def test_it_says_when_to_write_the_files_again(until: datetime | None) -> None:
    text = readme(replace(TOLD, asking=replace(ASKING, unnumbered_until=until)))
    assert ("Write them again after 2026-12-24 18:30 UTC" in text) == (until is not None)
    assert ("alive until 2026-12-24 18:30 UTC, can't be\nrevoked there" in text) == (until is not None)


def test_exchanging_the_token_names_the_audit_webhook_where_there_is_one() -> None:
    assert "`audit-webhook.kubeconfig` too" in readme(TOLD)
    placed = replace(PLACED, audit_policy=None, audit_kubeconfig=None)
    assert "audit-webhook.kubeconfig" not in readme(replace(TOLD, placed=placed))


def test_no_line_ends_in_a_space() -> None:
    lines = readme(TOLD).splitlines()
    assert [line for line in lines if line != line.rstrip()] == []

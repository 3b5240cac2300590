"""How tokens end, and what their holders may keep."""

from dataclasses import replace

import pytest

from clustercert.certificates.controls import controls_of, residual_risks, use_not_seen
from clustercert.certificates.credential_end import enforcement_of
from clustercert.model import ClientCA, Cluster
from clustercert.model.clusters import ClusterOptions
from clustercert.store.clusters.enforcement_state import ClusterContact
from support.samples import CLUSTER_ID, NOW, client_ca, cluster

SEEN = ClusterContact("tokens")


def token_cluster(*roles: str) -> Cluster:
    ca = ClientCA(id="c" * 32, cluster_id=CLUSTER_ID, certificate=None, sealed_key=b"sealed", signer="token")
    options = ClusterOptions(group_roles={"admins": roles}, allow_cluster_admin=True)
    return replace(cluster(client_ca()), client_ca=ca, signer="token", options=options)


@pytest.mark.parametrize(
    ("role", "is_admin"),
    [
        ("clusterrole/cluster-admin", True),
        ("clusterrole/cluster-admin@blue", True),
        ("role/cluster-admin@blue", False),
        ("clusterrole/view", False),
    ],
)
def test_holders_of_cluster_admin_are_named(role: str, is_admin: bool) -> None:
    known = token_cluster(role)
    told = "the role cluster-admin (admins)" in " ".join(residual_risks(known))
    enforcement = enforcement_of(SEEN, controls_of(known, SEEN, NOW))
    assert enforcement.does_not_stop is not None
    assert told == ("the role cluster-admin (admins)" in enforcement.does_not_stop) == is_admin
    assert (enforcement.refuses, enforcement.enforced_by) == ("all", ("account",))


def test_uses_of_tokens_are_seen_only_in_audit_events() -> None:
    known = token_cluster()
    assert use_not_seen(known, replace(SEEN, events_at=NOW), NOW) is None
    for contact in (SEEN, replace(SEEN, has_webhook_token=True)):
        assert "import-audit-log" in str(use_not_seen(known, contact, NOW))

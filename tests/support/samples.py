"""Sample domain objects: a caller, a cluster with its client CA, a grant. Real keys and certificates, no I/O."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.model import Caller, ClientCA, Cluster, Domain, Grant, Origin, PrivateKey, User
from clustercert.model.name_patterns import Names
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from clustercert.policy.conditions import HasName
from clustercert.policy.decision import Policy
from clustercert.policy.rules import PolicyRule

NOW = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
ISSUED_AT = NOW.replace(microsecond=0)
BACKDATE = timedelta(minutes=5)

PROJECT_ID = "0c97ac3cb280f4d91fa7c0096739e1f8"
OTHER_PROJECT_ID = "5dd3c0b24cdc4d31952c49589182a89d"
CLUSTER_ID = "4d1ecb2c-229a-11e8-9c75-0255ac100ceb"
USER_ID = "7116d09f88fa41908676fdd4b039e95b"
CA_ID = "65382450e8f64ac0870cd180d14e684b"

# Of one day's tests, all may share it: what is tested is not the making of this key.
CA_KEY = new_key("ec-p256")
CA_NOT_BEFORE = ISSUED_AT - timedelta(days=1)


def role_rule(role: str, groups: tuple[str, ...], max_lifetime: timedelta) -> PolicyRule:
    """A rule for one role, named like the role."""
    return PolicyRule(
        name=role,
        conditions=(HasName("role", Names((role,))),),
        groups=groups,
        max_lifetime=max_lifetime,
        declared={
            "name": role,
            "when": {"roles": [role]},
            "grant": {"groups": groups, "max_lifetime": int(max_lifetime.total_seconds())},
        },
    )


RULES = (
    role_rule("admin", ("clustercert:admins",), timedelta(days=1825)),
    role_rule("member", ("clustercert:editors", "builders"), timedelta(days=30)),
    role_rule("reader", ("clustercert:viewers",), timedelta(hours=8)),
)
POLICY = Policy(rules=RULES)


def client_ca(
    key: PrivateKey = CA_KEY, lifetime: timedelta = timedelta(days=3650), sealed_key: bytes | None = None
) -> ClientCA:
    certificate = new_client_ca("clustercert test", key, CA_NOT_BEFORE, lifetime)
    return ClientCA(id=CA_ID, cluster_id=CLUSTER_ID, certificate=certificate, sealed_key=sealed_key)


SERVER_CA = new_client_ca("kubernetes", new_key("ec-p256"), CA_NOT_BEFORE, timedelta(days=3650))


def server_ca_pem() -> bytes:
    return SERVER_CA.public_bytes(Encoding.PEM)


def cluster(
    ca: ClientCA | None = None, external_url: str | None = None, san_urls: tuple[str, ...] = ()
) -> Cluster:
    return Cluster(
        id=CLUSTER_ID,
        project_id=PROJECT_ID,
        name="production",
        internal_url="https://192.168.1.7:5443",
        external_url=external_url,
        san_urls=san_urls,
        server_ca_pem=server_ca_pem(),
        signer="local",
        version="v1.32",
        labels={},
        created_at=NOW,
        updated_at=NOW,
        client_ca=ca or client_ca(),
    )


def caller(
    *roles: str, user_id: str = USER_ID, in_projects: Mapping[str, tuple[str, ...]] | None = None
) -> Caller:
    return Caller(
        user=User(id=user_id, name="alice", domain=Domain(id="d" * 32, name="default")),
        roles=in_projects if in_projects is not None else {PROJECT_ID: roles},
        method="token",
        origin=Origin(address="192.0.2.1", request_id="f" * 32),
    )


def grant(
    username: str = USER_ID, groups: tuple[str, ...] = ("clustercert:admins",), days: int = 30
) -> Grant:
    return Grant(
        rule="admin",
        rules=("admin",),
        username=username,
        groups=groups,
        not_before=ISSUED_AT - BACKDATE,
        not_after=ISSUED_AT + timedelta(days=days),
    )

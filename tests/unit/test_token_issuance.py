"""Credentials that are tokens: the order of steps, and what the ledger records."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from uuid import UUID, uuid4

import pytest

from clustercert.model import ClientCA, Cluster, Grant, IssueRequest
from clustercert.model.choices import LeafProfile
from clustercert.model.clusters import ClusterOptions
from clustercert.model.errors import Conflict, Forbidden, InvalidRequest, RemoteFailed, Unavailable
from clustercert.model.events.issuance import CertificateIssued
from clustercert.model.group_roles import MAX_BINDINGS, RoleGrant
from clustercert.model.issuance import IssuedToken
from clustercert.pki.keys import new_key
from clustercert.pki.signer import TokenOrder
from clustercert.policy.cluster_grant import LEFT_OUT, cluster_grant
from clustercert.policy.live_replay import LiveChange, live_changes
from clustercert.policy.replay import replay_event
from clustercert.store.audit.events import canonical
from support.issuance_doubles import ChangingRights, Clusters, MemoryLedger, issuance
from support.samples import CLUSTER_ID, NOW, POLICY, PROJECT_ID, caller, client_ca, cluster

ASKED = IssueRequest(expires_in=timedelta(hours=8), credential="token", reason="incident 4711")
VIEW = {"clustercert:admins": ("clusterrole/view", "clusterrole/edit@blue")}


def token_cluster(**roles: tuple[str, ...]) -> Cluster:
    ca = ClientCA(id="c" * 32, cluster_id=CLUSTER_ID, certificate=None, sealed_key=b"sealed", signer="token")
    mapped = {name.replace("__", ":"): value for name, value in roles.items()} or VIEW
    return replace(
        cluster(client_ca()), client_ca=ca, signer="token", options=ClusterOptions(group_roles=mapped)
    )


@dataclass
class TokenSigner:
    """Creates tokens in memory. Raises `failure` if set."""

    expires_at: datetime = NOW + timedelta(days=400)
    failure: Exception | None = None
    end_failure: Exception | None = None
    orders: list[TokenOrder] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    takes_serial: bool = False
    profile: LeafProfile = "token"

    async def sign(self, _request: object) -> tuple[bytes, ...]:
        raise AssertionError("a token is not signed by this service")

    async def issue_token(self, order: TokenOrder) -> IssuedToken:
        if self.failure:
            raise self.failure
        self.orders.append(order)
        expires_at = min(self.expires_at, max(order.not_after, NOW + timedelta(minutes=10)))
        return IssuedToken("header.payload.secret", str(uuid4()), f"alice-{order.number}", expires_at)

    async def end_token(self, _cluster: Cluster, number: str) -> None:
        self.ended.append(number)
        if self.end_failure:
            raise self.end_failure


async def test_a_token_is_recorded_without_its_text() -> None:
    signer, ledger = TokenSigner(), MemoryLedger()
    service = issuance({"token": signer}, ledger, Clusters(token_cluster()))
    issued = await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASKED)
    assert issued.token is not None
    assert (issued.leaf_der, issued.private_key) == (b"", None)
    [(record, event)] = ledger.entries
    assert isinstance(event, CertificateIssued)
    assert record.fingerprint == sha256(issued.token.jti.encode()).digest()
    assert UUID(hex=record.serial) == UUID(issued.token.jti)
    assert (record.kind, record.der, record.key_type, record.key_origin) == ("token", b"", "", "none")
    assert (record.not_before, record.not_after) == (NOW.replace(microsecond=0), issued.grant.not_after)
    assert record.organizations == ("clustercert:admins",)
    assert (event.credential_kind, event.account) == ("token", issued.token.account)
    assert event.cluster["ca_not_after"] is None
    assert event.cluster["group_roles"] == VIEW
    assert issued.token.text not in f"{record}{event}{issued}"
    [order] = signer.orders
    assert (order.number, order.user_name) == (record.credential_number, "alice")
    assert order.roles == (RoleGrant("ClusterRole", "edit", "blue"), RoleGrant("ClusterRole", "view"))
    assert signer.ended == []


async def test_a_token_that_expires_earlier_ends_the_credential_earlier() -> None:
    signer, ledger = TokenSigner(NOW + timedelta(hours=1)), MemoryLedger()
    service = issuance({"token": signer}, ledger, Clusters(token_cluster()))
    issued = await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASKED)
    assert ledger.entries[0][0].not_after == issued.grant.not_after == NOW + timedelta(hours=1)


async def test_a_short_credential_ends_before_its_token() -> None:
    ask = replace(ASKED, expires_in=timedelta(minutes=5))
    service = issuance({"token": TokenSigner()}, clusters=Clusters(token_cluster()))
    issued = await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ask)
    assert issued.token is not None
    assert issued.token.expires_at - issued.grant.not_after >= timedelta(minutes=5)


@pytest.mark.parametrize("end_failure", [None, Unavailable("The cluster's API server can't be reached.")])
async def test_a_token_that_could_not_be_recorded_is_ended(end_failure: Exception | None) -> None:
    signer = TokenSigner(end_failure=end_failure)
    ledger = MemoryLedger(failure=Unavailable("The database does not answer."))
    service = issuance({"token": signer}, ledger, Clusters(token_cluster()))
    with pytest.raises(Unavailable, match="database"):
        await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASKED)
    assert signer.ended == [order.number for order in signer.orders] != []


async def test_nothing_is_recorded_of_a_token_that_was_not_created() -> None:
    signer, ledger = TokenSigner(failure=RemoteFailed("another account")), MemoryLedger()
    service = issuance({"token": signer}, ledger, Clusters(token_cluster()))
    with pytest.raises(RemoteFailed):
        await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASKED)
    assert ledger.entries == []


async def test_a_token_is_ended_if_the_rights_changed_meanwhile() -> None:
    signer, ledger = TokenSigner(), MemoryLedger()
    service = issuance({"token": signer}, ledger, Clusters(token_cluster()))
    rights = ChangingRights(1, caller("member"))
    with pytest.raises((Forbidden, Unavailable)):
        await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASKED, rights)
    assert signer.ended == [order.number for order in signer.orders] != []


@pytest.mark.parametrize(
    ("known", "credential"), [(token_cluster(), "certificate"), (cluster(client_ca()), "token")]
)
async def test_the_other_kind_of_credential_is_a_conflict(known: Cluster, credential: str) -> None:
    signer = TokenSigner()
    ask = IssueRequest(duration=1, credential=credential)  # type: ignore[arg-type] # parametrized
    with pytest.raises(Conflict, match="credential"):
        await issuance({"token": signer}, clusters=Clusters(known)).issue(
            caller("admin"), PROJECT_ID, CLUSTER_ID, ask
        )
    assert signer.orders == []


async def test_a_csr_for_a_token_is_refused() -> None:
    ask = replace(ASKED, public_key=new_key("ec-p256").public_key())
    with pytest.raises(InvalidRequest, match=r"^csr: "):
        await issuance({"token": TokenSigner()}, clusters=Clusters(token_cluster())).issue(
            caller("admin"), PROJECT_ID, CLUSTER_ID, ask
        )


async def test_a_preview_has_no_names_of_certificates() -> None:
    preview = await issuance({"token": TokenSigner()}, clusters=Clusters(token_cluster())).preview(
        caller("admin"), PROJECT_ID, CLUSTER_ID, ASKED
    )
    assert (preview.credential, preview.issuer, preview.key_type) == ("token", "", "")
    assert preview.organizations == ("clustercert:admins",)


def grant(*groups: str) -> Grant:
    return Grant("rule", "alice", groups, NOW, NOW + timedelta(hours=1), rules=("rule",))


def test_groups_without_roles_are_left_out_and_named() -> None:
    found = cluster_grant(grant("team:red", "clustercert:admins"), token_cluster())
    assert (found.groups, found.left_out) == (("clustercert:admins",), ("team:red",))
    assert found.trace[LEFT_OUT] == ["team:red"]


def test_a_caller_whose_groups_have_no_roles_gets_nothing() -> None:
    with pytest.raises(Forbidden, match="team:red") as refused:
        cluster_grant(grant("team:red"), token_cluster())
    assert refused.value.trace[LEFT_OUT] == ["team:red"]


def test_a_token_has_at_most_so_many_bindings() -> None:
    first, second = (tuple(f"role/r{at}@{name}" for at in range(MAX_BINDINGS)) for name in ("a", "b"))
    known = token_cluster(first=first, second=second, same=first)
    assert cluster_grant(grant("first", "same"), known).groups == ("first", "same")
    with pytest.raises(Forbidden, match="40 different roles"):
        cluster_grant(grant("first", "second"), known)


def test_a_cluster_with_certificates_keeps_all_groups() -> None:
    assert cluster_grant(grant("team:red"), cluster(client_ca())) == grant("team:red")


async def test_a_decision_about_a_token_is_replayed_with_the_roles_of_groups() -> None:
    ledger, skipped = MemoryLedger(), Counter[str]()
    service = issuance({"token": TokenSigner()}, ledger, Clusters(token_cluster()))
    await service.issue(caller("admin"), PROJECT_ID, CLUSTER_ID, ASKED)
    event = json.loads(canonical(ledger.entries[0][1]))
    replayed = replay_event(POLICY, event, skipped)
    assert (replayed is not None, skipped) == (True, Counter())
    decision, outcome = replayed  # type: ignore[misc] # asserted above
    assert outcome.groups == decision.outcome.groups == {"clustercert:admins"}
    assert list(live_changes(decision.outcome, outcome)) == []
    event["detail"]["cluster"]["group_roles"] = {"team:red": ["clusterrole/view"]}
    decision, outcome = replay_event(POLICY, event, skipped)  # type: ignore[misc] # as above
    assert list(live_changes(decision.outcome, outcome)) == [LiveChange.REFUSED]

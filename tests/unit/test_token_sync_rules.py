"""Whatever happens to ledger and cluster: live credentials and objects of others stay, and ended ones go."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clustercert.kube_api import KubeApi
from clustercert.kubernetes.token_sync import LOOK_SECONDS, MAX_UNKNOWN, UNKNOWN_SECONDS, TokenSync
from clustercert.model import AuditEvent, CertificateRecord, Cluster
from clustercert.model.errors import RemoteFailed, Unavailable
from clustercert.model.token_objects import (
    ACCOUNTS_PATH,
    CLUSTER_ROLE_BINDINGS_PATH,
    account_number,
    binding_number,
)
from clustercert.pki.signer import SigningCluster
from clustercert.policy.lifetime import MAX_LIFETIME
from clustercert.store.clusters.signing_clusters import SigningClusterQueries, UnknownTokens
from support.samples import NOW
from support.token_objects import (
    ROLES,
    MemoryApi,
    default_account,
    service_account_binding,
    token_cluster,
    token_objects,
    token_record,
)

if TYPE_CHECKING:
    from clustercert.store.kubernetes.enforcement import EnforcementQueries

HERE, OURS, OTHERS = token_cluster(), "a" * 32, "b" * 32


@dataclass
class MemoryLedger:
    """A ledger and the row of the cluster's signer, with the queries of the store.

    Attributes:
        tokens: credential number -> token.
        revoked: credential number -> generation of the revocation.
    """

    tokens: dict[str, CertificateRecord] = field(default_factory=dict)
    revoked: dict[str, int] = field(default_factory=dict)
    generation: int = 0
    unknown: UnknownTokens = field(default_factory=lambda: UnknownTokens(0, 0))
    problem: str | None = None

    async def newest(self) -> int:
        return self.generation

    async def ended_tokens(
        self, _cluster_id: str, generation: int, since: datetime, now: datetime
    ) -> tuple[str, ...]:
        return tuple(
            number
            for number, token in self.tokens.items()
            if token.not_after > since
            and (token.not_after <= now or self.revoked.get(number, 0) > generation)
        )

    async def token_states(self, numbers: Collection[str], now: datetime) -> dict[str, bool]:
        return {number: self.has_ended(number, now) for number in numbers if number in self.tokens}

    def has_ended(self, number: str, now: datetime) -> bool:
        return number in self.revoked or self.tokens[number].not_after <= now

    async def installation(self) -> str:
        return OURS

    async def unknown_tokens(self, _ca_id: str) -> UnknownTokens:
        return self.unknown

    async def note_unknown_tokens(self, _ca_id: str, count: int, _event: AuditEvent | None = None) -> None:
        self.unknown = UnknownTokens(count, self.unknown.confirmed if count else 0)

    async def of_ca(self, ca_id: str) -> SigningCluster:
        return SigningCluster(HERE.id, "https://10.0.0.1", b"", ca_id, b"sealed", self.problem)

    async def note_problem(self, _ca_id: str, problem: str | None, _event: AuditEvent) -> bool:
        self.problem = problem
        return True

    async def record(self, _event: AuditEvent) -> None:
        """Record nothing."""


async def _no_problem(_api: KubeApi, _cluster: Cluster, _installation: str) -> str | None:
    return None


async def _longest_lifetime() -> timedelta:
    return MAX_LIFETIME


class TokenClusterMachine(RuleBasedStateMachine):
    """Issues, ends and loses credentials, with leaders that come and go, and an API server that sometimes fails."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.api = MemoryLedger(), MemoryApi(page=3)
        self.clock, self.now = 1000.0, NOW
        self.count = 0
        self.issued: dict[str, tuple[CertificateRecord, float]] = {}
        self.foreign = {self.api.add(ACCOUNTS_PATH, default_account())}
        self.wrong: list[str] = []
        self.lost: set[str] = set()
        self.api.on_request = self._check_deletion
        self.new_leader()

    def _record(self, not_after: datetime = NOW) -> CertificateRecord:
        """A token whose number is not random, so that an example can be repeated."""
        self.count += 1
        return token_record(credential_number=f"{self.count:040x}", not_after=not_after)

    @rule()
    def new_leader(self) -> None:
        ledger: Any = self.ledger
        self.sync = TokenSync(
            cast("EnforcementQueries", ledger),
            cast("SigningClusterQueries", ledger),
            self.api,
            ledger.record,
            lambda: self.ledger.generation,
            lambda: self.now,
            _no_problem,
            _longest_lifetime,
            clock=lambda: self.clock,
        )

    @rule()
    def issue_many(self) -> None:
        for _ in range(MAX_UNKNOWN + 2):
            self.issue(recorded=True, minutes=30, steps=3)

    @rule(recorded=st.booleans(), minutes=st.integers(1, 30), steps=st.integers(1, 3))
    def issue(self, recorded: bool, minutes: int, steps: int) -> None:
        record = self._record(self.now + timedelta(minutes=minutes))
        paths = self.api.issue(token_objects(record, OURS), ROLES)
        number = record.credential_number
        self.issued[number] = record, self.clock
        if recorded:
            self.ledger.tokens[number] = record
        else:
            # The process was killed.
            for path in paths[steps:]:
                del self.api.objects[path]

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        if self.ledger.tokens:
            number = data.draw(st.sampled_from(sorted(self.ledger.tokens)))
            self.ledger.generation += 1
            self.ledger.revoked.setdefault(number, self.ledger.generation)

    @rule(data=st.data())
    def restore_an_old_database(self, data: st.DataObject) -> None:
        kept = data.draw(st.integers(0, len(self.ledger.tokens)))
        for number in list(self.ledger.tokens)[kept:]:
            del self.ledger.tokens[number]
            self.ledger.revoked.pop(number, None)
            self.issued[number] = self.issued[number][0], self.clock
        self.new_leader()

    @rule(data=st.data())
    def lose_an_object(self, data: st.DataObject) -> None:
        ours = sorted(self.api.objects.keys() - self.foreign)
        if ours:
            path = data.draw(st.sampled_from(ours))
            del self.api.objects[path]
            if path.startswith(ACCOUNTS_PATH):
                self.lost.add(_number(path))

    @rule(data=st.data())
    def add_foreign(self, data: st.DataObject) -> None:
        record = self._record()
        accounts = [path.rpartition("/")[2] for path in self.api.objects if path.startswith(ACCOUNTS_PATH)]
        subject = data.draw(st.sampled_from(accounts))
        name = data.draw(st.sampled_from(["by-hand", f"clustercert-{record.credential_number}-0"]))
        self.foreign.add(self.api.add(CLUSTER_ROLE_BINDINGS_PATH, service_account_binding(name, subject)))
        self.foreign |= set(self.api.issue(token_objects(record, OTHERS), ROLES))

    @rule(seconds=st.sampled_from([0.25, 1, LOOK_SECONDS, UNKNOWN_SECONDS, 600]))
    def wait(self, seconds: float) -> None:
        self.clock += seconds
        self.now += timedelta(seconds=seconds)

    @rule(failing=st.sampled_from([None, "GET", "DELETE /api", "DELETE /apis"]))
    def synchronize(self, failing: str | None) -> None:
        self.api.failures = {failing: 500} if failing else {}
        try:
            asyncio.run(self.sync.sync_cluster(HERE))
        except (RemoteFailed, Unavailable):
            assert failing is not None

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert self.wrong == []
        assert self.foreign <= self.api.objects.keys()

    def teardown(self) -> None:
        """In the end, only live credentials and objects of others are left, and unknown ones that wait."""
        self.api.failures = {}
        for _ in range(3):
            self.clock += UNKNOWN_SECONDS
            asyncio.run(self.sync.sync_cluster(HERE))
        self.nothing_is_wrong()
        left = {_number(path) for path in self.api.objects.keys() - self.foreign}
        known = {number for number in left if number in self.ledger.tokens}
        assert not [number for number in known if self.ledger.has_ended(number, self.now)]
        if self.ledger.unknown.waiting:
            assert len(left - known) == self.ledger.unknown.waiting
        else:
            assert left == known

    async def _check_deletion(self, method: str, path: str) -> None:
        if method != "DELETE":
            return
        number = _number(path)
        if path in self.foreign:
            self.wrong.append(f"{path} belongs to others")
        elif number in self.ledger.tokens:
            if not self.ledger.has_ended(number, self.now) and number not in self.lost:
                self.wrong.append(f"{path} is live")
        elif self.clock - self.issued[number][1] < UNKNOWN_SECONDS:
            self.wrong.append(f"{path} may be recorded yet")
        elif self.issued[number][0].not_after <= self.now:
            pass
        elif self.ledger.unknown.waiting > max(MAX_UNKNOWN, self.ledger.unknown.confirmed):
            self.wrong.append(f"{path} waits for an operator")


def _number(path: str) -> str:
    name = path.rpartition("/")[2]
    number = account_number(name) or binding_number(name)
    assert number is not None
    return number


TestTokenCluster = TokenClusterMachine.TestCase
TestTokenCluster.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

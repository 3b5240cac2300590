"""A request for a certificate in one process, and the removal of its role in another, in every order of their steps.

Whatever the order, no certificate of the removed role is valid afterwards.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from clustercert.certificates.lost_roles import LostRoles
from clustercert.certificates.recorder import RevocationRecorder
from clustercert.issuance.authentication import RepeatableAuthentication
from clustercert.model import Actor, AuditEvent, CertificateRecord, IssueRequest, SigningRequest, User
from clustercert.model.errors import NotFound
from clustercert.store.certificates.access_controls import AccessQueries, LostRole
from clustercert.store.certificates.ledger import Ledger
from clustercert.store.certificates.maintenance import CertificateMaintenance
from clustercert.store.certificates.revocations import RevocationQueries
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.engine.generation import Generation
from support.accounts import ACTOR, ORIGIN, Accounts, new_identity
from support.issuance_doubles import HonestSigner, issuance
from support.samples import NOW, cluster
from support.stores import event

BY = Actor(ACTOR, ORIGIN)
# The steps of a request: authenticate and decide, sign, commit, return. Those of a removal: see `removing`.
REQUEST_STEPS = REMOVAL_STEPS = 4


@dataclass
class Gate:
    """Stops a task at several places, each until `step` is called."""

    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        self.stopped.set()
        await self.opened.wait()
        self.opened.clear()

    async def step(self, task: "asyncio.Task[None]") -> None:
        """Let the task go on to the next place, or to its end."""
        self.stopped.clear()
        self.opened.set()
        stopped = asyncio.create_task(self.stopped.wait())
        await asyncio.wait({stopped, task}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()


@dataclass
class SlowSigner(HonestSigner):
    gate: Gate

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        await self.gate.wait()
        return await super().sign(request)


@dataclass
class SlowLedger:
    """Stops before each commit and after it."""

    ledger: Ledger
    gate: Gate

    async def record(self, record: CertificateRecord, issued: AuditEvent) -> None:
        await self.gate.wait()
        await self.ledger.record(record, issued)
        await self.gate.wait()


class Processes:
    """One process that issues certificates, with a clock of its own, and one that removes roles."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.database = accounts.second_database()
        self.time = 1000.0
        self.database.generation._clock = lambda: self.time
        self.identity = new_identity(self.database, accounts.sealer, accounts.clock)
        self.cluster = replace(cluster(), project_id=accounts.project.id)
        self.clusters = ClusterQueries(self.database)

    def recorder(self, queries: RevocationQueries) -> RevocationRecorder:
        return RevocationRecorder(queries, timedelta(minutes=10), self.accounts.clock)

    async def request(self, token: str, gate: Gate) -> None:
        """Request a certificate. The cache of the process may know the token."""
        service = replace(
            issuance({"local": SlowSigner(gate)}),
            clusters=self.clusters.cache,
            ledger=SlowLedger(Ledger(self.database), gate),
            withdraw=self.recorder(RevocationQueries(self.database)).withdraw,
        )
        authentication = RepeatableAuthentication(
            self.database.generation, lambda: self.identity.tokens.caller_of_token(token, ORIGIN)
        )
        await gate.wait()
        caller = await authentication.authenticate()
        request = IssueRequest(duration=1)
        await service.issue(caller, self.cluster.project_id, self.cluster.id, request, authentication)

    def removing(self, user: User) -> Iterator[Awaitable[None]]:
        """The steps of a removal that revokes the certificates."""
        database, project = self.accounts.database, self.accounts.project
        queries, lost = AccessQueries(database), LostRole(user_ids=(user.id,), project_ids=(project.id,))
        roles = LostRoles(queries, self.recorder(RevocationQueries(database)), pause=self.nothing)

        async def revoke() -> None:
            await roles.revoke(await roles.revocable(lost), "removed", actor=BY)

        yield revoke()
        yield self.accounts.identity.roles.unassign("member", user, project, actor=BY)
        yield self.wait(Generation.PROPAGATION)
        yield roles.revoke_again(lost, "removed", actor=BY)

    async def nothing(self, _seconds: float) -> None:
        pass

    async def wait(self, seconds: float) -> None:
        self.time += seconds


ORDERS = list(itertools.combinations(range(REQUEST_STEPS + REMOVAL_STEPS), REQUEST_STEPS))


@pytest.mark.long_on_server
@pytest.mark.full
@pytest.mark.parametrize("watching", [True, False])
async def test_no_order_of_the_steps_leaves_a_certificate(accounts: Accounts, watching: bool) -> None:
    accounts.clock.time = NOW
    processes = Processes(accounts)
    await processes.clusters.add(processes.cluster, event("cluster.added"), 1)
    certificates, outcomes = CertificateMaintenance(accounts.database), set()
    for number, order in enumerate(ORDERS):
        user = await accounts.new_user(f"user-{number}", "member")
        token = (await accounts.login(user, accounts.project)).text
        await processes.database.generation.refresh()
        await processes.identity.tokens.caller_of_token(token, ORIGIN)
        gate, removal = Gate(), processes.removing(user)
        request = asyncio.create_task(processes.request(token, gate))
        await gate.stopped.wait()
        for position in range(REQUEST_STEPS + REMOVAL_STEPS):
            if position in order:
                await gate.step(request)
            else:
                await next(removal)
                if watching:
                    await processes.database.generation.refresh()
        while not request.done():
            await gate.step(request)
        assert await certificates.count_live(NOW, user_id=user.id) == 0, order
        failure = request.exception()
        assert failure is None or isinstance(failure, NotFound)
        outcomes.add(failure is None)
    # Some requests were answered, and their certificates revoked.
    assert outcomes == {True, False}

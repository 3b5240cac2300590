"""Ends credentials that are tokens: deletes their bindings and service accounts in clusters, as the ledger says.

Recently ended credentials are found in the ledger, and their objects by label. In addition, a regular look at all
objects finds objects of a killed process, objects that expired while the service was down, and objects of others.
"""

import itertools
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TypeVar

import structlog

from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.kubernetes.cluster_connections import Opener
from clustercert.kubernetes.token_listing import (
    MAX_SELECTED,
    TokenListing,
    delete,
    list_all,
    list_some,
    mapped_namespaces,
)
from clustercert.model import Actor, AuditEvent, Cluster
from clustercert.model.errors import ClustercertError
from clustercert.model.events.operation import (
    ClusterTokensForeign,
    ClusterTokensResumed,
    ClusterTokensStopped,
    ClusterTokensUnknown,
)
from clustercert.observability import metrics
from clustercert.store.clusters.signing_clusters import SigningClusterQueries, UnknownTokens
from clustercert.store.kubernetes.enforcement import EnforcementQueries

logger = structlog.get_logger()

T = TypeVar("T")

# The service inspects a cluster's objects at most once in this time. Each run of the reconciler, every 60 seconds,
# inspects them.
LOOK_SECONDS = 30.0
# How long to keep a credential that is not in the ledger. Issuing creates its objects before it records the credential.
UNKNOWN_SECONDS = 60.0
# If more credentials than this are unknown, and more than half of all, the database may be an old copy. Then each
# is kept until an operator confirms the deletion, until the time in its account's annotation, or until the account is
# older than the longest lifetime of any credential: a thief of the service's token can write any annotation.
MAX_UNKNOWN = 10
# If more credentials than this end at once, all objects of the cluster are listed once.
_MANY = 500
# The maximum number of credential numbers in one query.
_QUERIED = 500
# With these statuses, the API server says that the service's account or its rights are missing.
_NO_ACCESS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


FindProblem = Callable[[KubeApi, Cluster, str], Awaitable[str | None]]
"""Looks at what protects the credentials of a cluster: admission policies, rights and mapped roles.

The text is the id of this installation. Returns why the cluster may get no tokens now, for the operator; None if
nothing is wrong. Raises RemoteFailed or Unavailable.
"""


@dataclass(slots=True)
class _State:
    """The state of a cluster in this process. A new leader has no state, and begins with a look.

    Attributes:
        generation: the revocations up to this generation have been enforced, or are enforced by the next look.
        read: the generation in memory at the last query for ended credentials.
        ended_until: credentials whose validity ended before this time have ended, or are ended by the next look.
        looked_at: when the last complete look began, from the clock.
        unknown: credential number -> since when the credential is known not to be in the ledger, from the clock.
        foreign: objects of others.
        is_stopped: whether the cluster gets no tokens.
        waiting: how many unknown credentials wait for an operator.
    """

    generation: int
    read: int
    ended_until: datetime
    looked_at: float = float("-inf")
    unknown: dict[str, float] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    is_stopped: bool = False
    waiting: int = 0


@dataclass(slots=True)
class TokenSync:
    """Ends credentials that are tokens, in the clusters of one installation.

    Attributes:
        generation: returns a number that is kept in memory and increases with every revocation.
        find_problem: looks for a reason to issue no tokens.
        longest_lifetime: returns the longest lifetime that any policy has allowed.
        now: returns the current time in UTC.
        clock: returns monotonic seconds.
    """

    queries: EnforcementQueries
    clusters: SigningClusterQueries
    connections: Opener
    record: Callable[[AuditEvent], Awaitable[None]]
    generation: Callable[[], int]
    now: Callable[[], datetime]
    find_problem: FindProblem
    longest_lifetime: Callable[[], Awaitable[timedelta]]
    clock: Callable[[], float] = time.monotonic
    _states: dict[str, _State] = field(default_factory=dict)

    async def sync_cluster(self, cluster: Cluster) -> None:
        """Delete ended credentials and, if it is time, look at all objects of the cluster.

        Raises SignerError, RemoteFailed or Unavailable.
        """
        installation = await self.clusters.installation()
        if (state := self._states.get(cluster.id)) is None:
            # The first look ends everything that ended before this time.
            state = _State(await self.queries.newest(), self.generation(), self.now())
            self._states[cluster.id] = state
        work = _Work(self, cluster, installation, state, self._count)
        with metrics.enforcing("tokens"):
            await self.connections.call(cluster, work.sync)

    def forget_others(self, cluster_ids: frozenset[str]) -> None:
        """Drop the state of all clusters except the given clusters."""
        for gone in self._states.keys() - cluster_ids:
            del self._states[gone]
        self._count()

    def _count(self) -> None:
        states = self._states.values()
        metrics.TOKEN_CLUSTERS_STOPPED.set(sum(state.is_stopped for state in states))
        metrics.TOKEN_OBJECTS_FOREIGN.set(sum(len(state.foreign) for state in states))
        metrics.TOKENS_UNKNOWN.set(sum(state.waiting for state in states))


@dataclass(frozen=True, slots=True)
class _Work:
    """The work at one cluster.

    Attributes:
        count: updates the metrics of all clusters.
    """

    owner: TokenSync
    cluster: Cluster
    installation: str
    state: _State
    count: Callable[[], None]

    async def sync(self, api: KubeApi) -> None:
        """Do the work. Raises RemoteFailed or Unavailable."""
        try:
            await self._end_recent(api)
            if self.owner.clock() - self.state.looked_at >= LOOK_SECONDS:
                await self._look(api)
        except ApiServerRefused as refused:
            if (problem := _explained(refused)) is not None:
                await self._note_problem(problem)
            raise

    async def _end_recent(self, api: KubeApi) -> None:
        """End the credentials that were revoked or expired since the last time."""
        owner, state = self.owner, self.state
        read, newest, now = owner.generation(), await owner.queries.newest(), owner.now()
        ended = await owner.queries.ended_tokens(self.cluster.id, state.generation, state.ended_until, now)
        everything = None
        if len(ended) > _MANY:
            everything = await list_all(api, self.installation, self._namespaces)
        for start in range(0, len(ended), MAX_SELECTED):
            numbers = ended[start : start + MAX_SELECTED]
            found = everything or await list_some(api, self.installation, self._namespaces, numbers)
            # A hostile API server may send other objects.
            await delete(api, found, found.numbers & set(numbers))
        # After a failure, the next attempt finds the same credentials again.
        state.read, state.generation, state.ended_until = read, newest, now

    async def _look(self, api: KubeApi) -> None:
        """Compare all objects of credentials in the cluster with the ledger."""
        began = self.owner.clock()

        async def end_meanwhile() -> None:
            # Revocations don't wait for the end of the look.
            if self.owner.generation() != self.state.read:
                await self._end_recent(api)

        problem, failure = await self._problem(api)
        found = await list_all(api, self.installation, self._namespaces, end_meanwhile)
        problem = problem or found.problem
        if problem is not None:
            await self._note_problem(problem)
        await self._report_foreign(found)
        await delete(api, found, await self._superfluous(found), end_meanwhile)
        if failure is not None:
            raise failure
        if problem is None:
            await self._note_problem(None)
        self.state.looked_at = began

    @property
    def _namespaces(self) -> frozenset[str]:
        return mapped_namespaces(self.cluster.options.group_roles)

    async def _problem(self, api: KubeApi) -> tuple[str | None, ClustercertError | None]:
        """Return a reason to issue no tokens, and the error if the cluster did not answer.

        Credentials are still ended.
        """
        try:
            return await self.owner.find_problem(api, self.cluster, self.installation), None
        except ClustercertError as error:
            problem = _explained(error)
            return problem, None if problem else error

    async def _superfluous(self, found: TokenListing) -> Collection[str]:
        """Return the credentials to delete: ended, without an account, or for a while not in the ledger."""
        states = await self._ledger_states(found.numbers)
        ended = {number for number, is_ended in states.items() if is_ended}
        if found.has_all_accounts:
            ended |= states.keys() - found.accounts.keys() - found.other_accounts
        now, state = self.owner.clock(), self.state
        state.unknown = {number: state.unknown.get(number, now) for number in found.numbers - states.keys()}
        late = {number for number, since in state.unknown.items() if now - since >= UNKNOWN_SECONDS}
        # An expired credential can be deleted at once. Somebody who creates many must not delay their deletion.
        over = set[str]()
        if state.unknown:
            time, longest = self.owner.now(), await self.owner.longest_lifetime()
            over = {number for number in state.unknown if found.is_over(number, time, longest)}
        ended |= late & over
        late -= over
        if await self._waits(late, known=len(states), unknown=len(state.unknown.keys() - over)):
            return ended
        return ended | late

    async def _ledger_states(self, numbers: Iterable[str]) -> dict[str, bool]:
        """Return for each credential in the ledger whether it has ended."""
        states: dict[str, bool] = {}
        remaining = iter(numbers)
        while page := list(itertools.islice(remaining, _QUERIED)):
            states |= await self.owner.queries.token_states(page, self.owner.now())
        return states

    async def _waits(self, late: Collection[str], *, known: int, unknown: int) -> bool:
        """Return whether unknown credentials are kept until an operator confirms their deletion.

        Once kept, they are kept until they are confirmed or gone, even if many new credentials are issued meanwhile.

        Args:
            late: the credentials to delete.
            unknown: the number of unknown credentials that have not expired, late or not.
        """
        ca_id, count, state = self.cluster.client_ca.id, len(late), self.state
        stored = await self.owner.clusters.unknown_tokens(ca_id)
        is_suspicious = count > MAX_UNKNOWN and count > known + unknown - count
        if count and (is_suspicious or stored.waiting):
            if count <= stored.confirmed:
                return False
            await self._keep_waiting(stored, count, known)
            state.waiting = count
        elif unknown and stored.waiting:
            # A new leader does not yet know how long the credentials have been unknown.
            state.waiting = stored.waiting
        else:
            if stored != UnknownTokens(0, 0):
                await self.owner.clusters.note_unknown_tokens(ca_id, 0)
            state.waiting = 0
        self.count()
        return state.waiting > 0

    async def _keep_waiting(self, stored: UnknownTokens, count: int, known: int) -> None:
        logger.error(
            "too many credentials in the cluster are not in the ledger: kept until they expire",
            cluster=self.cluster.id,
            unknown=count,
            known=known,
        )
        if stored.waiting == count:
            return
        event = None
        if not stored.waiting:
            event = ClusterTokensUnknown(
                at=self.owner.now(),
                project_id=self.cluster.project_id,
                actor=Actor.service(),
                subject=self.cluster.id,
                unknown=count,
                known=known,
            )
        await self.owner.clusters.note_unknown_tokens(self.cluster.client_ca.id, count, event)

    async def _note_problem(self, problem: str | None) -> None:
        """Store why the cluster gets no tokens. Records an audit event if the reason changed."""
        self.state.is_stopped = problem is not None
        self.count()
        ca_id = self.cluster.client_ca.id
        stored = await self.owner.clusters.of_ca(ca_id)
        if stored is None or stored.problem == problem:
            return
        at, project_id, actor, subject = (
            self.owner.now(),
            self.cluster.project_id,
            Actor.service(),
            self.cluster.id,
        )
        event: AuditEvent
        if problem is None:
            logger.info("cluster gets tokens again", cluster=subject)
            event = ClusterTokensResumed(at=at, project_id=project_id, actor=actor, subject=subject)
        else:
            logger.error("cluster gets no tokens", cluster=subject, problem=problem)
            event = ClusterTokensStopped(
                at=at, project_id=project_id, actor=actor, subject=subject, problem=problem
            )
        await self.owner.clusters.note_problem(ca_id, problem, event)

    async def _report_foreign(self, found: TokenListing) -> None:
        """Log and count objects of others. Records an audit event for new objects."""
        state, before = self.state, self.state.foreign
        state.foreign = frozenset(found.foreign)
        self.count()
        if state.foreign <= before:
            return
        objects = tuple(sorted(state.foreign))
        logger.error("objects of others affect credentials", cluster=self.cluster.id, objects=objects)
        await self.owner.record(
            ClusterTokensForeign(
                at=self.owner.now(),
                project_id=self.cluster.project_id,
                actor=Actor.service(),
                subject=self.cluster.id,
                objects=objects,
            )
        )


def _explained(error: ClustercertError) -> str | None:
    """Return a reason to issue no tokens if the service's account or its rights are missing; otherwise None."""
    if not isinstance(error, ApiServerRefused) or error.http_status not in _NO_ACCESS:
        return None
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        return (
            "The cluster does not accept the token of the service's account. If the account was deleted, apply the"
            " service's rights again, and give the service a new token."
        )
    return "The service's account lacks rights in the cluster. Apply the service's rights again."

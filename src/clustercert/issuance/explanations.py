"""Explains decisions about certificates, for the caller and for other users."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clustercert.issuance.entitled_users import as_caller
from clustercert.issuance.ports import CredentialBindings
from clustercert.issuance.service import NUMBER_PLACEHOLDER
from clustercert.model import Caller, Cluster, IssueRequest, Origin, credential_group
from clustercert.model.errors import Forbidden, NotFound, Unauthenticated
from clustercert.pki.keys import sample_key
from clustercert.policy.decision import Policy
from clustercert.policy.explanation import Explanation, explain
from clustercert.policy.lifetime import LONGEST
from clustercert.policy.replay import NotReplayable, parse_decision
from clustercert.policy.rules import administers, operates
from clustercert.store.clusters import ClusterQueries
from clustercert.store.decision_events import DecisionEvents
from clustercert.store.engine.database import Database
from clustercert.store.known_users import SeenUserQueries, UsernameQueries
from clustercert.store.roles import MemberQueries

# How many of the newest events are searched for the user's last request. If none is found, the event of the user's last
# certificate is searched.
NEWEST_EVENTS = 20_000
# How many events are searched for the event of the user's last certificate. The search begins some minutes before the
# certificate was issued.
EVENTS_AROUND = 100_000


@dataclass(frozen=True, slots=True)
class RecordedCaller:
    """A caller from the audit event of a request, and the request's time. A blocked user is marked as disabled."""

    caller: Caller
    at: datetime


class RecordedCallers:
    """Finds the last recorded request of a user for a project's clusters."""

    def __init__(self, database: Database) -> None:
        self._seen, self._events = SeenUserQueries(database), DecisionEvents(database)

    async def last(self, project_id: str, user_id: str) -> RecordedCaller | None:
        """Return the user with the groups and roles of the last request, whether it was granted or refused.

        Searches the newest events, and the events around the user's last certificate. Returns None if no request is
        found.
        """
        found = await self._find(project_id, user_id)
        if found is None or not await self._seen.is_blocked(user_id):
            return found
        user = replace(found.caller.user, enabled=False)
        return replace(found, caller=replace(found.caller, user=user))

    async def _find(self, project_id: str, user_id: str) -> RecordedCaller | None:
        if found := _last_in(await self._events.newest_decisions(user_id, project_id, NEWEST_EVENTS)):
            return found
        issued_at = await self._seen.last_issued(project_id, user_id)
        if issued_at is None:
            return None
        return _last_in(await self._events.decisions_at(issued_at, user_id, project_id, EVENTS_AROUND))


def _last_in(newest_first: Iterable[bytes]) -> RecordedCaller | None:
    for body in newest_first:
        try:
            decision = parse_decision(json.loads(body))
        except NotReplayable:
            continue
        return RecordedCaller(decision.caller, decision.at)
    return None


class CannotLogIn(Unauthenticated):
    """The user can't log in. The message says why, unlike the message that the user gets when they try to log in."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class Question:
    """The request to explain.

    Attributes:
        duration: whole days, or -1 for the longest lifetime; ignored if `expires_in` is set.
        csr_key_type: the type of the key in the request's CSR; None for a request without a CSR.
        auth_method: the authentication method of the request; None for the user's default or last method.
        source: the address from which the request is sent; None for the address of the caller who asks.
    """

    duration: int = LONGEST
    expires_in: timedelta | None = None
    csr_key_type: str | None = None
    reason: str | None = None
    auth_method: str | None = None
    source: str | None = None

    def request_at(self, now: datetime) -> IssueRequest:
        ends = None if self.expires_in is None else now.replace(microsecond=0) + self.expires_in
        return IssueRequest(
            duration=self.duration if ends is None else None,
            expire_at=ends,
            public_key=sample_key(self.csr_key_type) if self.csr_key_type is not None else None,
            reason=self.reason,
        )


@dataclass(frozen=True, slots=True)
class ExplainedRequest:
    """A request and its explained decision.

    Attributes:
        caller: the sender of the explained request.
        seen_at: for a user of an OIDC issuer or Keystone, the time of the recorded request that contained the user's
            groups and roles.
        is_complete: whether the explanation contains all rules, not only rules that the user may see.
    """

    explanation: Explanation
    caller: Caller
    cluster: Cluster
    request: IssueRequest
    is_complete: bool
    seen_at: datetime | None = None

    @property
    def organizations(self) -> tuple[str, ...]:
        """The O attributes that would be signed, in order. The credential group contains a placeholder."""
        grant = self.explanation.grant
        return (*grant.groups, credential_group(NUMBER_PLACEHOLDER)) if grant is not None else ()


@dataclass(slots=True)
class Explanations:
    """Explains the decisions of `Issuance`. Ignores limits on rates and numbers of certificates."""

    policy: Policy
    clusters: ClusterQueries
    members: MemberQueries
    recorded: RecordedCallers
    usernames: UsernameQueries
    bindings: CredentialBindings
    now: Callable[[], datetime]

    async def explain(
        self, caller: Caller, cluster_id: str, user_id: str | None, question: Question
    ) -> ExplainedRequest:
        """Explain the decision on a user's request. By default, the user is the caller.

        Operators may ask about all users. Project admins may ask about users with a role in the project. Only operators
        see rules that the user may not see. Raises NotFound if the caller may not ask about this user, or Forbidden if
        the caller may not choose the source.
        """
        projects = None if operates(caller) else caller.roles.keys()
        cluster = await self.clusters.reachable(cluster_id, projects)
        if cluster is None:
            raise _not_found()
        manages = administers(caller, cluster.project_id)
        if question.source is not None and not manages:
            raise Forbidden("source: only operators and admins of the project can ask about another address.")
        seen_at = None
        if user_id in (None, caller.user.id):
            asked = caller
        elif manages:
            asked, seen_at = await self._other(cluster, str(user_id), caller.origin)
            if not (asked.roles_in(cluster.project_id) or operates(caller)):
                raise _not_found()
        else:
            raise _not_found()
        asked = _logged_in(asked, question, caller.origin)
        explained = await self._explained(asked, cluster, question, only_own=not operates(caller))
        return replace(explained, seen_at=seen_at)

    async def _other(self, cluster: Cluster, user_id: str, origin: Origin) -> tuple[Caller, datetime | None]:
        """Return another user as a caller, and `ExplainedRequest.seen_at`. Raises NotFound.

        For users of OIDC issuers and Keystone, groups and roles come from the last recorded request, because the
        store does not have them.
        """
        if not user_id.isprintable():
            raise _not_found()
        member = await self.members.member(cluster.project_id, user_id)
        if member is not None:
            return as_caller(member, cluster.project_id, origin), None
        recorded = await self.recorded.last(cluster.project_id, user_id)
        if recorded is None:
            raise _not_found()
        return recorded.caller, recorded.at

    async def _explained(
        self, asked: Caller, cluster: Cluster, question: Question, *, only_own: bool
    ) -> ExplainedRequest:
        now = self.now()
        request = question.request_at(now)
        explanation = explain(
            self.policy,
            asked,
            cluster,
            request,
            now,
            only_own=only_own,
            adapt=lambda grant: self.bindings.apply_credential_group(cluster, grant),
        )
        try:
            await self._require_usable(asked, explanation)
        except (CannotLogIn, Forbidden) as refused:
            explanation = replace(explanation, grant=None, error=refused)
        return ExplainedRequest(explanation, asked, cluster, request, is_complete=not only_own)

    async def _require_usable(self, asked: Caller, explanation: Explanation) -> None:
        """Raise CannotLogIn, or Forbidden if the user name in the grant belongs to another user."""
        if not (asked.user.enabled and asked.user.domain.enabled):
            raise CannotLogIn(
                f"The user {asked.user.name} is disabled or blocked, or their domain is disabled, so they can't log in."
            )
        grant = explanation.grant
        if grant is not None and grant.username != asked.user.id:
            await self.usernames.require_free(grant, asked.user.id)


def _logged_in(caller: Caller, question: Question, origin: Origin) -> Caller:
    source = question.source or origin.address
    return replace(
        caller, method=question.auth_method or caller.method, origin=Origin(source, origin.request_id)
    )


def _not_found() -> NotFound:
    return NotFound("There is no such cluster or user, or you have no rights there. Check both ids.")

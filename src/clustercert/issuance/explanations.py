"""Explains decisions about certificates, for the caller and for other users."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clustercert.issuance.entitled_users import EntitledUserPage, EntitledUsers
from clustercert.issuance.ports import AccessSource
from clustercert.issuance.recorded_callers import RecordedCallers
from clustercert.issuance.service import NUMBER_PLACEHOLDER
from clustercert.model import Caller, Cluster, Grant, IssueRequest, KeyType, Origin, credential_group
from clustercert.model.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from clustercert.model.rights import reads_everything, reads_project, require_reader
from clustercert.pki.keys import sample_key
from clustercert.policy.cluster_grant import cluster_grant
from clustercert.policy.decision import Policy
from clustercert.policy.entitlements import Entitlements
from clustercert.policy.explanation import Explanation, explain
from clustercert.policy.lifetime import MAX_LIFETIME
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.identity.known_users import UsernameQueries
from clustercert.store.identity.roles import MemberQueries

# By default, users of OIDC issuers and Keystone are listed if they got a certificate within this time.
SEEN_WITHIN = timedelta(days=30)
# The type of key that the exec plugin of the command line creates.
EXEC_PLUGIN_KEY: KeyType = "ec-p256"


class CannotLogIn(Unauthenticated):
    """The user can't log in. The message says why, unlike the message that the user gets when they try to log in."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


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
        """The O attributes that would be signed, in order, with a placeholder for the credential number.

        For a token, the groups whose roles would be bound.
        """
        grant = self.explanation.grant
        if grant is None or self.cluster.credential_kind == "token":
            return () if grant is None else grant.groups
        return (*grant.groups, credential_group(NUMBER_PLACEHOLDER))


@dataclass(slots=True)
class Explanations:
    """Explains the decisions of `Issuance`. Ignores rate limits and quotas.

    Attributes:
        with_all_roles: returns the caller with the roles in all projects, whatever the scope of the caller's token.
    """

    policy: Policy
    clusters: ClusterQueries
    members: MemberQueries
    recorded: RecordedCallers
    entitled: EntitledUsers
    usernames: UsernameQueries
    requests: AccessSource
    with_all_roles: Callable[[Caller], Awaitable[Caller]]
    now: Callable[[], datetime]

    async def explain(
        self,
        caller: Caller,
        cluster_id: str,
        user_id: str | None,
        request: IssueRequest,
        *,
        auth_method: str | None = None,
        source: str | None = None,
    ) -> ExplainedRequest:
        """Explain the decision on a user's request. By default, the user is the caller.

        Callers may ask about themselves in all their projects, whatever the token's scope. Operators and auditors may
        ask about all users. Project admins may ask about users with a role in the project. Only operators and
        auditors see rules that the user may not see. Raises InvalidRequest for a CSR if the cluster's credentials are
        tokens, NotFound if the caller may not ask about this user or the user has no such access request, or Forbidden
        if the caller may not ask about another source address.
        """
        is_own = user_id in (None, caller.user.id)
        asked = await self.with_all_roles(caller) if is_own else caller
        projects = None if reads_everything(caller) else asked.roles.keys()
        cluster = await self.clusters.reachable(cluster_id, projects)
        if cluster is None:
            raise _not_found()
        sees_others = reads_project(caller, cluster.project_id)
        if source is not None and not sees_others:
            raise Forbidden(
                "source: only operators, auditors and admins of the project can ask about another address."
            )
        seen_at = None
        if not is_own:
            if not sees_others:
                raise _not_found()
            asked, seen_at = await self._other(cluster, str(user_id), caller.origin)
            if not (asked.roles_in(cluster.project_id) or reads_everything(caller)):
                raise _not_found()
        if cluster.credential_kind == "token" and request.public_key is not None:
            raise InvalidRequest(
                "csr: this cluster's credentials are tokens, which have no key. Send no CSR."
            )
        origin = replace(caller.origin, address=source or caller.origin.address)
        asked = replace(asked, method=auth_method or asked.method, origin=origin)
        explained = await self._explained(asked, cluster, request, only_own=not reads_everything(caller))
        return replace(explained, seen_at=seen_at)

    async def entitled_users(
        self, caller: Caller, cluster_id: str, group: str, since: datetime | None, *, after: str, limit: int
    ) -> EntitledUserPage:
        """Return a page of the users who could get a certificate with a Kubernetes group. See `EntitledUsers.page`.

        Raises Forbidden, NotFound if there is no such cluster, Conflict if the policy's groups are not in the cluster's
        certificates (per-credential RBAC), or InvalidRequest if the policy is too complex.

        Args:
            group: the group's name, or a pattern in which `*` stands for any characters.
            since: by default, 30 days ago.
        """
        require_reader(caller)
        cluster = await self.clusters.reachable(cluster_id, None)
        if cluster is None:
            raise NotFound("There is no such cluster. Check its id.")
        if cluster.options.credential_roles:
            raise Conflict(
                f"Certificates for the cluster {cluster.name} have no groups of the policy: each certificate is bound"
                " to a ClusterRole. The cluster's credential_roles show which rule gives which ClusterRole."
            )
        now = self.now()
        search = Entitlements(self.policy, cluster, group, now)
        return await self.entitled.page(
            search, cluster.project_id, since or now - SEEN_WITHIN, after=after, limit=limit
        )

    def grant_now(self, caller: Caller, cluster: Cluster) -> Grant | None:
        """Return the caller's grant for a request with the longest lifetime, or None if the request would be refused.

        Assumes a request as the exec plugin sends it: without a reason and, for a certificate, with a CSR.
        """
        now, is_token = self.now(), cluster.credential_kind == "token"
        key = None if is_token else sample_key(EXEC_PLUGIN_KEY)
        request = IssueRequest(expires_in=MAX_LIFETIME, shorten=True, public_key=key)
        try:
            grant = self.policy.decide(caller, cluster, request, now)
            return cluster_grant(grant, cluster)
        except (Forbidden, NotFound, Unavailable):
            return None

    def requestable_now(self, caller: Caller, cluster: Cluster) -> tuple[str, ...]:
        """Return the Kubernetes groups that the caller can request for a cluster, in the order of the rules.

        In a cluster whose credentials are tokens, only groups that have a role in the cluster can be requested.
        """
        try:
            offers = self.policy.offers(caller, cluster, self.now())
        except NotFound:
            return ()
        groups = dict.fromkeys(group for rule in offers for group in rule.groups)
        if cluster.credential_kind == "token":
            return tuple(group for group in groups if group in cluster.options.group_roles)
        return tuple(groups)

    async def _other(self, cluster: Cluster, user_id: str, origin: Origin) -> tuple[Caller, datetime | None]:
        """Return another user as a caller, and the time for `ExplainedRequest.seen_at`. Raises NotFound.

        For users of OIDC issuers and Keystone, groups and roles come from the last recorded request, because only audit
        events contain the groups and roles of these users.
        """
        if not user_id.isprintable():
            raise _not_found()
        member = await self.members.member(cluster.project_id, user_id)
        if member is not None:
            return member.as_caller(cluster.project_id, origin), None
        recorded = await self.recorded.last(cluster.project_id, user_id)
        if recorded is None:
            raise _not_found()
        return recorded.caller, recorded.at

    async def _explained(
        self, asked: Caller, cluster: Cluster, request: IssueRequest, *, only_own: bool
    ) -> ExplainedRequest:
        now = self.now()
        access, obstacle = None, None
        if request.access_request is not None:
            try:
                access = await self.requests.access(asked, cluster, request.access_request, now)
            except Conflict as refused:
                obstacle = refused
        explanation = explain(
            self.policy,
            asked,
            cluster,
            request,
            now,
            access,
            only_own=only_own,
            adapt=lambda grant: cluster_grant(grant, cluster),
        )
        try:
            await self._require_usable(asked, explanation)
            if obstacle is not None:
                raise obstacle
        except (CannotLogIn, Conflict, Forbidden) as refused:
            explanation = replace(explanation, grant=None, error=refused, nearest=None)
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


def _not_found() -> NotFound:
    return NotFound("There is no such cluster or user, or you may not see one of them. Check both ids.")

"""Whether the users who asked for access still may have it."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from clustercert.model import Origin
from clustercert.model.access_requests import AccessRequest
from clustercert.policy.decision import Policy
from clustercert.policy.entitlements import is_offered
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.identity.known_users import KnownUserQueries
from clustercert.store.identity.roles import MemberQueries


@dataclass(frozen=True, slots=True)
class RequestUsers:
    """Reads the present roles and groups of users of access requests."""

    members: MemberQueries
    known: KnownUserQueries
    clusters: ClusterQueries

    async def entitled(
        self, requests: Collection[AccessRequest], policy: Policy, now: datetime
    ) -> Mapping[str, bool]:
        """Return whether the users still meet the conditions of the rules that offer the access, by request id.

        False for a disabled or deleted user. Omits closed requests, requests for removed clusters, and requests of
        users of OIDC issuers and Keystone, whose roles the service learns only from their own requests.
        """
        of_project = defaultdict[str, list[AccessRequest]](list)
        for request in requests:
            if request.is_open:
                of_project[request.project_id].append(request)
        if not of_project:
            return {}
        cluster_ids = {each.cluster_id for several in of_project.values() for each in several}
        clusters = {each.id: each for each in await self.clusters.clusters_with_ids(cluster_ids)}
        found = dict[str, bool]()
        for project_id, several in of_project.items():
            ids = {each.user_id for each in several}
            members = {each.user.id: each for each in await self.members.members(project_id, ids)}
            federated = await self.known.find_by_ids(ids - members.keys())
            for each in several:
                member, cluster = members.get(each.user_id), clusters.get(each.cluster_id)
                if cluster is None or each.user_id in federated:
                    continue
                caller = member.as_caller(project_id, Origin.local()) if member is not None else None
                found[each.id] = (
                    caller is not None
                    and caller.user.enabled
                    and caller.user.domain.enabled
                    and is_offered(policy, each.rule, caller, cluster, now)
                )
        return found

"""The access report for a cluster: who has access, which controls can stop them, and which risks remain."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from clustercert.certificates.controls import (
    Control,
    ControlName,
    controls_of,
    residual_risks,
    use_not_seen,
)
from clustercert.certificates.credential_end import (
    CredentialEnd,
    Enforcement,
    credential_end,
    enforcement_of,
)
from clustercert.model import Cluster, credential_groups
from clustercert.model.kubernetes import AUTHENTICATED, MASTERS
from clustercert.model.times import is_recent
from clustercert.policy.templates import is_exempt
from clustercert.store.certificates.access_controls import UnknownIdentity
from clustercert.store.certificates.access_reports import (
    MAX_COUNTED,
    AccessFilter,
    AccessReportQueries,
    AccessTotals,
    GroupTotals,
    UserTotals,
)
from clustercert.store.certificates.views import CertificateView
from clustercert.store.clusters.enforcement_state import ClusterContact

# A page lists at most this many users, and this many certificates of each user. Creating a longer page would block a
# worker for too long.
MAX_USERS = 100
MAX_OF_EACH_USER = 10
# The maximum number of certificates in a report about one user.
MAX_OF_ONE_USER = 1000
MAX_UNKNOWN = 1000


@dataclass(frozen=True, slots=True)
class CertificateAccess:
    """The access that an unexpired certificate gives.

    Attributes:
        groups: the groups that the API server sees: system:authenticated and the groups in the certificate, without the
            credential group.
        cluster_role: the ClusterRole that is now bound to the certificate's credential group (the group that only this
            certificate has), if the certificate has no other group; else `None`.
        revoked_by_name: the name of the user who revoked the certificate, or None if it is not known.
    """

    certificate: CertificateView
    groups: tuple[str, ...]
    cluster_role: str | None
    end: CredentialEnd
    revoked_by_name: str | None = None


@dataclass(frozen=True, slots=True)
class UserAccess:
    """A user's access to a cluster.

    Attributes:
        groups: the groups that the API server sees in at least one of the certificates, sorted.
        credentials: the certificates, latest expiry first. If there are too many, those that expire last.
        user_domain: the name of the user's domain or issuer, or None if it is not known.
    """

    totals: UserTotals
    groups: tuple[str, ...]
    credentials: tuple[CertificateAccess, ...]
    user_domain: str | None = None


@dataclass(frozen=True, slots=True)
class UnknownAccess:
    """An identity in client certificates that this service did not issue.

    Attributes:
        has_access: whether the identity has access, as far as this service knows. False if the API server calls the
            webhook and the webhook refuses the identity. The webhook refuses identities with a credential group and, in
            the mode `known-only`, identities that are not exempt.
    """

    identity: UnknownIdentity
    has_access: bool


@dataclass(frozen=True, slots=True)
class AccessReport:
    """Who has access to a cluster: counts, and a page of users.

    Attributes:
        complete: whether the counts include all certificates, and this page contains all certificates of its users.
        users: sorted by name and id.
        next: the cursor of the next page; None on the last page.
        used_after_revocation: certificates that were used after their revocation, latest use first.
        unknown: identities seen in client certificates that this service did not issue.
        use_not_seen: a sentence that says why this service does not see the use of revoked certificates; `None` if
            the API server's audit events arrive.
    """

    cluster: Cluster
    at: datetime
    complete: bool
    totals: AccessTotals
    users: tuple[UserAccess, ...]
    next: int | None
    groups: tuple[GroupTotals, ...]
    used_after_revocation: tuple[CertificateAccess, ...]
    unknown: tuple[UnknownAccess, ...]
    contact: ClusterContact
    controls: tuple[Control, ...]
    use_not_seen: str | None

    @property
    def enforcement(self) -> Enforcement:
        return enforcement_of(self.contact, self.controls)

    @property
    def residual_risks(self) -> tuple[str, ...]:
        risks = residual_risks(self.cluster)
        return risks if self.use_not_seen is None else (self.use_not_seen, *risks)


@dataclass(frozen=True, slots=True)
class AccessReports:
    """Creates the access reports of clusters.

    Attributes:
        policy_groups: the Kubernetes groups that the policy grants; their members are never exempt from the mode
            `known-only`.
    """

    queries: AccessReportQueries
    now: Callable[[], datetime]
    policy_groups: Collection[str] = ()

    async def report(
        self,
        cluster: Cluster,
        *,
        user_id: str | None = None,
        group: str | None = None,
        search: str | None = None,
        with_verifications: bool = False,
        after: int | None = None,
        limit: int = MAX_USERS,
    ) -> AccessReport:
        """Report on all users, on one user, on the members of a Kubernetes group, or on one user in a group.

        Args:
            search: report only on users whose name or group contains this text.
            with_verifications: also report the certificates used to verify clusters and client CAs.
            after: the cursor of the page.
            limit: the maximum number of users on the page; at most MAX_USERS.
        """
        now = self.now()
        contact = await self.queries.contact(cluster.id, now)
        controls = controls_of(cluster, contact, now)

        def access(certificate: CertificateView) -> CertificateAccess:
            return _access(certificate, cluster, credential_end(certificate, contact, controls, now))

        set_up = {control.name for control in controls if control.set_up}
        # A use after the revocation shows that revocations have no effect, so such a use is always reported.
        used = await self.queries.used_after_revocation(cluster.id, now)
        selection = AccessFilter(
            cluster_id=cluster.id,
            now=now,
            user_id=user_id,
            group=group,
            search=search,
            with_verifications=with_verifications,
            webhook=not set_up.isdisjoint({"webhook", "account"}),
            binding="binding" in set_up,
            used=[each.id for each in used],
            recently_used=[each.id for each in used if is_recent(each.used_after_revocation_at, now)],
        )
        totals = await self.queries.totals(selection)
        found = await self.queries.users(selection, after=after, limit=min(limit, MAX_USERS) + 1)
        shown = found[: min(limit, MAX_USERS)]
        users = await self._users(selection, shown, access)
        is_listed = all(each.totals.certificates == len(each.credentials) for each in users)
        counted = totals.certificates + totals.verifications
        # A report on one user omits certificates from other issuers: a certificate with the same user name may belong
        # to a different person.
        unknown = await self.queries.unknown(cluster.id, limit=MAX_UNKNOWN) if user_id is None else ()
        return AccessReport(
            cluster=cluster,
            at=now,
            complete=counted < MAX_COUNTED and is_listed,
            totals=totals,
            users=users,
            next=shown[-1].last_id if len(found) > len(shown) else None,
            groups=await self._groups(selection, totals),
            used_after_revocation=tuple(access(each) for each in used if user_id in (None, each.user_id)),
            unknown=tuple(
                UnknownAccess(each, has_access=not self._is_refused(each, cluster, set_up))
                for each in unknown
                if (group is None or group in each.groups) and _contains(each, search)
            ),
            contact=contact,
            controls=controls,
            use_not_seen=use_not_seen(cluster, contact, now),
        )

    async def _users(
        self,
        selection: AccessFilter,
        found: Sequence[UserTotals],
        access: Callable[[CertificateView], CertificateAccess],
    ) -> tuple[UserAccess, ...]:
        """Return the users with their groups and certificates."""
        if not found:
            return ()
        ids = {each.user_id for each in found}
        most = MAX_OF_EACH_USER if selection.user_id is None else MAX_OF_ONE_USER
        groups = await self.queries.groups_of_users(selection, ids)
        certificates: dict[tuple[str, str], list[CertificateAccess]] = {}
        for view in await self.queries.certificates_of_users(selection, ids, most=most):
            certificates.setdefault((view.user_name, view.user_id), []).append(access(view))
        return tuple(
            UserAccess(
                each,
                tuple(sorted({*groups.get(each.key, ()), AUTHENTICATED})),
                tuple(certificates.get(each.key, ())),
            )
            for each in found
        )

    async def _groups(self, selection: AccessFilter, totals: AccessTotals) -> tuple[GroupTotals, ...]:
        """Return the groups that the API server sees in certificates that give access, sorted by name."""
        if not totals.with_access:
            return ()
        everybody = GroupTotals(
            AUTHENTICATED, totals.users_with_access, totals.with_access, totals.last_seen_at
        )
        found = (*await self.queries.groups(selection), everybody)
        return tuple(sorted(found, key=lambda each: each.name))

    def _is_refused(
        self, unknown: UnknownIdentity, cluster: Cluster, set_up: Collection[ControlName]
    ) -> bool:
        """Whether the webhook refuses a certificate that this service did not issue."""
        if "webhook" not in set_up or MASTERS in unknown.groups:
            return False
        if credential_groups(unknown.groups):
            # The ledger does not have this credential, or has it for a different cluster, user name or set of groups.
            return True
        return cluster.options.mode == "known-only" and not is_exempt(
            unknown.username, unknown.groups, unknown.fingerprints, cluster.options, self.policy_groups
        )

    async def enforcement(self, cluster: Cluster, certificate: CertificateView | None = None) -> Enforcement:
        """Return how the cluster refuses a revoked certificate: this one, or by default any."""
        now = self.now()
        contact = await self.queries.contact(cluster.id, now)
        return enforcement_of(contact, controls_of(cluster, contact, now), certificate)

    async def end_of(self, cluster: Cluster, certificate: CertificateView) -> CredentialEnd:
        """Return how a certificate for this cluster ends."""
        now = self.now()
        contact = await self.queries.contact(cluster.id, now)
        return credential_end(certificate, contact, controls_of(cluster, contact, now), now)

    async def use_not_seen(self, cluster: Cluster) -> str | None:
        """Return why use after a revocation is not seen, or `None` if the API server's audit events arrive."""
        now = self.now()
        return use_not_seen(cluster, await self.queries.contact(cluster.id, now), now)


def _access(certificate: CertificateView, cluster: Cluster, end: CredentialEnd) -> CertificateAccess:
    roles = cluster.options.credential_roles or {}
    return CertificateAccess(
        certificate=certificate,
        groups=(*certificate.groups, AUTHENTICATED),
        cluster_role=roles.get(certificate.rule or "") if certificate.has_only_credential_group else None,
        end=end,
    )


def _contains(unknown: UnknownIdentity, search: str | None) -> bool:
    return search is None or any(
        search.lower() in name.lower() for name in (unknown.username, *unknown.groups)
    )

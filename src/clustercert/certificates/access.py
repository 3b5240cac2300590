"""The access report for a cluster: who has access, which controls can stop them, and which risks remain."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from clustercert.certificates.controls import (
    FAST_CONTROLS,
    RESIDUAL_RISKS,
    Control,
    ControlName,
    controls_of,
    use_not_seen,
)
from clustercert.model import Cluster, credential_groups
from clustercert.model.choices import CertificateState
from clustercert.model.kubernetes import AUTHENTICATED, MASTERS
from clustercert.model.times import is_recent
from clustercert.policy.templates import is_exempt
from clustercert.store.certificates import AccessQueries, CertificateView, UnknownIdentity

# The maximum number of certificates in a report. Creating a longer report would block a worker for too long. If a
# report omits certificates, `AccessReport.complete` is False.
MAX_CERTIFICATES = 2000
MAX_UNKNOWN = 1000


@dataclass(frozen=True, slots=True)
class CertificateAccess:
    """The access that an unexpired certificate gives.

    Attributes:
        groups: the groups that the API server sees: system:authenticated and the groups in the certificate, without the
            credential group.
        cluster_role: the ClusterRole that is now bound to the certificate's credential group (the group that only this
            certificate has), if the certificate has no other group; else `None`.
        has_access: whether the certificate gives access, as far as this service knows. Even a revoked certificate
            gives access if no control stops it, or if an API server allowed its use within the last day.
        stopped_by: the controls that can stop the certificate, fastest first.
    """

    certificate: CertificateView
    state: CertificateState
    groups: tuple[str, ...]
    cluster_role: str | None
    has_access: bool
    stopped_by: tuple[ControlName, ...]


@dataclass(frozen=True, slots=True)
class UserAccess:
    """A user's certificates, latest expiry first, and the groups in at least one of these certificates, sorted.

    Attributes:
        user_domain: the name of the user's domain or issuer, or None if it is not known.
    """

    user_id: str
    user_name: str
    groups: tuple[str, ...]
    credentials: tuple[CertificateAccess, ...]
    user_domain: str | None = None

    @property
    def first_seen_at(self) -> datetime | None:
        return min(filter(None, (each.certificate.first_seen_at for each in self.credentials)), default=None)

    @property
    def last_seen_at(self) -> datetime | None:
        return max(filter(None, (each.certificate.last_seen_at for each in self.credentials)), default=None)


@dataclass(frozen=True, slots=True)
class GroupAccess:
    """A Kubernetes group, and the number of users and certificates that have access through it."""

    name: str
    users: int
    credentials: int
    last_seen_at: datetime | None


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
    """Who has access to a cluster.

    Attributes:
        complete: whether the report includes all unexpired certificates.
        verifications: how many certificates that verify clusters and client CAs were left out.
        unknown: identities seen in client certificates that this service did not issue.
        use_not_seen: a sentence that says why this service does not see the use of revoked certificates; `None` if
            the API server's audit events arrive.
    """

    cluster: Cluster
    at: datetime
    complete: bool
    verifications: int
    users: tuple[UserAccess, ...]
    groups: tuple[GroupAccess, ...]
    unknown: tuple[UnknownAccess, ...]
    controls: tuple[Control, ...]
    use_not_seen: str | None

    @property
    def sees_use_after_revocation(self) -> bool:
        return self.use_not_seen is None

    @property
    def residual_risks(self) -> tuple[str, ...]:
        return RESIDUAL_RISKS if self.use_not_seen is None else (self.use_not_seen, *RESIDUAL_RISKS)


@dataclass(frozen=True, slots=True)
class AccessReports:
    """Creates the access reports of clusters.

    Attributes:
        policy_groups: the Kubernetes groups that the policy grants; their members are never exempt from the mode
            `known-only`.
    """

    queries: AccessQueries
    now: Callable[[], datetime]
    policy_groups: Collection[str] = ()

    async def report(
        self,
        cluster: Cluster,
        *,
        user_id: str | None,
        group: str | None,
        with_verifications: bool = False,
        most: int = MAX_CERTIFICATES,
    ) -> AccessReport:
        """Report on all users, on one user, on the members of a Kubernetes group, or on one user in a group.

        Reads at most `most` certificates, latest expiry first.

        Args:
            with_verifications: also report the certificates that verify clusters and client CAs.
        """
        now = self.now()
        found = await self.queries.unexpired(cluster.id, now, limit=most + 1, user_id=user_id)
        controls = await self.controls(cluster)
        set_up = {control.name for control in controls if control.set_up}
        roles = cluster.options.credential_roles or {}
        # A use after the revocation shows that revocations have no effect, so it is always reported.
        reported = [
            each
            for each in found[:most]
            if with_verifications or not each.is_verification or each.used_after_revocation_at is not None
        ]
        accesses = [_access(each, now, set_up, roles) for each in reported]
        accesses = [each for each in accesses if group is None or group in each.groups]
        # A report on one user omits certificates from other issuers: a certificate with the same user name may belong
        # to a different person.
        unknown = await self.queries.unknown(cluster.id, limit=MAX_UNKNOWN) if user_id is None else ()
        return AccessReport(
            cluster=cluster,
            at=now,
            complete=len(found) <= most,
            verifications=min(len(found), most) - len(reported),
            users=_users(accesses),
            groups=_groups(accesses),
            unknown=tuple(
                UnknownAccess(each, has_access=not self._is_refused(each, cluster, set_up))
                for each in unknown
                if group is None or group in each.groups
            ),
            controls=controls,
            use_not_seen=await self.use_not_seen(cluster),
        )

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

    async def controls(self, cluster: Cluster) -> tuple[Control, ...]:
        contacts = await self.queries.webhook_contacts(cluster.id)
        return controls_of(cluster, [each.asked_at for each in contacts], self.now())

    async def use_not_seen(self, cluster: Cluster) -> str | None:
        """Return why use after a revocation is not seen, or `None` if the API server's audit events arrive."""
        contacts = await self.queries.webhook_contacts(cluster.id)
        return use_not_seen([each.events_at for each in contacts], self.now())


def _access(
    certificate: CertificateView, now: datetime, set_up: set[ControlName], roles: Mapping[str, str]
) -> CertificateAccess:
    groups = (*certificate.groups, AUTHENTICATED)
    bound_alone = certificate.has_only_credential_group
    stopped_by: list[ControlName] = ["ca", "expiry"]
    # The API server never asks the webhook about members of system:masters, who can also remove the other controls.
    if MASTERS not in groups:
        stopped_by[:0] = [
            name for name in FAST_CONTROLS if name in set_up and (bound_alone or name != "binding")
        ]
    state = certificate.state(now)
    is_stopped = state != "live" and not {"webhook", "binding"}.isdisjoint(stopped_by)
    return CertificateAccess(
        certificate=certificate,
        state=state,
        groups=groups,
        cluster_role=roles.get(certificate.rule or "") if bound_alone else None,
        has_access=not is_stopped or is_recent(certificate.used_after_revocation_at, now),
        stopped_by=tuple(stopped_by),
    )


def _users(accesses: Iterable[CertificateAccess]) -> tuple[UserAccess, ...]:
    """Group certificates by user, sorted by user name and id. Keeps the order of each user's certificates."""
    users = []
    for (name, user_id), own in groupby(sorted(accesses, key=_name_and_id), _name_and_id):
        certificates = tuple(own)
        groups = tuple(sorted({group for each in certificates for group in each.groups}))
        users.append(UserAccess(user_id, name, groups, certificates))
    return tuple(users)


def _name_and_id(access: CertificateAccess) -> tuple[str, str]:
    return access.certificate.user_name, access.certificate.user_id


def _groups(accesses: Iterable[CertificateAccess]) -> tuple[GroupAccess, ...]:
    """Return the groups in certificates that give access, sorted by name."""
    members: dict[str, list[CertificateView]] = {}
    for each in accesses:
        if each.has_access:
            for group in set(each.groups):
                members.setdefault(group, []).append(each.certificate)
    return tuple(
        GroupAccess(
            name=group,
            users=len({each.user_id for each in own}),
            credentials=len(own),
            last_seen_at=max(filter(None, (each.last_seen_at for each in own)), default=None),
        )
        for group, own in sorted(members.items())
    )

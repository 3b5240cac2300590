"""Use case: revoke a certificate, or all certificates of a user or cluster, and undo a revocation."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from clustercert.certificates.list import visible_to
from clustercert.certificates.lost_roles import LostRoles
from clustercert.certificates.recorder import (
    Reason,
    RevocationRecorder,
    checked_user_id,
    is_fingerprint,
    no_such_certificate,
)
from clustercert.limits.revoking import RevocationRates
from clustercert.model import (
    AccessKey,
    Actor,
    Caller,
    Cluster,
    KnownUser,
    Origin,
    Revocation,
    is_credential_number,
)
from clustercert.model.errors import Forbidden, NotFound, TooManyRequests, Unauthenticated, UnknownUser
from clustercert.model.ids import is_user_id
from clustercert.model.kubernetes import SERVICE
from clustercert.model.rights import (
    administers,
    operates,
    reads_project,
    require_admin,
    require_operator,
    require_reach,
    require_reader,
    require_view,
)
from clustercert.pki.keys import signed_by
from clustercert.store.certificates.maintenance import CertificateMaintenance
from clustercert.store.clusters.registry import ClusterLookup, require_cluster
from clustercert.store.engine.generation import Generation
from clustercert.store.identity.known_users import KnownUserQueries, UsernameQueries
from clustercert.store.identity.logins import UserLogins

KEY_HOLDER = "holder"
"""The actor id for revocations that were authorized only by proof of possession."""

# Used for unknown certificates, so that checking a signature takes the same time for known and unknown certificates.
_DUMMY_KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


def statement_to_sign(service_name: str, name: str) -> bytes:
    """Return the statement that a key holder signs: three lines, each ending with a line feed.

    `name` is the certificate's fingerprint or credential number, lower-case hex.
    """
    return f"clustercert revoke v1\n{service_name}\n{name}\n".encode()


def is_proof(der: bytes | None, unverified_signature: bytes, statement: bytes) -> bool:
    """Whether a certificate's key signed the statement. If `der` is None, returns False after an equally long check."""
    key = x509.load_der_x509_certificate(der).public_key() if der is not None else _DUMMY_KEY
    return signed_by(key, unverified_signature, statement) and der is not None


ONLY_ADMINS = "Only admins of the project and operators can revoke certificates of other users."


@dataclass(frozen=True, slots=True)
class RevocationPreview:
    """The certificates that a revocation would revoke.

    Attributes:
        user_id, user_name, user_domain: `None` means all users. The name and the domain are also `None` for deleted
            users, and for users of other identity systems who have not logged in.
        cluster: `None` means all clusters.
        live: the number of certificates that are valid and unrevoked now.
    """

    user_id: str | None
    user_name: str | None
    user_domain: str | None
    cluster: Cluster | None
    live: int


@dataclass(frozen=True, slots=True)
class RevocationPreviews:
    """Finds users by name, and previews revocations. Previews raise the same errors as the revocation itself."""

    clusters: ClusterLookup
    users: KnownUserQueries
    usernames: UsernameQueries
    certificates: CertificateMaintenance
    now: Callable[[], datetime]

    async def users_named(self, caller: Caller, name: str) -> tuple[tuple[KnownUser, datetime | None], ...]:
        """Find users by name, with their last logins. Raises Forbidden unless the caller is an operator or auditor.

        See `KnownUserQueries.find_by_name` and `last_logins`.
        """
        require_reader(caller)
        found = await self.users.find_by_name(name)
        logins = await self.users.last_logins([each.id for each in found])
        return tuple((each, logins.get(each.id)) for each in found)

    async def users_of_cluster_named(
        self, caller: Caller, project_id: str, cluster_id: str, name: str
    ) -> tuple[KnownUser, ...]:
        """Find the users with this name who have unexpired certificates for a cluster, sorted by id.

        `name` can be `DOMAIN/NAME`. The domain of a user is empty if the service does not know the domain. Callers who
        may not see all certificates of the project find only themselves. Raises Forbidden if such a caller names a
        different user.
        """
        require_view(caller, project_id)
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        if reads_project(caller, project_id):
            ids = await self.usernames.in_cluster(cluster.id, name, self.now())
        elif name in (caller.user.name, *caller.user.qualified_names):
            ids = (caller.user.id,)
        else:
            raise Forbidden(ONLY_ADMINS)
        known = await self.users.find_by_ids(ids)
        return tuple(known.get(each) or KnownUser(each, name, "", "") for each in ids)

    async def preview_cluster(self, caller: Caller, project_id: str, cluster_id: str) -> RevocationPreview:
        """Preview the revocation of all certificates of a cluster."""
        require_admin(caller, project_id)
        return await self._preview(None, await require_cluster(self.clusters, project_id, cluster_id))

    async def preview_user_on_cluster(
        self, caller: Caller, project_id: str, cluster_id: str, user_id: str
    ) -> RevocationPreview:
        """Preview the revocation of a user's certificates for a cluster. Raises NotFound for a malformed id."""
        require_reach(caller, project_id)
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        if _checked_id(user_id) != caller.user.id and not administers(caller, project_id):
            raise Forbidden(ONLY_ADMINS)
        await self.require_visible(caller, project_id, user_id)
        return await self._preview(user_id, cluster)

    async def require_visible(self, caller: Caller, project_id: str, user_id: str) -> None:
        """Raise UnknownUser if an admin of the project can't see the user, because the user is not in the project.

        Operators see all ids, even ids that the service has never seen.
        """
        if operates(caller) or user_id == caller.user.id:
            return
        if not await self.users.is_in_project(user_id, project_id):
            raise UnknownUser(user_id)

    async def preview_user(self, caller: Caller, user_id: str) -> RevocationPreview:
        """Preview the revocation of a user's certificates in every project. Raises NotFound for a malformed id."""
        if user_id != caller.user.id:
            require_operator(caller)
        return await self._preview(_checked_id(user_id), None)

    async def _preview(self, user_id: str | None, cluster: Cluster | None) -> RevocationPreview:
        cluster_id = cluster.id if cluster is not None else None
        live = await self.certificates.count_live(self.now(), user_id=user_id, cluster_id=cluster_id)
        user = await self.users.find_by_id(user_id) if user_id is not None else None
        name, domain = (user.name, user.domain) if user is not None else (None, None)
        return RevocationPreview(user_id, name, domain, cluster, live)


def _checked_id(user_id: str) -> str:
    if not (is_user_id(user_id) or user_id == SERVICE):
        raise NotFound("There is no user with this id. GET …/users-by-name?name= finds users' ids by name.")
    return user_id


# The reason for the revocations that a logout makes. These revocations can't be undone, because somebody else may have
# the private keys.
LOST = Reason("keyCompromise", "user.logged_out")


class CallerLogins(Protocol):
    """The logins of a caller. Implemented by `identity`."""

    async def logins_of_caller(self, caller: Caller) -> UserLogins:
        """Return the caller's tokens and access keys of the built-in identity service."""

    async def end_all(self, caller: Caller, *, with_keys: bool) -> UserLogins:
        """End all logins of the caller, and return what was deleted. Raises Unauthenticated or Conflict."""


@dataclass(frozen=True, slots=True)
class LoggedOut:
    """The certificates and logins that a logout ends, and the access keys that remain.

    Attributes:
        certificates: how many certificates were valid and unrevoked before the logout.
        logins: the tokens and access keys of the built-in identity service that the logout deletes.
        kept: the permanent access keys that still work after the logout.
    """

    certificates: int
    logins: UserLogins
    kept: tuple[AccessKey, ...]


@dataclass(frozen=True, slots=True)
class Logout:
    """Ends all logins of a caller. Repeating a logout after an interruption is safe: the login in use ends last.

    Attributes:
        pause: a function that waits for a number of seconds.
    """

    recorder: RevocationRecorder
    certificates: CertificateMaintenance
    logins: CallerLogins
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    _running: set[str] = field(init=False, repr=False, default_factory=set)

    async def preview(self, caller: Caller, *, with_keys: bool) -> LoggedOut:
        """Return what `end_all_logins` would end. Ends nothing."""
        found = await self.logins.logins_of_caller(caller)
        live = await self._count_live(caller)
        if with_keys:
            return LoggedOut(live, found, ())
        return LoggedOut(live, replace(found, keys=()), found.keys)

    async def end_all_logins(self, caller: Caller, *, with_keys: bool) -> LoggedOut:
        """Revoke all the caller's certificates, and end all their logins. See `CallerLogins.end_all`.

        Takes more than a second. Raises TooManyRequests while this process ends the same user's logins for another
        request. Also raises Unauthenticated, Conflict or Unavailable.
        """
        user_id = caller.user.id
        if user_id in self._running:
            # Do not wait: a waiting request would count toward the limit of concurrent requests.
            raise TooManyRequests(
                "Another request is ending your logins now. Try again in two seconds.", retry_after=2
            )
        self._running.add(user_id)
        try:
            live = await self._count_live(caller)
            await self._revoke(caller)
            ended = await self.logins.end_all(caller, with_keys=with_keys)
            # Another worker may still have an ended login in its cache, and issue certificates for this login. So wait
            # until no cache is stale, and revoke again. Requests that take longer authenticate again.
            await self.pause(Generation.PROPAGATION)
            await self._revoke(caller)
        finally:
            self._running.remove(user_id)
        return LoggedOut(live, ended, (await self.logins.logins_of_caller(caller)).keys)

    async def _count_live(self, caller: Caller) -> int:
        return await self.certificates.count_live(self.recorder.now(), user_id=caller.user.id)

    async def _revoke(self, caller: Caller) -> None:
        """Revoke the caller's certificates.

        Does nothing if the caller has already revoked these certificates and no certificate was issued since then.
        """
        await self.recorder.revoke_scope(LOST, user_id=caller.user.id, actor=caller.actor)


ONLY_READERS = (
    "Only operators and auditors can see the revocations of all projects. Request the revocations of one"
    " project."
)
# The clocks of the processes that record revocations may differ by this much.
SLACK = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class RevocationPage:
    """A page of revocations, newest first.

    Attributes:
        next: the value of `before` for the next page; None on the last page.
    """

    revocations: tuple[Revocation, ...]
    next: int | None


@dataclass(frozen=True, slots=True)
class PartOfList:
    """Which revocations of a list to return.

    Attributes:
        limit: the maximum number of revocations.
        before: only revocations with lower ids; None starts with the newest revocation.
        since: only revocations at or after this time; None means no limit.
    """

    limit: int
    before: int | None
    since: datetime | None

    def page(self, found: tuple[Revocation, ...]) -> RevocationPage:
        """Make a page from the result of a query for `limit + 1` revocations, newest first."""
        shown = found[: self.limit]
        following = shown[-1].id if len(found) > self.limit else None
        if self.since is None:
            return RevocationPage(shown, following)
        since = self.since
        # The ids follow the order of commits. The clocks of processes may differ.
        is_end = any(since - each.at > SLACK for each in shown)
        return RevocationPage(
            tuple(each for each in shown if each.at >= since), None if is_end else following
        )


@dataclass(frozen=True, slots=True)
class RevocationService:
    """Revokes certificates and undoes revocations, after authorizing the caller.

    Methods that take a project raise NotFound if the caller has no role in the project, or if the project lacks the
    cluster. The other methods, except `revoke_own_certificate` and `revoke_by_key`, raise Forbidden unless the caller
    is an operator. `revoke_user` lets users revoke their own certificates.

    Attributes:
        recorder: records revocations without authorizing the caller; the command line uses the recorder directly.
        logout: ends a caller's own logins, so it needs no authorization.
        lost_roles: revokes certificates of users who lose a role, without authorizing the caller.
        rates: limits the methods of this class that take a caller and revoke. These methods raise TooManyRequests.
        service_name: part of the statement that a key holder signs, so that other services reject the signature.
    """

    clusters: ClusterLookup
    recorder: RevocationRecorder
    usernames: UsernameQueries
    previews: RevocationPreviews
    logout: Logout
    lost_roles: LostRoles
    rates: RevocationRates
    service_name: str

    async def revoke_applicant(
        self, caller: Caller, project_id: str, cluster_id: str, user_id: str
    ) -> Revocation | None:
        """Revoke a user's certificates for a cluster, as CCE does: administrators may name any id.

        Records nothing, and returns None, if the caller is not an operator and the service has never seen the user.
        Raises the same errors as `revoke_user_on_cluster`, but not UnknownUser.
        Source: CCE API reference, "Revoking Cluster Certificates".
        """
        cluster, user_id = await self._applicant(caller, project_id, cluster_id, user_id)
        with contextlib.suppress(UnknownUser):
            return await self._revoke_applicant(caller, cluster, user_id, Reason())
        return None

    async def revoke_user_on_cluster(
        self, caller: Caller, project_id: str, cluster_id: str, user_id: str, reason: Reason
    ) -> Revocation:
        """Revoke a user's certificates for a cluster. Administrators may name the users whom they see.

        Raises Forbidden if a caller who is not an administrator names a different user, or InvalidRequest if the user
        id or note is invalid. Raises UnknownUser if the user is not in the project and the caller is no operator.
        """
        cluster, user_id = await self._applicant(caller, project_id, cluster_id, user_id)
        await self.previews.require_visible(caller, project_id, user_id)
        return await self._revoke_applicant(caller, cluster, user_id, reason)

    async def revoke_cluster(
        self, caller: Caller, project_id: str, cluster_id: str, reason: Reason
    ) -> Revocation:
        """Revoke all certificates for a cluster. Raises Forbidden unless the caller is an administrator."""
        cluster = await self._administered_cluster(caller, project_id, cluster_id)
        self._count(caller, project_id, None)
        return await self.recorder.revoke_scope(reason, cluster=cluster, actor=caller.actor)

    async def revoke_user(self, caller: Caller, user_id: str, reason: Reason) -> Revocation:
        """Revoke a user's certificates in every project. Users may name themselves, operators all users.

        Raises Forbidden, or InvalidRequest if the id or the note is invalid.
        """
        if user_id != caller.user.id:
            require_operator(caller)
        self._count(caller, None, user_id)
        user_id = await self._user_id(user_id)
        return await self.recorder.revoke_scope(reason, user_id=user_id, actor=caller.actor)

    async def revoke_certificate(
        self, caller: Caller, project_id: str, cluster_id: str, name: str, reason: Reason
    ) -> Revocation:
        """Revoke one certificate by fingerprint, credential number or serial.

        Raises NotFound if a caller who is not an administrator names another user's certificate. Raises Conflict if
        several certificates have the serial, or InvalidRequest if the note is invalid.
        """
        cluster = await self._cluster(caller, project_id, cluster_id)
        found = await self.recorder.find_certificate(name, cluster_id=cluster.id)
        if found.user_id != caller.user.id and not administers(caller, project_id):
            raise no_such_certificate()
        self._count(caller, project_id, found.user_id)
        return await self.recorder.revoke_certificate(found, reason, actor=caller.actor)

    async def revoke_own_certificate(self, caller: Caller, name: str, reason: Reason) -> Revocation:
        """Revoke one of the caller's certificates in any project, even one where the caller has no role any more.

        Administrators may also revoke other users' certificates in their projects, and operators all certificates.
        Raises the same errors as `revoke_certificate`, or Forbidden for an auditor.
        """
        found = await self.recorder.find_certificate(name, visible=visible_to(caller))
        if found.user_id != caller.user.id and not administers(caller, found.project_id):
            # Auditors are the only callers who can see certificates that they may not revoke.
            raise Forbidden(ONLY_ADMINS)
        self._count(caller, found.project_id, found.user_id)
        return await self.recorder.revoke_certificate(found, reason, actor=caller.actor)

    async def revoke_by_key(
        self, name: str, unverified_signature: bytes, reason: Reason, origin: Origin
    ) -> Revocation:
        """Revoke one certificate by proof of possession of its key.

        `name` is the certificate's fingerprint or credential number, in lower-case hex. A holder whose copy of the
        certificate was encoded differently must use the credential number, because the copy has a different
        fingerprint.

        Raises InvalidRequest if the note is invalid. Raises the same Unauthenticated for a wrong signature and for an
        unknown certificate.
        """
        is_name = is_fingerprint(name) or is_credential_number(name)
        found = await self.recorder.queries.find(name) if is_name else ()
        statement = statement_to_sign(self.service_name, name)
        # A token has no certificate and no key.
        der = found[0].der or None if found else None
        if not is_proof(der, unverified_signature, statement):
            raise Unauthenticated("the signature does not prove possession of a known certificate's key")
        actor = Actor(KEY_HOLDER, origin)
        return await self.recorder.revoke_certificate(found[0], reason, actor=actor, proved=True)

    async def undo(self, caller: Caller, revocation_id: int) -> Revocation:
        """Undo a revocation. Raises NotFound if there is no such revocation, or Conflict if it can't be undone."""
        require_operator(caller)
        return await self.recorder.undo(revocation_id, actor=caller.actor)

    async def revocations(
        self, caller: Caller, project_id: str | None, cluster_id: str | None, part: PartOfList
    ) -> RevocationPage:
        """List the revocations in the whole service, a project or a cluster.

        Raises Forbidden unless the caller may see all certificates in the whole service, the project or the cluster.
        """
        queries, limit = self.recorder.queries, part.limit + 1
        if project_id is None:
            require_reader(caller, ONLY_READERS)
        else:
            require_view(caller, project_id)
            if not reads_project(caller, project_id):
                raise Forbidden(
                    "Only admins of the project, operators and auditors can see the revocations of the"
                    " project."
                )
        if project_id is None or cluster_id is None:
            return part.page(
                await queries.revocations_of_project(project_id, limit=limit, before=part.before)
            )
        cluster = await require_cluster(self.clusters, project_id, cluster_id)
        return part.page(
            await queries.revocations_of_cluster(project_id, cluster.id, limit=limit, before=part.before)
        )

    async def user_revocations(self, caller: Caller, user_id: str, part: PartOfList) -> RevocationPage:
        """List the revocations of a user in every cluster. Raises InvalidRequest for a malformed id."""
        require_reader(caller)
        user_id = await self._user_id(user_id)
        return part.page(
            await self.recorder.queries.revocations_of_user(user_id, limit=part.limit + 1, before=part.before)
        )

    async def _user_id(self, id_or_name: str) -> str:
        """Return a user's id. The argument is the id, or the name that the policy put into the user's certificates."""
        return await self.usernames.owner(checked_user_id(id_or_name)) or id_or_name

    async def _applicant(
        self, caller: Caller, project_id: str, cluster_id: str, id_or_name: str
    ) -> tuple[Cluster, str]:
        """Return the cluster, and the id of the user whose certificates for the cluster the caller may revoke."""
        cluster = await self._cluster(caller, project_id, cluster_id)
        user_id = await self._user_id(id_or_name)
        if user_id != caller.user.id and not administers(caller, project_id):
            raise Forbidden(ONLY_ADMINS)
        self._count(caller, project_id, user_id)
        return cluster, user_id

    def _count(self, caller: Caller, project_id: str | None, user_id: str | None) -> None:
        """Count a revocation by an authorized caller: of one user's certificates, or of all users' certificates.

        Operators are not counted, so that nobody can stop them in an emergency.
        """
        if not operates(caller):
            self.rates.count(caller.user.id, None if user_id == caller.user.id else project_id)

    async def _revoke_applicant(
        self, caller: Caller, cluster: Cluster, user_id: str, reason: Reason
    ) -> Revocation:
        only_known = not operates(caller)
        return await self.recorder.revoke_scope(
            reason, user_id=user_id, cluster=cluster, actor=caller.actor, only_known=only_known
        )

    async def _cluster(self, caller: Caller, project_id: str, cluster_id: str) -> Cluster:
        require_reach(caller, project_id)
        return await require_cluster(self.clusters, project_id, cluster_id)

    async def _administered_cluster(self, caller: Caller, project_id: str, cluster_id: str) -> Cluster:
        cluster = await self._cluster(caller, project_id, cluster_id)
        if not administers(caller, project_id):
            raise Forbidden("Only admins of the project and operators can do this.")
        return cluster

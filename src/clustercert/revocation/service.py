"""Revocation on behalf of callers: authorizes them, then records or undoes revocations."""

from dataclasses import dataclass

from clustercert.model import Actor, Caller, Cluster, Origin, Revocation, is_credential_number
from clustercert.model.errors import Forbidden, Unauthenticated
from clustercert.policy.roles import (
    administered_projects,
    administers,
    operates,
    require_operator,
    require_reach,
)
from clustercert.revocation.logout import Logout
from clustercert.revocation.names import checked_user_id, is_fingerprint
from clustercert.revocation.preview import ONLY_ADMINS, RevocationPreviews
from clustercert.revocation.proof_of_possession import KEY_HOLDER, is_proof, statement_to_sign
from clustercert.revocation.reasons import Reason
from clustercert.revocation.recorder import RevocationRecorder, no_such_certificate
from clustercert.store.certificate_view import Reach
from clustercert.store.cluster_cache import ClusterLookup, require_cluster
from clustercert.store.usernames import UsernameQueries

ONLY_OPERATORS = "Only operators of the service can do this."


@dataclass(frozen=True, slots=True)
class RevocationPage:
    """A page of revocations, newest first.

    Attributes:
        next: the value of `before` for the next page; None on the last one.
    """

    revocations: tuple[Revocation, ...]
    next: int | None


@dataclass(frozen=True, slots=True)
class RevocationService:
    """Revokes certificates and undoes revocations, after authorizing the caller.

    Methods with a project raise NotFound if the caller has no role in the project, or if it lacks the cluster. The
    other methods, except `revoke_by_key`, raise Forbidden unless the caller is an operator.

    Attributes:
        recorder: does not authorize; for the command line.
        logout: for callers themselves, so it does not authorize either.
        service_name: part of the statement that a key holder signs, so that other services reject the signature.
    """

    clusters: ClusterLookup
    recorder: RevocationRecorder
    usernames: UsernameQueries
    previews: RevocationPreviews
    logout: Logout
    service_name: str

    async def revoke_user_on_cluster(
        self, caller: Caller, project_id: str, cluster_id: str, user_id: str, reason: Reason
    ) -> Revocation:
        """Revoke a user's certificates for a cluster. Administrators may name other users, including deleted ones.

        Raises Forbidden if other callers name another user, or InvalidRequest if the user id or the note is invalid.
        Source: CCE API reference, "Revoking Cluster Certificates".
        """
        cluster = await self._cluster(caller, project_id, cluster_id)
        user_id = await self._user_id(user_id)
        if user_id != caller.user.id and not administers(caller, project_id):
            raise Forbidden(ONLY_ADMINS)
        return await self.recorder.revoke_scope(reason, user_id=user_id, cluster=cluster, actor=caller.actor)

    async def revoke_cluster(
        self, caller: Caller, project_id: str, cluster_id: str, reason: Reason
    ) -> Revocation:
        """Revoke all certificates for a cluster. Raises Forbidden unless the caller is an administrator."""
        cluster = await self._administered_cluster(caller, project_id, cluster_id)
        return await self.recorder.revoke_scope(reason, cluster=cluster, actor=caller.actor)

    async def revoke_user(self, caller: Caller, user_id: str, reason: Reason) -> Revocation:
        """Revoke a user's certificates in every project. Raises InvalidRequest if the id or the note is invalid."""
        require_operator(caller, ONLY_OPERATORS)
        user_id = await self._user_id(user_id)
        return await self.recorder.revoke_scope(reason, user_id=user_id, actor=caller.actor)

    async def revoke_certificate(
        self, caller: Caller, project_id: str, cluster_id: str, name: str, reason: Reason
    ) -> Revocation:
        """Revoke one certificate by fingerprint, credential number or serial.

        Only administrators may revoke other users' certificates; otherwise raises NotFound. Raises Conflict if several
        certificates have the serial, or InvalidRequest if the note is invalid.
        """
        cluster = await self._cluster(caller, project_id, cluster_id)
        found = await self.recorder.find_certificate(name, cluster_id=cluster.id)
        if found.user_id != caller.user.id and not administers(caller, project_id):
            raise no_such_certificate()
        return await self.recorder.revoke_certificate(found, reason, actor=caller.actor)

    async def revoke_own_certificate(self, caller: Caller, name: str, reason: Reason) -> Revocation:
        """Revoke one certificate in any project, also in one where the caller has no role any more.

        Administrators may revoke those in their projects, operators all; otherwise raises like `revoke_certificate`.
        """
        reach = None if operates(caller) else Reach(caller.user.id, administered_projects(caller))
        found = await self.recorder.find_certificate(name, reach=reach)
        return await self.recorder.revoke_certificate(found, reason, actor=caller.actor)

    async def revoke_by_key(
        self, name: str, unverified_signature: bytes, reason: Reason, origin: Origin
    ) -> Revocation:
        """Revoke one certificate by proof of possession of its key.

        `name` is its fingerprint or credential number, lower-case hex. The number also finds copies of the
        certificate that are encoded differently.
        Raises InvalidRequest if the note is invalid. Raises Unauthenticated if the signature is wrong; the error is the
        same for an unknown certificate.
        """
        is_name = is_fingerprint(name) or is_credential_number(name)
        found = await self.recorder.queries.find(name) if is_name else ()
        statement = statement_to_sign(self.service_name, name)
        if not is_proof(found[0].der if found else None, unverified_signature, statement):
            raise Unauthenticated("the signature does not prove possession of a known certificate's key")
        actor = Actor(KEY_HOLDER, origin)
        return await self.recorder.revoke_certificate(found[0], reason, actor=actor, proved=True)

    async def undo(self, caller: Caller, revocation_id: int) -> Revocation:
        """Undo a revocation. Raises NotFound if it does not exist, or Conflict if it can't be undone."""
        require_operator(caller, ONLY_OPERATORS)
        return await self.recorder.undo(revocation_id, actor=caller.actor)

    async def cluster_revocations(
        self, caller: Caller, project_id: str, cluster_id: str, *, limit: int, before: int | None = None
    ) -> RevocationPage:
        """List the revocations in a cluster. Raises Forbidden unless the caller is an administrator."""
        cluster = await self._administered_cluster(caller, project_id, cluster_id)
        queries = self.recorder.queries
        return _page(await queries.of_cluster(project_id, cluster.id, limit=limit + 1, before=before), limit)

    async def user_revocations(
        self, caller: Caller, user_id: str, *, limit: int, before: int | None = None
    ) -> RevocationPage:
        """List the revocations of a user in every cluster. Raises InvalidRequest for a malformed id."""
        require_operator(caller, ONLY_OPERATORS)
        user_id = await self._user_id(user_id)
        return _page(await self.recorder.queries.of_user(user_id, limit=limit + 1, before=before), limit)

    async def _user_id(self, id_or_name: str) -> str:
        """Return a user's id. The argument is the id, or the name that the policy put into the user's certificates."""
        return await self.usernames.owner(checked_user_id(id_or_name)) or id_or_name

    async def _cluster(self, caller: Caller, project_id: str, cluster_id: str) -> Cluster:
        require_reach(caller, project_id)
        return await require_cluster(self.clusters, project_id, cluster_id)

    async def _administered_cluster(self, caller: Caller, project_id: str, cluster_id: str) -> Cluster:
        cluster = await self._cluster(caller, project_id, cluster_id)
        if not administers(caller, project_id):
            raise Forbidden("Only administrators of the project can do this.")
        return cluster


def _page(found: tuple[Revocation, ...], limit: int) -> RevocationPage:
    """Make a page of `limit` revocations from the result of a query for `limit + 1`."""
    return RevocationPage(found[:limit], found[limit - 1].id if len(found) > limit else None)

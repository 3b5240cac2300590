"""Revoking itself: who may, what the store keeps of it, and what the audit says."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clustercert import metrics
from clustercert.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthenticated
from clustercert.model import (
    AuditEvent,
    Caller,
    Cluster,
    JsonObject,
    Origin,
    Revocation,
    is_credential_number,
)
from clustercert.policy import administers, operates, require_reach
from clustercert.revocation.grounds import (
    Grounds,
    as_strong,
    checked_id,
    is_fingerprint,
    is_hex,
    why_not_undo,
)
from clustercert.revocation.holder import HOLDER, holder_statement, proves
from clustercert.store.clusters import ClusterLookup, existing
from clustercert.store.revocations import Revocable, Revocations


@dataclass(frozen=True, slots=True)
class Page:
    """Some revocations, the newest first.

    Attributes:
        following: what `before` has to be for the next page; None at the end.
    """

    revocations: tuple[Revocation, ...]
    following: int | None


@dataclass(frozen=True, slots=True)
class Revoking:
    """Revokes. What takes a caller judges their rights; what takes an actor leaves that to whoever calls it.

    Attributes:
        service_name: in the line that a certificate's holder signs, so that it is good for this service alone.
        undo_window: for how long an operator can undo.
    """

    rows: Revocations
    clusters: ClusterLookup
    service_name: str
    undo_window: timedelta
    now: Callable[[], datetime]

    async def applicant(
        self, caller: Caller, project_id: str, cluster_id: str, user_id: str, grounds: Grounds
    ) -> Revocation:
        """All that a user was ever given for a cluster: one's own, or as an administrator anybody's.

        The user need not exist any more. Raises NotFound, Forbidden or InvalidRequest.

        Source: CCE API reference, "Revoking Cluster Certificates" of a user.
        """
        cluster = await self._cluster(caller, project_id, cluster_id)
        if user_id != caller.user.id and not administers(caller, project_id):
            raise Forbidden("Only administrators of the project can revoke what others were given.")
        return await self.all_of(
            grounds, user_id=user_id, cluster=cluster, actor=caller.user.id, origin=caller.origin
        )

    async def whole_cluster(
        self, caller: Caller, project_id: str, cluster_id: str, grounds: Grounds
    ) -> Revocation:
        """Everything that was issued for a cluster, by its administrators. Raises NotFound or Forbidden."""
        cluster = await self._administered(caller, project_id, cluster_id)
        return await self.all_of(grounds, cluster=cluster, actor=caller.user.id, origin=caller.origin)

    async def user(self, caller: Caller, user_id: str, grounds: Grounds) -> Revocation:
        """All that a user was given in every project, by an operator. Raises Forbidden or InvalidRequest."""
        _require_operator(caller)
        return await self.all_of(grounds, user_id=user_id, actor=caller.user.id, origin=caller.origin)

    async def certificate(
        self, caller: Caller, project_id: str, cluster_id: str, wanted: str, grounds: Grounds
    ) -> Revocation:
        """One certificate by fingerprint, credential number or serial, by its owner or an administrator.

        Raises NotFound, also where it is another's, or InvalidRequest.
        """
        cluster = await self._cluster(caller, project_id, cluster_id)
        found = await self.find(wanted, cluster_id=cluster.id)
        if found.user_id != caller.user.id and not administers(caller, project_id):
            raise _no_such_certificate()
        return await self.one(found, grounds, actor=caller.user.id, origin=caller.origin)

    async def proved(
        self, name: str, unverified_signature: bytes, grounds: Grounds, origin: Origin
    ) -> Revocation:
        """One certificate, by whoever signs the holder's statement with its key: that is all they need.

        `name` is its fingerprint or credential number, lower-case hex. The number names altered copies too.
        Raises Unauthenticated, for an unknown certificate as for a wrong signature, or InvalidRequest.
        """
        known = is_fingerprint(name) or is_credential_number(name)
        found = await self.rows.find(name) if known else ()
        statement = holder_statement(self.service_name, name)
        if not proves(found[0].der if found else None, unverified_signature, statement):
            raise Unauthenticated("the signature does not prove possession of a known certificate's key")
        return await self.one(found[0], grounds, actor=HOLDER, origin=origin, proved=True)

    async def undone(self, caller: Caller, revocation_id: int) -> Revocation:
        """Let what was revoked be good again, by an operator. Raises Forbidden, NotFound or Conflict."""
        _require_operator(caller)
        return await self.undo(revocation_id, actor=caller.user.id, origin=caller.origin)

    async def of_cluster(
        self, caller: Caller, project_id: str, cluster_id: str, *, limit: int, before: int | None = None
    ) -> Page:
        """What was revoked in a cluster, undone ones too, for its administrators. Raises NotFound or Forbidden."""
        cluster = await self._administered(caller, project_id, cluster_id)
        return _page(
            await self.rows.of_cluster(project_id, cluster.id, limit=limit + 1, before=before), limit
        )

    async def of_user(self, caller: Caller, user_id: str, *, limit: int, before: int | None = None) -> Page:
        """What was revoked of a user in all clusters at once, for operators. Raises Forbidden or InvalidRequest."""
        _require_operator(caller)
        return _page(await self.rows.of_user(checked_id(user_id), limit=limit + 1, before=before), limit)

    async def find(self, wanted: str, *, cluster_id: str | None = None) -> Revocable:
        """The certificate of a fingerprint, credential number or serial, however it is written.

        Raises NotFound, or Conflict where two have the serial.
        """
        plain = wanted.replace(":", "").lower()
        found = await self.rows.find(plain, cluster_id=cluster_id) if is_hex(plain) else ()
        if not found:
            raise _no_such_certificate()
        if len(found) > 1:
            raise Conflict("Two certificates have this serial. Say which by its fingerprint.")
        return found[0]

    async def one(
        self, found: Revocable, grounds: Grounds, *, actor: str, origin: Origin, proved: bool = False
    ) -> Revocation:
        """Revoke one certificate; where the actor's own stands already and is as strong, this is it.

        Another's says nothing to this one, and may be undone for reasons of its own. Raises InvalidRequest.
        """
        grounds.checked()
        for standing in await self.rows.of_certificate(found.fingerprint):
            if standing.by == actor and as_strong(standing, grounds, proved=proved):
                return standing
        about_all = self._wanted(grounds, actor, found.user_id, found.cluster_id, found.project_id)
        wanted = replace(about_all, fingerprint=found.fingerprint, proved=proved)
        event = self._event("certificate.revoked", wanted, found.fingerprint.hex(), origin)
        event = replace(event, detail={**event.detail, "serial": found.serial})
        return await self._revoke(wanted, event, "holder" if proved else "certificate")

    async def all_of(
        self,
        grounds: Grounds,
        *,
        user_id: str | None = None,
        cluster: Cluster | None = None,
        actor: str,
        origin: Origin,
    ) -> Revocation:
        """Revoke what a user, or everybody, was given in a cluster, or in all of them: name at least one.

        What is asked for afterwards is good. Raises InvalidRequest.
        """
        if user_id is None and cluster is None:
            raise InvalidRequest("Say whose certificates, of which cluster, or both.")
        grounds.checked()
        whose = checked_id(user_id) if user_id is not None else ""
        where, project_id = (cluster.id, cluster.project_id) if cluster else ("", None)
        wanted = self._wanted(grounds, actor, whose, where, project_id)
        noun, subject = ("user", whose) if whose else ("cluster", where)
        event = self._event(f"{noun}.revoked", wanted, subject, origin)
        return await self._revoke(wanted, event, noun if cluster else "everywhere")

    async def undo(self, revocation_id: int, *, actor: str, origin: Origin) -> Revocation:
        """Let what was revoked be good again, within the window; never what a compromised key or its holder revoked.

        Raises NotFound or Conflict.
        """
        now = self.now()
        found = await self.rows.revocation(revocation_id)
        if found is None:
            raise NotFound("There is no such revocation.")
        if problem := why_not_undo(found, self.undo_window, now):
            raise Conflict(problem)
        event = AuditEvent(
            at=now,
            kind="revocation.undone",
            project_id=found.project_id,
            actor=actor,
            subject=str(found.id),
            origin=origin,
            detail=_detail(found) | {"revoked_at": found.at.isoformat(), "revoked_by": found.by},
        )
        return await self.rows.undo(found.id, by=actor, at=now, event=event)

    def can_undo(self, revocation: Revocation) -> bool:
        """Whether `undo` would let what it revoked be good again."""
        return why_not_undo(revocation, self.undo_window, self.now()) is None

    async def _revoke(self, wanted: Revocation, event: AuditEvent, kind: str) -> Revocation:
        made = await self.rows.revoke(wanted, event)
        metrics.REVOCATIONS.labels(kind).inc()
        return made

    async def _cluster(self, caller: Caller, project_id: str, cluster_id: str) -> Cluster:
        require_reach(caller, project_id)
        return await existing(self.clusters, project_id, cluster_id)

    async def _administered(self, caller: Caller, project_id: str, cluster_id: str) -> Cluster:
        cluster = await self._cluster(caller, project_id, cluster_id)
        if not administers(caller, project_id):
            raise Forbidden("Only administrators of the project can do this.")
        return cluster

    def _wanted(
        self, grounds: Grounds, by: str, user_id: str, cluster_id: str, project_id: str | None
    ) -> Revocation:
        return Revocation(
            id=0,
            epoch=0,
            fingerprint=None,
            user_id=user_id,
            cluster_id=cluster_id,
            at=self.now(),
            by=by,
            reason=grounds.reason,
            note=grounds.note,
            project_id=project_id,
        )

    def _event(self, kind: str, wanted: Revocation, subject: str, origin: Origin) -> AuditEvent:
        return AuditEvent(
            at=self.now(),
            kind=kind,
            project_id=wanted.project_id,
            actor=wanted.by,
            subject=subject,
            origin=origin,
            detail=_detail(wanted),
        )


def _detail(revocation: Revocation) -> JsonObject:
    return {
        "user_id": revocation.user_id or None,
        "cluster_id": revocation.cluster_id or None,
        "reason": revocation.reason,
        "note": revocation.note,
        "proved": revocation.proved,
    }


def _page(found: tuple[Revocation, ...], limit: int) -> Page:
    """One more than fits was asked for, to know whether there are more."""
    return Page(found[:limit], found[limit - 1].id if len(found) > limit else None)


def _require_operator(caller: Caller) -> None:
    if not operates(caller):
        raise Forbidden("Only operators of the service can do this.")


def _no_such_certificate() -> NotFound:
    return NotFound(
        "There is no such certificate. Check its fingerprint, credential number or serial, and the cluster."
    )

"""Records and undoes revocations, after checking the format of user ids and certificate names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clustercert.model import Actor, CertificateRecord, Cluster, Revocation, RevocationReason
from clustercert.model.credentials import bare_name
from clustercert.model.errors import Conflict, InvalidRequest, NotFound
from clustercert.model.events.administration import RevocationChange, RevocationChanged
from clustercert.observability import metrics
from clustercert.pki.leaf import MAX_NAME
from clustercert.policy.templates import is_plain_text
from clustercert.store.certificates.access_controls import LiveCertificates
from clustercert.store.certificates.revocations import NO_END, RevocationQueries
from clustercert.store.certificates.views import CertificateView, VisibleCertificates

# A serial has at most 20 bytes. Source: RFC 5280 section 4.1.2.2.
MAX_SERIAL_DIGITS = 40
FINGERPRINT_DIGITS = 64
_HEX_DIGITS = frozenset("0123456789abcdef")


def checked_user_id(user_id: str) -> str:
    """Return the user id if it can be a certificate's CN. Raises InvalidRequest otherwise."""
    if not 1 <= len(user_id.encode(errors="replace")) <= MAX_NAME or not is_plain_text(user_id):
        raise InvalidRequest(f"A user id must have 1 to {MAX_NAME} bytes in UTF-8 and no control characters.")
    return user_id


def certificate_name(text: str, *, abbreviated: bool = False) -> str | None:
    """Normalize a fingerprint, credential number or serial to lower-case hex. Returns None for any other string.

    Also accepts a credential id of an audit log: `X509SHA256=` and a fingerprint, or `JTI=` and the id of a token.

    Args:
        abbreviated: whether to accept the first digits of a fingerprint.
    """
    name = bare_name(text)
    longest = FINGERPRINT_DIGITS if abbreviated else MAX_SERIAL_DIGITS
    has_length = 1 <= len(name) <= longest or len(name) == FINGERPRINT_DIGITS
    return name if has_length and _HEX_DIGITS.issuperset(name) else None


def is_fingerprint(text: str) -> bool:
    """Whether the string is a SHA-256 in lower-case hex."""
    return len(text) == FINGERPRINT_DIGITS and _HEX_DIGITS.issuperset(text)


MAX_NOTE = 512


@dataclass(frozen=True, slots=True)
class Reason:
    """Why certificates are revoked.

    Attributes:
        note: free text for the audit log and the inventory; at most 512 printable characters.
    """

    code: RevocationReason = "unspecified"
    note: str | None = None

    def validate(self) -> None:
        """Raise InvalidRequest if the note is too long or has control or bidirectional characters."""
        if self.note is not None and (len(self.note) > MAX_NOTE or not is_plain_text(self.note)):
            raise InvalidRequest(
                f"note: must have at most {MAX_NOTE} characters, without control or bidirectional characters."
            )


@dataclass(frozen=True, slots=True)
class RevocationRecorder:
    """Records and undoes revocations. Does not check whether the actor may do so; the calling code must check this.

    Attributes:
        undo_window: how long a revocation can be undone.
    """

    queries: RevocationQueries
    undo_window: timedelta
    now: Callable[[], datetime]

    async def find_certificate(
        self, name: str, *, cluster_id: str | None = None, visible: VisibleCertificates | None = None
    ) -> CertificateView:
        """Find a certificate by fingerprint, credential number or serial. Accepts upper case and colons.

        Raises NotFound if there is no such certificate, or Conflict if two certificates have the serial.
        """
        normalized = certificate_name(name)
        found: tuple[CertificateView, ...] = ()
        if normalized is not None:
            found = await self.queries.find(normalized, cluster_id=cluster_id, visible=visible)
        if not found:
            raise no_such_certificate()
        if len(found) > 1:
            raise Conflict("Two certificates have this serial. Name the certificate by its fingerprint.")
        return found[0]

    async def revoke_certificate(
        self, certificate: CertificateRecord, reason: Reason, *, actor: Actor, proved: bool = False
    ) -> Revocation:
        """Revoke one certificate. Raises InvalidRequest if the note is invalid.

        If the actor has already revoked this certificate, returns the earlier revocation, unless the new revocation
        would be harder to undo. Ignores revocations by other actors, because other actors can undo their revocations
        independently, and because the reasons may be confidential.
        """
        reason.validate()
        for earlier in await self.queries.revocations_of_certificate(certificate.fingerprint):
            if earlier.by == actor.id and _is_as_strong(earlier, reason, proved=proved):
                return earlier
        scope = self._revocation(
            reason, actor, certificate.user_id, certificate.cluster_id, certificate.project_id
        )
        revocation = replace(scope, fingerprint=certificate.fingerprint, proved=proved)
        event = replace(
            revocation_event("certificate.revoked", revocation, actor, certificate.fingerprint.hex()),
            serial=certificate.serial,
        )
        return await self._record(revocation, event, "holder" if proved else "certificate")

    async def withdraw(self, certificate: CertificateRecord) -> None:
        """Revoke a certificate that the caller does not get, because the caller's rights changed meanwhile."""
        reason = Reason("affiliationChanged", "rights changed while the certificate was issued")
        await self.revoke_certificate(certificate, reason, actor=Actor.service())

    async def revoke_scope(
        self,
        reason: Reason,
        *,
        user_id: str | None = None,
        cluster: Cluster | None = None,
        actor: Actor,
        only_known: bool = False,
    ) -> Revocation:
        """Revoke all existing certificates of a user, of a cluster, or of a user in a cluster.

        Certificates that are requested afterwards are valid. Raises InvalidRequest if the user id or note is invalid.
        With `only_known`, raises UnknownUser, and records nothing, if the service has never seen the user.

        If the actor has already revoked the same scope and no certificate was issued since then, returns the earlier
        revocation, unless the new revocation would be harder to undo. This way, a repeated request does not make every
        worker drop its caches.
        """
        if user_id is None and cluster is None:
            raise InvalidRequest("Name a user, a cluster, or both.")
        reason.validate()
        user = checked_user_id(user_id) if user_id is not None else ""
        cluster_id, project_id = (cluster.id, cluster.project_id) if cluster else ("", None)
        for earlier in await self.queries.revocations_of_scope(user, cluster_id):
            if earlier.by == actor.id and _is_as_strong(earlier, reason, proved=False):
                if not await self.queries.any_since(earlier, self.now()):
                    return earlier
                break
        revocation = self._revocation(reason, actor, user, cluster_id, project_id)
        if not user:
            event = revocation_event("cluster.revoked", revocation, actor, cluster_id)
            return await self._record(revocation, event, "cluster")

        def user_event(made: Revocation) -> RevocationChanged:
            return revocation_event("user.revoked", made, actor, made.user_id)

        recorded = await self.queries.revoke_user(revocation, user_event, only_known=only_known)
        metrics.REVOCATIONS.labels("user" if cluster else "everywhere").inc()
        return recorded

    async def revoke_live(self, live: Sequence[LiveCertificates], reason: Reason, *, actor: Actor) -> None:
        """Revoke the certificates of all these pairs of a user and a cluster, in one transaction.

        Certificates that are requested afterwards are valid. Raises InvalidRequest if the note is invalid.
        """
        reason.validate()
        if not live:
            return
        revocations = [
            self._revocation(reason, actor, each.user_id, each.cluster_id, each.project_id) for each in live
        ]
        events = [revocation_event("user.revoked", each, actor, each.user_id) for each in revocations]
        await self.queries.revoke_all(revocations, events)
        metrics.REVOCATIONS.labels("user").inc(len(revocations))

    async def undo(self, revocation_id: int, *, actor: Actor) -> Revocation:
        """Undo a revocation. The revoked certificates become valid again unless another revocation covers them.

        Raises NotFound if the revocation does not exist, or Conflict if it can't be undone.
        """
        now = self.now()
        revocation = await self.queries.revocation(revocation_id)
        if revocation is None:
            raise NotFound("There is no such revocation. Check its id.")
        if obstacle := self._obstacle(revocation, now):
            raise Conflict(obstacle)
        event = replace(
            revocation_event("revocation.undone", revocation, actor, str(revocation.id)),
            at=now,
            revoked_at=revocation.at,
            revoked_by=revocation.by,
        )
        return await self.queries.undo(revocation.id, by=actor.id, at=now, event=event)

    def can_undo(self, revocation: Revocation) -> bool:
        return self._obstacle(revocation, self.now()) is None

    def _obstacle(self, revocation: Revocation, now: datetime) -> str | None:
        """Return a message that says why the revocation can't be undone, or None if undoing is possible."""
        if revocation.undone_at is not None:
            return "This revocation was already undone."
        if revocation.proved or revocation.reason == "keyCompromise":
            return (
                "A revocation for keyCompromise, or by the holder of the key, can't be undone."
                " Issue a new certificate."
            )
        if revocation.epoch == NO_END:
            return (
                "This revocation stays in force while its user is disabled or blocked."
                " Enable or unblock the user first."
            )
        if now - revocation.at > self.undo_window:
            minutes = self.undo_window.total_seconds() / 60
            return (
                f"A revocation can be undone for {minutes:g} minutes (revocation.undo_window)."
                " Issue a new certificate."
            )
        return None

    def _revocation(
        self, reason: Reason, actor: Actor, user_id: str, cluster_id: str, project_id: str | None
    ) -> Revocation:
        return Revocation(
            id=0,
            epoch=0,
            fingerprint=None,
            user_id=user_id,
            cluster_id=cluster_id,
            at=self.now(),
            by=actor.id,
            reason=reason.code,
            note=reason.note,
            project_id=project_id,
        )

    async def _record(self, revocation: Revocation, event: RevocationChanged, scope: str) -> Revocation:
        recorded = await self.queries.revoke(revocation, event)
        metrics.REVOCATIONS.labels(scope).inc()
        return recorded


def no_such_certificate() -> NotFound:
    """Return the error for a certificate that does not exist or that the caller may not see."""
    return NotFound(
        "There is no such certificate. Check its fingerprint, credential number or serial, and the cluster."
    )


def revocation_event(
    kind: RevocationChange, revocation: Revocation, actor: Actor, subject: str
) -> RevocationChanged:
    """Return the audit event for a revocation, with the revocation's time."""
    return RevocationChanged(
        at=revocation.at,
        kind=kind,
        project_id=revocation.project_id,
        actor=actor,
        subject=subject,
        user_id=revocation.user_id or None,
        cluster_id=revocation.cluster_id or None,
        reason=revocation.reason,
        note=revocation.note,
        proved=revocation.proved,
    )


def _is_as_strong(earlier: Revocation, reason: Reason, *, proved: bool) -> bool:
    """Whether `earlier` is at least as hard to undo as a new revocation with this `reason` and `proved`."""
    return (earlier.reason == "keyCompromise" or reason.code != "keyCompromise") and (
        earlier.proved or not proved
    )

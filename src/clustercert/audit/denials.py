"""Records audit events when requests from authenticated callers are denied."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from clustercert.audit.repeated_refusals import Refusal, RepeatedRefusals
from clustercert.model import AuditEvent, Caller, IssueRequest
from clustercert.model.errors import (
    ClustercertError,
    Forbidden,
    InvalidRequest,
    NotFound,
    RemoteFailed,
    SignerError,
    TooManyRequests,
)
from clustercert.model.events.issuance import (
    CertificateRefused,
    EventRequest,
    event_caller,
    event_cluster,
    event_request,
)
from clustercert.model.events.operation import RequestRefused
from clustercert.pki.keys import key_type_of
from clustercert.policy.names import is_plain_text
from clustercert.store.cluster_cache import ClusterLookup

# Longer ids and paths are truncated: a caller can send ids of any length.
MAX_ID = 64
MAX_PATH = 256


class EventRecorder(Protocol):
    """Records events. Implemented by the store's ledger."""

    async def note(self, event: AuditEvent) -> None:
        """Store the event durably. Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class DenialAudit:
    """Records denials before the response is sent. If a denial can't be recorded, raises Unavailable instead.

    After a caller's first denials in a minute, `repeats` counts further ones and records them later.
    """

    ledger: EventRecorder
    clusters: ClusterLookup
    now: Callable[[], datetime]
    repeats: RepeatedRefusals = field(default_factory=RepeatedRefusals)

    async def certificate(
        self,
        caller: Caller,
        project_id: str,
        cluster_id: str,
        request: IssueRequest | None,
        failure: ClustercertError,
    ) -> None:
        """Record that a certificate was denied or that signing failed. Ignores other failures. Raises Unavailable.

        `request` is None if the body was invalid.
        """
        signer_failed = isinstance(failure, SignerError | RemoteFailed)
        refused = isinstance(failure, InvalidRequest | Forbidden | NotFound | TooManyRequests)
        if not (signer_failed or refused or failure.trace):
            return
        cluster = None
        if request is not None and not isinstance(failure, NotFound):
            cluster = await self.clusters.cluster(project_id, cluster_id)
        event = CertificateRefused(
            at=self.now(),
            kind="certificate.failed" if signer_failed else "certificate.refused",
            project_id=_event_project(caller, project_id),
            actor=caller.actor,
            subject=_bounded(cluster_id, MAX_ID),
            caller=event_caller(caller, project_id),
            requested_project_id=_bounded(project_id, MAX_ID),
            request=_event_request(request) if request is not None else None,
            cluster=event_cluster(cluster) if cluster is not None else None,
            error=type(failure).__name__,
            message=failure.message,
            trace=failure.trace,
        )
        await self._record(event)

    async def request(
        self, caller: Caller, method: str, path: str, project_id: str, failure: ClustercertError
    ) -> None:
        """Record that a request other than for a certificate was forbidden, or exceeded a limit. Raises Unavailable.

        NotFound is not recorded: each mistyped address would create an event.
        """
        if not isinstance(failure, Forbidden | TooManyRequests):
            return
        event = RequestRefused(
            at=self.now(),
            project_id=_event_project(caller, project_id),
            actor=caller.actor,
            subject=_bounded(path, MAX_PATH),
            method=method,
            error=type(failure).__name__,
            message=failure.message,
            auth_method=caller.method,
        )
        await self._record(event)

    async def _record(self, event: Refusal) -> None:
        if not self.repeats.is_repeated(event):
            await self.ledger.note(event)


def _event_request(request: IssueRequest) -> EventRequest:
    return event_request(request, key_type_of(request.public_key) if request.public_key is not None else None)


def _event_project(caller: Caller, unverified_id: str) -> str | None:
    """Return the project id if the caller is a member, else None: outsiders must not add events to a project."""
    return unverified_id if caller.roles_in(unverified_id) else None


def _bounded(unverified: str, size: int) -> str:
    """Truncate a string to `size` characters and an ellipsis. Escape it if it contains control characters."""
    # Truncate first: is_plain_text caches its arguments, so they must be short.
    start = unverified[: size + 1]
    plain = start if is_plain_text(start) else ascii(start)
    return plain if len(plain) <= size else f"{plain[:size]}…"

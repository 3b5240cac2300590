"""Interfaces that the issuance service needs from other packages."""

from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from clustercert.model import AuditEvent, Caller, CertificateRecord, Cluster, Grant
from clustercert.model.access_requests import RequestedAccess


class Recorder(Protocol):
    """Records certificates. Implemented by `store.ledger`."""

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Store a certificate's record and its event durably. Raises Unavailable."""


class AccessSource(Protocol):
    """The access that users have by access requests. Implemented by `requests`."""

    async def access(
        self, caller: Caller, cluster: Cluster, request_id: str, now: datetime
    ) -> RequestedAccess:
        """Return the access for a certificate that is issued now. Raises NotFound or Conflict."""

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Store the record and event of a request's certificate durably. Raises Conflict or Unavailable."""


class Usernames(Protocol):
    """Assigns each user name to one user. Implemented by `store.known_users`."""

    async def claim(self, grant: Grant, user_id: str) -> None:
        """Assign the grant's user name to a user, permanently. Raises Forbidden if another user owns the name."""


class CredentialBindings(Protocol):
    """Role bindings for single certificates, in clusters with per-credential RBAC. See `kubernetes.bindings`."""

    def binding(self, cluster: Cluster, record: CertificateRecord) -> AbstractAsyncContextManager[None]:
        """Create the role binding of the certificate's credential group before the `with` block.

        Deletes the binding if the block fails. Raises RemoteFailed or Unavailable.
        """

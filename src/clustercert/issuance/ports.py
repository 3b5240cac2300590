"""Interfaces that the issuance service needs from other packages."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from clustercert.model import AuditEvent, CertificateRecord, Cluster, Grant


class Recorder(Protocol):
    """Records certificates. Implemented by `store.ledger`."""

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        """Store a certificate's record and its event durably. Raises Unavailable."""


class Usernames(Protocol):
    """Assigns each user name to one user. Implemented by `store.known_users`."""

    async def claim(self, grant: Grant, user_id: str) -> None:
        """Assign the grant's user name to a user, permanently. Raises Forbidden if another user owns the name."""


class CredentialBindings(Protocol):
    """Role bindings for single certificates, in clusters that are configured for them. See `kubernetes.bindings`."""

    def apply_credential_group(self, cluster: Cluster, grant: Grant) -> Grant:
        """Return the grant, but without groups if the credential group replaces them. Raises Forbidden."""

    def binding(self, cluster: Cluster, record: CertificateRecord) -> AbstractAsyncContextManager[None]:
        """Bind the certificate's credential group before the `with` block, and unbind it if the block fails.

        Raises RemoteFailed or Unavailable.
        """

"""Short-lived certificates that `clustercert kubernetes verify` issues, uses and revokes."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from clustercert.cli.cluster_probe import CheckFailed, Probe
from clustercert.kubernetes.api_client import ClientIdentity, KubeApi
from clustercert.model import Caller, Cluster, Domain, Issued, IssueRequest, User
from clustercert.model.errors import ClustercertError
from clustercert.pki.keys import key_pem
from clustercert.pki.leaf import der_pem
from clustercert.revocation.reasons import Reason

if TYPE_CHECKING:
    from clustercert.cli.session import Operator

USER = "clustercert:verify"
NOTE = "clustercert kubernetes verify"
# The lifetime is slightly longer than the shortest one that a policy can allow.
LIFETIME = timedelta(minutes=20)


@dataclass(frozen=True, slots=True)
class ThrowawayCertificates:
    """Issues certificates as for users. When the exit stack closes, revokes them and closes their connections."""

    operator: "Operator"
    cluster: Cluster
    address: str
    stack: AsyncExitStack

    async def issue(self, role: str) -> Issued:
        """Issue a certificate for a caller with the given role. Raises CheckFailed if it is denied."""
        project_id = self.cluster.project_id
        caller = Caller(
            user=User(id=USER, name=USER, domain=Domain(id="", name="")),
            roles={project_id: (role,)},
            method="cli",
            origin=self.operator.actor.origin,
        )
        request = IssueRequest(
            expire_at=datetime.now(UTC).replace(microsecond=0) + LIFETIME, truncate=True, reason=NOTE
        )
        parts = self.operator.parts
        try:
            issued = await parts.issuance.issue(caller, project_id, self.cluster.id, request)
        except ClustercertError as error:
            await parts.denials.certificate(caller, project_id, self.cluster.id, request, error)
            raise CheckFailed(error.message, "No certificate can be issued for this cluster.") from error
        self.stack.push_async_callback(self.revoke, issued)
        return issued

    async def open(self, issued: Issued, leaf_der: bytes | None = None) -> Probe:
        """Connect to the API server with a certificate, or with `leaf_der`, an altered copy of it."""
        if issued.private_key is None:
            raise RuntimeError("a certificate was issued without its key")
        identity = ClientIdentity(der_pem(leaf_der or issued.leaf_der), key_pem(issued.private_key))
        api = KubeApi(self.address, self.cluster.server_ca_pem, identity)
        return Probe(await self.stack.enter_async_context(api))

    async def revoke(self, issued: Issued) -> None:
        recorder = self.operator.parts.revocation.recorder
        certificate = await recorder.find_certificate(issued.fingerprint)
        reason = Reason("cessationOfOperation", NOTE)
        await recorder.revoke_certificate(certificate, reason, actor=self.operator.actor)

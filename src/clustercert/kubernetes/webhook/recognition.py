"""Finds the ledger's entry for a certificate that a client presented to an API server.

The search uses the credential group, which is signed content. Certificates issued before credential groups existed are
found by their hash, which the holder can change by encoding the certificate differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clustercert.kubernetes.webhook.review import Identity
from clustercert.model import CREDENTIAL_PREFIX, credential_group, credential_groups, is_credential_number
from clustercert.model.kubernetes import AUTHENTICATED
from clustercert.pki.leaf import MAX_NAME
from clustercert.policy.templates import is_plain_text
from clustercert.store.credential_cache import CachedCertificate, CredentialCache

Fault = Literal["unknown", "other_cluster", "forged"]
"""Why a presented certificate is not valid for this cluster: the ledger does not have it, it was issued for another
cluster, or its names differ from those in the ledger."""


@dataclass(frozen=True, slots=True)
class Recognized:
    """The result for one presented certificate.

    Attributes:
        fingerprint: as the API server sent it, 32 bytes; `None` if it sent none.
        credential: the certificate in the ledger; `None` if `fault` is set.
        fault: why the presented certificate was not recognized; `None` if it was.
        altered: whether the presented certificate is a different encoding of the credential.
        claims_ours: whether the presented certificate appears to be from this service: it has a credential group, or
            may be an altered copy of one of our certificates that has none.
    """

    fingerprint: bytes | None
    credential: CachedCertificate | None = None
    fault: Fault | None = None
    altered: bool = False
    claims_ours: bool = False


@dataclass(frozen=True, slots=True)
class Recognition:
    """Finds presented certificates in the ledger."""

    credentials: CredentialCache

    async def recognize(self, cluster_id: str, identity: Identity) -> Sequence[Recognized]:
        """Return one result for each presented certificate. Raises Unavailable.

        There is at most one, unless the caller may impersonate others and sends several credential ids.
        """
        if groups := credential_groups(identity.groups):
            return [await self._by_group(cluster_id, identity, groups)]
        found = [
            await self._by_hash(cluster_id, identity, fingerprint) for fingerprint in identity.fingerprints
        ]
        if identity.malformed:
            found.append(await self._unknown_hash(identity, None))
        return found

    async def _by_group(
        self, cluster_id: str, identity: Identity, credential_groups: Sequence[str]
    ) -> Recognized:
        fingerprint = next(iter(identity.fingerprints), None)
        number = credential_groups[0].removeprefix(CREDENTIAL_PREFIX)
        if len(credential_groups) > 1 or not is_credential_number(number):
            return Recognized(fingerprint, fault="forged", claims_ours=True)
        credential = await self.credentials.by_number(number)
        if credential is None:
            return Recognized(fingerprint, fault="unknown", claims_ours=True)
        if credential.cluster_id != cluster_id:
            return Recognized(fingerprint, fault="other_cluster", claims_ours=True)
        issued = (credential.common_name, {*credential.groups, credential_group(number)} - {AUTHENTICATED})
        if (identity.username, {*identity.groups} - {AUTHENTICATED}) != issued or identity.has_other_ids:
            return Recognized(fingerprint, fault="forged", claims_ours=True)
        altered = identity.malformed or any(each != credential.fingerprint for each in identity.fingerprints)
        return Recognized(fingerprint, credential, altered=altered, claims_ours=True)

    async def _by_hash(self, cluster_id: str, identity: Identity, fingerprint: bytes) -> Recognized:
        credential = await self.credentials.by_fingerprint(fingerprint)
        if credential is None:
            return await self._unknown_hash(identity, fingerprint)
        if credential.cluster_id != cluster_id:
            return Recognized(fingerprint, fault="other_cluster", claims_ours=True)
        if credential.credential_number is not None:
            # The certificate was issued with a credential group, but presented without one.
            return Recognized(fingerprint, fault="forged", claims_ours=True)
        return Recognized(fingerprint, credential)

    async def _unknown_hash(self, identity: Identity, fingerprint: bytes | None) -> Recognized:
        """Return the result for an unknown hash. The certificate may be an altered copy without a credential group."""
        # Test first: PostgreSQL rejects some user names, and that error would fail every look-up in the same query.
        claims_ours = _is_issuable(identity.username) and await self.credentials.has_unnumbered(
            identity.username
        )
        return Recognized(fingerprint, fault="unknown", claims_ours=claims_ours)


def _is_issuable(username: str) -> bool:
    """Whether this service can issue a certificate with the user name."""
    return 0 < len(username) <= MAX_NAME and is_plain_text(username)

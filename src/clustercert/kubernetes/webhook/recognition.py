"""Finds the ledger's entry for a certificate or token that a client presented to an API server.

The search for a certificate uses the credential group, which is signed content. It does not use the hash, which the
holder can change by encoding the certificate differently. The search for a token uses the number in the name of its
service account.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clustercert.kubernetes.webhook.review import RequestSender
from clustercert.model import CREDENTIAL_PREFIX, credential_group, credential_groups, is_credential_number
from clustercert.model.issuance import jti_fingerprint
from clustercert.model.kubernetes import AUTHENTICATED
from clustercert.model.token_objects import account_number
from clustercert.store.kubernetes.credential_cache import CachedCertificate, CredentialCache

Fault = Literal["unknown", "other_cluster", "forged"]
"""Why a presented certificate is not valid for this cluster: the ledger does not have it, it was issued for another
cluster, or its names differ from those in the ledger."""


@dataclass(frozen=True, slots=True)
class Recognized:
    """The result of looking up one presented certificate in the ledger.

    Attributes:
        fingerprint: the fingerprint that the API server sent, 32 bytes; of a token, the SHA-256 of its id. `None` if
            the API server sent none.
        credential: the certificate in the ledger; `None` if `fault` is set.
        fault: why the presented certificate was not recognized; `None` if it was recognized.
        altered: whether the presented certificate is a different encoding of the credential.
        claims_ours: whether the presented certificate has a credential group, as all certificates of this service do.
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

    async def recognize(self, cluster_id: str, identity: RequestSender) -> Sequence[Recognized]:
        """Return one result for each presented certificate. Raises Unavailable.

        There is at most one result, unless the caller may impersonate others and sends several credential ids.
        """
        if groups := credential_groups(identity.groups):
            return [await self._by_group(cluster_id, identity, groups)]
        if identity.account is not None:
            return [await self._by_account(cluster_id, identity, identity.account)]
        found = [Recognized(fingerprint, fault="unknown") for fingerprint in identity.fingerprints]
        if identity.malformed:
            found.append(Recognized(None, fault="unknown"))
        return found

    async def _by_group(
        self, cluster_id: str, identity: RequestSender, credential_groups: Sequence[str]
    ) -> Recognized:
        fingerprint = next(iter(identity.fingerprints), None)
        number = credential_groups[0].removeprefix(CREDENTIAL_PREFIX)
        if len(credential_groups) > 1 or not is_credential_number(number):
            return Recognized(fingerprint, fault="forged", claims_ours=True)
        credential = await self.credentials.by_number(number)
        if credential is None:
            return Recognized(fingerprint, fault="unknown", claims_ours=True)
        return _compared(cluster_id, identity, credential)

    async def _by_account(self, cluster_id: str, identity: RequestSender, account: str) -> Recognized:
        fingerprints = [jti_fingerprint(each) for each in identity.token_ids]
        fingerprint = next(iter(fingerprints), None)
        number = account_number(account)
        credential = None if number is None else await self.credentials.by_number(number)
        # API servers before 1.32 send no token ids. A token with another id was created by somebody else.
        if credential is None or any(each != credential.fingerprint for each in fingerprints):
            return Recognized(fingerprint, fault="unknown", claims_ours=True)
        if credential.cluster_id != cluster_id:
            return Recognized(fingerprint, fault="other_cluster", claims_ours=True)
        if credential.kind != "token":
            return Recognized(fingerprint, fault="forged", claims_ours=True)
        return Recognized(fingerprint, credential, claims_ours=True)

    def remembered(self, cluster_id: str, identity: RequestSender) -> Recognized | None:
        """Return the result for a presented certificate that is cached, or None. Does not read the database."""
        groups = credential_groups(identity.groups)
        if len(groups) != 1:
            return None
        credential = self.credentials.remembered(groups[0].removeprefix(CREDENTIAL_PREFIX))
        return None if credential is None else _compared(cluster_id, identity, credential)


def _compared(cluster_id: str, identity: RequestSender, credential: CachedCertificate) -> Recognized:
    """Compare a presented certificate with the ledger's entry of its credential number."""
    number, fingerprint = credential.credential_number, next(iter(identity.fingerprints), None)
    if credential.cluster_id != cluster_id:
        return Recognized(fingerprint, fault="other_cluster", claims_ours=True)
    if credential.kind == "token":
        return Recognized(fingerprint, fault="forged", claims_ours=True)
    issued = (credential.common_name, {*credential.groups, credential_group(number)} - {AUTHENTICATED})
    if (identity.username, {*identity.groups} - {AUTHENTICATED}) != issued or identity.has_other_ids:
        return Recognized(fingerprint, fault="forged", claims_ours=True)
    altered = identity.malformed or any(each != credential.fingerprint for each in identity.fingerprints)
    return Recognized(fingerprint, credential, altered=altered, claims_ours=True)

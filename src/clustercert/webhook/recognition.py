"""Which certificate of the ledger somebody showed to an API server, by what is signed in it.

A certificate is named by its credential group. Those that were issued before there was such a group are named by their
hash, which their holder can change by encoding them anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clustercert.certificate import MAX_NAME
from clustercert.manifests import AUTHENTICATED
from clustercert.model import CREDENTIAL_PREFIX, credential_group, credential_groups, is_credential_number
from clustercert.policy import is_plain_text
from clustercert.store.credentials import Credential, Credentials
from clustercert.webhook.review import Identity

Fault = Literal["unknown", "other_cluster", "forged"]
"""Why what was shown is no certificate of ours for this cluster: the ledger does not have it, has it for another
cluster, or has another identity for it."""


@dataclass(frozen=True, slots=True)
class Recognized:
    """What the ledger knows of a certificate that was shown.

    Attributes:
        fingerprint: what the API server calls it, 32 bytes; None where it says nothing.
        credential: the certificate of the ledger; None where it has none, or it is not what was shown.
        fault: why there is no such credential; None where there is one.
        altered: whether the credential is there, and another encoding of it was shown.
        claims_ours: whether it has a credential group, or may be an altered certificate that was issued without one.
    """

    fingerprint: bytes | None
    credential: Credential | None = None
    fault: Fault | None = None
    altered: bool = False
    claims_ours: bool = False


class Recognition:
    """Finds certificates in the ledger."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def recognize(self, cluster_id: str, who: Identity) -> Sequence[Recognized]:
        """What is known of each certificate that was shown; nothing where none was. Raises Unavailable.

        An API server shows one. Several credential ids come only from whoever may impersonate.
        """
        named = credential_groups(who.groups)
        if named:
            return [await self._by_group(cluster_id, who, named)]
        found = [await self._by_hash(cluster_id, who, fingerprint) for fingerprint in who.fingerprints]
        if who.malformed:
            found.append(await self._unknown_hash(who, None))
        return found

    async def _by_group(self, cluster_id: str, who: Identity, named: Sequence[str]) -> Recognized:
        fingerprint = next(iter(who.fingerprints), None)
        number = named[0].removeprefix(CREDENTIAL_PREFIX)
        if len(named) > 1 or not is_credential_number(number):
            return Recognized(fingerprint, fault="forged", claims_ours=True)
        known = await self._credentials.by_number(number)
        if known is None:
            return Recognized(fingerprint, fault="unknown", claims_ours=True)
        if known.cluster_id != cluster_id:
            return Recognized(fingerprint, fault="other_cluster", claims_ours=True)
        groups = {*known.groups, credential_group(number)} - {AUTHENTICATED}
        if who.username != known.user_id or {*who.groups} - {AUTHENTICATED} != groups or who.has_other_ids:
            return Recognized(fingerprint, fault="forged", claims_ours=True)
        altered = who.malformed or any(each != known.fingerprint for each in who.fingerprints)
        return Recognized(fingerprint, known, altered=altered, claims_ours=True)

    async def _by_hash(self, cluster_id: str, who: Identity, fingerprint: bytes) -> Recognized:
        known = await self._credentials.by_fingerprint(fingerprint)
        if known is None:
            return await self._unknown_hash(who, fingerprint)
        if known.cluster_id != cluster_id:
            return Recognized(fingerprint, fault="other_cluster", claims_ours=True)
        if known.credential_number is not None:
            # The certificate has a credential group, and what was shown has none.
            return Recognized(fingerprint, fault="forged", claims_ours=True)
        return Recognized(fingerprint, known)

    async def _unknown_hash(self, who: Identity, fingerprint: bytes | None) -> Recognized:
        """It may be another encoding of a certificate that its user was issued without a credential group."""
        # Databases refuse some of the other names, and a refusal would be an error for all that ask at once.
        claims_ours = _was_issuable(who.username) and await self._credentials.has_unnumbered(who.username)
        return Recognized(fingerprint, fault="unknown", claims_ours=claims_ours)


def _was_issuable(username: str) -> bool:
    """Whether some certificate of ours may have the user name."""
    return 0 < len(username) <= MAX_NAME and is_plain_text(username)

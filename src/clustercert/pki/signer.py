"""The interface of signers. A signer creates client CAs, and signs leaves and CRLs with the CAs' keys.

Signers are plugins in the entry point group `clustercert.signers`. No other code decrypts a client CA's key.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Protocol

from clustercert.model import ClientCA, KeyType, SigningRequest
from clustercert.model.errors import SignerError
from clustercert.pki.crl import CrlContent
from clustercert.pki.envelope import SecretSealer


class LeafSigner(Protocol):
    """Signs leaves.

    Attributes:
        takes_serial: whether the signer uses the requested serial. Other signers choose the serial themselves, and take
            only the credential number in the subject from this service.
    """

    @property
    def takes_serial(self) -> bool: ...

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        """Sign a leaf. Returns the chain in DER, leaf first, without the root.

        The caller compares the chain with the request, see `leaf.check_leaf`. Raises only SignerError, RemoteFailed or
        Unavailable.
        """


class Signer(LeafSigner, Protocol):
    """Creates client CAs, and signs leaves and CRLs. Raises SignerError, RemoteFailed or Unavailable."""

    async def create_ca(
        self, cluster_id: str, key_type: KeyType, not_before: datetime, lifetime: timedelta
    ) -> ClientCA:
        """Create a client CA in the state `active`. The caller stores the CA."""

    async def sign_crl(self, ca: ClientCA, content: CrlContent) -> bytes:
        """Sign a CRL for a client CA. Returns DER, which the caller checks with `crl.check_crl`.

        Raises NotFound if the signer can't sign CRLs for this CA.
        """


# The class or function in a signer's entry point. The first argument is the table `[signers.NAME]` from the settings.
# The call raises ValueError for invalid settings, with a message that contains the setting's name but not the value.
SignerFactory = Callable[[Mapping[str, object], SecretSealer], Signer]


def signer_named(signers: Mapping[str, Signer], name: str) -> Signer:
    """Return the signer with this name. Raises SignerError if no such signer is installed."""
    if signer := signers.get(name):
        return signer
    raise missing_signer(name)


def missing_signer(name: str) -> SignerError:
    return SignerError(
        f"This cluster's signer {name} is not installed. The operator must install this signer."
    )

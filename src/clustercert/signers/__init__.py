"""What signs leaves. One file a signer, found by the entry point group `clustercert.signers`."""

from typing import Protocol

from clustercert.model import SigningRequest
from clustercert.sealing import Unsealer


class Signer(Protocol):
    """Certifies a public key for a grant. What it answers is checked by `certificate.check_leaf`.

    Attributes:
        takes_serial: whether the certificate gets the serial that the request names. Where not, the signer chooses the
            serial, and the credential number in the subject alone is ours.
    """

    @property
    def takes_serial(self) -> bool: ...

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        """The chain in DER, leaf first, without the root.

        Raises SignerError, RemoteFailed or Unavailable, nothing else.
        """


class SignerFactory(Protocol):
    """What the entry point names: called once a worker."""

    def __call__(self, custody: Unsealer) -> Signer: ...

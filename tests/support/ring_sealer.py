"""Custody without a database, for signers and other parts that seal secrets."""

from clustercert.pki.envelope import KeyRing, new_data_key


class RingSealer:
    """Seals with one ring of keys.

    Attributes:
        opened: how many secrets were unsealed.
    """

    def __init__(self) -> None:
        self.ring = KeyRing([new_data_key(1)], active_id=1)
        self.opened = 0

    async def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        return self.ring.seal(plaintext, bound_to)

    async def unseal(self, sealed: bytes, bound_to: str) -> bytes:
        self.opened += 1
        return self.ring.unseal(sealed, bound_to)

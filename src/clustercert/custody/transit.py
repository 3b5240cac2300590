"""A key-encryption key in the transit secrets engine of OpenBao or Vault. The key never leaves the server."""

import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field

from clustercert.model import JsonObject
from clustercert.model.errors import CustodyError, KeysUnavailable, UnsealError
from clustercert.pki.envelope import DataKey, wrapping_context
from clustercert.pki.openbao import OpenBao, OpenBaoRefused, ServerUnavailable
from clustercert.pki.openbao_settings import OpenBaoSettings

# The maximum size of a wrapped data key; the server returns about 100 characters.
_MAX_CIPHERTEXT = 1024


@dataclass(frozen=True, slots=True)
class TransitKek:
    """A key of the transit secrets engine. The token needs the right to update `encrypt/KEY` and `decrypt/KEY`.

    A wrapped data key is the server's ciphertext, which begins with the version of the key, such as `vault:v1:`.

    Attributes:
        id: mount and name of the key, such as `transit/clustercert`.
    """

    server: OpenBao = field(repr=False)
    key: str
    id: str

    async def wrap(self, data_key: DataKey) -> bytes:
        """Encrypt a data key, and check that the server can decrypt it again. Raises as `WrappingKey` says."""
        plaintext = base64.b64encode(data_key.key).decode()
        try:
            answer = await self._call("encrypt", data_key.id, plaintext=plaintext)
        except OpenBaoRefused as refused:
            raise CustodyError(
                f"The key-encryption key {self.id} can't encrypt: {refused}. Create the key in {self.server.url} with "
                "the type aes256-gcm96."
            ) from None
        ciphertext = str(answer.get("ciphertext", ""))
        if not ciphertext.isascii() or not 0 < len(ciphertext) <= _MAX_CIPHERTEXT:
            raise CustodyError(f"The key-encryption key {self.id} returned no usable ciphertext.")
        wrapped = ciphertext.encode()
        try:
            if await self.unwrap(data_key.id, wrapped) == data_key:
                return wrapped
        except UnsealError:
            pass
        raise CustodyError(f"The key-encryption key {self.id} can't decrypt what it has encrypted.")

    async def unwrap(self, data_key_id: int, wrapped: bytes) -> DataKey:
        name = f"data key {data_key_id}"
        try:
            ciphertext = wrapped.decode("ascii", errors="replace")
            answer = await self._call("decrypt", data_key_id, ciphertext=ciphertext)
        except OpenBaoRefused as refused:
            raise UnsealError(
                f"{name} can't be decrypted by the key-encryption key {self.id}: {refused}"
            ) from None
        try:
            return DataKey(data_key_id, base64.b64decode(str(answer.get("plaintext", "")), validate=True))
        except binascii.Error:
            raise UnsealError(
                f"{name}: the answer of the key-encryption key {self.id} is not base64"
            ) from None

    async def _call(self, operation: str, data_key_id: int, **body: object) -> JsonObject:
        # This field binds the ciphertext to the data key: with another value, the server refuses to decrypt.
        body["associated_data"] = base64.b64encode(wrapping_context(data_key_id)).decode()
        try:
            return await self.server.transit("POST", f"{operation}/{self.key}", body)
        except ServerUnavailable as failure:
            raise KeysUnavailable(
                f"the key-encryption key {self.id} at {self.server.url} can't be used: {failure}"
            ) from None


class TransitSource:
    """One key of the transit secrets engine. OpenBao's administrators create, rotate and delete the key."""

    def __init__(self, settings: OpenBaoSettings, key: str) -> None:
        self._server = OpenBao(settings)
        self._kek = TransitKek(self._server, key, f"{settings.mount}/{key}")
        self.name = f"the transit engine {settings.mount} of {settings.url}"

    async def keks(self) -> tuple[TransitKek, ...]:
        return (self._kek,)

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncIterator[None]:
        """Do nothing: the database notices two processes that wrap data keys at the same time."""
        yield

    async def add(self) -> TransitKek:
        return self._kek

    async def remove(self, kek_ids: Collection[str]) -> None:
        raise CustodyError(
            f"This command can't delete the keys {', '.join(sorted(kek_ids))} of {self.name}. Delete them there."
        )

    async def close(self) -> None:
        await self._server.close()

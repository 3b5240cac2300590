"""Private keys for leaves: elliptic ones at once, RSA ones in a process of their own.

Making an RSA key takes tens of milliseconds and holds the interpreter lock, so a worker that made one itself would
answer nobody meanwhile. The child process (`python -m clustercert.keygen`) reads key types from its standard input,
writes keys to its standard output, and ends when the input does.
"""

import asyncio
import sys
from typing import Literal, get_args

from clustercert.errors import Unavailable
from clustercert.keypair import key_der, load_key_der, new_key
from clustercert.model import KeyType, PrivateKey

RsaKeyType = Literal["rsa-2048", "rsa-3072", "rsa-4096"]

# At 50 ms a key, a request further back than this would wait for longer than its client does.
MAX_WAITING = 64


class KeyGenerator:
    """Makes keys of one type."""

    def __init__(self, key_type: KeyType) -> None:
        self.key_type: KeyType = key_type
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def new_key(self) -> PrivateKey:
        """A new key. Raises Unavailable where more RSA keys are wanted than can be made."""
        if self.key_type not in get_args(RsaKeyType):
            return new_key(self.key_type)
        if self._waiting >= MAX_WAITING:
            raise Unavailable("More RSA keys are wanted than can be made now. Try again, or send a CSR.")
        self._waiting += 1
        try:
            async with self._turn:
                return load_key_der(await self._ask_child())
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End the child process, if there is one."""
        child, self._child = self._child, None
        if child is not None and child.stdin is not None:
            child.stdin.close()
            await child.wait()

    async def _ask_child(self) -> bytes:
        child = self._child
        if child is None or child.returncode is not None:
            child = self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                # -P: whatever lies in the folder that the service was started in is not imported.
                *("-P", "-m", "clustercert.keygen"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Ctrl-C on a terminal is for the server, which ends this process by closing its input.
                start_new_session=True,
            )
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("the key process has no pipes")
        try:
            child.stdin.write(self.key_type.encode() + b"\n")
            size = int.from_bytes(await child.stdout.readexactly(4), "big")
            return await child.stdout.readexactly(size)
        except (OSError, asyncio.IncompleteReadError) as error:
            self._child = None
            child.stdin.close()
            raise Unavailable("The process that makes RSA keys ended. Try again.") from error
        except asyncio.CancelledError:
            # The answer to this question would otherwise be taken for the answer to the next.
            self._child = None
            child.stdin.close()
            child.kill()
            raise


def serve_keys() -> None:
    """The child's loop: a key type a line in, a four-byte length and a PKCS#8 DER out."""
    key_types: dict[str, KeyType] = {name: name for name in get_args(KeyType)}
    for line in sys.stdin:
        der = key_der(new_key(key_types[line.strip()]))
        sys.stdout.buffer.write(len(der).to_bytes(4, "big") + der)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve_keys()

"""Generates RSA keys in a child process.

Generating an RSA key takes tens of milliseconds and holds the interpreter lock, so it would block the worker's other
requests. The child (`python -m clustercert.pki.key_generator`) reads key types from standard input, writes keys to
standard output, and exits when its input is closed.
"""

import asyncio
import sys
from typing import cast

from clustercert.model import KeyType, PrivateKey
from clustercert.model.errors import Unavailable
from clustercert.pki.keys import KeyGenerator, key_der, load_key_der, new_key

# The maximum number of callers that wait for a key. A key takes about 50 ms, so more callers would time out.
MAX_WAITING = 64


def new_key_generator(key_type: KeyType) -> KeyGenerator:
    return RsaKeyGenerator(key_type) if key_type.startswith("rsa-") else KeyGenerator(key_type)


class RsaKeyGenerator(KeyGenerator):
    """Generates RSA keys of one size in a child process, which is started when the first key is requested."""

    def __init__(self, key_type: KeyType) -> None:
        super().__init__(key_type)
        self._child: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def new_key(self) -> PrivateKey:
        """Generate a key. Raises Unavailable if too many requests are waiting."""
        if self._waiting >= MAX_WAITING:
            raise Unavailable("Too many requests are waiting for RSA keys. Try again later, or send a CSR.")
        self._waiting += 1
        try:
            async with self._lock:
                return load_key_der(await self._request_key())
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Stop the child process if it is running."""
        child, self._child = self._child, None
        if child is not None and child.stdin is not None:
            child.stdin.close()
            await child.wait()

    async def _request_key(self) -> bytes:
        child = self._child
        if child is None or child.returncode is not None:
            child = self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                # -P: do not import modules from the current directory.
                *("-P", "-m", "clustercert.pki.key_generator"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Ctrl-C in a terminal must not reach the child. The server stops the child by closing its input.
                start_new_session=True,
            )
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("the key generator process has no pipes")
        try:
            child.stdin.write(self.key_type.encode() + b"\n")
            size = int.from_bytes(await child.stdout.readexactly(4), "big")
            return await child.stdout.readexactly(size)
        except (OSError, asyncio.IncompleteReadError) as error:
            self._child = None
            child.stdin.close()
            raise Unavailable("The process that generates RSA keys stopped. Try again.") from error
        except asyncio.CancelledError:
            # Discard the child: it may still write the key of this request, and the next request would read that key.
            self._child = None
            child.stdin.close()
            child.kill()
            raise


def serve_keys() -> None:
    """Run the child's main loop: read a key type per line, and write a key of this type for each line.

    A key is written as its length in four bytes, followed by PKCS#8 DER.
    """
    for line in sys.stdin:
        der = key_der(new_key(cast("KeyType", line.strip())))
        sys.stdout.buffer.write(len(der).to_bytes(4, "big") + der)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve_keys()

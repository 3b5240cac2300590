"""Relays TCP connections to another port on loopback, and accepts connections even if nothing listens there.

libpkcs11-proxy closes the socket of a refused connection twice, and so may close a file of another thread. So this
program is between the proxy and a daemon that is killed: `python -m bench.relay PORT` prints the port where it listens.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_CHUNK = 65536


@contextlib.contextmanager
def running(target: int) -> Iterator[int]:
    """Run a relay to a port during the block. Yields the port where the relay listens."""
    command = [sys.executable, "-m", "bench.relay", str(target)]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def _serve(target: int) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", target)
            with contextlib.closing(to_writer):
                copies = [_copy(reader, to_writer), _copy(to_reader, writer)]
                # If one side closes the connection, close the other side, too.
                _, others = await asyncio.wait(
                    [asyncio.ensure_future(copy) for copy in copies], return_when=asyncio.FIRST_COMPLETED
                )
                for other in others:
                    other.cancel()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))

"""What a worker's connections have to write, held back until a few have something.

A client that waits for answers is woken by each of them, and takes the processor from whoever makes the next one. So
answers of one turn of the loop are written right behind each other. Nothing waits for the turn after the next.
"""

import asyncio
from typing import Any

# Answers: enough for most of what there is to save, few enough that the first of them does not wait long.
AT_ONCE = 16
# Bytes of one connection. More is handed on at once, so that whoever sends much is made to wait for the reader.
LONGEST = 64 * 1024


class Outbox:
    """The connections of one event loop that have something to write."""

    def __init__(self) -> None:
        self._full: list[Held] = []

    def add(self, one: "Held") -> None:
        """Write what this one holds soon: when there are a few, in the next turn at the latest."""
        self._full.append(one)
        if len(self._full) == 1:
            asyncio.get_running_loop().call_soon(self._write)
        elif len(self._full) >= AT_ONCE:
            self._write()

    def _write(self) -> None:
        full, self._full = self._full, []
        for one in full:
            one.flush()


class Held(asyncio.Transport):
    """A transport whose writes go by way of an outbox; in all else it is the one that it wraps."""

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        super().__init__()
        self._transport = transport
        self._outbox = outbox
        self._data: list[bytes] = []
        self._size = 0
        self._ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write soon, in order. Behind the end there is nobody to read it: it is dropped."""
        if self._ended:
            return
        self._data.append(bytes(data))
        self._size += len(data)
        if self._size > LONGEST:
            self.flush()
        elif len(self._data) == 1:
            self._outbox.add(self)

    def flush(self) -> None:
        """Write now. What nobody is there to read any more is dropped."""
        data, self._data, self._size = self._data, [], 0
        if data and not self._transport.is_closing():
            self._transport.write(b"".join(data))

    def write_eof(self) -> None:
        self.flush()
        self._ended = True
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._data, self._size = [], 0
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._size + self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

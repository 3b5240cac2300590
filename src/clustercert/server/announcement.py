"""Prints the service's address when the service accepts connections."""

import socket
import sys
import threading
import time
from dataclasses import dataclass

_INTERVAL = 0.05


@dataclass(frozen=True, slots=True)
class Announcement:
    """Text for standard error, printed when the address accepts connections.

    Attributes:
        host: an address to connect to.
    """

    host: str
    port: int
    text: str

    def start(self) -> None:
        """Wait in a thread of this process, and print the text there."""
        threading.Thread(target=self._print, daemon=True).start()

    def _print(self) -> None:
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
            except OSError:
                time.sleep(_INTERVAL)
            else:
                break
        sys.stderr.write(self.text)
        sys.stderr.flush()

"""Tells the service manager that this process is ready. Source: sd_notify(3)."""

import contextlib
import os
import socket


def notify_ready() -> None:
    """Send READY=1 to the socket that systemd named. Does nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # The service works without this message, and systemd reports that it is missing.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notice:
        # An address that begins with @ is in the abstract namespace.
        notice.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        notice.sendall(b"READY=1")

"""A real PgBouncer in front of a test's PostgreSQL server."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from sqlalchemy.engine import make_url

from support import ports, postgres
from support.wait import SECONDS, eventually

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def pooled(
    server: postgres.Server, mode: Literal["session", "transaction"], **settings: str
) -> Iterator[Callable[[str], str]]:
    """A PgBouncer that pools connections to this server during the block.

    Yields a function from a database URL of the server to the URL by way of PgBouncer.
    """
    assert PROGRAM is not None
    folder = Path(tempfile.mkdtemp(prefix="clustercert-pgbouncer-"))
    with ports.reserve() as reserved:
        options = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(ports.port_of(reserved)),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(folder / "users"),
            "pool_mode": mode,
            **settings,
        }
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={server.port}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in options.items()),
        ]
        (folder / "users").write_text(f'"{postgres.OWNER}" "{server.password}"\n')
        (folder / "ini").write_text("\n".join(lines))
        postgres.give_to_nobody(folder, folder / "users", folder / "ini")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [PROGRAM, folder / "ini"], stdout=log, stderr=log, **postgres.as_nobody()
            )
        try:
            eventually(lambda: process.poll() is not None or _accepts(reserved))
            assert process.poll() is None, (folder / "log").read_text()
            port = ports.port_of(reserved)
            yield lambda url: make_url(url).set(port=port).render_as_string(hide_password=False)
        finally:
            # After SIGTERM, PgBouncer would wait for its clients.
            process.kill()
            process.wait(SECONDS)
            shutil.rmtree(folder)


def _accepts(reserved: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(reserved.getsockname()).close()
        return True
    return False

"""HAProxy in front of the nodes: it forwards connections to the primary alone, and ends them when it is no more."""

import contextlib
import socket
from collections.abc import Iterator, Sequence

from ha import programs
from ha.nodes import DATABASE, Nodes
from ha.programs import Program
from support import ports, postgres
from support.wait import eventually

# docs/failover.md has the same settings.
_SETTINGS = """\
defaults
    mode tcp
    timeout connect 1s
    timeout client 30m
    timeout server 30m
    timeout check 1s

listen postgresql
    bind {address}
    option httpchk
    http-check send meth GET uri /primary
    http-check expect status 200
    default-server check inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
{servers}
"""


@contextlib.contextmanager
def running(nodes: Nodes) -> Iterator[str]:
    """Run HAProxy during the block. Yields the database URL for the service."""
    folder = programs.new_folder(nodes.folder / "haproxy")
    with ports.reserve() as reserved:
        address = f"127.0.0.1:{ports.port_of(reserved)}"
        settings = folder / "haproxy.cfg"
        settings.write_text(_SETTINGS.format(address=address, servers="\n".join(_servers(nodes))))
        settings.chmod(0o644)
        program = Program("haproxy", ["haproxy", "-db", "-f", settings], folder)
        program.start()
        try:
            eventually(lambda: _accepts(ports.port_of(reserved)))
            yield f"postgresql+asyncpg://{postgres.OWNER}:{nodes.password}@{address}/{DATABASE}"
        finally:
            program.kill()


def _servers(nodes: Nodes) -> Sequence[str]:
    return [
        f"    server {node.name} {node.host.at('postgres')} port {node.host.ports['patroni']}"
        for node in nodes.members
    ]


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

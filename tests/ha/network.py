"""The network of the nodes: ports on loopback, or a network namespace for each node, which can be cut off."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ha.programs import find
from support import ports
from support.wait import eventually

SERVICES = ("postgres", "patroni", "etcd", "peers")
# A range for tests (RFC 2544). It is visible in the namespaces alone.
_SUBNET = "198.18.0"
_BRIDGE = "nodes"
ISOLATED = "HA_ISOLATED"


@dataclass
class Host:
    """Where a node's servers listen.

    Attributes:
        prefix: the command that enters the node's network.
        link: the network device that connects the node; None on loopback.
    """

    number: int
    address: str
    ports: dict[str, int]
    prefix: tuple[str, ...] = ()
    link: str | None = None
    _reserved: list[socket.socket] = field(default_factory=list)

    def at(self, service: str) -> str:
        return f"{self.address}:{self.ports[service]}"

    def url(self, service: str) -> str:
        return f"http://{self.at(service)}"

    def cut(self) -> None:
        """Drop all packets between this node and the others, the services included."""
        assert self.link is not None
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        assert self.link is not None
        _ip("link", "set", self.link, "up")


def cannot_isolate() -> str | None:
    """Why this machine has no network namespaces for us, or None."""
    if absent := [name for name in ("ip", "unshare", "nsenter") if find(name) is None]:
        return f"not installed: {', '.join(absent)}"
    attempt = "ip link add veth1 type veth peer name veth2 && ip link add bridge1 type bridge"
    tried = subprocess.run(
        ["unshare", "--net", "sh", "-c", attempt], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else tried.stderr.strip() or "no network namespaces"


def is_isolated() -> bool:
    """Whether this process was started in a network namespace of its own."""
    return os.environ.get(ISOLATED) == "1"


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    with contextlib.ExitStack() as stack:
        if not is_isolated():
            yield [_on_loopback(stack, number) for number in range(1, count + 1)]
            return
        _ip("link", "set", "lo", "up")
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{_SUBNET}.254/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        yield [_in_a_namespace(stack, number) for number in range(1, count + 1)]


def _on_loopback(stack: contextlib.ExitStack, number: int) -> Host:
    reserved = [stack.enter_context(ports.reserve()) for _ in SERVICES]
    return Host(
        number,
        "127.0.0.1",
        dict(zip(SERVICES, map(ports.port_of, reserved), strict=True)),
        (),
        None,
        reserved,
    )


def _in_a_namespace(stack: contextlib.ExitStack, number: int) -> Host:
    # The namespace lasts as long as this process.
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], start_new_session=True)
    stack.callback(holder.wait)
    stack.callback(holder.kill)
    own = Path("/proc/self/ns/net").readlink()
    eventually(lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() != own)
    link, address = f"node{number}", f"{_SUBNET}.{number}"
    prefix = ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
    _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
    _ip("link", "set", link, "master", _BRIDGE, "up")
    for command in (
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{address}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
    ):
        subprocess.run([*prefix, "ip", *command], check=True)
    return Host(
        number, address, {"postgres": 5432, "patroni": 8008, "etcd": 2379, "peers": 2380}, prefix, link
    )


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)

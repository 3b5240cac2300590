"""The source address of a request: the connection's peer or, behind trusted proxies, the client that they report.

A proxy appends the address of its own client to X-Forwarded-For. So only entries that trusted proxies appended are
trustworthy: the source is the right-most address that is not a trusted proxy. Entries further left are the client's own
claims.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence

from starlette.types import Scope

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN = "unknown"
HEADER = b"x-forwarded-for"
# The maximum number of proxies in a row, more than real deployments have. This limits the work for one request.
MAX_HOPS = 16
# The maximum length of an entry, longer than any address with brackets and a port.
_MAX_HOP = 64

# Some proxies append a port to the address.
_HOP = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?|([0-9a-f:.]+)", re.IGNORECASE | re.ASCII)


class SourceAddresses:
    """Determines source addresses. `trusted`: networks of trusted proxies. If empty, no header is read."""

    def __init__(self, trusted: Iterable[Network] = ()) -> None:
        self._trusted = tuple(trusted)

    def address_of(self, scope: Scope) -> str:
        """Return the source address, or the peer's address if a trusted proxy sent no valid address."""
        peer = peer_address(scope)
        if not self.trusts(peer):
            return peer
        return self._source(_last_entries(scope)) or peer

    def trusts(self, peer: str) -> bool:
        return bool(self._trusted) and self._is_trusted(_parsed(peer))

    def _source(self, hops: Sequence[str]) -> str | None:
        """Return the right-most address that is not a trusted proxy, or `None` if no address is valid."""
        for number, hop in enumerate(reversed(hops), 1):
            address = _hop_address(hop)
            if address is None:
                return None
            # If every hop is a trusted proxy, the left-most proxy sent the request itself.
            if not self._is_trusted(address) or number == len(hops) < MAX_HOPS:
                return str(address)
        return None

    def _is_trusted(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


def peer_address(scope: Scope) -> str:
    """Return the address of the connection's peer. For an IPv4 client of an IPv6 socket, this is the IPv4 address."""
    client = scope.get("client")
    if not client:
        return UNKNOWN
    address: str = client[0]
    return str(_parsed(address) or address) if address.startswith("::ffff:") else address


def _last_entries(scope: Scope) -> list[str]:
    """Return the right-most entries of X-Forwarded-For, which may be on several lines."""
    entries: list[str] = []
    for header, value in reversed(scope["headers"]):
        if header == HEADER:
            entries = value.decode("latin-1").rsplit(",", MAX_HOPS)[-MAX_HOPS:] + entries
            if len(entries) >= MAX_HOPS:
                break
    return entries[-MAX_HOPS:]


def _hop_address(hop: str) -> Address | None:
    hop = hop.strip(" \t")
    match = _HOP.fullmatch(hop) if len(hop) <= _MAX_HOP else None
    return _parsed(match[1] or match[2] or match[3]) if match else None


def _parsed(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address

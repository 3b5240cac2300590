"""The source address of a request: the connection's peer or, behind trusted proxies, the client that they report.

A proxy appends the address of its own client. So only entries that trusted proxies appended are trustworthy: the
source is the right-most address that is not a trusted proxy. Entries further left are the client's own claims.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence

from starlette.types import Scope

from clustercert.model.errors import InvalidRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN = "unknown"
HEADERS = frozenset({b"x-forwarded-for", b"forwarded"})
# The maximum number of proxies in a row, more than real deployments have. It bounds the work for one request.
MAX_HOPS = 16
# The maximum length of an entry, longer than any address with brackets and a port.
_MAX_HOP = 64

# RFC 7239, 4. Addresses need no escapes in a quoted string.
_FOR = re.compile(r'[ \t]*for=(?:"([^"\\]*)"|([^" \t]*))[ \t]*', re.IGNORECASE | re.ASCII)
# An optional port follows, as in RFC 7239, 6. Some proxies also append one in X-Forwarded-For.
_HOP = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?|([0-9a-f:.]+)", re.IGNORECASE | re.ASCII)


class SourceAddresses:
    """Determines source addresses. `trusted`: networks of trusted proxies; without any, no header is read."""

    def __init__(self, trusted: Iterable[Network] = ()) -> None:
        self._trusted = tuple(trusted)

    def of(self, scope: Scope) -> str:
        """Return the source address, or the peer's address if a trusted proxy sent no valid one.

        Raises InvalidRequest if X-Forwarded-For and Forwarded disagree: a client may have sent one of them.
        """
        peer = peer_address(scope)
        if not self.trusts(peer):
            return peer
        named = set()
        if hops := _last_entries(scope, b"x-forwarded-for"):
            named.add(self._source(hops) or peer)
        if elements := _last_entries(scope, b"forwarded"):
            named.add(self._source([_for(element) for element in elements]) or peer)
        if len(named) > 1:
            raise InvalidRequest(
                "X-Forwarded-For and Forwarded name different addresses. The proxy must remove the header that it does"
                " not set."
            )
        return named.pop() if named else peer

    def trusts(self, peer: str) -> bool:
        return bool(self._trusted) and self._is_trusted(_parsed(peer))

    def _source(self, hops: Sequence[str]) -> str | None:
        """Return the right-most address that is not a trusted proxy, or `None` if there is no valid one."""
        for number, hop in enumerate(reversed(hops), 1):
            address = _hop_address(hop)
            if address is None:
                return None
            # If every hop is a trusted proxy, the left-most one sent the request itself.
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


def _last_entries(scope: Scope, name: bytes) -> list[str]:
    """Return the right-most entries of a list header, which may be on several lines."""
    entries: list[str] = []
    for header, value in reversed(scope["headers"]):
        if header == name:
            # No address contains a comma, so splitting quoted strings is safe: a client can't change later entries.
            entries = value.decode("latin-1").rsplit(",", MAX_HOPS)[-MAX_HOPS:] + entries
            if len(entries) >= MAX_HOPS:
                break
    return entries[-MAX_HOPS:]


def _for(element: str) -> str:
    """Return the `for` address from one element of the Forwarded header; empty if it has none."""
    found = [match for part in element.split(";") if (match := _FOR.fullmatch(part))]
    return (found[0][1] or found[0][2] or "") if len(found) == 1 else ""


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

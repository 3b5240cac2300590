"""Internet addresses that lead to the machine itself, or only to its own network link."""

import ipaddress
import socket

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_local_address(address: IpAddress) -> bool:
    """Whether an address is loopback, link-local, multicast or unspecified, also as an IPv4-mapped IPv6 address.

    Linux connects to the machine itself for the unspecified address. A link-local address, such as the address of a
    cloud's metadata service, depends on the machine that connects.
    """
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast


def is_local_host(host: str) -> bool:
    """Whether the host of a URL is a local address in any notation, or a name that always means this machine.

    Other names are not resolved, because an answer may change between a check and a connection.
    """
    name = host.rstrip(".").lower()
    # RFC 6761 section 6.3.
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return is_local_address(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        # The system's resolver also reads 127.1, 0x7f000001 and 2130706433.
        return is_local_address(ipaddress.IPv4Address(socket.inet_aton(name)))
    except (OSError, ValueError):
        return False

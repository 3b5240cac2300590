"""Ports on loopback that nobody else gets meanwhile."""

import socket


def reserve() -> socket.socket:
    """A socket that is bound to a free port, but does not listen.

    Connections to the port are refused until a server listens on it. The server shares it, since it also sets
    SO_REUSEADDR, and other sockets don't get it before this one is closed.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


def port_of(bound: socket.socket) -> int:
    port: int = bound.getsockname()[1]
    return port

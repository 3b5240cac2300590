"""Connects to the primary among several PostgreSQL servers.

A standby may lag behind the primary, so a worker that read from it could allow a certificate that was revoked.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

PRIMARY = "primary"
# The key of the index of a connection's host.
_HOST = "host"


def target_of(url: URL) -> str:
    """Return which kind of server the URL asks for. The default is a primary, also if the URL has only one host."""
    return str(url.query.get("target_session_attrs", PRIMARY))


class PrimaryFinder:
    """Tries the hosts of a database URL one after another, first the host that was the primary last.

    A host that does not answer in time, to a connection or to a statement, is tried last from then on: it hangs, or it
    is a former primary that was not stopped. Such a server still accepts connections, and commits nothing.

    The driver alone would try all hosts within one time limit, always in the same order. So one host that hangs would
    take all the time, and no other host would be tried.
    """

    def __init__(self) -> None:
        self._first = self._count = 0

    def connect(
        self, dialect: Dialect, entry: ConnectionPoolEntry, arguments: Sequence[Any], options: dict[str, Any]
    ) -> DBAPIConnection | None:
        """Connect to the first host that accepts, as a handler of SQLAlchemy's event `do_connect`.

        Returns None if there is only one host, which SQLAlchemy then connects to.
        """
        hosts = options.get("host")
        if not isinstance(hosts, list):
            return None
        self._count = len(hosts)
        failures: list[Exception] = []
        for index in (*range(self._first, len(hosts)), *range(self._first)):
            try:
                connection = dialect.connect(
                    *arguments, **options | {"host": hosts[index], "port": options["port"][index]}
                )
            except (TimeoutError, asyncio.CancelledError) as failure:
                self._try_last(index)
                if isinstance(failure, asyncio.CancelledError):
                    raise
                failures.append(failure)
            except Exception as failure:  # noqa: BLE001 - another host may accept
                failures.append(failure)
            else:
                self._first = entry.info[_HOST] = index
                return connection
        # Prefer an error of a server, such as a rejected login, to errors of hosts that are down or not the primary.
        raise next((each for each in failures if getattr(each, "sqlstate", None)), failures[-1])

    def leave(self, info: Mapping[str, Any]) -> None:
        """Try the host of a connection last from now on. `info` belongs to the connection."""
        if (index := info.get(_HOST)) is not None:
            self._try_last(index)

    def _try_last(self, index: int) -> None:
        # Many connections to one host may fail at once.
        if index == self._first:
            self._first = (index + 1) % self._count

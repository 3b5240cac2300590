"""Serves Keystone over HTTPS on loopback until it is killed. Arguments: CONFIGURATION PORT PEM ACCESS_LOG.

Run it with the interpreter of Keystone's environment. Prints `ready` as soon as it listens. The access log has one
JSON object a line: method, path, status and, for requests about a token, the SHA-256 of that token.
"""

import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from cheroot import wsgi
from cheroot.ssl.builtin import BuiltinSSLAdapter

THREADS = 8
CONNECTION_SECONDS = 180
"""A connection may be idle for this long. With cheroot's 10 seconds, a busy machine loses new connections."""


class AccessLog:
    """A WSGI application that logs the requests to another one, and lets it answer one at a time.

    Keystone reads before it writes, also when somebody logs in. If two threads do so at once on SQLite, one of them
    gets the error "database is locked", and answers 500.
    """

    def __init__(self, application: Any, path: Path) -> None:
        self._application = application
        self._one = threading.Lock()
        self._lines = path.open("a", buffering=1)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Log the request when its answer begins."""

        def start(status: str, *rest: Any) -> Any:
            subject = environ.get("HTTP_X_SUBJECT_TOKEN")
            line = {
                "method": environ["REQUEST_METHOD"],
                "path": environ["PATH_INFO"],
                "status": int(status.split(maxsplit=1)[0]),
                "subject": hashlib.sha256(subject.encode()).hexdigest() if subject else None,
            }
            self._lines.write(json.dumps(line) + "\n")
            return start_response(status, *rest)

        with self._one:
            return self._application(environ, start)


def main(configuration: str, port: int, pem: str, access_log: Path) -> None:
    """Serve it."""
    os.environ["OS_KEYSTONE_CONFIG_FILES"] = configuration
    from keystone.wsgi.api import application

    server = wsgi.Server(("127.0.0.1", port), AccessLog(application, access_log), numthreads=THREADS)
    server.timeout = CONNECTION_SECONDS
    server.ssl_adapter = BuiltinSSLAdapter(pem, pem)
    server.prepare()
    print("ready", flush=True)
    server.serve()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    del sys.argv[1:]  # Keystone would take them for its own
    main(arguments[0], int(arguments[1]), arguments[2], Path(arguments[3]))

"""The HTTP server: uvicorn, its listening socket, its TLS files, and the application that it serves."""

from clustercert.server.file_watch import FileWatch
from clustercert.server.serving import Listener, listener, run, run_interruptible
from clustercert.server.tls_files import Tls, self_signed, tls

__all__ = ["FileWatch", "Listener", "Tls", "listener", "run", "run_interruptible", "self_signed", "tls"]

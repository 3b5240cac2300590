"""The HTTP server: a process that watches, one process a worker, TLS, a port that is really free, a clean end.

What is served is `app`'s business.
"""

from clustercert.server.interrupting import run_interruptible
from clustercert.server.ports import free_port
from clustercert.server.supervisor import run
from clustercert.server.tls_files import Tls, self_signed, tls

__all__ = ["Tls", "free_port", "run", "run_interruptible", "self_signed", "tls"]

"""The HTTP server: uvicorn as it comes, its listening socket, and TLS files that are renewed.

What is served is `app`'s business.
"""

from clustercert.server.interrupting import run_interruptible
from clustercert.server.listener import listener
from clustercert.server.serving import run
from clustercert.server.tls_files import Tls, self_signed, tls

__all__ = ["Tls", "listener", "run", "run_interruptible", "self_signed", "tls"]

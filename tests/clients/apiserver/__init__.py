"""A double of kube-apiserver: TLS, X.509 identity, authorization chain, admission, audit, a few stored kinds.

What it answers was seen on kube-apiserver 1.32 and 1.36 or, where nobody looked, read in its source.
"""

from apiserver.identity import Identity
from apiserver.server import ApiServer, Seen

__all__ = ["ApiServer", "Identity", "Seen"]

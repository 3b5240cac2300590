"""A double of kube-apiserver: TLS, X.509 identity, authorization chain, admission, audit, a few stored kinds.

Its behaviour was observed on kube-apiserver 1.32 and 1.36, or read in its source.
"""

from support.apiserver.identity import Identity
from support.apiserver.server import ApiServer, Seen

__all__ = ["ApiServer", "Identity", "Seen"]

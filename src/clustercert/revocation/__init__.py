"""Use case: revoke one certificate, or all of a user or a cluster; undo it.

`revoking` does it, `grounds` says why and how far, `holder` is what proves to be a certificate's holder. What a
cluster's API server does about it is `webhook`'s and `enforcement`'s business.
"""

from clustercert.revocation.grounds import MAX_NOTE, Grounds
from clustercert.revocation.holder import HOLDER, holder_statement
from clustercert.revocation.revoking import Page, Revoking

__all__ = ["HOLDER", "MAX_NOTE", "Grounds", "Page", "Revoking", "holder_statement"]

"""Records changes to the OIDC issuers in the settings."""

from collections.abc import Sequence
from datetime import datetime

from clustercert.authn.oidc.declared_issuers import declared_issuers, issuers_digest
from clustercert.authn.oidc.issuer_settings import IssuerSettings
from clustercert.model import Actor
from clustercert.model.events.operation import IssuersLoaded
from clustercert.store.job_cursors import JobCursor

NAME = "issuers"


async def record_issuer_change(cursor: JobCursor, issuers: Sequence[IssuerSettings], now: datetime) -> bool:
    """Record the issuers if they differ from the last recorded ones. Returns whether this call recorded them.

    If several workers start at once, only one of them records the issuers. Raises Unavailable.
    """
    before = await cursor.value()
    if before is None and not issuers:
        return False
    digest = issuers_digest(issuers)
    event = IssuersLoaded(
        at=now,
        actor=Actor.service(),
        subject=digest,
        issuers=declared_issuers(issuers),
        sha256=digest,
        before=before,
    )
    return await cursor.set(digest, event)

"""The webhooks that API servers call.

The authorization webhook denies credentials. The audit webhook receives audit events, which show the use of
credentials.
"""

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime

from clustercert.background import running
from clustercert.kubernetes.webhook.audit_batches import AuditBatches
from clustercert.kubernetes.webhook.authorization import Authorization
from clustercert.kubernetes.webhook.credential_usage import CredentialUsage
from clustercert.kubernetes.webhook.recognition import Recognition
from clustercert.kubernetes.webhook.tokens import WebhookTokens
from clustercert.model.events.operation import AuditBatchRefused
from clustercert.store.clusters.registry import WebhookTokenQueries
from clustercert.store.engine.database import Database
from clustercert.store.kubernetes.credential_cache import CredentialCache, RevocationFeed
from clustercert.store.kubernetes.credential_usage import CredentialUsageQueries

__all__ = ["Webhook"]


class Webhook:
    """Processes the requests to both webhooks. Create one instance per event loop."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], datetime],
        policy_groups: Collection[str],
        is_repeated: Callable[[AuditBatchRefused], bool],
    ) -> None:
        self.feed = RevocationFeed(database)
        recognition = Recognition(CredentialCache(database, self.feed))
        self.tokens = WebhookTokens(WebhookTokenQueries(database), self.feed, now)
        self.credential_usage = CredentialUsage(CredentialUsageQueries(database), now, policy_groups)
        self.authorization = Authorization(recognition, self.credential_usage, now, policy_groups)
        self.audit_batches = AuditBatches(recognition, self.credential_usage, database, now, is_repeated)

    async def watch(self, stop: asyncio.Event) -> None:
        """Follow revocations and record the use of credentials, until `stop` is set."""
        async with (
            self.feed.watching(),
            running("record uses of credentials", self.credential_usage.watch),
        ):
            await stop.wait()

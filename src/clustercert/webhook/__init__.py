"""What a cluster's API server asks and tells: whether a credential is to be honoured, and which were used.

`review` and `audit_events` are Kubernetes's documents, `recognition` finds the certificate in the ledger. The use cases
are `authorize`, `audit_batches` and `observing`. `tokens` says which API server it is, `sightings` keeps what was seen.
"""

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime

from clustercert.store.credentials import Credentials, Feed
from clustercert.store.database import Database
from clustercert.store.sightings import SightingRows
from clustercert.store.webhook_tokens import WebhookTokenRows
from clustercert.webhook.audit_batches import AuditBatches
from clustercert.webhook.authorize import Authorization
from clustercert.webhook.observing import Observation
from clustercert.webhook.recognition import Recognition
from clustercert.webhook.sightings import Sightings
from clustercert.webhook.tokens import WebhookTokens

__all__ = ["Webhook"]


class Webhook:
    """The parts, put together. One for each event loop."""

    def __init__(
        self, database: Database, now: Callable[[], datetime], policy_groups: Collection[str]
    ) -> None:
        self.feed = Feed(database)
        recognition = Recognition(Credentials(database, self.feed, now=now))
        self.tokens = WebhookTokens(WebhookTokenRows(database), self.feed, now)
        rows = SightingRows(database)
        self.sightings = Sightings(rows, now, policy_groups)
        self.authorization = Authorization(recognition, self.sightings, now, policy_groups)
        self.observation = Observation(recognition, self.sightings, now)
        self.audit_batches = AuditBatches(self.observation, rows, now)

    async def watch(self, stop: asyncio.Event) -> None:
        """Follow the revocations and write down what is seen, until told to stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.feed.watch(stop))
            group.create_task(self.sightings.watch(stop))

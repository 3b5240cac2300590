"""Names instead of the ids in audit events, for tables that people read."""

from typing import TYPE_CHECKING

from clustercert.cli.session import CLUSTER_ID
from clustercert.model.errors import NotFound
from clustercert.model.ids import is_id

if TYPE_CHECKING:
    from clustercert.cli.session import Operator
    from clustercert.store.audit import StoredEvent

_FINGERPRINT_DIGITS = 64
# Shown digits of a fingerprint: enough for `certificate show` to find the certificate.
_SHOWN_DIGITS = 16


class EventNames:
    """Finds the names of users and clusters in the store. Each is looked up once."""

    def __init__(self, operator: "Operator") -> None:
        self._operator = operator
        self._known: dict[str, str] = {}

    async def user(self, user_id: str) -> str:
        """Return the name of a user of the built-in identity, otherwise the id."""
        if not is_id(user_id):
            return user_id
        if user_id not in self._known:
            try:
                self._known[user_id] = (await self._operator.directory.find_user(user_id, None)).name
            except NotFound:
                self._known[user_id] = user_id
        return self._known[user_id]

    async def subject(self, event: "StoredEvent") -> str:
        """Return the name that the event or the store has for the subject. A fingerprint or hash is shortened."""
        from clustercert.audit.event_parsing import parse_body

        detail = parse_body(event.body).get("detail")
        if isinstance(detail, dict) and isinstance(name := detail.get("name"), str) and name:
            return name
        if CLUSTER_ID.fullmatch(event.subject):
            return await self._cluster(event.subject)
        if len(event.subject) == _FINGERPRINT_DIGITS:
            return event.subject[:_SHOWN_DIGITS]
        return await self.user(event.subject)

    async def _cluster(self, cluster_id: str) -> str:
        if cluster_id not in self._known:
            found = await self._operator.parts.clusters.queries.find(cluster_id, None)
            self._known[cluster_id] = found[0].name if found else cluster_id
        return self._known[cluster_id]

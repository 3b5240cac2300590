"""Queries for users outside the built-in identity who have had certificates."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import func, select

from clustercert.store import tables
from clustercert.store.engine.queries import Queries
from clustercert.store.revocations import NO_END, blocking

_certificate, _revocation = tables.certificate, tables.revocation

# The methods of users of the built-in identity, and of the service itself.
_BUILT_IN_METHODS = ("token", "access_key", "cli", "service")


class SeenUserQueries(Queries):
    """Reads users from the ledger."""

    async def last_issued(self, project_id: str, user_id: str) -> datetime | None:
        """Return when a user got their last certificate for the project's clusters."""
        query = (
            select(_certificate.c.issued_at)
            .where(_certificate.c.user_id == user_id, _certificate.c.project_id == project_id)
            .order_by(_certificate.c.id.desc())
            .limit(1)
        )
        return await self._scalar(query)

    async def is_blocked(self, user_id: str) -> bool:
        return await self._row(blocking(user_id)) is not None

    async def of_other_issuers(self, project_id: str, since: datetime) -> Mapping[str, datetime]:
        """Return users of other issuers with certificates for the project: when they got the last one, by user id.

        Leaves out blocked users.
        """
        blocked = select(_revocation.c.user_id).where(
            _revocation.c.cluster_id == "",
            _revocation.c.fingerprint.is_(None),
            _revocation.c.epoch == NO_END,
        )
        query = (
            select(_certificate.c.user_id, func.max(_certificate.c.issued_at))
            .where(
                _certificate.c.project_id == project_id,
                _certificate.c.issued_at >= since,
                _certificate.c.auth_method.not_in(_BUILT_IN_METHODS),
                _certificate.c.user_id.not_in(blocked),
            )
            .group_by(_certificate.c.user_id)
        )
        return {row[0]: row[1] for row in await self._rows(query)}

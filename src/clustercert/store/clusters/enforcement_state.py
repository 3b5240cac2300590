"""How well clusters enforce revocations, as far as the database shows."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, Subquery, and_, case, func, or_, select, true

from clustercert.model.choices import EnforcementState
from clustercert.model.enforcement import VERIFICATION_COUNTS
from clustercert.model.kubernetes import TOKEN_SIGNER
from clustercert.model.times import RECENT
from clustercert.store import tables
from clustercert.store.clusters.registry import is_enforced_inside, is_silent
from clustercert.store.engine.queries import Queries

_certificate, _cluster, _token = tables.certificate, tables.cluster, tables.webhook_token


@dataclass(frozen=True, slots=True)
class ClusterContact:
    """The state of a cluster's enforcement, and when its API server last contacted this service.

    Attributes:
        has_webhook_token: whether the cluster has a webhook token.
        asked_at: when an API server last called the webhook; None if never.
        events_at: when an API server last sent audit events; None if never.
    """

    state: EnforcementState
    has_webhook_token: bool = False
    asked_at: datetime | None = None
    events_at: datetime | None = None


class EnforcementQueries(Queries):
    """Reads the state of enforcement of one cluster."""

    async def contact(self, cluster_id: str, now: datetime) -> ClusterContact:
        """Return a cluster's state, and when its API server last contacted this service."""
        state, contacts = enforcement_state([cluster_id], now)
        columns = (state, contacts.c.cluster_id.is_not(None), contacts.c.asked_at, contacts.c.events_at)
        joined = _cluster.outerjoin(contacts, contacts.c.cluster_id == _cluster.c.id)
        row = await self._row(select(*columns).select_from(joined).where(_cluster.c.id == cluster_id))
        # The cluster may have been removed since the caller found it.
        return ClusterContact("none") if row is None else ClusterContact(*row)


def enforcement_state(
    cluster_ids: Select[str] | Collection[str] | None, now: datetime
) -> tuple[ColumnElement[EnforcementState], Subquery]:
    """Return an SQL expression for the state of enforcement of these clusters, and the subquery to which it refers.

    The subquery has at most one row for each cluster, with the column `cluster_id`; join it with an outer join. The
    states, of which the first that applies counts:

    - `unreviewed`: the API server did not ask the webhook about a known use of a certificate; see `is_silent`.
    - `none`: nothing is set up. The API server has never called the webhook, the cluster's options require neither
      bindings nor an admission policy, and its credentials are certificates.
    - `used`: a credential was used after its revocation, and since the last successful verification.
    - `incomplete`: bindings or an admission policy are set up. A webhook token exists, but the API server has never
      called the webhook. Clusters whose credentials are tokens need no webhook.
    - `only_writes`: only the admission policy is in effect. The API server has not called the webhook within a day.
    - `quiet`: only the webhook is set up. The API server has called it, but not within a day, and no later use of a
      certificate is known.
    - `unverified`: `clustercert kubernetes verify` has not succeeded within `VERIFICATION_COUNTS`.
    - `tokens`: verified, and the credentials are tokens.
    - `bindings`: verified with bindings. The API server has not called the webhook within a day.
    - `verified`: verified, and the API server has called the webhook within a day.
    """
    contacts = (
        select(
            _token.c.cluster_id,
            func.max(_token.c.last_asked_at).label("asked_at"),
            func.max(_token.c.last_use_at).label("used_at"),
            func.max(_token.c.last_events_at).label("events_at"),
        )
        .where(true() if cluster_ids is None else _token.c.cluster_id.in_(cluster_ids))
        .group_by(_token.c.cluster_id)
        .subquery()
    )
    options, asked_at, verified_at = _cluster.c.options, contacts.c.asked_at, _cluster.c.verified_at
    is_inside, is_of_tokens = is_enforced_inside(), _cluster.c.signer == TOKEN_SIGNER
    has_bindings = options["credential_roles"].as_string().is_not(None)
    is_called = and_(asked_at.is_not(None), asked_at >= now - RECENT)
    has_webhook_token = and_(contacts.c.cluster_id.is_not(None), ~is_of_tokens)
    states: list[tuple[ColumnElement[bool], EnforcementState]] = [
        (is_silent(asked_at, contacts.c.used_at), "unreviewed"),
        (and_(asked_at.is_(None), ~is_inside), "none"),
        (_cluster.c.id.in_(_used_since_verification()), "used"),
        (and_(has_webhook_token, asked_at.is_(None)), "incomplete"),
        (and_(~is_called, ~is_of_tokens, ~has_bindings, is_inside), "only_writes"),
        (and_(~is_called, ~is_inside), "quiet"),
        (or_(verified_at.is_(None), verified_at < now - VERIFICATION_COUNTS), "unverified"),
        (is_of_tokens, "tokens"),
        (~is_called, "bindings"),
    ]
    return case(*states, else_="verified"), contacts


def _used_since_verification() -> Select[str]:
    """Return the query for the clusters in which a credential was used after its revocation and the verification."""
    cluster, used_at = _cluster.alias(), _certificate.c.revoked_used_at
    # A function wraps the column, so that SQLite uses the small index on the times.
    cluster_id = func.coalesce(_certificate.c.cluster_id, _certificate.c.cluster_id)
    is_later = or_(cluster.c.verified_at.is_(None), used_at > cluster.c.verified_at)
    return (
        select(cluster.c.id)
        .join(_certificate, cluster_id == cluster.c.id)
        .where(used_at.is_not(None), is_later)
    )

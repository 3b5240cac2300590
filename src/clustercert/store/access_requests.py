"""Queries for access requests.

Each change of a request is one transaction that first locks the request's row, so that changes of one request run one
after another. The transaction also records the change's audit events and, if the request ends early, revokes the
request's certificates. A certificate of a request is recorded under the same lock. So either the end of the request
revokes the certificate, or the certificate is not recorded.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from clustercert.model import AuditEvent, CertificateRecord, Revocation, rfc3339
from clustercert.model.access_requests import (
    CLOSED_STATES,
    EARLY_USE_PERIOD,
    OPEN_STATES,
    AccessDecision,
    AccessRequest,
)
from clustercert.model.choices import AccessRequestState
from clustercert.model.errors import Conflict, NotFound, TooManyRequests
from clustercert.store import tables
from clustercert.store.audit.events import record_events
from clustercert.store.certificates.ledger import certificate_row
from clustercert.store.certificates.revocations import revoke_unrevoked
from clustercert.store.certificates.views import is_revoked
from clustercert.store.engine.database import raise_generation
from clustercert.store.engine.queries import Queries, conflict_if_violated
from clustercert.store.engine.transaction import Transaction

_request, _decision, _certificate = tables.access_request, tables.access_decision, tables.certificate

# The maximum number of valid certificates of a request. The end of the request revokes all of them in one transaction.
MAX_LIVE = 1000
PRUNED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class RevokedAccess:
    """A certificate of a request that ends, for its revocation and the audit events."""

    fingerprint: bytes
    serial: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step of a request.

    Attributes:
        request: the request after the step.
        events: the audit events of the step; called with the number of revoked certificates.
        revocation: returns the revocation of a certificate of the request, and its event; None if the step revokes no
            certificates.
    """

    request: AccessRequest
    events: Callable[[int], tuple[AuditEvent, ...]]
    revocation: Callable[[RevokedAccess], tuple[Revocation, AuditEvent]] | None = None


Step = Callable[[AccessRequest], StepResult | None]
"""Makes a step with the request as it is in the database. Returns None if there is nothing to change."""

ClaimStep = Callable[[AccessRequest, Sequence[AccessRequest]], StepResult | None]
"""Makes the step of a new certificate; see `Step`. The second argument is the result of `early_uses`."""


@dataclass(frozen=True, slots=True)
class Visibility:
    """Which requests a user may see: those of the user, those in some projects, and those of some rules.

    Attributes:
        project_ids: the projects with all their requests.
        rules: pairs of project ids and names of rules: the requests by these rules in these projects.
    """

    user_id: str
    project_ids: Collection[str] = ()
    rules: Collection[tuple[Collection[str], Collection[str]]] = ()


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Which requests to return. None means any. The described fields are parameters of the API.

    Attributes:
        asked_by: the id of the user who asked.
        undecided: only requests of which a part may wait for approvals: open ones, and those that were used before the
            approval and were neither approved nor denied.
    """

    id: Annotated[str | None, "Only requests whose id begins with these hex digits."] = None
    state: Annotated[
        Literal[AccessRequestState, "open", "closed"] | None,
        "Only requests in this state. `open`: pending, approved and active. `closed`: all others.",
    ] = None
    cluster: Annotated[str | None, "Only requests for this cluster, by id."] = None
    project: Annotated[str | None, "Only requests for clusters of this project, by id."] = None
    visible_to: Visibility | None = None
    asked_by: str | None = None
    undecided: bool = False

    @property
    def states(self) -> tuple[AccessRequestState, ...] | None:
        match self.state:
            case "open":
                return OPEN_STATES
            case "closed":
                return CLOSED_STATES
        return (self.state,) if self.state is not None else None


@dataclass(frozen=True, slots=True)
class AccessRequestCounts:
    """Figures for the metrics.

    Attributes:
        states: the number of open requests by state.
        oldest_pending: when the oldest request that waits for approvals was created.
        most_early_uses: the most uses before the approval by one user within `EARLY_USE_PERIOD`, in all clusters, that
            nobody has approved.
    """

    states: Mapping[str, int]
    oldest_pending: datetime | None
    most_early_uses: int


class AccessRequestQueries(Queries):
    """Reads and changes access requests."""

    async def find(self, request_id: str, selected: RequestFilter) -> AccessRequest | None:
        """Return the request with this id if it is one of the selected requests, else None."""
        # One query in both cases, to avoid a timing oracle.
        condition = and_(_request.c.id == request_id, *_conditions(selected))
        async with self._database.read() as connection:
            return await _read(connection, condition)

    async def create(
        self, request: AccessRequest, event: AuditEvent, *, since: datetime, most: int
    ) -> tuple[AccessRequest, bool]:
        """Store a new request. Returns an equal open request instead, if there is one, and whether the request is new.

        Raises Conflict if the user has another open request for the cluster, ConcurrentChange if the user creates one
        at the same time, or TooManyRequests if the user has created `most` requests `since`.
        """
        values = _row(request)
        with conflict_if_violated():
            async with self._database.transaction() as connection:
                if values["open_for"] is not None:
                    same = _request.c.open_for == values["open_for"]
                    found = await _read(connection, same, lock=True)
                    if found is not None:
                        if found.asks_the_same(request):
                            return found, False
                        raise Conflict(
                            f"You have an open request for this cluster: {found.id} for"
                            f" {', '.join(found.groups)}. End it first: clustercert request end {found.id}"
                        )
                recent = select(func.count()).where(
                    _request.c.user_id == request.user_id, _request.c.created_at > since
                )
                if (await connection.execute(recent)).scalar_one() >= most:
                    raise TooManyRequests(
                        f"You have created {most} access requests since {rfc3339(since)}. Ask for access again later.",
                        retry_after=3600,
                    )
                await connection.execute(insert(_request).values(values))
                await record_events(connection, (event,))
        return request, True

    async def early_uses(
        self, user_ids: Collection[str], cluster_ids: Collection[str], now: datetime
    ) -> tuple[AccessRequest, ...]:
        """Return the requests of these users for these clusters that limit the use before an approval.

        These are requests that were used before their approval, or denied, within `EARLY_USE_PERIOD`.
        """
        async with self._database.read() as connection:
            return await _early_uses(connection, user_ids, cluster_ids, now)

    async def change(self, request_id: str, step: Step) -> tuple[AccessRequest, bool]:
        """Make a step of a request. Returns the request after the step, and whether the step changed it.

        Raises NotFound if there is no such request, or any error that `step` raises.
        """
        async with self._database.transaction() as connection:
            before = await _locked(connection, request_id)
            return await _save(connection, before, step(before))

    async def record(
        self, record: CertificateRecord, event: AuditEvent, step: ClaimStep
    ) -> tuple[AccessRequest, bool]:
        """Record a certificate of a request with its event, and make the step of the request, in one transaction.

        Returns the request after the step, and whether the step changed it. Raises any error that `step` raises, or
        Conflict if the certificate would outlive the request, or if the request has `MAX_LIVE` valid certificates.
        """
        request_id = str(record.access_request_id)
        async with self._database.transaction() as connection:
            before = await _locked(connection, request_id)
            # Counts all uses: a user has at most one open request for a cluster, so the others are closed, and the
            # certificates of a closed request were recorded before this request was created.
            others = (
                await _early_uses(connection, {before.user_id}, {before.cluster_id}, record.issued_at)
                if before.state == "pending"
                else ()
            )
            request, is_changed = await _save(connection, before, step(before, others))
            until = request.usable_until(record.issued_at)
            if until is None or record.not_after > until:
                raise Conflict("The access request's time changed. Try again.")
            live = select(func.count()).where(
                _certificate.c.access_request_id == request_id, _live(record.issued_at)
            )
            if (await connection.execute(live)).scalar_one() >= MAX_LIVE:
                raise Conflict(
                    f"The access request has {MAX_LIVE} valid certificates. Use one of them, or revoke some."
                )
            epoch = select(tables.generation.c.value).scalar_subquery()
            await connection.execute(insert(_certificate).values(certificate_row(record) | {"epoch": epoch}))
            await record_events(connection, (event,))
        return request, is_changed

    async def due(self, now: datetime, limit: int, *, without: Collection[str] = ()) -> tuple[str, ...]:
        """Return the ids of open requests that change by themselves at `now` or before, the longest overdue first.

        Args:
            without: ids of requests to leave out.
        """
        query = select(_request.c.id).where(_request.c.due_at <= now, _request.c.id.not_in(without))
        query = query.order_by(_request.c.due_at).limit(limit)
        return tuple(row.id for row in await self._rows(query))

    async def page(
        self, selected: RequestFilter, *, limit: int, before: tuple[datetime, str] | None = None
    ) -> tuple[AccessRequest, ...]:
        """Return a page of requests, newest first, that were created before a time, or have a lower id."""
        query = select(_request).where(*_conditions(selected))
        if before is not None:
            query = query.where(tuple_(_request.c.created_at, _request.c.id) < tuple_(*before))
        query = query.order_by(_request.c.created_at.desc(), _request.c.id.desc()).limit(limit)
        async with self._database.read() as connection:
            return await _requests(connection, query)

    async def live_certificates(self, request_ids: Collection[str], now: datetime) -> dict[str, int]:
        """Count the valid certificates of requests, by the request's id. Omits requests without one."""
        column = _certificate.c.access_request_id
        query = select(column, func.count()).where(column.in_(request_ids), _live(now)).group_by(column)
        return {str(request_id): count for request_id, count in await self._rows(query)}

    async def counts(self, now: datetime) -> AccessRequestCounts:
        """Return the figures for the metrics."""
        states = (
            select(_request.c.state, func.count())
            .where(_request.c.open_for.is_not(None))
            .group_by(_request.c.state)
        )
        oldest = select(func.min(_request.c.created_at)).where(
            _request.c.open_for.is_not(None), _request.c.approved_at.is_(None)
        )
        early = (
            select(func.count())
            .where(_request.c.started_at > now - EARLY_USE_PERIOD, _request.c.approved_at.is_(None))
            .group_by(_request.c.user_id)
            .order_by(func.count().desc())
            .limit(1)
        )
        async with self._database.read() as connection:
            found = {row[0]: row[1] for row in await connection.execute(states)}
            pending_since = (await connection.execute(oldest)).scalar_one()
            most = (await connection.execute(early)).scalar_one_or_none()
        return AccessRequestCounts(found, pending_since, most or 0)

    async def count_closed(self, closed_before: datetime) -> int:
        """Count the requests that were closed and last decided before a time."""
        query = select(func.count()).where(_is_over(closed_before))
        return await self._scalar(query) or 0

    async def prune(self, closed_before: datetime, event: Callable[[int], AuditEvent]) -> int:
        """Delete a batch of requests that were closed and last decided before a time. Returns how many.

        `closed_before` must be before the last `EARLY_USE_PERIOD`: newer requests limit further use before an approval.
        `event` creates an audit event from the number of deleted requests, and is not called if the number is 0.
        """
        query = select(_request.c.id).where(_is_over(closed_before)).limit(PRUNED_AT_ONCE)
        async with self._database.transaction() as connection:
            ids = (await connection.execute(query)).scalars().all()
            await connection.execute(delete(_decision).where(_decision.c.request_id.in_(ids)))
            count = (await connection.execute(delete(_request).where(_request.c.id.in_(ids)))).rowcount
            if count:
                await record_events(connection, (event(count),))
        return count


async def _locked(connection: Transaction, request_id: str) -> AccessRequest:
    """Read a request, and lock its row. Raises NotFound."""
    found = await _read(connection, _request.c.id == request_id, lock=True)
    if found is None:
        raise NotFound("There is no such access request.")
    return found


async def _early_uses(
    connection: Transaction, user_ids: Collection[str], cluster_ids: Collection[str], now: datetime
) -> tuple[AccessRequest, ...]:
    since = now - EARLY_USE_PERIOD
    is_use = and_(_request.c.started_at > since, _request.c.approved_at.is_(None))
    query = select(_request).where(
        _request.c.user_id.in_(user_ids),
        _request.c.cluster_id.in_(cluster_ids),
        or_(is_use, _was_denied(_decision.c.at > since)),
    )
    return await _requests(connection, query)


def _was_denied(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return a condition that is true for a request with a denial of the access that meets these conditions."""
    is_denial = and_(_decision.c.part == "access", _decision.c.approves.is_(False))
    return exists().where(_decision.c.request_id == _request.c.id, is_denial, *conditions).correlate(_request)


def _is_over(before: datetime) -> ColumnElement[bool]:
    decided = exists().where(_decision.c.request_id == _request.c.id, _decision.c.at >= before)
    return and_(_request.c.closed_at < before, ~decided.correlate(_request))


async def _requests(connection: Transaction, query: Select[Any]) -> tuple[AccessRequest, ...]:
    rows = (await connection.execute(query)).all()
    decisions = await _decisions(connection, [row.id for row in rows])
    return tuple(_parsed(row, decisions.get(row.id, ())) for row in rows)


async def _save(
    connection: Transaction, before: AccessRequest, change: StepResult | None
) -> tuple[AccessRequest, bool]:
    """Save the result of a step. Returns the request after the step, and whether the step changed it."""
    if change is None:
        return before, False
    after = change.request
    await connection.execute(update(_request).where(_request.c.id == before.id).values(_row(after)))
    for decision in set(after.decisions) - set(before.decisions):
        await _save_decision(connection, before.id, decision)
    revoked = 0
    if change.revocation is not None:
        revoked = await _revoke_certificates(connection, after, change.revocation)
    await record_events(connection, change.events(revoked))
    return after, True


async def _revoke_certificates(
    connection: Transaction,
    request: AccessRequest,
    revocation_of: Callable[[RevokedAccess], tuple[Revocation, AuditEvent]],
) -> int:
    """Revoke the certificates of a closed request, with their audit events. Returns how many were revoked.

    Skips certificates that are revoked individually. Such a revocation can't be undone after the end of the request.
    """
    if request.started_at is None:
        return 0
    # Raise the generation before the query, so that no revocation is undone in between.
    epoch = await raise_generation(connection)
    these = select(_certificate.c.fingerprint, _certificate.c.serial).where(
        _certificate.c.access_request_id == request.id,
        _certificate.c.not_after > request.closed_at,
        _certificate.c.revoked_at.is_(None),
    )
    # Lock the rows in the same order as reports of use, see `CredentialUsageQueries.add`.
    in_order = these.order_by(_certificate.c.id).with_for_update()
    rows = (await connection.execute(in_order)).all()
    revoked = [revocation_of(RevokedAccess(row.fingerprint, row.serial)) for row in rows]
    await revoke_unrevoked(connection, [revocation for revocation, _ in revoked], epoch=epoch)
    await record_events(connection, tuple(event for _, event in revoked))
    return len(revoked)


async def _save_decision(connection: Transaction, request_id: str, decision: AccessDecision) -> None:
    this = (
        _decision.c.request_id == request_id,
        _decision.c.part == decision.part,
        _decision.c.by == decision.by,
    )
    await connection.execute(delete(_decision).where(*this))
    values = asdict(decision) | {"request_id": request_id, "met": sorted(decision.met)}
    await connection.execute(insert(_decision).values(values))


async def _read(
    connection: Transaction, condition: ColumnElement[bool], *, lock: bool = False
) -> AccessRequest | None:
    query = select(_request).where(condition)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    if row is None:
        return None
    return _parsed(row, (await _decisions(connection, [row.id])).get(row.id, ()))


async def _decisions(
    connection: Transaction, request_ids: Collection[str]
) -> dict[str, tuple[AccessDecision, ...]]:
    query = select(_decision).where(_decision.c.request_id.in_(request_ids)).order_by(_decision.c.at)
    found: dict[str, tuple[AccessDecision, ...]] = {}
    for row in (await connection.execute(query)).all() if request_ids else ():
        values = {name: getattr(row, name) for name in _DECISION_NAMES} | {"met": frozenset(row.met)}
        found[row.request_id] = (*found.get(row.request_id, ()), AccessDecision(**values))
    return found


def _conditions(selected: RequestFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if (visible := selected.visible_to) is not None:
        by_rule = [
            and_(_request.c.project_id.in_(projects), _request.c.rule.in_(rules))
            for projects, rules in visible.rules
        ]
        in_projects = _request.c.project_id.in_(visible.project_ids)
        conditions.append(or_(_request.c.user_id == visible.user_id, in_projects, *by_rule))
    if selected.states is not None:
        conditions.append(_request.c.state.in_(selected.states))
    if selected.undecided:
        was_used = and_(_request.c.started_at.is_not(None), _request.c.approved_at.is_(None), ~_was_denied())
        conditions.append(or_(_request.c.open_for.is_not(None), was_used))
    if selected.id is not None:
        conditions.append(_request.c.id.startswith(selected.id, autoescape=True))
    for column, value in (
        (_request.c.cluster_id, selected.cluster),
        (_request.c.project_id, selected.project),
        (_request.c.user_id, selected.asked_by),
    ):
        if value is not None:
            conditions.append(column == value)
    return conditions


def _live(now: datetime) -> ColumnElement[bool]:
    return (_certificate.c.not_after > now) & ~is_revoked()


_NAMES = [each.name for each in fields(AccessRequest) if each.name != "decisions"]
_DECISION_NAMES = [each.name for each in fields(AccessDecision)]
_DURATIONS = ("duration", "claim_within", "extension")


def _row(request: AccessRequest) -> dict[str, object]:
    values = {name: getattr(request, name) for name in _NAMES}
    for name in _DURATIONS:
        values[name] = None if values[name] is None else int(values[name].total_seconds())
    return values | {
        "groups": list(request.groups),
        "conditions": list(request.conditions),
        "offered_groups": list(request.offered_groups),
        "open_for": f"{request.user_id} {request.cluster_id}" if request.state in OPEN_STATES else None,
        "due_at": request.due_at,
    }


def _parsed(row: Row[Any], decisions: tuple[AccessDecision, ...]) -> AccessRequest:
    values = {name: getattr(row, name) for name in _NAMES}
    for name in _DURATIONS:
        values[name] = None if values[name] is None else timedelta(seconds=values[name])
    values |= {name: tuple(values[name]) for name in ("groups", "conditions", "offered_groups")}
    return AccessRequest(**values, decisions=decisions)

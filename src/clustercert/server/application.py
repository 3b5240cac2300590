"""The application of a process: its routes, jobs and readiness."""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote, urlsplit

import structlog
from fastapi import FastAPI
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Scope

from clustercert.audit import settings_changes
from clustercert.audit.refusals import FailedAuthentications
from clustercert.authn.credentials import UnverifiedCredential
from clustercert.authn.oidc.verification import KeyUpdates
from clustercert.background import running, wait_for_stop
from clustercert.clusters.registration import exempted_templates, refuse_new_exempted_templates
from clustercert.custody import Custody
from clustercert.http import middleware, responses
from clustercert.http.app import console_preparation, direct_routes, new_app
from clustercert.http.context import RequestContext, attach
from clustercert.http.dependencies import Options, Services
from clustercert.http.middleware import AuthenticationFailure, RequestMiddleware
from clustercert.http.source_address import SourceAddresses
from clustercert.limits.failures import FailureLimit
from clustercert.limits.issuing import LimitedIssuance
from clustercert.model import Actor, Caller, Domain, UnverifiedRequest, User, utc_now
from clustercert.model.access_requests import OPEN_STATES
from clustercert.model.choices import ServerRole
from clustercert.model.errors import ClustercertError, LogDamaged, StoreFault, Unauthenticated, Unavailable
from clustercert.model.identity import BUILT_IN
from clustercert.model.rights import OPERATOR
from clustercert.observability import log, metrics, process_log
from clustercert.observability.tracing import Tracer
from clustercert.policy.decision import Policy, long_lifetimes, policy_digest
from clustercert.policy.lifetime import lifetime_text
from clustercert.policy.rules import groups_and_templates
from clustercert.server.clock import ClockWatch
from clustercert.server.policy_changes import PolicyChanges
from clustercert.server.reloading import Reloader
from clustercert.settings import Settings
from clustercert.store.access_requests import AccessRequestQueries
from clustercert.store.certificates.maintenance import CertificateMaintenance
from clustercert.store.clusters.ca_rotations import RUNNING, CaRotationQueries, RotationCounts
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.disk_space import DiskSpace
from clustercert.store.engine.database import Database
from clustercert.store.engine.failures import DISK_FULL
from clustercert.store.job_cursors import JobCursor
from clustercert.store.kubernetes.credential_usage import CredentialUsageQueries
from clustercert.wiring import (
    Components,
    change_issuers,
    change_policy,
    leader_jobs,
    limited_issuance,
    open_components,
)

if TYPE_CHECKING:
    from clustercert.observability.otlp import OtlpTracer


def notify_ready() -> None:
    """Send READY=1 to systemd's notification socket, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # Ignore errors: the service works without this message, and systemd reports that the message is missing.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notice:
        # An address that begins with @ is in the abstract namespace.
        notice.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        notice.sendall(b"READY=1")


# Minimum interval between two counts for the metrics. A scrape within this time receives the last counts.
GAUGE_SECONDS = 15
EXPIRY_WINDOWS = {
    "1h": timedelta(hours=1),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
VERIFICATION_AGES = {f"{days}d": timedelta(days=days) for days in (7, 30, 90)}


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the database can be used, the data keys were decrypted, and the disk has space for certificates.

    Attributes:
        custody: the data keys; `None` if the process issues nothing and needs no keys.
    """

    database: Database
    custody: Custody | None
    disk_space: DiskSpace

    async def check(self) -> str | None:
        """Return why the process can issue no certificates, although it serves other requests, or None if it can.

        Raises Unavailable if the database or the keys can't be used. `__cause__` has the reason, for the log only.
        """
        try:
            await self.database.ping()
        except StoreFault as failure:
            raise Unavailable(
                "Not ready: the database can't be used. See the log.", retry_after=None
            ) from failure
        except Unavailable as failure:
            raise Unavailable(f"Not ready. {failure.message}") from failure
        if self.custody is None:
            return None
        try:
            self.custody.require_opened()
        except Unavailable as failure:
            raise Unavailable(f"Not ready. {failure.message} See the log.", retry_after=5) from failure
        try:
            self.disk_space.require()
        except Unavailable as failure:
            return failure.message
        return DISK_FULL if self.database.lacks_space else None


class StoreGauges:
    """Updates the metrics that need the database.

    Counts certificates that are valid and unrevoked, clusters whose API servers do not call the webhook, clusters that
    were not verified recently, the rotations of client CAs, and open access requests. Also measures the age of the
    oldest unsealed event, and the difference between this machine's clock and the database server's clock.
    """

    def __init__(
        self,
        database: Database,
        certificates: CertificateMaintenance,
        clusters: ClusterQueries,
        usage: CredentialUsageQueries,
        rotations: CaRotationQueries,
        requests: AccessRequestQueries,
        unsealed_since: Callable[[], Awaitable[datetime | None]],
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._certificates = certificates
        self._clusters = clusters
        self._usage = usage
        self._rotations = rotations
        self._requests = requests
        self._unsealed_since = unsealed_since
        self._now = now
        self._counted_at = datetime.min.replace(tzinfo=UTC)

    async def update(self) -> None:
        """Update the metrics, except within GAUGE_SECONDS after the last update. Raises Unavailable."""
        now = self._now()
        if now - self._counted_at < timedelta(seconds=GAUGE_SECONDS):
            return
        self._counted_at = now
        metrics.CLOCK_OFFSET.set((await self._database.clock_offset()).total_seconds())
        unsealed_since = await self._unsealed_since()
        metrics.UNSEALED_SECONDS.set((now - unsealed_since).total_seconds() if unsealed_since else 0)
        metrics.WITHOUT_REVIEWS.set(await self._usage.clusters_without_reviews())
        ages = VERIFICATION_AGES
        never, counts = await self._clusters.count_unverified([now - age for age in ages.values()])
        for name, count in zip((*ages, "never"), (*counts, never), strict=True):
            metrics.UNVERIFIED.labels(name).set(count)
        total, windows = await self._certificates.live(
            now, [now + window for window in EXPIRY_WINDOWS.values()]
        )
        metrics.LIVE.set(total)
        for name, count in zip(EXPIRY_WINDOWS, windows, strict=True):
            metrics.EXPIRING.labels(name).set(count)
        self._update_client_cas(await self._rotations.counts(), now)
        requests = await self._requests.counts(now)
        for state in OPEN_STATES:
            metrics.ACCESS_REQUESTS.labels(state).set(requests.states.get(state, 0))
        metrics.EARLY_USES.set(requests.most_early_uses)
        waiting_since = requests.oldest_pending
        metrics.ACCESS_REQUEST_SECONDS.set((now - waiting_since).total_seconds() if waiting_since else 0)

    def _update_client_cas(self, counts: RotationCounts, now: datetime) -> None:
        for state in RUNNING:
            metrics.CA_ROTATIONS.labels(state).set(counts.states.get(state, 0))
        metrics.CA_ROTATIONS_FAILING.set(counts.failing)
        metrics.CA_ROTATION_SECONDS.set((now - counts.oldest).total_seconds() if counts.oldest else 0)
        metrics.CA_KEYS_DISCARDED.set(counts.discarded_keys)
        metrics.CA_NOT_AFTER.set(counts.first_ca_end.timestamp() if counts.first_ca_end else 0)


logger = structlog.get_logger()

# Maximum number of exemptions in a log line.
MAX_NAMED = 5


# Interval of the attempts to start while the database does not answer.
START_RETRY_SECONDS = 1.0


def create_app(
    settings: Settings,
    role: ServerRole = "all",
    reloader: Reloader | None = None,
    stopping: asyncio.Event | None = None,
) -> ASGIApp:
    """Create the ASGI application of one worker with this role. Its lifespan opens and closes all components.

    Args:
        stopping: set when the process is told to stop. If given, the start waits for a database that does not answer,
            until this event is set.
    """
    log.configure(settings.log.format, settings.log.level, settings.log.file)
    started = time.monotonic()
    failures = FailedAuthentications(utc_now)
    tracer = _tracer(settings, role)
    app = new_app(
        role,
        built_in_identity=settings.identity.built_in,
        console=settings.console.enabled,
        documentation=settings.api.documentation,
    )

    def services() -> Services:
        return cast("Services", app.state.services)

    async def record_denial(scope: Scope, failure: ClustercertError) -> None:
        await middleware.record_denial(services().denials, scope, failure)

    def count_failure(scope: Scope, failure: AuthenticationFailure) -> None:
        limit, name_hash = services().failure_limit, services().name_hash
        middleware.count_failed_authentication(failures, limit, name_hash, scope, failure)

    @contextlib.asynccontextmanager
    async def lifespan(_router: Router) -> AsyncIterator[None]:
        # A second Ctrl-C cancels the shutdown. Do not report this cancellation as a failure.
        with contextlib.suppress(asyncio.CancelledError):
            serve = functools.partial(_serving, app, settings, role, failures, reloader, tracer)
            async with contextlib.AsyncExitStack() as stack:
                if tracer is not None:
                    stack.push_async_callback(tracer.close)
                await stack.enter_async_context(await _entered(serve, stopping))
                notify_ready()
                seconds = round(time.monotonic() - started, 1)
                process_log.write(logging.INFO, "process ready", seconds=seconds)
                yield

    router = Router(
        direct_routes(role, services),
        default=app,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    proxies = settings.server.trusted_proxies
    return RequestMiddleware(
        router,
        settings.server.request_timeout,
        record_denial=record_denial,
        on_authentication_failure=count_failure,
        sources=SourceAddresses(proxies) if proxies else None,
        tracer=tracer,
        prepare=console_preparation() if settings.console.enabled and role != "webhook" else None,
    )


def _tracer(settings: Settings, role: ServerRole) -> "OtlpTracer | None":
    """Create the tracer, if the settings name a collector. The webhook has no traces."""
    if not settings.tracing.endpoint or role == "webhook":
        return None
    # Imported only here, because most services have no traces.
    from clustercert.observability.otlp import OtlpTracer  # noqa: PLC0415

    return OtlpTracer(settings.tracing.endpoint, settings.tracing.sample_ratio)


async def _entered(
    serve: Callable[[], AbstractAsyncContextManager[None]], stopping: asyncio.Event | None
) -> contextlib.AsyncExitStack:
    """Enter the context, and return a stack that exits it.

    While the database does not answer, tries again until `stopping` is set. So a worker that replaces another one
    during a failover does not end the service.
    """
    waiting = False
    while True:
        stack = contextlib.AsyncExitStack()
        try:
            await stack.enter_async_context(serve())
        except Unavailable as failure:
            if stopping is None or stopping.is_set() or isinstance(failure, StoreFault):
                raise
            if not waiting:
                logger.warning("database not answering: waiting to start", cause=repr(failure.__cause__))
            waiting = True
            await wait_for_stop(stopping, START_RETRY_SECONDS)
        else:
            return stack


@contextlib.asynccontextmanager
async def _serving(
    app: FastAPI,
    settings: Settings,
    role: ServerRole,
    failures: FailedAuthentications,
    reloader: Reloader | None,
    tracer: Tracer | None,
) -> AsyncIterator[None]:
    """Open the components that requests need, and follow the settings file and the issuers' keys."""
    async with (
        _started(settings, role, failures, tracer) as (components, policy_changes),
        contextlib.AsyncExitStack() as stack,
    ):
        app.state.services = services_of(components, role)
        key_updates = KeyUpdates()
        stack.push_async_callback(key_updates.close)
        if role != "webhook" and components.oidc is not None:
            key_updates.use(components.oidc.keys)
        limited = limited_issuance(components)
        # Check limits only if the settings have any, to save time.
        if limited.is_limited:
            app.state.services = replace(app.state.services, issuance=limited)
        if limited.rates is not None:
            await stack.enter_async_context(running("read rates of issuing", limited.rates.watch))
        if reloader is not None:
            apply = functools.partial(_apply, app, components, policy_changes, role, key_updates)
            watch = functools.partial(reloader.watch, settings, apply)
            await stack.enter_async_context(running("reload settings", watch))
        yield


@contextlib.asynccontextmanager
async def _started(
    settings: Settings, role: ServerRole, failures: FailedAuthentications, tracer: Tracer | None
) -> AsyncIterator[tuple[Components, PolicyChanges]]:
    """Open all components, and run the role's background work until the `with` block ends."""
    async with (
        open_components(settings, with_keys=role != "webhook") as components,
        contextlib.AsyncExitStack() as stack,
    ):
        if not await components.database.flushes():
            logger.warning("database server has fsync off: a crash of its machine loses certificates")
        await stack.enter_async_context(running("compare clocks", ClockWatch(components.database).watch))
        await stack.enter_async_context(components.database.generation.watching())
        if found := await exempted_templates(components.clusters.queries, components.policy_groups):
            named = [str(each) for each in found[:MAX_NAMED]]
            logger.warning(
                "clusters exempt groups that templates of the policy give", count=len(found), clusters=named
            )
        policy = components.issuance.policy
        _warn_of(policy)
        policy_changes = PolicyChanges(components.database)
        stack.push_async_callback(policy_changes.close)
        if role != "webhook":
            await stack.enter_async_context(running("check keys", components.custody.watch))
            await policy_changes.record(policy)
            await _record_issuers(components, settings)
            if components.keystone is not None:
                await stack.enter_async_context(
                    running("renew the Keystone token", components.keystone.watch)
                )
            for job in leader_jobs(components, tracer):
                await stack.enter_async_context(running(job.name, job.run))
        examples = len(settings.policy.examples)
        logger.info("policy loaded", sha256=policy_digest(policy), rules=len(policy.rules), examples=examples)
        for name, counted in (("authentications", failures), ("refusals", components.denials.repeats)):
            flush = functools.partial(counted.flush_periodically, components.database)
            await stack.enter_async_context(running(f"record repeated {name}", flush))
        if role != "api":
            await stack.enter_async_context(running("serve the webhook", components.webhook.watch))
        await stack.enter_async_context(running("measure disk space", components.disk_space.watch))
        # Exempt these long-lived objects from later garbage collections, which block the event loop.
        gc.collect()
        gc.freeze()
        yield components, policy_changes


async def _apply(
    app: FastAPI,
    components: Components,
    policy_changes: PolicyChanges,
    role: ServerRole,
    key_updates: KeyUpdates,
    settings: Settings,
) -> None:
    """Record the policy and issuers of the settings, and use this policy and these issuers from now on.

    Raises Unavailable, or Conflict if a cluster's exemption forbids the policy, or a domain has the name of an issuer.
    After an error, the previous policy and issuers stay in use.
    """
    policy = await asyncio.to_thread(settings.loaded_policy)
    _warn_of(policy)
    groups = groups_and_templates(policy.rules)
    await refuse_new_exempted_templates(components.clusters.queries, components.policy_groups, groups)
    if role != "webhook":
        await components.identity.directory.require_free(settings.identity.authority_names)
        await policy_changes.record(policy)
        await _record_issuers(components, settings)
        before = app.state.services.oidc
        # Use a thread, because adding the first issuer imports a library, which would block the event loop.
        authenticator, oidc = await asyncio.to_thread(change_issuers, components, settings, before)
        app.state.services = replace(app.state.services, authenticator=authenticator, oidc=oidc)
        key_updates.use(oidc.keys if oidc is not None else ())
    _set_policy(app, change_policy(components, policy).issuance.policy)
    app.state.services = replace(app.state.services, policy=settings.policy)


def _set_policy(app: FastAPI, policy: Policy) -> None:
    """Replace the policy that decides about requests."""
    before = app.state.services.issuance
    limited = isinstance(before, LimitedIssuance)
    issuance = replace(before.issuance if limited else before, policy=policy)
    app.state.services = replace(
        app.state.services, issuance=replace(before, issuance=issuance) if limited else issuance
    )


def _warn_of(policy: Policy) -> None:
    """Warn of a policy that allows very long lifetimes or reserved names."""
    if long := long_lifetimes(policy):
        logger.warning(
            "policy allows certificates for more than 7 days",
            rules={name: lifetime_text(lifetime) for name, lifetime in list(long.items())[:MAX_NAMED]},
            advice="set policy.max_lifetime",
        )
    if names := sorted(policy.allowed_system_names):
        logger.warning(
            "policy allows reserved names: members of system:masters can't be revoked", names=names
        )


async def _record_issuers(components: Components, settings: Settings) -> None:
    """Record the issuers if they have changed. Raises Unavailable."""
    cursor = JobCursor(components.database, settings_changes.ISSUERS_CURSOR)
    await settings_changes.record_issuer_change(cursor, settings.identity.issuers, utc_now())


def services_of(components: Components, role: ServerRole) -> Services:
    settings = components.settings
    metrics_token = settings.metrics.token
    return Services(
        issuance=components.issuance,
        explanations=components.explanations,
        requests=components.requests,
        clusters=components.clusters,
        ca_rotations=components.ca_rotations,
        discarded_keys=components.discarded_keys,
        unknown_tokens=components.unknown_tokens,
        identity=components.identity,
        sessions=components.identity.sessions,
        revocation=components.revocation,
        audit_log=components.audit_log,
        denials=components.denials,
        inventory=components.inventory,
        overviews=components.overviews,
        crls=components.crls,
        webhook=components.webhook,
        authenticator=components.authenticator,
        oidc=components.oidc,
        failure_limit=FailureLimit(settings.limits.failures_per_minute),
        name_hash=components.custody.name_hash,
        generation=components.database.generation,
        check_ready=Readiness(
            components.database, components.custody if role != "webhook" else None, components.disk_space
        ).check,
        update_gauges=StoreGauges(
            components.database,
            components.certificates,
            components.clusters.queries,
            components.webhook.credential_usage.queries,
            components.ca_rotations.queries,
            components.requests.queries,
            components.log_sealer.unsealed_since,
            utc_now,
        ).update,
        options=Options(
            public_url=settings.server.public_url,
            urls=settings.server.urls,
            body_timeout=settings.server.body_timeout,
            insecure_external=settings.api.insecure_external,
            max_duration=settings.api.max_duration,
            recommended_client=settings.api.recommended_client,
            built_in_identity=settings.identity.built_in,
            metrics_public=settings.metrics.public,
            metrics_loopback=settings.metrics.loopback,
            metrics_token=metrics_token.get_secret_value() if metrics_token else None,
            page_bytes=settings.limits.page_kib * 1024,
            console=settings.console.enabled,
            documentation=settings.api.documentation,
        ),
        policy=settings.policy,
    )


@functools.cache
def _routes() -> FastAPI:
    """Return the application without its services, which the caller must add.

    A process builds the application only once, because the framework never frees the routes of an application.
    """
    return new_app("api")


# Paths of events: lists, and single events by leaf index.
_LOG = re.compile("/(events(/[0-9]+)?|audit/log/key)$", re.ASCII)


class LocalApplication:
    """Answers the requests of an operator who has access to the store. A process uses one instance at a time."""

    def __init__(
        self, components: Components, actor: Actor, domain: Domain | None, warn: Callable[[str], object]
    ) -> None:
        """Create the application.

        Args:
            domain: used for names without a domain; `None` if each request has to name a domain.
            warn: called with the text of each warning, once for each text.
        """
        self._operator = _LocalOperator(actor, domain)
        self._log_sealer = components.log_sealer
        self._warn = functools.cache(warn)
        self._app = _routes()
        services = services_of(components, "api")
        self._app.state.services = replace(services, authenticator=self._operator)

    async def answer(
        self, method: str, target: str, headers: Mapping[str, str], content: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the status, the headers and the body of the response."""
        scope = self._scope(method, target, headers)
        messages: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Message) -> None:
            messages.append(message)

        try:
            if _LOG.search(scope["path"]):
                await self._seal_events()
            await self._app(scope, receive, send)
        except ClustercertError as failure:
            request_id = self._operator.actor.origin.request_id
            await responses.error(failure, scope["path"], request_id)(scope, receive, send)
        start, *rest = messages
        answered = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
        return start["status"], answered, b"".join(message.get("body", b"") for message in rest)

    async def _seal_events(self) -> None:
        """Create a missing log, and seal the waiting events, because only sealed events are shown.

        This process has no sealing job.
        """
        try:
            await self._log_sealer.seal_all()
        except LogDamaged as damage:
            self._warn(f"Warning: {damage.message}")

    def _scope(self, method: str, target: str, headers: Mapping[str, str]) -> Scope:
        url = urlsplit(target)
        sent = {**headers, "X-Auth-Token": self._operator.token}
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(url.path),
            "raw_path": url.path.encode(),
            "query_string": url.query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 80),
        }
        attach(scope, RequestContext(self._operator.actor.origin, extend_deadline=lambda: None))
        return scope


class _LocalOperator:
    """Authenticates all requests of this process as an operator. Audit events name the actor who runs the command."""

    def __init__(self, actor: Actor, domain: Domain | None) -> None:
        self.actor = actor
        self.token = secrets.token_urlsafe(32)
        self._user = User(id=actor.id, name=actor.id, domain=domain or Domain(id="", name=""))
        self._issuer = BUILT_IN if domain is not None else "local"

    def accepts(self, credential: UnverifiedCredential) -> bool:
        return credential.text == self.token

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        if not self.accepts(credential):
            raise Unauthenticated("not the credential of this process")
        return Caller(
            self._user,
            roles={},
            method="cli",
            origin=request.origin,
            service_roles=(OPERATOR,),
            issuer=self._issuer,
        )

"""The ASGI application of one worker: routes, what runs beside them, and how failures are answered."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import structlog
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp

from clustercert import log, metrics
from clustercert.app import periodic
from clustercert.app.auditing import auditing, policy_recorded
from clustercert.app.wiring import Components, components, reconciler
from clustercert.audit.authentications import FailedAuthentications
from clustercert.authn.access_keys import AccessKeyAuthenticator
from clustercert.authn.credentials import Credentials
from clustercert.authn.tokens import TokenAuthenticator
from clustercert.background import running
from clustercert.errors import ClustercertError, InvalidRequest, MethodNotAllowed, NoSuchRoute, Unavailable
from clustercert.model import utc_now
from clustercert.settings import Settings
from clustercert.store.certificates import CertificateRows
from clustercert.web import (
    audit,
    cce,
    clustercert,
    crl,
    iam,
    inventory,
    refusals,
    revocation,
    service,
    webhook,
)
from clustercert.web.deps import Options, Services
from clustercert.web.edge import Edge, failed

logger = structlog.get_logger()

# Counting the live certificates reads an index; a scrape more often than this gets the last count.
GAUGE_SECONDS = 15
EXPIRY_WINDOWS = {
    "1h": timedelta(hours=1),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}


def create_app(settings: Settings) -> ASGIApp:
    """The ASGI application of one worker; everything is opened when it starts and closed when it ends."""
    log.configure(settings.log.format, settings.log.level, settings.log.file)
    if settings.policy.allow_system:
        logger.warning(
            "the policy may issue names that Kubernetes reserves; who is in system:masters can't be revoked",
            names=sorted(settings.policy.allow_system),
        )

    not_let_in = FailedAuthentications(utc_now)

    @contextlib.asynccontextmanager
    async def lifespan(_router: Router) -> AsyncIterator[None]:
        # A second Ctrl-C cancels what is left of it, and that is no failure.
        with contextlib.suppress(asyncio.CancelledError):
            async with contextlib.AsyncExitStack() as stack:
                await _start(app, settings, not_let_in, stack)
                yield

    def services() -> Services:
        return cast("Services", app.state.services)

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(clustercert.router)
    app.include_router(cce.router)
    app.include_router(revocation.router)
    app.include_router(inventory.router)
    app.include_router(crl.router)
    app.include_router(webhook.router)
    app.include_router(audit.router)
    app.include_router(iam.router)
    app.include_router(service.router)
    service.add_documentation(app)
    app.add_exception_handler(ClustercertError, _render_failure)
    app.add_exception_handler(HTTPException, _render_http)
    app.add_exception_handler(Exception, _render_bug)
    router = Router(
        [clustercert.direct(services), webhook.direct(services)],
        default=app,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    return Edge(router, settings.server.request_timeout, not_let_in=not_let_in.count)


async def _start(
    app: FastAPI, settings: Settings, not_let_in: FailedAuthentications, stack: contextlib.AsyncExitStack
) -> None:
    """Open everything, and start what runs beside the requests; the stack ends it."""
    parts = await stack.enter_async_context(components(settings))
    if not await parts.database.flushes():
        logger.warning("the database server runs with fsync off: a crash of its machine loses certificates")
    app.state.services = _services(parts)
    await stack.enter_async_context(parts.database.generation.watching())
    # The first to start and the last to end, so that what the others do last is sealed too.
    await stack.enter_async_context(running(periodic.sealing(parts.database, parts.log_sealer)))
    await stack.enter_async_context(running(periodic.pruning(parts.database, parts.identity)))
    await policy_recorded(parts)
    await stack.enter_async_context(running(auditing(parts)))
    await stack.enter_async_context(running(not_let_in.flushing(parts.database)))
    await stack.enter_async_context(running(reconciler(parts).run))
    await stack.enter_async_context(running(parts.webhook.watch))
    # What is here now stays: the collector, which stops everybody, needn't look through it again and again.
    gc.collect()
    gc.freeze()


def _services(parts: Components) -> Services:
    settings = parts.settings
    metrics_token = settings.metrics.token
    return Services(
        issuance=parts.issuance,
        clusters=parts.clusters,
        identity=parts.identity,
        revoking=parts.revoking,
        audit_log=parts.audit_log,
        inventory=parts.inventory,
        crls=parts.crls,
        webhook=parts.webhook,
        credentials=Credentials(
            TokenAuthenticator(parts.identity.tokens),
            AccessKeyAuthenticator(parts.identity.access_keys, utc_now),
        ),
        readiness=_Readiness(parts),
        gauges=_Gauges(parts.certificates, utc_now),
        options=Options(
            public_url=settings.server.public_url,
            body_timeout=settings.server.body_timeout,
            insecure_external=settings.api.insecure_external,
            get_clustercert=settings.api.get_clustercert,
            endpoints_as_list=settings.api.endpoints == "list",
            metrics_public=settings.metrics.public,
            metrics_token=metrics_token.get_secret_value() if metrics_token else None,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Readiness:
    parts: Components

    async def check(self) -> None:
        try:
            await self.parts.database.ping()
        except Unavailable as failure:
            raise Unavailable("Not ready: the database does not answer.") from failure
        try:
            await self.parts.custody.open()
        except ClustercertError as failure:
            # Where the keys are, and which, is for the log alone.
            raise Unavailable("Not ready: the key-encryption keys can't be used. See the log.") from failure


class _Gauges:
    """Counts what is live, at most every few seconds."""

    def __init__(self, certificates: CertificateRows, now: Callable[[], datetime]) -> None:
        self._certificates = certificates
        self._now = now
        self._counted_at = datetime.min.replace(tzinfo=UTC)

    async def update(self) -> None:
        now = self._now()
        if now - self._counted_at < timedelta(seconds=GAUGE_SECONDS):
            return
        self._counted_at = now
        total, windows = await self._certificates.live(
            now, [now + window for window in EXPIRY_WINDOWS.values()]
        )
        metrics.LIVE.set(total)
        for name, count in zip(EXPIRY_WINDOWS, windows, strict=True):
            metrics.EXPIRING.labels(name).set(count)


async def _render_failure(request: Request, failure: Exception) -> Response:
    if not isinstance(failure, ClustercertError):
        raise failure
    try:
        await refusals.record(request, request.app.state.services, failure)
    except Unavailable as unavailable:
        # What can't be recorded isn't told either.
        return failed(request.scope, unavailable)
    return failed(request.scope, failure)


async def _render_http(request: Request, failure: Exception) -> Response:
    """What the framework refuses by itself, in our form."""
    if not isinstance(failure, HTTPException):
        raise failure
    match failure.status_code:
        case 404:
            ours: ClustercertError = NoSuchRoute(
                "This API has no such path. See /docs for those that it has."
            )
        case 405:
            allow = service.methods(request.app, request.url.path)
            ours = MethodNotAllowed(
                f"This path does not take this method. It takes {', '.join(allow)}.", allow=allow
            )
        case _:
            ours = InvalidRequest("Invalid request. See /docs for what the API takes.")
    return failed(request.scope, ours)


async def _render_bug(request: Request, _bug: Exception) -> Response:
    """The framework raises the bug again, and `edge` logs it."""
    return failed(request.scope, ClustercertError())

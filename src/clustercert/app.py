"""The only wiring: settings -> store, custody, signers, use cases -> the ASGI application or the CLI's hands."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from typing import cast

import structlog
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from clustercert import log, metrics
from clustercert.authn.access_keys import AccessKeyAuthenticator
from clustercert.authn.credentials import Credentials
from clustercert.authn.tokens import TokenAuthenticator
from clustercert.background import pause, running
from clustercert.clusters import Clusters
from clustercert.custody import Custody
from clustercert.custody.keks import KekFile, KekSource, KekVariable
from clustercert.errors import ClustercertError, InvalidRequest, MethodNotAllowed, NoSuchRoute, Unavailable
from clustercert.identity import Identity
from clustercert.identity.roles import Roles
from clustercert.issuance import Issuance
from clustercert.keygen import KeyGenerator
from clustercert.model import Origin, utc_now
from clustercert.settings import Settings, SettingsError
from clustercert.signers import Signer, SignerFactory
from clustercert.store import migrate
from clustercert.store.certificates import CertificateRows
from clustercert.store.clusters import ClusterRows
from clustercert.store.database import Database
from clustercert.store.leader import Leader
from clustercert.store.ledger import Ledger
from clustercert.web import cce, clustercert, iam, service
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
PRUNE_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Components:
    """Everything, put together. The web part is made from it, and the CLI works with it directly."""

    settings: Settings
    database: Database
    custody: Custody
    identity: Identity
    clusters: Clusters
    issuance: Issuance
    certificates: CertificateRows


@contextlib.asynccontextmanager
async def components(settings: Settings) -> AsyncIterator[Components]:
    """Open the store and put everything together. Raises SchemaError, CustodyError, Unavailable."""
    async with contextlib.AsyncExitStack() as stack:
        database = Database(settings.store_url)
        stack.push_async_callback(database.close)
        await migrate.check(database)
        custody = Custody(database, kek_source(settings), utc_now)
        await custody.open()
        keys = KeyGenerator(settings.issuing.key_type)
        stack.push_async_callback(keys.close)
        identity = Identity(
            database,
            custody,
            region=settings.identity.region,
            token_lifetime=settings.identity.token_lifetime,
            now=utc_now,
        )
        stack.callback(identity.close)
        clusters = ClusterRows(database)
        yield Components(
            settings=settings,
            database=database,
            custody=custody,
            identity=identity,
            clusters=Clusters(clusters, custody, now=utc_now, ca_key_type=settings.issuing.ca_key_type),
            issuance=Issuance(
                clusters=clusters,
                policy=settings.policy.policy(),
                keys=keys,
                signers=_signers(custody),
                ledger=Ledger(database),
                now=utc_now,
            ),
            certificates=CertificateRows(database),
        )


async def initialise(settings: Settings, *, actor: str, origin: Origin) -> None:
    """Make the data folder, the schema, the first data key and the built-in roles; what is there already stays.

    Raises SchemaError, CustodyError, SettingsError or Unavailable.
    """
    keks = kek_source(settings)
    keks.read()
    _make_folder(settings)
    database = Database(settings.store_url)
    try:
        await migrate.upgrade(database)
        await Custody(database, keks, utc_now).initialise(actor=actor, origin=origin)
        await Roles(database, utc_now).bootstrap()
    finally:
        await database.close()


def kek_source(settings: Settings) -> KekSource:
    """Where the key-encryption keys are. Raises SettingsError where the settings don't say, or say the data folder."""
    if settings.kek is not None:
        return KekVariable("CLUSTERCERT_KEK", settings.kek.get_secret_value().replace(",", "\n"))
    if settings.kek_file is None:
        raise SettingsError(
            "There is no key-encryption key: make one with `clustercert keys generate --out FILE` outside the data"
            " folder and set kek_file, or set CLUSTERCERT_KEK."
        )
    if settings.kek_file.resolve().is_relative_to(settings.data_dir.resolve()) and not settings.demo:
        raise SettingsError(
            f"The key-encryption key {settings.kek_file} lies in the data folder, so that whoever copies one has the"
            " other. Move it elsewhere and set kek_file."
        )
    return KekFile(settings.kek_file)


def _make_folder(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The data folder {settings.data_dir} can't be made: {error.strerror}. Set data_dir to another."
        ) from error


def _signers(custody: Custody) -> dict[str, Signer]:
    """Every installed signer by its entry point's name; ours use the same door as anybody's."""
    return {
        point.name: cast("SignerFactory", point.load())(custody)
        for point in entry_points(group="clustercert.signers")
    }


def create_app(settings: Settings) -> ASGIApp:
    """The ASGI application of one worker; everything is opened when it starts and closed when it ends."""
    log.configure(settings.log.format, settings.log.level, settings.log.file)
    if settings.policy.allow_system:
        logger.warning(
            "the policy may issue names that Kubernetes reserves; who is in system:masters can't be revoked",
            names=sorted(settings.policy.allow_system),
        )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            parts = await stack.enter_async_context(components(settings))
            if not await parts.database.flushes():
                logger.warning(
                    "the database server runs with fsync off: a crash of its machine loses certificates"
                )
            app.state.services = _services(parts)
            await stack.enter_async_context(parts.database.generation.watching())
            await stack.enter_async_context(running(_pruning(parts.database, parts.identity)))
            await stack.enter_async_context(running(_end_with_parent))
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(clustercert.router)
    app.include_router(cce.router)
    app.include_router(iam.router)
    app.include_router(service.router)
    service.add_documentation(app)
    app.add_exception_handler(ClustercertError, _render_failure)
    app.add_exception_handler(HTTPException, _render_http)
    app.add_exception_handler(Exception, _render_bug)
    return Edge(clustercert.Direct(app), settings.server.request_timeout)


def _services(parts: Components) -> Services:
    settings = parts.settings
    metrics_token = settings.metrics.token
    return Services(
        issuance=parts.issuance,
        clusters=parts.clusters,
        identity=parts.identity,
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


def _pruning(
    database: Database, identity: Identity
) -> Callable[[asyncio.Event], Coroutine[object, object, None]]:
    """Drop expired tokens and temporary keys now and then, in one process of all that share the database."""
    leader = Leader(database, "prune")

    async def prune(stop: asyncio.Event) -> None:
        pruned_at = float("-inf")
        while not stop.is_set():
            try:
                if await leader.leads() and time.monotonic() - pruned_at >= PRUNE_SECONDS:
                    await identity.prune()
                    pruned_at = time.monotonic()
            except Unavailable as failure:
                logger.warning("expired tokens were not dropped", cause=repr(failure.__cause__))
            # Early enough to keep the lease.
            await pause(stop, leader.seconds / 3)
        with contextlib.suppress(Unavailable):
            await leader.resign()

    return prune


async def _end_with_parent(stop: asyncio.Event) -> None:
    """End a worker whose server was killed: left alone it would hold the port and serve on, unseen."""
    parent = os.getppid()
    while not stop.is_set():
        if os.getppid() != parent:
            logger.error("the server's main process is gone; this worker ends too")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        await pause(stop, 0.5)


async def _render_failure(request: Request, failure: Exception) -> Response:
    if not isinstance(failure, ClustercertError):
        raise failure
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

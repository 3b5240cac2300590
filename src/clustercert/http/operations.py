"""Health, metrics, API documentation, and the root path."""

import contextlib
import functools
import hmac
import ipaddress
import os
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import PathLike, StaticFiles
from starlette.types import Receive, Scope, Send

from clustercert.http import openapi, responses
from clustercert.http.cce.versions import api_version
from clustercert.http.context import context_of
from clustercert.http.dependencies import ServicesDep, base_url
from clustercert.http.keystone import bodies as keystone
from clustercert.http.openapi import described
from clustercert.http.user_agents import is_huawei_sdk
from clustercert.model.errors import Forbidden, NoSuchRoute, Unavailable
from clustercert.observability import metrics

_PLAIN = {"text/plain": openapi.TEXT}
_ALIVE = described("The process responds.", content=_PLAIN, errors={})
_READY = described("Certificates can be issued.", errors={503: "Not ready."})
_METRICS = described(
    "The metrics.",
    content=_PLAIN,
    errors={403: "The request has no valid metrics token, and the settings require one."},
)
_VERSIONS = described("The versions.", status=300, errors={}) | {
    200: {"description": "The versions of the CCE API, for Huawei Cloud's SDKs for CCE."},
    307: {"description": "The console or the documentation, for browsers."},
}
_VARY = {"Vary": "Accept, User-Agent, X-Domain-Id"}

router = APIRouter(tags=["Operations"])
root_path = APIRouter(tags=["Operations"])


@router.get("/healthz", responses=_ALIVE, response_class=Response)
async def healthz(request: Request) -> Response:
    """Check whether the process responds.

    Does not use the database: a process must not be restarted because the database is down.
    """
    context_of(request).quiet = True
    return Response("ok\n", media_type="text/plain")


@router.get("/readyz", responses=_READY)
async def readyz(request: Request, services: ServicesDep) -> Response:
    """Check whether certificates can be issued. Checks the database and the key-encryption keys."""
    await services.check_ready()
    context_of(request).quiet = True
    return responses.json_response({"status": "ready"}, headers=responses.NO_STORE)


@router.get("/metrics", responses=_METRICS, response_class=Response)
async def show_metrics(request: Request, services: ServicesDep) -> Response:
    """Show the metrics of all workers, in Prometheus text format.

    Requires the metrics token, unless the settings allow requests without it.
    """
    options = services.options
    trusted = options.metrics_public or (options.metrics_loopback and _from_loopback(request))
    if not (trusted or _has_token(request, options.metrics_token)):
        raise Forbidden(
            "Reading the metrics requires the metrics token (Authorization: Bearer), which is set in metrics.token."
        )
    # If the database is down, the workers' own metrics are needed most, so they are still returned.
    with contextlib.suppress(Unavailable):
        await services.update_gauges()
    return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@root_path.get("/", responses=_VERSIONS)
async def root(request: Request, services: ServicesDep) -> Response:
    """List the versions of the identity service.

    openstacksdk requests this list first. Huawei Cloud's SDKs for CCE get the versions of the CCE API, with status 200.
    Browsers are redirected to the console or, without the console, to the documentation.
    """
    # The same SDKs for IAM name a domain instead of a project. They read the versions of the identity service.
    if is_huawei_sdk(request.scope["headers"]) and "x-domain-id" not in request.headers:
        return responses.json_response({"versions": [api_version(base_url(request))]}, headers=_VARY)
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/console" if services.options.console else "/docs", headers=_VARY)
    if not services.options.built_in_identity:
        raise NoSuchRoute("This service has no identity API. Log in at the Keystone that it trusts.")
    versions = {"values": [keystone.version(base_url(request))]}
    return responses.json_response({"versions": versions}, 300, _VARY)


def add_documentation(app: FastAPI) -> None:
    """Add the routes `/openapi.json` and `/docs`. The page `/docs` loads no files from other hosts."""
    rendered = functools.cache(lambda: responses.json_response(openapi.document(app)).body)

    @app.api_route("/openapi.json", methods=openapi.UNDOCUMENTED, include_in_schema=False)
    async def document() -> Response:
        return responses.Rendered(bytes(rendered()), responses.JSON)

    folder = Path(__file__).with_name("swagger_ui")

    @app.api_route("/docs", methods=openapi.UNDOCUMENTED, include_in_schema=False)
    async def docs() -> Response:
        return responses.WholeFile(folder / "docs.html")

    app.mount("/docs/assets", _WholeFiles(directory=folder))


class _WholeFiles(StaticFiles):
    """The files of a folder. Ignores the header Range."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(responses.without_range(scope), receive, send)

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        # The framework announces ranges, but this response ignores them.
        del response.headers["accept-ranges"]
        return response


def _from_loopback(request: Request) -> bool:
    # A request with proxy headers is not trusted: behind a local proxy, every client seems to come from loopback.
    if any(name in request.headers for name in ("forwarded", "x-forwarded-for")) or request.client is None:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _has_token(request: Request, token: str | None) -> bool:
    presented = request.headers.get("authorization", "").encode()
    return token is not None and hmac.compare_digest(presented, f"Bearer {token}".encode())

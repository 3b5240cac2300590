"""Health, metrics, API documentation, and the root path."""

import contextlib
import functools
import hmac
import ipaddress
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import RedirectResponse, Response

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
_READY = described(
    "Requests can be served. `status` is `ready` if certificates can be issued, and `not issuing` if the disk is full.",
    errors={503: "Not ready."},
)
_METRICS = described(
    "The metrics.",
    content=_PLAIN,
    errors={403: "The request has no valid metrics token, and the settings require one."},
)
_VERSIONS = described("The versions.", status=300, errors={}) | {
    200: {"description": "The versions of the CCE API, for Huawei Cloud's SDKs for CCE."},
    307: {"description": "The console or the documentation, for browsers."},
}
_DOCS = Path(__file__).with_name("api_docs")
_SWAGGER_UI_FILES = frozenset({"favicon-32x32.png", "swagger-ui-bundle.js", "swagger-ui.css"})
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
    """Check whether requests can be served, and certificates issued.

    Checks the database and the key-encryption keys. If the database's disk is full, the status is `not issuing`, with a
    reason. The answer is still 200, so that load balancers keep sending requests that read or revoke.
    """
    problem = await services.check_ready()
    context_of(request).quiet = True
    body: dict[str, object] = (
        {"status": "ready"} if problem is None else {"status": "not issuing", "reason": problem}
    )
    return responses.json_response(body, headers=responses.NO_STORE)


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
    context_of(request).quiet = True
    return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@root_path.get("/", responses=_VERSIONS)
async def root(request: Request, services: ServicesDep) -> Response:
    """List the versions of the identity service.

    openstacksdk requests this list first. Huawei Cloud's SDKs for CCE get the versions of the CCE API, with status 200.
    Browsers are redirected to the console or, without the console, to the documentation, if the service has either.
    """
    # Huawei Cloud's SDKs for IAM send X-Domain-Id, and read the versions of the identity service.
    if is_huawei_sdk(request.scope["headers"]) and "x-domain-id" not in request.headers:
        return responses.json_response({"versions": [api_version(base_url(request))]}, headers=_VARY)
    if "text/html" in request.headers.get("accept", ""):
        if services.options.console:
            return RedirectResponse("/console", headers=_VARY)
        if services.options.documentation:
            return RedirectResponse("/docs", headers=_VARY)
    if not services.options.built_in_identity:
        raise NoSuchRoute(
            "This service has no identity API. Log in at the Keystone that this service trusts."
        )
    versions = {"values": [keystone.version(base_url(request))]}
    return responses.json_response({"versions": versions}, 300, _VARY)


def add_documentation(app: FastAPI) -> None:
    """Add the routes `/openapi.json` and `/docs`. The page `/docs` loads no files from other hosts."""
    rendered = functools.cache(lambda: responses.json_response(openapi.document(app)).body)

    @app.api_route("/openapi.json", methods=openapi.UNDOCUMENTED, include_in_schema=False)
    async def document() -> Response:
        return responses.Rendered(bytes(rendered()), responses.JSON)

    @app.api_route("/docs", methods=openapi.UNDOCUMENTED, include_in_schema=False)
    async def docs() -> Response:
        _swagger_ui()
        return responses.WholeFile(_DOCS / "docs.html")

    @app.api_route("/docs/assets/{name}", methods=openapi.UNDOCUMENTED, include_in_schema=False)
    async def asset(name: str) -> Response:
        if name == "docs.js":
            return responses.WholeFile(_DOCS / name)
        if name in _SWAGGER_UI_FILES:
            return responses.WholeFile(_swagger_ui() / name)
        raise NoSuchRoute("The page /docs has no such file.")


@functools.cache
def _swagger_ui() -> Path:
    """Return the folder with the files of Swagger UI. Raises NoSuchRoute if its package is not installed."""
    try:
        from swagger_ui_bundle import swagger_ui_path  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise NoSuchRoute(
            "Swagger UI is not installed here. Read /openapi.json, or ask an operator of this service to install the"
            " extra docs of clustercert."
        ) from None
    return Path(str(swagger_ui_path))


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

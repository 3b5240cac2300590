"""Health, metrics, documentation, and what stands at `/`."""

import contextlib
import hmac
import ipaddress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.responses import RedirectResponse, Response
from starlette.routing import compile_path
from starlette.staticfiles import StaticFiles

from clustercert import __version__, metrics
from clustercert.errors import Forbidden, Unavailable
from clustercert.web import bodies, iam, render
from clustercert.web.deps import ServicesDep, base_url

TITLE = "clustercert"
# Swagger UI; see the README beside it.
_DOCS_ASSETS = "/docs/assets"
# What the paths take that the OpenAPI document leaves out: itself, and the pages that show it.
_UNDOCUMENTED = ["GET", "HEAD"]

router = APIRouter(tags=["Operations"])

_NOT_NOW: dict[int | str, dict[str, Any]] = {503: {"model": bodies.ErrorBody, "description": "Not ready."}}
_TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}


_ALIVE: dict[str, Any] = {
    "summary": "Whether the process answers",
    "responses": {200: {"description": "It does.", "content": _TEXT}},
    "response_class": Response,
}
_READY: dict[str, Any] = {
    "summary": "Whether certificates can be issued",
    "responses": {200: {"description": "They can."}, **_NOT_NOW},
}


# Load balancers ask with HEAD, of which the HTTP server leaves out the body.
@router.head("/healthz", **_ALIVE)
@router.get("/healthz", **_ALIVE)
async def healthz() -> Response:
    """Alive, whatever else is broken: what restarts a process must not depend on the database."""
    return Response("ok\n", media_type="text/plain")


@router.head("/readyz", **_READY)
@router.get("/readyz", **_READY)
async def readyz(services: ServicesDep) -> Response:
    """Database and keys answer."""
    await services.readiness.check()
    return render.json_response({"status": "ready"}, headers=render.NO_STORE)


@router.get(
    "/metrics",
    summary="Counts of all workers, in Prometheus's text format",
    responses={
        200: {"description": "The counts.", "content": _TEXT},
        403: {"model": bodies.ErrorBody, "description": "Not from here, and not with this token."},
    },
    response_class=Response,
)
async def show_metrics(request: Request, services: ServicesDep) -> Response:
    """For loopback, and for whoever has the token; for everybody where the settings say so."""
    options = services.options
    if not (options.metrics_public or _from_loopback(request) or _has_token(request, options.metrics_token)):
        raise Forbidden("Metrics are for loopback or the metrics token (Authorization: Bearer).")
    # What the workers counted is worth knowing above all when the database is away.
    with contextlib.suppress(Unavailable):
        await services.gauges.update()
    return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get(
    "/", summary="The versions of the identity service", responses={300: {"description": "The versions."}}
)
async def root(request: Request) -> Response:
    """Keystone's version list, which is where openstacksdk begins; a browser is sent to the documentation."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/docs")
    return render.json_response(iam.version_list(base_url(request)), 300)


def add_documentation(app: FastAPI) -> None:
    """Serve `/openapi.json` and `/docs`, with every asset from this machine."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _schema(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to extend the document

    @app.api_route("/openapi.json", methods=_UNDOCUMENTED, include_in_schema=False)
    async def document() -> Response:
        return render.json_response(app.openapi())

    @app.api_route("/docs", methods=_UNDOCUMENTED, include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=TITLE,
            swagger_js_url=f"{_DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_DOCS_ASSETS}/favicon-32x32.png",
        )

    app.mount(_DOCS_ASSETS, StaticFiles(directory=Path(__file__).with_name("swagger_ui")))


def methods(app: FastAPI, path: str) -> list[str]:
    """What a path takes, over all its routes: the framework itself knows only the first one's. Sorted."""
    found = set(_UNDOCUMENTED)
    for template, operations in app.openapi()["paths"].items():
        if compile_path(template)[0].match(path):
            found = {method.upper() for method in operations}
            break
    return sorted(found)


def _schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the ways to authenticate."""
    schema = get_openapi(
        title=TITLE,
        version=__version__,
        summary="X.509 client credentials for Kubernetes clusters, as kubeconfig files.",
        routes=app.routes,
    )
    schema["components"]["securitySchemes"] = {
        "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
        "bearer": {"type": "http", "scheme": "bearer"},
        "signature": {
            "type": "apiKey",
            "in": "header",
            "name": "Authorization",
            "description": "SDK-HMAC-SHA256 or V11-HMAC-SHA256, as the vendor SDKs sign with an access key.",
        },
    }
    for unused in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(unused, None)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            # FastAPI's own answer to parameters of a wrong type: ours are texts, which the routes judge themselves.
            operation["responses"].pop("422", None)
            if "401" in operation["responses"] and not path.endswith("/auth/tokens"):
                operation.setdefault("security", [{"token": []}, {"bearer": []}, {"signature": []}])
    return schema


def _from_loopback(request: Request) -> bool:
    # Behind a proxy on this machine everybody seems to come from loopback; the proxy says so.
    if any(name in request.headers for name in ("forwarded", "x-forwarded-for")) or request.client is None:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _has_token(request: Request, token: str | None) -> bool:
    presented = request.headers.get("authorization", "").encode()
    return token is not None and hmac.compare_digest(presented, f"Bearer {token}".encode())

"""Creates the FastAPI application and its routes. The middleware turns exceptions into error responses."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from clustercert.http import (
    access_report,
    access_requests,
    audit,
    certificates,
    fleet,
    identity,
    kubeconfigs,
    openapi,
    operations,
    policy,
    reachable_clusters,
    revocation,
    sessions,
    webhook,
)
from clustercert.http.administration import ca_rotation, credentials, directory, roles, unknown_tokens
from clustercert.http.administration import clusters as registered_clusters
from clustercert.http.cce import clustercert, clusters
from clustercert.http.dependencies import Services
from clustercert.http.keystone import routes as keystone
from clustercert.http.query import invalid_parameter
from clustercert.model.choices import ServerRole
from clustercert.model.errors import InvalidRequest, MethodNotAllowed, NoSuchRoute

WEBHOOK_ROUTERS = (webhook.router, operations.router)
API_ROUTERS = (
    clustercert.router,
    clusters.router,
    revocation.router,
    certificates.router,
    access_report.router,
    reachable_clusters.router,
    fleet.router,
    kubeconfigs.router,
    access_requests.router,
    policy.router,
    identity.router,
    sessions.router,
    audit.router,
    audit.public,
    directory.router,
    roles.router,
    credentials.router,
    registered_clusters.router,
    ca_rotation.router,
    unknown_tokens.router,
    keystone.router,
    operations.root_path,
    operations.router,
)
ROUTERS: dict[ServerRole, tuple[APIRouter, ...]] = {
    "all": (webhook.router, *API_ROUTERS),
    "api": API_ROUTERS,
    "webhook": WEBHOOK_ROUTERS,
}

# Routers whose GET routes also answer HEAD. Source: RFC 9110, section 9.1. The router of clustercert is missing,
# because its GET issues a certificate.
WITH_HEAD = (clusters.router, keystone.router, operations.root_path, operations.router)


def new_app(
    role: ServerRole = "all",
    *,
    built_in_identity: bool = True,
    console: bool = False,
    documentation: bool = True,
) -> FastAPI:
    """Create the application with the routes of a server role.

    `app.state.services` must be set before the first request. Without the built-in identity service, the application
    does not serve the Keystone subset. `console` and `documentation`: whether to serve the web console, and `/docs` and
    `/openapi.json`, unless the role is `webhook`.
    """
    routers = [each for each in ROUTERS[role] if built_in_identity or each is not keystone.router]
    # `include_router` would create every route again, and delay the first request by a fifth of a second.
    routes = [route for router in routers for route in router.routes]
    readable = [route for router in routers if router in WITH_HEAD for route in router.routes]
    app = FastAPI(
        routes=[*routes, *map(_head_route, _get_routes(readable))],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # The framework's own spans and logs contain paths, inputs and messages of errors.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.no_path_advice = (
        "This process answers API servers only. Send other requests to the API's address."
    )
    if role != "webhook":
        app.state.no_path_advice = "The documentation lists all paths."
        if documentation:
            app.state.no_path_advice = "The page /docs lists all paths."
            operations.add_documentation(app)
        if console:
            # Imported only here, because most services have no console.
            from clustercert.http.console.routes import routes as console_routes  # noqa: PLC0415

            app.router.routes.extend(console_routes())
    app.add_exception_handler(HTTPException, _raise_ours)
    app.add_exception_handler(RequestValidationError, _raise_ours)
    # Without this handler, the framework would respond to other exceptions itself.
    app.add_exception_handler(Exception, _raise_ours)
    return app


def _get_routes(routes: Iterable[BaseRoute]) -> Iterator[APIRoute]:
    return (each for each in routes if isinstance(each, APIRoute) and "GET" in (each.methods or ()))


def _head_route(route: APIRoute) -> APIRoute:
    """Return the route that answers HEAD as `route` answers GET. The HTTP server drops the body.

    The OpenAPI document does not contain the route. A route of the same path that declares HEAD takes precedence.
    """
    head_route = copy.copy(route)
    head_route.methods = {"HEAD"}
    head_route.include_in_schema = False
    return head_route


def console_preparation() -> Callable[[Scope], None]:
    """Return what the middleware calls before each request to a service with the console."""
    from clustercert.http.console.visits import answer_as_console  # noqa: PLC0415 - see `new_app`

    return answer_as_console


class DirectRoute(Route):
    """A route that bypasses FastAPI, whose overhead is a tenth of the time to issue a certificate.

    Such a route handles some methods of a path. FastAPI handles the other methods, and documents all methods.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match only if path and method match."""
        match, child_scope = super().matches(scope)
        return (match, child_scope) if match is Match.FULL else (Match.NONE, {})


def direct_routes(role: ServerRole, services: Callable[[], Services]) -> list[DirectRoute]:
    """Return the direct routes that a server role needs: for POST clustercert, the authorization webhook, or both."""

    async def create_clustercert(request: Request) -> Response:
        return await clustercert.handle(
            request, services(), **request.path_params, shape=clustercert.ClusterCertRequest
        )

    async def authorize(request: Request) -> Response:
        return await webhook.handle_review(request, services(), request.path_params["cluster_id"])

    routes = {
        "api": DirectRoute(clustercert.PATH, create_clustercert, methods=["POST"]),
        "webhook": DirectRoute(webhook.AUTHORIZE, authorize, methods=["POST"]),
    }
    return list(routes.values()) if role == "all" else [routes[role]]


async def _raise_ours(request: Request, failure: Exception) -> NoReturn:
    """Raise the exception again, so that the middleware handles it.

    Translates errors of FastAPI and Starlette into errors of this service.
    """
    if isinstance(failure, RequestValidationError):
        raise invalid_parameter(failure.errors()) from None
    if not isinstance(failure, HTTPException):
        raise failure
    match failure.status_code:
        case 404:
            raise NoSuchRoute(f"This API has no such path. {request.app.state.no_path_advice}") from None
        case 405:
            allow = openapi.methods(request.app, request.url.path)
            raise MethodNotAllowed(
                f"This path does not support this method. It supports {', '.join(allow)}.", allow=allow
            ) from None
        case _:
            raise InvalidRequest("Invalid request. See the documentation for the parameters.") from None

"""All routes of the console."""

from fastapi import Request
from starlette.responses import Response

from clustercert.http.console import rendering
from clustercert.http.console.pages import (
    access,
    account,
    audit,
    certificates,
    clusters,
    fleet,
    login,
    now,
    oidc_login,
    requests,
    rotation,
    why,
)
from clustercert.http.console.visits import PREFIX, PageRoute, Pages, no_such_page
from clustercert.http.responses import WholeFile
from clustercert.model.errors import NoSuchRoute

_MODULES = (
    access,
    account,
    audit,
    certificates,
    clusters,
    fleet,
    login,
    now,
    oidc_login,
    requests,
    rotation,
    why,
)
_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# The address contains the hash of the content.
_FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    media_type = _MEDIA_TYPES.get(name.rpartition(".")[2])
    if media_type is None or name not in {file.name for file in rendering.STATIC.iterdir()}:
        raise NoSuchRoute(f"The console has no file {name}.")
    return WholeFile(rendering.STATIC / name, headers=_FOR_EVER, media_type=media_type)


def routes() -> list[PageRoute]:
    """Return the routes, to be added to the application."""
    unknown = Pages()
    unknown.get("/{rest:path}", public=True)(no_such_page)
    unknown.post_public("/{rest:path}")(no_such_page)
    return [
        PageRoute(f"{PREFIX}/static/{{name}}", _static, include_in_schema=False),
        *(route for module in _MODULES for route in module.pages.routes),
        *unknown.routes,
    ]

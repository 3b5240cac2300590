"""The clusters that the visitor can reach."""

from starlette.responses import Response

from clustercert.http.console.api import path
from clustercert.http.console.visits import Pages, Visit

pages = Pages()


@pages.get("/clusters")
async def my_clusters(visit: Visit) -> Response:
    found = await visit.api.get(path("clusters"))
    return visit.render("clusters.html", clusters=found["clusters"])

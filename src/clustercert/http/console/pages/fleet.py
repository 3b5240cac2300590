"""The clusters: how many by state, and a list to search."""

import functools
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from starlette.responses import Response

from clustercert.http.console.api import path
from clustercert.http.console.cluster_address import cluster_page
from clustercert.http.console.visits import PREFIX, Pages, Visit, with_query
from clustercert.model import rfc3339, utc_now
from clustercert.model.enforcement import ENFORCEMENT_WORDS
from clustercert.model.rights import administers

pages = Pages()

FLEET = f"{PREFIX}/fleet"
_PAGE = 50
_ENFORCEMENT_CHOICES = {"": "any", "behind": "behind"} | {
    state: words.label for state, words in ENFORCEMENT_WORDS.items()
}
_ROTATIONS = {"": "any", "running": "running", "failing": "failing", "ready": "ready to complete"}
_SEEN = {
    "": "any",
    "certificates": "live certificates",
    "ending": "certificates that end within 24 hours",
    "unknown": "new unknown identities within a day",
    "revoked": "use of revoked certificates within a day",
}
_CA_ENDS = {
    "": "any",
    "ended": "has ended",
    "day": "within 24 hours",
    "month": "within 30 days",
    "year": "within a year",
}
_CA_DAYS = {"ended": 0, "day": 1, "month": 30, "year": 365}
_ORDERS = {
    "name": "name",
    "verified": "least recently verified",
    "ca_end": "client CA that ends first",
    "ca_start": "oldest client CA",
}
# Filters that the form does not show. The page names these filters, with a link that removes the filters.
_HIDDEN = ("project", "label", "version")
_FIELDS = ("text", "enforcement", "rotation", "seen", "ca_end", "order", *_HIDDEN)


@pages.get("/fleet")
async def fleet(visit: Visit) -> Response:
    """Show the clusters that the visitor administers or may see. `find`: redirect to the cluster with this name."""
    if (name := visit.query.get("find", "").strip()) and (page := await _page_of_cluster(visit, name)):
        return visit.redirect(page)
    given = {name: visit.query[name].strip() for name in _FIELDS if name in visit.query}
    given |= {"text": visit.query["find"].strip()} if "find" in visit.query else {}
    chosen = {name: value for name, value in given.items() if value or name == "version"}
    counts = await visit.api.get(path("fleet"))
    cursor = visit.query.get("cursor")
    filters = _filters(chosen, utc_now())
    found = await visit.api.get(path("fleet", "clusters"), **filters, limit=_PAGE, cursor=cursor)
    first = _address(chosen)
    return visit.render(
        "fleet.html",
        chosen=chosen,
        is_filtered=bool(chosen.keys() - {"order"}),
        removable=[
            (name, value, _address({key: each for key, each in chosen.items() if key != name}))
            for name, value in _named(chosen, found["clusters"])
        ],
        choices={
            "enforcement": _ENFORCEMENT_CHOICES,
            "rotation": _ROTATIONS,
            "seen": _SEEN,
            "ca_end": _CA_ENDS,
            "order": _ORDERS,
        },
        hidden=[(name, chosen[name]) for name in _HIDDEN if name in chosen],
        enforcement=ENFORCEMENT_WORDS,
        # Auditors see no rotations.
        may_see_rotation=functools.partial(administers, visit.me.caller),
        clusters=found["clusters"],
        total=found["total"],
        first=first if cursor else None,
        next=_address(chosen | {"cursor": found["next"]}) if found["next"] is not None else None,
        facets=_facets(counts),
        ended=counts["ended_client_cas"],
        address=_address,
    )


async def _page_of_cluster(visit: Visit, name: str) -> str | None:
    """Return the page of the only cluster with this name, or else of the only cluster whose name contains the text."""
    found = (await visit.api.get(path("fleet", "clusters"), text=name, limit=_PAGE))["clusters"]
    chosen = [each for each in found if each["name"] == name] or found
    return cluster_page(chosen[0]["project_id"], chosen[0]["id"]) if len(chosen) == 1 else None


def _address(query: Mapping[str, str]) -> str:
    return with_query(FLEET, query)


def _filters(chosen: Mapping[str, str], now: datetime) -> dict[str, str]:
    """Return the query parameters of the API for the filters of the page. The API checks the values."""
    passed = ("text", "project", "label", "version", "enforcement", "rotation", "order")
    filters = {name: chosen[name] for name in passed if name in chosen}
    day = timedelta(days=1)
    match chosen.get("seen"):
        case "certificates":
            filters["certificates"] = "true"
        case "ending":
            filters["certificates_end_before"] = rfc3339(now + day)
        case "unknown":
            filters["unknown_after"] = rfc3339(now - day)
        case "revoked":
            filters["revoked_use_after"] = rfc3339(now - day)
    if (days := _CA_DAYS.get(chosen.get("ca_end", ""))) is not None:
        filters["client_ca_ends_before"] = rfc3339(now + days * day)
    return filters


def _named(chosen: Mapping[str, str], clusters: Sequence[Any]) -> list[tuple[str, str]]:
    """Return the names and values of the hidden filters that are set, in words. `clusters`: those on the page."""
    words = dict(chosen)
    words["version"] = chosen.get("version") or "not registered"
    if clusters:
        words["project"] = f"{clusters[0]['domain']}/{clusters[0]['project']}"
    titles = {"project": "Project", "label": "Label", "version": "Version"}
    return [(name, f"{titles[name]}: {words[name]}") for name in _HIDDEN if name in chosen]


def _facets(counts: Any) -> list[tuple[str, list[tuple[str, int, str, str]]]]:
    """Return groups of clusters: a title, and for each group its name, number, kind of colour and address."""
    return [
        (
            "Enforcement",
            [
                (words.label, counts["enforcement"][state], words.severity, _address({"enforcement": state}))
                for state, words in ENFORCEMENT_WORDS.items()
            ],
        ),
        (
            "Kubernetes version",
            [
                (version or "not registered", number, "plain", _address({"version": version}))
                for version, number in counts["versions"].items()
            ][:8],
        ),
    ]

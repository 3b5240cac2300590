"""The first page: who has access now, and what needs attention."""

from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from clustercert.http.console.api import path
from clustercert.http.console.pages.certificates import CERTIFICATES
from clustercert.http.console.pages.fleet import FLEET
from clustercert.http.console.visits import PREFIX, Pages, Visit, sees_others, with_query
from clustercert.model.enforcement import ENFORCEMENT_WORDS, WORKING

pages = Pages()

_REQUESTS = f"{PREFIX}/requests"
# The maximum number of clusters to which the page links. With more clusters, the page has only a search.
_MAX_LINKS = 20


@dataclass(frozen=True, slots=True)
class Attention:
    """Something that needs attention: a number, what it counts, and the page that lists it.

    Attributes:
        kind: `bad` or `warn`.
        advice: what it means, or what to do.
    """

    number: int
    kind: str
    text: str
    advice: str
    href: str


@pages.get("")
async def now(visit: Visit) -> Response:
    if not sees_others(visit.me.caller):
        return visit.redirect(f"{PREFIX}/clusters")
    found = await visit.api.get(path("overview"))
    clusters = list[Any]()
    if 0 < found["clusters"] <= _MAX_LINKS:
        clusters = (await visit.api.get(path("fleet", "clusters"), limit=_MAX_LINKS))["clusters"]
    return visit.render(
        "now.html",
        live=True,
        found=found,
        clusters=clusters,
        attention=_attention(found),
        enforcement=[
            (found["enforcement"][state], words.label, words.severity, fleet(enforcement=state))
            for state, words in ENFORCEMENT_WORDS.items()
            if found["enforcement"][state]
        ],
        requests=_REQUESTS,
        fleet=fleet,
        certificates=certificates,
    )


def fleet(**query: str) -> str:
    """Return the address of the list of clusters with a filter."""
    return with_query(FLEET, query)


def certificates(state: str) -> str:
    """Return the address of the list of certificates in a state."""
    return with_query(CERTIFICATES, {"state": state})


def _attention(found: Any) -> list[Attention]:
    """Return what needs attention, the most urgent first."""
    rotations = found["rotations"]
    rows = (
        (
            found["revoked_uses"],
            "bad",
            "revoked certificate was used within a day",
            "revoked certificates were used within a day",
            "An API server accepted revoked certificates.",
            certificates("used_today"),
        ),
        (
            found["revoked_accepted"],
            "bad",
            "revoked certificate still works until it expires",
            "revoked certificates still work until they expire",
            "No control in its cluster stops this certificate. It gives access, but is not counted above."
            if found["revoked_accepted"] == 1
            else "No control in their clusters stops these certificates. They give access, but are not counted above.",
            certificates("accepted"),
        ),
        (
            found["ends_within_day"]["client_cas"],
            "bad",
            "client CA ends within 24 hours, or has ended",
            "client CAs end within 24 hours, or have ended",
            "Without a valid client CA, nobody has access. Rotate the client CA.",
            fleet(ca_end="day", order="ca_end"),
        ),
        (
            found["access_requests"]["to_decide"],
            "warn",
            "access request waits for your decision",
            "access requests wait for your decision",
            "Approve or deny.",
            f"{_REQUESTS}?list=decide&state=open",
        ),
        (
            rotations["failing"],
            "warn",
            "rotation of a client CA does not go on",
            "rotations of client CAs do not go on",
            "The rotation's page says why.",
            fleet(rotation="failing"),
        ),
        (
            rotations["ready"],
            "warn",
            "rotation of a client CA can be completed",
            "rotations of client CAs can be completed",
            "Nobody loses access if you complete the rotation.",
            fleet(rotation="ready"),
        ),
        (
            found["unknown"]["identities"],
            "warn",
            "unknown identity is new within a day",
            "unknown identities are new within a day",
            "Unknown identities use client certificates that are not from this service.",
            fleet(seen="unknown"),
        ),
    )
    attention = [
        Attention(number, kind, one if number == 1 else many, advice, href)
        for number, kind, one, many, advice, href in (*rows, *_clusters_behind(found["enforcement"]))
        if number
    ]
    return sorted(attention, key=lambda each: each.kind)


def _clusters_behind(counts: Any) -> list[tuple[int, str, str, str, str, str]]:
    """Return rows of `_attention` for the clusters that are not known to enforce revocations."""
    return [
        (
            counts[state],
            words.severity,
            f"cluster: {words.label}",
            f"clusters: {words.label}",
            words.text,
            fleet(enforcement=state),
        )
        for state, words in ENFORCEMENT_WORDS.items()
        if state not in WORKING
    ]

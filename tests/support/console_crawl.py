"""Finds the pages of the console by its links, and the forms in them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin, urlsplit

from starlette.routing import Match

from clustercert.http.console.routes import routes
from clustercert.http.console.visits import PREFIX, SESSION_COOKIE
from clustercert.identity.tokens import ByPassword
from clustercert.model import Origin
from clustercert.settings import load
from clustercert.store.identity.entities import Reference
from clustercert.wiring import open_components
from support.console import HTML
from support.console_site import ConsoleSite, run_in_thread

STATIC = f"{PREFIX}/static/{{name}}"
ANYTHING = f"{PREFIX}/{{rest:path}}"
# Pages that everybody may open, and which need not be linked. The list has only the certificate whose revocation can be
# undone: other lists are so long that its page would not be among those that are followed.
SEEDS = (PREFIX, f"{PREFIX}/clusters", f"{PREFIX}/account", f"{PREFIX}/certificates?state=used")
# Lists of certificates have many links to the same route. By default, at most this many of them are followed.
PER_ROUTE = 12


@dataclass(frozen=True)
class Form:
    """A form of a page.

    Attributes:
        fields: names of its fields, with the values of those that have one.
    """

    method: str
    action: str
    fields: Mapping[str, str]


@dataclass
class Elements(HTMLParser):
    """The links and forms of a page, and all elements with their attributes.

    Attributes:
        text: outside elements of other pages' code.
    """

    markup: str
    links: list[str] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)
    elements: list[tuple[str, Mapping[str, str | None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._fields: dict[str, str] = {}
        self.feed(self.markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        elif tag == "form":
            self._fields = {}
            method, action = str(found.get("method", "get")).lower(), str(found.get("action", ""))
            self.forms.append(Form(method, action, self._fields))
        elif tag in ("input", "select", "textarea", "button") and found.get("name"):
            self._fields[str(found["name"])] = found.get("value") or ""

    __hash__ = object.__hash__


@dataclass
class Crawl:
    """What one person finds.

    Attributes:
        addresses: by the path of the route.
        faults: links and forms that lead nowhere.
    """

    addresses: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)


def pages(method: str = "GET") -> set[str]:
    """The paths of all routes of the console, such as `/console/requests/{request_id}`."""
    return {route.path for route in routes() if method in (route.methods or ())} - {STATIC, ANYTHING}


def route_of(address: str, method: str = "GET") -> str | None:
    """The path of the route that answers a request; None if there is no such page."""
    scope = {"type": "http", "method": method, "path": urlsplit(address).path, "root_path": "", "headers": []}
    for route in routes():
        if route.matches(scope)[0] is Match.FULL:
            return None if route.path == ANYTHING else route.path
    return None


def session_of(site: ConsoleSite, who: str) -> str:
    """The cookie of a new session."""

    async def log_in() -> str:
        person = site.people[who]
        async with open_components(load(site.folder / "clustercert.toml")) as components:
            login = ByPassword(Reference(id=person.user.id), person.password)
            origin = Origin("127.0.0.1", "5" * 32)
            return (await components.identity.sessions.log_in(login, origin, None)).cookie

    return run_in_thread(log_in())


def crawl(site: ConsoleSite, cookie: str | None, *more: str, per_route: int = PER_ROUTE) -> Crawl:
    """Follow all links from the first page and from more pages, with the cookie of a session."""
    found, queue, seen = Crawl(), [*SEEDS, *more], set[str]()
    headers = HTML | ({"Cookie": f"{SESSION_COOKIE}={cookie}"} if cookie else {})
    while queue:
        address = queue.pop(0)
        if address in seen:
            continue
        seen.add(address)
        route = route_of(address)
        downloads = f"{route} (download)"
        if route is not None and len(found.addresses[route]) + len(found.addresses[downloads]) >= per_route:
            continue
        answer = site.client.get(address, headers=headers)
        if answer.is_redirect:
            queue.append(answer.headers["location"])
        elif not answer.is_success:
            found.faults.append(f"{address}: {answer.status_code}")
        elif route is not None and answer.headers["content-type"].startswith("text/html"):
            found.addresses[route].append(address)
            queue += _followed(found, address, answer.text)
        elif route is not None:
            found.addresses[downloads].append(address)
    return found


def _followed(found: Crawl, address: str, markup: str) -> Iterator[str]:
    """The addresses in a page. Notes forms that no route answers, and links to nowhere."""
    parsed = Elements(markup)
    ids = {attributes.get("id") for _, attributes in parsed.elements}
    for link in parsed.links:
        target, fragment = urldefrag(urljoin(address, link))
        if target == address and fragment and fragment not in ids:
            found.faults.append(f"{address}: no element {fragment}")
        if not urlsplit(target).netloc:
            yield target
    for form in parsed.forms:
        action = urljoin(address, form.action)
        if route_of(action, form.method.upper()) is None:
            found.faults.append(f"{address}: no route for {form.method} {action}")
        if form.method == "post" and "csrf" not in form.fields:
            found.faults.append(f"{address}: the form {action} has no token")

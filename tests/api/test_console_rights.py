"""The console gives callers what the API gives them: the documented rights of three roles, for each page and form."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx2
import pytest

from clustercert.http.console.forms import CSRF_FIELD, csrf_token
from clustercert.http.console.visits import SESSION_COOKIE
from support import world as worlds
from support.access_table import PEOPLE, Cell, CellRequests, cells
from support.administration import put_new
from support.console import HTML, OWN_PAGE, Browser
from support.console_crawl import pages
from support.request_client import OFFERED_TO_ALL, REASON, RequestClient
from support.service import BASE_URL, Service
from support.stores import blob, rows

OWN = "/clustercert/v1"
CLUSTER = "/projects/{project_id}/clusters/{cluster_id}"
ROTATION = f"{OWN}/projects/{{project_id}}/clusters/{{cluster}}/client-ca-rotation"
UNDO = "/certificates/{certificate}/undo/{revocation}"
ROTATING = ("start", "complete", "abort")
# What a page or form below /console does in the API.
OPERATIONS = {
    "GET ": f"GET {OWN}/overview",
    "GET /fleet": f"GET {OWN}/fleet",
    "GET /clusters": f"GET {OWN}/clusters",
    "GET /clusters/{cluster_id}": f"GET {OWN}/clusters/{{cluster_id}}/kubeconfig",
    "GET /clusters/{cluster_id}/kubeconfig": f"GET {OWN}/clusters/{{cluster_id}}/kubeconfig",
    "GET /clusters/{cluster_id}/service-key": f"GET {OWN}/clusters/{{cluster_id}}/kubeconfig",
    "POST /clusters/{cluster_id}/service-key": (
        "POST /api/v3/projects/{project_id}/clusters/{cluster_id}/clustercert"
    ),
    f"GET {CLUSTER}": f"GET {OWN}{CLUSTER}/access",
    f"GET {CLUSTER}/why": f"GET {OWN}/policy/explain",
    f"GET {CLUSTER}/certificates/{{certificate}}/revoke": f"GET {OWN}{CLUSTER}/certificates/{{certificate}}",
    f"GET {CLUSTER}/users/{{user_id}}/revoke": f"POST {OWN}{CLUSTER}/users/{{user_id}}/revoke",
    f"GET {CLUSTER}/revoke": f"POST {OWN}{CLUSTER}/revoke",
    f"POST {CLUSTER}/certificates/{{certificate}}/revoke": (
        f"POST {OWN}{CLUSTER}/certificates/{{certificate}}/revoke"
    ),
    f"POST {CLUSTER}/users/{{user_id}}/revoke": f"POST {OWN}{CLUSTER}/users/{{user_id}}/revoke",
    f"POST {CLUSTER}/revoke": f"POST {OWN}{CLUSTER}/revoke",
    f"GET {CLUSTER}/rotation": f"GET {ROTATION}",
    f"GET {CLUSTER}/rotation/start": f"POST {ROTATION}",
    f"GET {CLUSTER}/rotation/complete": f"POST {ROTATION}/complete",
    f"GET {CLUSTER}/rotation/abort": f"POST {ROTATION}/abort",
    f"POST {CLUSTER}/rotation/start": f"POST {ROTATION}",
    f"POST {CLUSTER}/rotation/complete": f"POST {ROTATION}/complete",
    f"POST {CLUSTER}/rotation/abort": f"POST {ROTATION}/abort",
    "GET /requests": f"GET {OWN}/access-requests",
    "GET /requests/new": f"GET {OWN}/clusters",
    "POST /requests/new": f"POST {OWN}/access-requests",
    "GET /requests/{request_id}": f"GET {OWN}/access-requests/{{access_request_id}}",
    **{
        f"POST /requests/{{request_id}}/{step}": f"POST {OWN}/access-requests/{{access_request_id}}/{step}"
        for step in ("approve", "deny", "end", "extend")
    },
    "GET /audit/{leaf_index}": f"GET {OWN}/projects/{{project_id}}/events/{{leaf_index}}",
    "GET /audit/{leaf_index}/proof": f"GET {OWN}/projects/{{project_id}}/events/{{leaf_index}}/proof",
    "GET /audit": f"GET {OWN}/projects/{{project_id}}/events",
    "GET /audit/export": f"GET {OWN}/projects/{{project_id}}/events",
    "GET /certificates": f"GET {OWN}/certificates",
    "GET /certificates/export": f"GET {OWN}/certificates",
    "GET /certificates/{certificate}": f"GET {OWN}/certificates/{{certificate}}",
    **{f"{method} {UNDO}": f"POST {OWN}/revocations/{{revocation_id}}/undo" for method in ("GET", "POST")},
    "GET /account": f"GET {OWN}/caller",
    "GET /account/certificates/{fingerprint}/revoke": f"GET {OWN}/certificates/{{certificate}}",
    "POST /account/certificates/{fingerprint}/revoke": f"POST {OWN}/certificates/{{certificate}}/revoke",
    "GET /account/log-out-everywhere": f"POST {OWN}/caller/logout",
    "POST /account/sessions/{session_id}/end": f"DELETE {OWN}/caller/sessions/{{session_id}}",
    "GET /account/keys/{access_key}/delete": f"DELETE {OWN}/caller/access-keys/{{access_key}}",
    "POST /account/keys/{access_key}/delete": f"DELETE {OWN}/caller/access-keys/{{access_key}}",
}
# These concern only the caller: the API has no object of another user for them.
OWN_ONLY = {
    "GET /account/certificates/revoke",
    "POST /account/certificates/revoke",
    # Also ends the tokens of this test.
    "POST /account/log-out-everywhere",
    "POST /account/sessions/end-others",
    "GET /account/password",
    "POST /account/password",
}
# Open to everybody; the tests of logins are about them.
PUBLIC = re.compile(r"(GET|POST) /(login|logout|backchannel-logout)\b")
PARAMETERS = {"fingerprint": "certificate", "request_id": "access_request_id"}
# Three are enough to see that the console asks for the caller's rights. The cells of all roles are tested with the API.
ROLES = ("member", "operator", "stranger")
CELLS = {
    operation: [cell for cell in cells("People", PEOPLE) if cell.operation == of_api and cell.who in ROLES]
    for operation, of_api in OPERATIONS.items()
}
# Rows where a page or form differs from the operation, and why.
DIFFERENT = {
    # The first page of people who see only their own access is My clusters.
    ("GET ", "service", "member"): 303,
    # The page shows them only their own certificates.
    (f"GET {CLUSTER}", "project", "member"): 200,
    # Who may ask only about themselves gets the answer about themselves.
    (f"GET {CLUSTER}/why", "another's", "member"): 200,
    # The list shows them only their own certificates.
    **{(f"GET /certificates{tail}", "another's", "member"): 200 for tail in ("", "/export")},
    # The page says who can undo a revocation. For others, the certificate does not exist.
    (f"GET {UNDO}", "all", "member"): 200,
    (f"GET {UNDO}", "all", "stranger"): 404,
    (f"POST {UNDO}", "all", "stranger"): 404,
    # An admin sees the events of the projects that they administer.
    **{(operation, "project", "stranger"): 200 for operation in ("GET /audit", "GET /audit/export")},
    # The page of an action, which is shown again if the API refuses the action, shows the rotation too.
    **{
        (f"{method} {CLUSTER}/rotation/{action}", "project", "stranger"): 404
        for method in ("GET", "POST")
        for action in ROTATING
    },
}


def registered() -> set[str]:
    """The operations of the console, such as `GET /requests`."""
    found = {f"{method} {path}" for method in ("GET", "POST") for path in pages(method)}
    return {each.replace(" /console", " ", 1) for each in found}


def shown(operation: str, cell: Cell) -> int:
    """The status of the console's answer, if the API's answer has the status in the cell."""
    different = DIFFERENT.get((operation, cell.about, cell.who))
    if different is not None or cell.status >= 400:
        return different or cell.status
    # The form for a key answers with the file.
    return 200 if operation.startswith("GET") or operation.endswith("service-key") else 303


@dataclass
class Site:
    """A service with the console, and requests for it."""

    service: Service
    requests: CellRequests
    browsers: dict[str, Browser] = field(default_factory=dict)

    def browser(self, who: str) -> Browser:
        """The browser of a person, who has logged in once."""
        if who not in self.browsers:
            self.browsers[who] = Browser.in_session(self.service, self.requests.world.people[who])
        return self.browsers[who]

    def ask(self, operation: str, cell: Cell) -> httpx2.Response:
        method, path = operation.split(" ")
        browser = self.browser(cell.who)
        whose = self.requests._whose(cell)
        own = self._rotated_cluster(cell.operation) if "/rotation" in path else {}
        if path == UNDO:
            own = self._revoked_certificate()
        address = "/console" + re.sub(
            r"\{(\w+)\}",
            lambda match: own.get(match[1]) or self._placed(match[1], cell, whose),
            path,
        )
        if operation.endswith("/why") and cell.about == "another's":
            address += f"?user={self.requests.world.people[whose].user.id}"
        if method == "GET":
            return browser.get(address)
        return browser.post(address, None, **self._fields(path))

    def _placed(self, name: str, cell: Cell, whose: str) -> str:
        requests = self.requests
        if name == "access_key":
            user = requests.world.people[whose].user.name
            headers = requests.world.people["operator"].headers
            made = requests.client.post(f"{OWN}/users/{user}/access-keys", json={}, headers=headers)
            return str(made.raise_for_status().json()["access_key"])
        return requests._placed(PARAMETERS.get(name, name), cell.operation.split(" ")[1], whose)

    def _revoked_certificate(self) -> dict[str, str]:
        """A certificate of the member, and the revocation that covers it."""
        requests = self.requests
        name, headers = requests.issued("member"), requests.world.people["operator"].headers
        made = requests.client.post(f"{OWN}/certificates/{name}/revoke", headers=headers).raise_for_status()
        return {"certificate": name, "revocation": str(made.json()["id"])}

    def _rotated_cluster(self, operation: str) -> dict[str, str]:
        """The id of a new cluster whose client CA is replaced, unless the operation starts that."""
        requests = self.requests
        world, headers = requests.world, requests.world.people["operator"].headers
        own = put_new(requests.client, world, operation.split(" ")[1])
        requests._rotated(operation, own)
        path = f"{OWN}/projects/{world.project.id}/clusters/{own['cluster']}"
        return {"cluster_id": str(requests.client.get(path, headers=headers).json()["id"])}

    def _fields(self, path: str) -> dict[str, str]:
        """The fields of a valid form."""
        world = self.requests.world
        if path == "/requests/new":
            RequestClient(world, self.requests.client).end_all()
        return {
            "new": {
                "cluster": world.clusters["plain"].id,
                "rule": "asked",
                "group-0": "asked",
                "duration": "900",
                "reason": str(REASON["reason"]),
            },
            "approve": {"reason": "agreed"},
            "deny": {"reason": "use the other cluster"},
            "extend": {"duration": "900", "reason": str(REASON["reason"])},
            "service-key": {"seconds": "longest"},
            "{revocation}": {"name": world.people["member"].user.name},
            "revoke": {"cluster": world.clusters["plain"].name, "reason": "superseded"},
        }.get(path.rsplit("/", 1)[-1], {})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    world = worlds.make(tmp_path_factory.mktemp("console"))
    settings = world.settings(policy=OFFERED_TO_ALL, console={"enabled": True})
    with Service(settings).running() as service:
        yield Site(service, CellRequests(world, service.client))


@pytest.mark.parametrize("operation", sorted(OPERATIONS.keys() & registered()))
def test_a_page_or_form_answers_as_the_api_does(site: Site, operation: str) -> None:
    assert CELLS[operation], f"the documentation has no row for {OPERATIONS[operation]}"
    found = {(cell.about, cell.who): site.ask(operation, cell).status_code for cell in CELLS[operation]}
    assert found == {(cell.about, cell.who): shown(operation, cell) for cell in CELLS[operation]}


def test_every_page_and_form_has_its_row() -> None:
    assert {each for each in registered() - OPERATIONS.keys() - OWN_ONLY if not PUBLIC.match(each)} == set()


@pytest.mark.parametrize("operation", sorted(registered()))
def test_without_a_login_there_are_only_the_pages_of_the_login(site: Site, operation: str) -> None:
    if PUBLIC.match(operation):
        return
    method, path = operation.split(" ")
    address = "/console" + re.sub(r"\{\w+\}", "x", path)
    browser = Browser(site.requests.client)
    if method == "GET":
        answer = browser.get(address)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/console/login?next=")
    else:
        assert browser.post(address).status_code == 401


# Header fields and the form's token, which says `own`, `other's`, or what it is.
FORGERIES = {
    "without a token": (OWN_PAGE, None),
    "with an empty token": (OWN_PAGE, ""),
    "with the token of another session": (OWN_PAGE, "other"),
    "from another site": ({"Sec-Fetch-Site": "cross-site"}, "own"),
    "from another host of the site": ({"Sec-Fetch-Site": "same-site"}, "own"),
    "typed or bookmarked": ({"Sec-Fetch-Site": "none"}, "own"),
    "without the header fields of browsers": ({}, "own"),
    "from another origin": ({"Origin": "http://elsewhere.test:8080"}, "own"),
    "from an unknown origin": ({"Origin": "null"}, "own"),
    "from another site with the right origin": (
        {"Sec-Fetch-Site": "cross-site", "Origin": BASE_URL},
        "own",
    ),
}


FORMS = sorted(
    each
    for each in registered()
    if each.startswith("POST") and (each == "POST /logout" or not PUBLIC.match(each))
)


def refuse(site: Site, operation: str, forgery: str) -> None:
    """Send a forged form, which is refused and recorded."""
    browser, (headers, token) = site.browser("admin"), FORGERIES[forgery]
    tokens = {
        "own": csrf_token(browser.cookies[SESSION_COOKIE]),
        "other": csrf_token(site.browser("member").cookies[SESSION_COOKIE]),
    }
    address = "/console" + re.sub(r"\{\w+\}", "0" * 32, operation.split(" ")[1])
    fields = {"reason": "superseded"} | ({} if token is None else {CSRF_FIELD: tokens.get(token, token)})
    answer = browser.post_exactly(address, HTML | headers, fields)
    assert answer.status_code == 403, (operation, forgery)
    recorded = rows(site.requests.world.database, "SELECT body FROM audit_event ORDER BY id DESC LIMIT 50")
    events = [json.loads(blob(body)) for (body,) in recorded]
    kinds = [each["kind"] for each in events if each["request_id"] == answer.headers["X-Request-Id"]]
    assert kinds == ["request.refused"], (operation, forgery)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_form_with_any_forgery_is_refused_and_recorded(site: Site, forgery: str) -> None:
    refuse(site, f"POST {CLUSTER}/revoke", forgery)
    # The session goes on: a refused form ends nothing.
    assert site.browser("admin").get("/console/account").status_code == 200


@pytest.mark.parametrize("operation", FORMS)
def test_each_form_needs_its_token_and_its_own_site(site: Site, operation: str) -> None:
    refuse(site, operation, "with the token of another session")
    refuse(site, operation, "from another site")
    assert site.browser("admin").get("/console/account").status_code == 200

"""The console's frame: who may open it, its headers, errors and forms."""

import contextlib
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable

import httpx2
import pytest

from clustercert.http.console.forms import CSRF_FIELD, csrf_token
from clustercert.http.console.visits import NOTICE_COOKIE, SESSION_COOKIE, safe_next
from clustercert.identity.sessions import RECORD_EVERY
from clustercert.model import utc_now
from support.console import HTML, Browser
from support.service import Service
from support.stores import execute
from support.world import World

_SQLITE_TIME = "%Y-%m-%d %H:%M:%S.%f"


@pytest.fixture
def site(service_with: Callable[..., Service]) -> Service:
    return service_with(console={"enabled": True})


@pytest.fixture
def browser(site: Service) -> Browser:
    return Browser(site.client)


def test_without_a_session_a_page_leads_to_the_login(browser: Browser) -> None:
    answer = browser.get("/console/clusters?page=2")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/console/login?next=%2Fconsole%2Fclusters%3Fpage%3D2"


def test_pages_run_no_script_and_are_kept_by_no_cache(browser: Browser) -> None:
    answer = browser.get("/console/missing")
    assert answer.status_code == 404
    [policy] = answer.headers.get_list("content-security-policy")
    assert policy.startswith("default-src 'none'; style-src 'self';")
    assert "unsafe" not in policy
    assert "trusted-types 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert "The console has no page /console/missing." in answer.text


def test_a_page_with_a_live_part_runs_only_the_consoles_script(site: Service, world: World) -> None:
    answer = Browser.in_session(site, world.people["member"]).get("/console/requests")
    [script] = re.findall(r"<script\b(.*?)>", answer.text)
    [(nonce, file)] = re.findall(r'^ defer nonce="([\w-]{22})" src="(.*)"$', script)
    assert file.startswith("/console/static/live.js?")
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", f"script-src 'nonce-{nonce}'", "trusted-types 'none'"} < set(policy)


def test_a_client_that_wants_json_gets_the_error_of_the_api(site: Service) -> None:
    answer = site.client.get("/console/missing", headers={"Accept": "application/json"})
    assert answer.status_code == 404
    assert answer.json()["error_msg"] == "The console has no page /console/missing. Begin at /console."
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "address", "status", "message"),
    [
        ("GET", "/console/clusters?page=1&page=2", 400, "page: occurs more than once. Send it once."),
        ("PUT", "/console/clusters", 405, "This path does not support this method."),
        ("GET", "/console/static/missing.css", 404, "The console has no file missing.css."),
    ],
)
def test_failures_that_reach_no_page_are_pages_for_browsers_only(
    site: Service, method: str, address: str, status: int, message: str
) -> None:
    shown = site.client.request(method, address, headers=HTML)
    assert shown.status_code == status
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert message in shown.text
    assert "trusted-types 'none'" in shown.headers["content-security-policy"]
    read = site.client.request(method, address)
    assert read.status_code == status
    assert message in read.json()["error_msg"]
    assert read.headers["cache-control"] == "no-store"


def test_a_405_names_the_methods_of_a_page_and_its_form(site: Service) -> None:
    for address, takes in (
        ("/console", "GET, HEAD"),
        ("/console/clusters", "GET, HEAD"),
        ("/console/login", "GET, HEAD, POST"),
        ("/console/logout", "POST"),
        ("/console/nothing", "GET, HEAD, POST"),
        ("/console/static/console.css", "GET, HEAD"),
    ):
        answer = site.client.options(address)
        assert (answer.status_code, answer.headers["Allow"]) == (405, takes), address


def test_failures_outside_the_console_stay_json_for_browsers(site: Service) -> None:
    for address in ("/consoles", "/clustercert/v1/caller?a=1&a=2"):
        answer = site.client.get(address, headers=HTML)
        assert answer.status_code in (400, 404)
        assert answer.json()["message"]


def test_without_the_setting_there_is_no_console(client: httpx2.Client) -> None:
    assert client.get("/console", headers=HTML).status_code == 404
    assert client.get("/console/static/console.css").status_code == 404


def test_without_the_setting_nothing_of_the_console_is_loaded() -> None:
    program = (
        "import sys; from clustercert.http.app import new_app; import clustercert.server.application; new_app();"
        "print(sorted(name for name in sys.modules if name.startswith(('jinja2', 'clustercert.http.console'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("address", "page"),
    [
        ("/console/", "/console"),
        ("/console/clusters/", "/console/clusters"),
        ("/console//e.test/", "/console"),
    ],
)
def test_a_slash_at_the_end_of_an_address_does_no_harm(browser: Browser, address: str, page: str) -> None:
    answer = browser.get(address)
    assert (answer.status_code, answer.headers["location"]) == (303, page)


@pytest.mark.parametrize(
    ("referer", "page"),
    [
        ("http://clustercert.test:8080/console/audit?user=anna", "%2Fconsole%2Faudit%3Fuser%3Danna"),
        ("http://clustercert.test:8080/v3", "%2Fconsole"),
        ("http://[", "%2Fconsole"),
        ("", "%2Fconsole"),
    ],
)
def test_a_form_after_the_end_of_the_session_leads_to_the_login_and_back(
    browser: Browser, referer: str, page: str
) -> None:
    answer = browser.post("/console/requests/1/approve", {"Referer": referer})
    assert answer.status_code == 401
    assert "You are not logged in any more, so nothing was changed." in answer.text
    assert f'href="/console/login?next={page}"' in answer.text


def test_an_update_of_a_live_part_leaves_the_notice_for_the_person(site: Service, world: World) -> None:
    browser = Browser.in_session(site, world.people["member"])
    browser.cookies[NOTICE_COOKIE] = "Done."
    assert "Done." not in browser.get("/console/requests", {"Live-Update": "1"}).text
    assert '<p class="notice" role="status">Done.</p>' in browser.get("/console/requests").text
    assert NOTICE_COOKIE not in browser.cookies


def test_pages_are_shown_while_the_database_can_only_be_read(site: Service, world: World) -> None:
    browser = Browser.in_session(site, world.people["member"])
    execute(
        world.database, "UPDATE console_session SET seen_at = ?", f"{utc_now() - RECORD_EVERY:{_SQLITE_TIME}}"
    )
    with contextlib.closing(sqlite3.connect(world.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert browser.get("/console/clusters").status_code == 200


def test_static_files_are_kept_for_ever(browser: Browser) -> None:
    answer = browser.get("/console/static/console.css")
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert "immutable" in answer.headers["cache-control"]
    assert "accept-ranges" not in answer.headers
    assert browser.get("/console/static/live.js").headers["content-type"] == "text/javascript; charset=utf-8"
    for name in ("..%2Frendering.py", "missing.css"):
        assert browser.get(f"/console/static/{name}").status_code == 404


def test_a_form_may_name_the_consoles_origin_instead_of_its_site(browser: Browser) -> None:
    origin = {"Origin": "http://clustercert.test:8080"}
    assert browser.post_exactly("/console/missing", origin, {"a": "b"}).status_code == 404


def test_the_forms_of_a_page_have_the_token_of_its_session(site: Service, world: World) -> None:
    browser = Browser.in_session(site, world.people["member"])
    page = browser.get("/console/clusters").text
    token = csrf_token(browser.cookies[SESSION_COOKIE])
    assert f'<input type="hidden" name="{CSRF_FIELD}" value="{token}">' in page


def test_the_cookie_of_a_session_is_accepted_below_console_only(site: Service, world: World) -> None:
    browser = Browser.in_session(site, world.people["member"])
    assert browser.get("/console/clusters").status_code == 200
    assert browser.get("/clustercert/v1/caller").status_code == 401


@pytest.mark.parametrize(
    "address",
    ["/console", "/console/audit?page=2", "/console?x=1"],
)
def test_a_page_of_the_console_can_follow_the_login(address: str) -> None:
    assert safe_next(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/",
        "//evil.test",
        "/console//evil.test",
        "/console/%2Fevil.test",
        "/console/../v3",
        "/console/%2e%2E/v3?x=1",
        "/console/..",
        "https://evil.test/console",
        "/consolevil",
        "/console\\x",
        "/console/ä",
        "/console/a\r\nb",
    ],
)
def test_no_other_address_can_follow_the_login(address: str) -> None:
    assert safe_next(address) == "/console"

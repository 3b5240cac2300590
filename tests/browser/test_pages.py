"""Every page of the console in a real Chromium: no violation of the CSP, no error, no fault that axe-core finds."""

import itertools
import re
from collections.abc import Iterator

import pytest

from support import console_site
from support.browser import Browser, Scheme, Tab
from support.console_crawl import Crawl, crawl, pages, session_of
from support.console_site import LONG_NAME, ConsoleSite

pytestmark = pytest.mark.full

# A person who is logged in does not see the login, and this service has no OIDC issuer.
UNLINKED = {each for each in pages() if each.startswith("/console/login")}
# Width, colour scheme, and whether only contrasts are checked, since the width was checked before.
Display = tuple[int, Scheme, bool]
FORMS: tuple[Display, ...] = ((320, "light", False), (1280, "dark", False))
ALL_FORMS: tuple[Display, ...] = (*FORMS, (320, "dark", True), (1280, "light", True))
# Of each page, this many addresses are shown: lists of three and of three thousand differ.
SHOWN = 2


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleSite]:
    with console_site.running(tmp_path_factory.mktemp("site")) as running:
        yield running


def shown(found: Crawl) -> list[str]:
    addresses = (each[:SHOWN] for route, each in found.addresses.items() if not route.endswith(" (download)"))
    return list(itertools.chain.from_iterable(addresses))


@pytest.mark.parametrize("who", ["olga", "aude", "alice", "mo", "nina", "luis"])
def test_all_links_and_forms_of_all_pages_lead_somewhere(site: ConsoleSite, who: str) -> None:
    assert crawl(site, session_of(site, who)).faults == []


def test_each_page_is_reached_by_links(site: ConsoleSite) -> None:
    found = set[str]()
    for who in ("olga", "alice", "mo"):
        addresses = crawl(site, session_of(site, who)).addresses
        found |= {route.removesuffix(" (download)") for route, each in addresses.items() if each}
    assert pages() - UNLINKED - found == set()


@pytest.mark.parametrize(
    ("who", "javascript"),
    [("olga", True), ("olga", False), ("mo", True), ("mo", False), ("nina", True), (LONG_NAME, False)],
    ids=lambda value: str(value)[:8],
)
def test_no_page_has_a_fault(browser: Browser, site: ConsoleSite, who: str, *, javascript: bool) -> None:
    cookie = session_of(site, who)
    page = f"/console/projects/{site.project_of('staging')}/clusters/{site.clusters['staging']}"
    addresses = shown(crawl(site, cookie, *([page] if who == "mo" else [])))
    assert addresses
    with browser.tab(javascript=javascript) as tab:
        tab.log_in(site.url, cookie)
        assert faults(tab, site, addresses, ALL_FORMS if javascript else FORMS) == {}


@pytest.mark.parametrize("javascript", [True, False])
def test_the_login_has_no_fault_and_leads_to_the_page(
    browser: Browser, site: ConsoleSite, *, javascript: bool
) -> None:
    person, page = site.people["mo"], f"{site.url}/console/requests?list=mine"
    with browser.tab(javascript=javascript) as tab:
        assert faults(tab, site, ["/console/login"], FORMS) == {}
        tab.open(page)
        for name, value in (
            ("user", person.user.name),
            ("domain", person.user.domain.name),
            ("password", person.password),
        ):
            tab.page.locator(f"input[name={name}]").fill(value)
        tab.page.locator("main form button").first.click()
        assert tab.page.url == page
        assert tab.page.get_by_role("heading", level=1).inner_text() == "Your requests"

        tab.page.locator(".menu summary").click()
        tab.page.get_by_role("button", name="Log out").click()
        assert "You are logged out." in tab.page.locator("main").inner_text()
        tab.open(page)
        assert "/console/login?next=" in tab.page.url


def faults(
    tab: Tab, site: ConsoleSite, addresses: list[str], forms: tuple[Display, ...]
) -> dict[str, list[str]]:
    """The faults of pages, by address and form of display."""
    found = dict[str, list[str]]()
    for address in addresses:
        status = tab.open(site.url + address)
        assert status == 200, f"{address}: {status}"
        for width, scheme, only_contrast in forms:
            tab.show(width, scheme)
            if these := tab.faults(only_contrast=only_contrast):
                found[f"{address} {width} {scheme}"] = these
    return found


def test_a_printed_page_has_absolute_times_and_no_controls(browser: Browser, site: ConsoleSite) -> None:
    page = f"/console/projects/{site.project_of('staging')}/clusters/{site.clusters['staging']}"
    with browser.tab() as tab:
        tab.log_in(site.url, session_of(site, "olga"))
        assert tab.open(site.url + page) == 200
        shown = tab.page.locator("main")
        explanation, search = shown.get_by_text("No revocation ends this access:"), shown.locator(".filters")
        assert (explanation.is_visible(), search.is_visible()) == (False, True)
        tab.page.emulate_media(media="print")
        assert (explanation.is_visible(), search.is_visible()) == (True, False)
        assert not tab.page.locator("header").is_visible()
        after = "each => getComputedStyle(each, '::after').content"
        added = shown.locator("time[title]").first.evaluate(after)
        assert re.fullmatch(r'" \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\)"', added), added

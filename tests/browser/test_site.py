"""The site of the documentation in a real browser, without a network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import doc_site
from support.browser import Browser, Scheme, Tab

pytestmark = [pytest.mark.full, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the home page."""
    return (doc_site.build(tmp_path_factory.mktemp("site")) / "index.html").as_uri()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    with browser.tab() as tab:
        # Anything that is not a file fails, and the browser reports it.
        tab.page.route(lambda address: not address.startswith("file:"), lambda route: route.abort())
        tab.page.on("request", lambda request: tab.logged.extend(_elsewhere(request.url)))
        yield tab


def _elsewhere(address: str) -> list[str]:
    return [] if address.startswith("file:") else [f"request: {address}"]


def test_the_search_finds_a_page_without_a_server_or_a_network(tab: Tab, home: str) -> None:
    tab.page.goto(home)
    tab.page.fill("input[name=q]", "fingerprint")
    tab.page.keyboard.press("Enter")
    tab.page.click("#search-results a[href*='login.html']")
    tab.page.wait_for_url("**/login.html*")
    assert "fingerprint" in tab.page.inner_text("article")
    assert tab.logged == []


def test_each_door_leads_to_its_pages(tab: Tab, home: str) -> None:
    for door, page in {
        "I need kubectl": "Quick starts",
        "I run the service": "Install",
        "I audit it": "Security model",
        "I change it": "Contributing",
    }.items():
        tab.page.goto(home)
        for name in (door, page):
            tab.page.locator("article").get_by_role("link", name=name, exact=True).click()
        assert tab.page.inner_text("h1").startswith(page)
    assert tab.logged == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index", "quick-starts"])
def test_a_page_has_enough_contrast_and_fits_the_window(
    tab: Tab, home: str, page: str, scheme: Scheme
) -> None:
    tab.show(320, scheme)
    tab.page.goto(home.replace("index", page))
    assert tab.faults(only_contrast=True) == []


def test_a_drawing_has_the_colours_of_the_theme_chosen_on_the_page(tab: Tab, home: str) -> None:
    tab.show(1280, "dark")
    tab.page.goto(home.replace("index", "README"))
    drawing = tab.page.locator("img[src$='overview.svg']")
    dark = drawing.screenshot()
    tab.show(1280, "light")
    assert drawing.screenshot() != dark
    theme = tab.page.locator("body")
    while theme.get_attribute("data-theme") != "dark":
        tab.page.locator(".theme-toggle-content button").click()
    assert drawing.screenshot() == dark


def test_no_page_scrolls_horizontally_on_a_phone(tab: Tab, home: str) -> None:
    tab.show(320, "light")
    for page in sorted(Path(home.removeprefix("file://")).parent.rglob("*.html")):
        tab.page.goto(page.as_uri())
        excess = tab.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert (page.name, excess) == (page.name, 0)
    assert tab.logged == []

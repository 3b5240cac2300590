"""Parts of the console's pages that update themselves, in a real Chromium."""

from collections.abc import Iterator
from functools import partial

import pytest

from support import console_site
from support.browser import Browser, Tab
from support.console_crawl import session_of
from support.console_site import ConsoleSite
from support.wait import eventually

pytestmark = pytest.mark.full

ICON = "/console/static/icon.svg"
# What Chromium sends when the tab is shown again. It starts an update without waiting for 15 seconds.
_SHOW_AGAIN = "() => document.dispatchEvent(new Event('visibilitychange'))"
_HIDE = "() => Object.defineProperty(document, 'hidden', {value: true, configurable: true})"
_UNHIDE = "() => delete document.hidden"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleSite]:
    with console_site.running(tmp_path_factory.mktemp("site")) as running:
        yield running


def shows(tab: Tab, text: str) -> bool:
    """Whether the live part of the page has this text, after an update."""
    tab.page.evaluate(_SHOW_AGAIN)
    return text in str(tab.page.text_content("#request"))


def lists(tab: Tab, request_id: str) -> bool:
    """Whether the live part of the page has a link to this request, after an update."""
    tab.page.evaluate(_SHOW_AGAIN)
    return bool(tab.page.locator(f"#requests a[href$='{request_id}']").count())


def test_a_request_changes_on_the_page_and_typed_text_stays(browser: Browser, site: ConsoleSite) -> None:
    request_id = site.requests["pending"]
    with browser.tab() as tab:
        tab.log_in(site.url, session_of(site, "alice"))
        assert tab.open(f"{site.url}/console/requests/{request_id}") == 200
        reason = tab.page.locator("textarea").first
        reason.fill("I saw the al")
        tab.page.evaluate(_HIDE)
        site.step("alice", request_id, "deny", "not now")
        requests = list[str]()
        tab.page.on("request", lambda request: requests.append(request.url))
        assert not shows(tab, "denied")
        # An update would have been requested before this file.
        tab.page.evaluate(f"() => fetch('{ICON}')")
        assert requests == [site.url + ICON]
        tab.page.evaluate(_UNHIDE)
        eventually(partial(shows, tab, "denied"))
        assert reason.input_value() == "I saw the al"
        assert reason.evaluate("each => each === document.activeElement")
        assert tab.faults() == []


def test_a_part_says_when_it_is_not_up_to_date(browser: Browser, site: ConsoleSite) -> None:
    with browser.tab() as tab:
        tab.log_in(site.url, session_of(site, "alice"))
        assert tab.open(f"{site.url}/console/requests/{site.requests['active']}") == 200
        outdated = tab.page.locator("[data-outdated]")
        eventually(partial(shows, tab, "active"))
        assert not outdated.is_visible()
        # Without a session, the service leads to the login.
        tab.page.context.clear_cookies()
        eventually(lambda: shows(tab, "active") and outdated.is_visible())
        assert tab.page.url.endswith(site.requests["active"])


def test_a_part_is_up_to_date_again_after_the_service_was_away(browser: Browser, site: ConsoleSite) -> None:
    with browser.tab() as tab:
        tab.log_in(site.url, session_of(site, "alice"))
        assert tab.open(f"{site.url}/console/requests/{site.requests['active']}") == 200
        outdated = tab.page.locator("[data-outdated]")
        tab.page.context.set_offline(True)
        eventually(lambda: shows(tab, "active") and outdated.is_visible())
        tab.page.context.set_offline(False)
        eventually(lambda: shows(tab, "active") and not outdated.is_visible())


def test_the_focus_stays_on_its_link_when_a_row_goes(browser: Browser, site: ConsoleSite) -> None:
    older, newer = (site.request(who, "staging", "operators", "drain a node") for who in ("priya", "tomas"))
    with browser.tab() as tab:
        tab.log_in(site.url, session_of(site, "alice"))
        assert tab.open(f"{site.url}/console/requests?list=decide") == 200
        link = tab.page.locator(f"a[href$='{older}']")
        link.focus()
        site.step("alice", newer, "deny")
        eventually(lambda: not lists(tab, newer))
        assert link.evaluate("each => each === document.activeElement")
        assert tab.faults() == []

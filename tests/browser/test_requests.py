"""Access requests in a real Chromium: every form works with and without scripts."""

from collections.abc import Iterator

import pytest

from support import console_site
from support.browser import Browser, Tab
from support.console_crawl import session_of
from support.console_site import ConsoleSite

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleSite]:
    with console_site.running(tmp_path_factory.mktemp("site")) as running:
        yield running


def press(tab: Tab, button: str) -> None:
    tab.page.get_by_role("button", name=button, exact=True).click()


def text(tab: Tab) -> str:
    return str(tab.page.locator("main").inner_text())


@pytest.mark.parametrize("javascript", [True, False])
def test_access_is_asked_for_approved_and_withdrawn(
    browser: Browser, site: ConsoleSite, *, javascript: bool
) -> None:
    with browser.tab(javascript=javascript) as asking, browser.tab(javascript=javascript) as deciding:
        asking.log_in(site.url, session_of(site, "tomas"))
        deciding.log_in(site.url, session_of(site, "alice"))

        asking.open(f"{site.url}/console/requests")
        asking.page.get_by_role("link", name="Ask for access").click()
        asking.page.get_by_role("link", name="staging").click()
        asking.page.get_by_role("link", name="shop:operators, shop:debuggers").click()
        asking.page.get_by_label("shop:debuggers").check()
        asking.page.get_by_label("For how long").select_option("2 hours")
        asking.page.get_by_label("Reason").fill("too short")
        # The browser would not send a reason that is too short.
        asking.page.locator("form").last.evaluate("form => { form.noValidate = true }")
        press(asking, "Ask for access")
        assert "reason: write at least 10 characters." in text(asking)
        assert asking.page.get_by_label("Reason").input_value() == "too short"
        assert asking.page.get_by_label("For how long").input_value() == "7200"
        assert asking.page.get_by_label("shop:debuggers").is_checked()
        asking.page.get_by_label("Reason").fill("look at the heap of the cart")
        press(asking, "Ask for access")
        assert "Your request was created." in text(asking)
        address = str(asking.page.url)

        deciding.open(f"{site.url}/console/requests")
        deciding.page.locator(f"a[href='{address.removeprefix(site.url)}']").click()
        assert "look at the heap of the cart" in text(deciding)
        deciding.page.get_by_label("Reason").fill("saw the alert")
        press(deciding, "Approve")
        assert "You approved the request of shop/tomas." in text(deciding)

        asking.open(address)
        assert "shop/alice approved\nsaw the alert" in text(asking)
        asking.page.get_by_text("Withdraw the request…").click()
        press(asking, "Withdraw the request")
        assert "You ended the request of shop/tomas." in text(asking)
        asking.open(address)
        assert "You ended" not in text(asking)
        # Chromium logs the status of the refused form.
        assert [each for each in asking.faults() if "status of 400" not in each] == []
        assert deciding.faults() == []
    shown = site.done("olga", "GET", f"{console_site.V1}/access-requests/{address.rpartition('/')[2]}")
    assert (shown["state"], shown["groups"], shown["duration"]) == ("ended", ["shop:debuggers"], 7200)

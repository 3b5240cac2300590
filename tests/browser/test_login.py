"""Login with a password and logout in a real Chromium, with and without scripts."""

import itertools
from collections.abc import Iterator

import pytest

from support import console_site
from support.browser import Browser, Scheme, Tab
from support.console_site import ConsoleSite

pytestmark = pytest.mark.full

WIDTHS = (320, 1280)
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
# What Chromium logs for the answer to a wrong password.
REFUSED = "status of 401"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleSite]:
    with console_site.running(tmp_path_factory.mktemp("site")) as running:
        yield running


def faults(tab: Tab) -> list[str]:
    found = list[str]()
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        tab.show(width, scheme)
        found += [each for each in tab.faults() if REFUSED not in each]
    return found


@pytest.mark.parametrize("javascript", [True, False])
def test_a_person_logs_in_and_out(browser: Browser, site: ConsoleSite, *, javascript: bool) -> None:
    person = site.people["mo"]
    with browser.tab(javascript=javascript) as tab:
        page = tab.page
        assert tab.open(f"{site.url}/console/requests") == 200
        assert page.title().startswith("Log in")
        assert faults(tab) == []
        page.get_by_label("User").fill(person.user.name)
        page.get_by_label("Domain").fill(person.user.domain.name)
        page.get_by_label("Password").fill("wrong horse")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("alert").wait_for()
        assert page.get_by_role("alert").inner_text() == "Wrong user name or password."
        assert faults(tab) == []
        # The form keeps what was right, and waits for the password.
        assert page.get_by_label("User").input_value() == person.user.name
        page.get_by_label("Password").fill(person.password)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{site.url}/console/requests")
        page.locator(".menu summary").click()
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url(f"{site.url}/console/login")
        assert page.get_by_role("status").inner_text() == "You are logged out."
        assert faults(tab) == []
        page.go_back()
        page.wait_for_url("**/console/login**")

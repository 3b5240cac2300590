"""From the console's first page to a certificate that the webhook refuses, in a real Chromium."""

from collections.abc import Iterator

import httpx2
import pytest

from support import console_site
from support.browser import Browser
from support.console_crawl import session_of
from support.console_site import V1, ConsoleSite
from support.kubernetes_messages import credential_id, review
from support.stores import rows
from support.wait import SECONDS, eventually


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleSite]:
    with console_site.running(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="module")
def token(site: ConsoleSite) -> str:
    """A token of the API server of `staging`."""
    return str(site.done("olga", "POST", site.cluster_path("staging", "/webhook-tokens"))["token"])


def verdict(site: ConsoleSite, token: str, fingerprint: str) -> str:
    """What the webhook says of a request with a certificate for `staging`: `denied`, or `no opinion`."""
    query = "SELECT user_id, credential_number FROM certificate WHERE fingerprint = ?"
    ((user, number),) = rows(site.database, query, bytes.fromhex(fingerprint))
    groups = ("shop:developers", f"clustercert:credential:{number}")
    answer = httpx2.post(
        f"{site.url}{V1}/kubernetes/clusters/{site.clusters['staging']}/authorize",
        content=review(credential_id(bytes.fromhex(fingerprint)), user=str(user), groups=groups),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        timeout=SECONDS,
        trust_env=False,
    )
    if answer.status_code == httpx2.codes.UNAUTHORIZED:
        return "unknown token"
    assert answer.status_code == 200, answer.text
    return "denied" if answer.json()["status"].get("denied") else "no opinion"


@pytest.mark.parametrize("javascript", [True, pytest.param(False, marks=pytest.mark.full)])
def test_three_clicks_lead_from_the_first_page_to_a_refused_certificate(
    browser: Browser, site: ConsoleSite, token: str, *, javascript: bool
) -> None:
    fingerprint = site.issue("tomas", "staging")
    eventually(lambda: verdict(site, token, fingerprint) == "no opinion")
    # The service writes some seconds later that the API server asked.
    asked = "SELECT 1 FROM webhook_token WHERE cluster_id = ? AND last_asked_at IS NOT NULL"
    eventually(lambda: rows(site.database, asked, site.clusters["staging"]))
    with browser.tab(javascript=javascript) as tab:
        tab.log_in(site.url, session_of(site, "alice"))
        assert tab.open(f"{site.url}/console") == 200
        page = tab.page
        page.get_by_role("navigation", name="Who can get into").get_by_role("link", name="staging").click()
        page.get_by_role("row", name=fingerprint[:12]).get_by_role("link", name="Revoke…").click()
        page.get_by_role("button", name="Revoke the certificate").click()
        shown = page.get_by_role("status").inner_text()
        assert "Revoked the certificate of shop/tomas" in shown
        assert "Refusal expected by 20" in shown
        assert "refusal expected" in page.get_by_role("row", name=fingerprint[:12]).inner_text()
        assert tab.faults() == []
    eventually(lambda: verdict(site, token, fingerprint) == "denied")

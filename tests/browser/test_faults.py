"""The browser reports each kind of fault, with and without JavaScript, also under a strict CSP."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from support.browser import Browser

pytestmark = pytest.mark.full

CSP = "default-src 'none'; script-src 'nonce-abc'; require-trusted-types-for 'script'"
GOOD = "<!doctype html><html lang=en><title>A page</title><main><h1>A page</h1>%s</main></html>"
PAGES = {
    "/good": GOOD % "",
    "/inline-style": GOOD % '<p style="color: red">Red</p>',
    "/inline-script": GOOD % "<script>alert(1)</script>",
    "/error": GOOD % "<script nonce=abc>throw new Error('broken')</script>",
    "/message": GOOD % "<script nonce=abc>console.error('broken')</script>",
    "/resource": GOOD % "<img src=/missing.png alt=Nothing>",
    "/label": GOOD % "<input name=a>",
    "/contrast": GOOD % '<p><font color="#aaaaaa">Pale</font></p>',
    "/wide": GOOD % f"<p>{'w' * 400}</p>",
}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = PAGES.get(self.path)
        self.send_response(200 if page else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Security-Policy", CSP)
        self.end_headers()
        self.wfile.write((page or "").encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("javascript", [True, False])
@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ("inline-style", "CSP: "),
        ("inline-script", "CSP: "),
        ("resource", "CSP: "),
        ("label", "axe label: input"),
        ("contrast", "axe color-contrast: font"),
        ("wide", "scrolls horizontally: "),
        ("error", "uncaught: broken"),
        ("message", "console: broken"),
    ],
)
def test_a_faulty_page_is_reported(
    browser: Browser, url: str, page: str, fault: str, *, javascript: bool
) -> None:
    with browser.tab(javascript=javascript) as tab:
        tab.open(f"{url}/{page}")
        tab.show(320, "light")
        found = tab.faults()
    # Without JavaScript, the page's own scripts do nothing.
    expected = javascript or page not in ("inline-script", "error", "message")
    assert any(each.startswith(fault) for each in found) == expected, found


@pytest.mark.parametrize("javascript", [True, False])
def test_a_page_without_a_fault_has_none(browser: Browser, url: str, *, javascript: bool) -> None:
    with browser.tab(javascript=javascript) as tab:
        assert tab.open(f"{url}/good") == 200
        tab.show(320, "dark")
        assert tab.faults() == []

"""Debian's Chromium driven by Playwright, which reports the faults of a page. `make clients chromium` installs both."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clustercert.http.console.visits import SESSION_COOKIE
from support import chromium
from support.wait import SECONDS

Scheme = Literal["light", "dark"]

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venvs" / "clients"
HEIGHT = 900
# The isolated world of axe-core: a script there sees the page's elements, and the page's CSP does not apply to it.
_WORLD = "axe"
# What depends on colours. Other rules take most of the time.
_CONTRAST = '{runOnly: ["color-contrast", "link-in-text-block"]}'
_RUN_AXE = """
axe.run(document, {resultTypes: ["violations"], ...%s}).then(found => found.violations.flatMap(
  rule => rule.nodes.map(node => `axe ${rule.id}: ${node.target.join(" ")}: ${node.failureSummary}`)
))
"""
# Elements that begin or end outside the viewport, unless an ancestor of theirs scrolls.
_OVERFLOW = """
(() => {
  const root = document.documentElement;
  if (root.scrollWidth <= root.clientWidth) return [];
  const wide = [...document.querySelectorAll("body *")].filter(
    each => each.getBoundingClientRect().right > root.clientWidth + 1
  );
  const shown = wide.slice(0, 5).map(each => each.outerHTML.slice(0, 120));
  return [`scrolls horizontally: ${root.scrollWidth} > ${root.clientWidth} px: ${shown.join(" | ")}`];
})()
"""


def reason_to_skip() -> str | None:
    """What the tests in a browser lack, or None."""
    if chromium.program() is None:
        return "chromium is not installed"
    return None if _packages() else "Playwright is not installed: run `make clients`"


def _packages() -> Path | None:
    """The folder of the packages in the environment, if it has the Python version of this process."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = ENVIRONMENT / "lib" / version / "site-packages"
    return found if (found / "playwright").is_dir() else None


@functools.cache
def _axe() -> str:
    packages = _packages()
    assert packages is not None
    return (packages / "axe_playwright_python" / "axe.min.js").read_text(encoding="utf-8")


@dataclass
class Tab:
    """A tab in a new profile.

    Attributes:
        page: Playwright's page.
        cdp: the page's DevTools protocol.
        javascript: whether the page's scripts run.
        logged: violations of the CSP, console messages and uncaught errors since the last call of `faults`.
    """

    page: Any
    cdp: Any
    javascript: bool
    logged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.logged.append(f"uncaught: {error}"))
        self.cdp.on("Audits.issueAdded", lambda event: self._on_issue(event["issue"]))
        self.cdp.on("Log.entryAdded", lambda event: self._on_entry(event["entry"]))
        self.cdp.send("Audits.enable")
        self.cdp.send("Log.enable")

    def log_in(self, url: str, cookie: str) -> None:
        """Give the tab a session of the console at this address."""
        self.page.context.add_cookies(
            [
                {
                    "name": SESSION_COOKIE,
                    "value": cookie,
                    "url": url.replace("http:", "https:"),
                    "secure": True,
                    "httpOnly": True,
                    "sameSite": "Lax",
                }
            ]
        )

    def open(self, url: str) -> int:
        """Navigate. Returns the status."""
        answer = self.page.goto(url)
        assert answer is not None
        return int(answer.status)

    def show(self, width: int, scheme: Scheme) -> None:
        self.page.set_viewport_size({"width": width, "height": HEIGHT})
        self.page.emulate_media(color_scheme=scheme)

    def faults(self, *, only_contrast: bool = False) -> list[str]:
        """The faults of the page as it is shown now, and what was logged since the last call.

        Args:
            only_contrast: let axe-core check only what depends on colours.
        """
        axe = _RUN_AXE % (_CONTRAST if only_contrast else "{}")
        found = [*self.logged, *self._evaluate(_OVERFLOW), *self._evaluate(axe, _axe())]
        self.logged.clear()
        return found

    def _evaluate(self, script: str, library: str = "") -> list[str]:
        """Evaluate an expression in the isolated world, after a library."""
        frame = self.cdp.send("Page.getFrameTree")["frameTree"]["frame"]["id"]
        world = self.cdp.send("Page.createIsolatedWorld", {"frameId": frame, "worldName": _WORLD})
        context = {"contextId": world["executionContextId"]}
        if library:
            self.cdp.send("Runtime.evaluate", {"expression": library, **context})
        options = {"expression": script, "awaitPromise": True, "returnByValue": True, **context}
        # Where scripts are disabled, a promise never ends. Scripts of the loaded page are not started later.
        self.cdp.send("Emulation.setScriptExecutionDisabled", {"value": False})
        answer = self.cdp.send("Runtime.evaluate", options)
        self.cdp.send("Emulation.setScriptExecutionDisabled", {"value": not self.javascript})
        assert "exceptionDetails" not in answer, answer
        return list(answer["result"]["value"])

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.logged.append(f"console: {message.text}")

    def _on_issue(self, issue: dict[str, Any]) -> None:
        if issue["code"] == "ContentSecurityPolicyIssue":
            details = issue["details"]["contentSecurityPolicyIssueDetails"]
            self.logged.append(f"CSP: {details}")

    def _on_entry(self, entry: dict[str, Any]) -> None:
        if entry["level"] in ("error", "warning"):
            self.logged.append(f"log: {entry['text']}")


@dataclass(frozen=True)
class Browser:
    """A running browser."""

    browser: Any

    @contextlib.contextmanager
    def tab(self, *, javascript: bool = True) -> Iterator[Tab]:
        """Open a tab with a new profile."""
        # Colours that still change from light to dark would be measured half-way.
        context = self.browser.new_context(java_script_enabled=javascript, reduced_motion="reduce")
        context.set_default_timeout(SECONDS * 1000)
        try:
            page = context.new_page()
            yield Tab(page, context.new_cdp_session(page), javascript)
        finally:
            context.close()


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Run the browser. Playwright runs an event loop in this thread, so no coroutine can run in the meantime."""
    packages, program = _packages(), chromium.program()
    assert packages is not None
    if str(packages) not in sys.path:
        # At the end, so that packages of this environment come first.
        sys.path.append(str(packages))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield Browser(running)
        finally:
            running.close()

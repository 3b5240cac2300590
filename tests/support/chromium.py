"""Debian's Chromium without a window, driven over its DevTools protocol, as a person who logs in.

As a program, it is what the variable BROWSER names: `chromium.py LOG ACCOUNT URL`.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

SECONDS = 300
_POLL_SECONDS = 0.1
# The browser reads messages, which end with NUL, from descriptor 3, and writes them to 4. The pipes may be on these
# numbers themselves, so copy them first.
_START = """
import os, sys
read, write = (os.dup(int(number)) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
for number in (3, 4):
    os.set_inheritable(number, True)
os.execv(sys.argv[3], sys.argv[3:])
"""
# Fills in one form and submits it, unless the page has the wanted title. Marks the form, so that a page that is still
# shown is not submitted twice.
_FILL_IN = """
(() => {
  const [until, entered] = %s;
  const form = document.querySelector("form:not([data-sent])");
  if (document.readyState === "complete" && form && !document.title.includes(until)) {
    form.dataset.sent = "1";
    for (const [name, value] of Object.entries(entered)) {
      const field = form.querySelector(`input[name=${name}]:not([type=hidden])`);
      if (field) field.value = value;
    }
    form.requestSubmit(form.querySelector("[type=submit]"));
  }
  return document.title;
})()
"""


def program() -> str | None:
    """Chromium, if it is installed."""
    return shutil.which("chromium")


class Chromium:
    """A browser with one tab."""

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands = commands
        self._answers = answers
        self._buffer = b""
        self._number = 0
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = str(self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])

    def open(self, url: str) -> None:
        self._call("Page.navigate", self._session, url=url)

    def fill_in(self, until: str, **entered: str) -> str:
        """Submit all forms with these fields, until a page has this text in its title. Returns the title."""
        script = _FILL_IN % json.dumps([until, entered])
        deadline, title = time.monotonic() + SECONDS, ""
        while until not in title:
            assert time.monotonic() < deadline, f"the browser shows {title!r}"
            found = self._call("Runtime.evaluate", self._session, expression=script)
            title = str(found["result"].get("value", ""))
            time.sleep(_POLL_SECONDS)
        return title

    def evaluate(self, script: str) -> object:
        """The value of an expression in the page."""
        found = self._call("Runtime.evaluate", self._session, expression=script, returnByValue=True)
        return found["result"].get("value")

    def _call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            pass
        # A page that navigates meanwhile answers with an error.
        result: dict[str, Any] = answer.get("result", {"result": {}})
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = self._answers.read(65536)
            assert chunk, "the browser ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    """Run the browser with a new profile. It accepts every server's certificate."""
    found = program()
    assert found is not None
    (read, ours), (theirs, write) = os.pipe(), os.pipe()
    pipes = (read, write)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run",
                   "ignore-certificate-errors", "no-proxy-server", "remote-debugging-pipe",
                   f"user-data-dir={profile}")  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, *map(str, pipes), found, *(f"--{each}" for each in options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=pipes,
            env=os.environ | {"HOME": profile},
        )
        os.close(read)
        os.close(write)
        try:
            with os.fdopen(theirs, "rb", 0) as answers, os.fdopen(ours, "wb", 0) as commands:
                yield Chromium(commands, answers)
        finally:
            process.terminate()
            process.wait(SECONDS)


def main(log: str, account: str, url: str) -> None:
    with Path(log).open("a") as file:
        file.write(f"{url}\n")
    with chromium() as browser:
        browser.open(url)
        browser.fill_in("You are logged in", login=account, password="any")


if __name__ == "__main__":
    main(*sys.argv[1:])

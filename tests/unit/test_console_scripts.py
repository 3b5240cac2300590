"""The scripts of the console."""

import hashlib
import re

from clustercert.http.console.rendering import STATIC


def test_htmx_is_unchanged() -> None:
    hashes = dict(
        re.findall(
            r"\| `([\w.-]+)` \| `dist/[\w./-]+` \| `([0-9a-f]{64})` \|", (STATIC / "README.md").read_text()
        )
    )
    assert {name: hashlib.sha256((STATIC / name).read_bytes()).hexdigest() for name in hashes} == hashes
    assert set(hashes) | {"live.js"} == {each.name for each in STATIC.glob("*.js")}

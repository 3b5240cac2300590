"""A browser that follows redirects and keeps cookies, for logins at an issuer of a test."""

import ssl
from pathlib import Path

import httpx2

SECONDS = 300


def new_browser(ca_file: Path) -> httpx2.Client:
    tls = ssl.create_default_context(cafile=str(ca_file))
    return httpx2.Client(verify=tls, trust_env=False, timeout=SECONDS, follow_redirects=True)

"""Fetches from an issuer's server on loopback, over TLS: what a hostile or broken server can't do."""

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustercert.authn.oidc.connection import FetchFailed
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.authn.oidc.keys import fetch_keys
from clustercert.model.login_client import DISCOVERY_PATH
from clustercert.model.requests import is_https_url
from support.oidc import IssuerServer, Response, key_set, new_key

KEY = new_key("first")


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[IssuerServer]:
    with IssuerServer(tmp_path).running() as running:
        yield running


def settings(url: str, **fields: object) -> OidcIssuer:
    return OidcIssuer.model_validate(
        {"name": "idp", "issuer": url, "audiences": ["clustercert"], "domain": "Default", **fields}
    )


def source(issuer: IssuerServer, **fields: object) -> OidcIssuer:
    return settings(issuer.url, **{"ca_file": issuer.ca_file, **fields})


async def failure(source: OidcIssuer, seconds: float = 60) -> str:
    with pytest.raises(FetchFailed) as caught:
        await fetch_keys(source, seconds)
    return str(caught.value)


async def test_keys_are_found_by_discovery_or_at_their_address(issuer: IssuerServer) -> None:
    (key,) = await fetch_keys(source(issuer))
    assert key.id == "first"
    del issuer.responses[DISCOVERY_PATH]
    assert await fetch_keys(source(issuer, jwks_uri=f"{issuer.url}/keys"))


async def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(key_set(KEY))
    (key,) = await fetch_keys(settings("https://unreachable.example", keys_file=file))
    assert key.id == "first"
    with pytest.raises(FetchFailed, match="missing"):
        await fetch_keys(settings("https://unreachable.example", keys_file=tmp_path / "missing"))


@pytest.mark.parametrize(
    "location", ["https://attacker.example/keys", "/elsewhere", "http://127.0.0.1/", "http://["]
)
@pytest.mark.parametrize("path", [DISCOVERY_PATH, "/keys"])
async def test_a_redirect_is_not_followed(issuer: IssuerServer, path: str, location: str) -> None:
    issuer.responses["/elsewhere"] = Response(key_set(KEY))
    issuer.responses[path] = Response(b"", 302, {"Location": location})
    assert f"redirects to '{location}'" in await failure(source(issuer))
    assert "/elsewhere" not in issuer.requests


@pytest.mark.parametrize("path", [DISCOVERY_PATH, "/keys"])
async def test_a_response_of_ten_megabytes_is_cut_off(issuer: IssuerServer, path: str) -> None:
    issuer.responses[path] = Response(b" " * 10_000_000)
    assert "more than 524288 bytes" in await failure(source(issuer))


async def test_a_compressed_response_is_refused(issuer: IssuerServer) -> None:
    issuer.responses["/keys"] = Response(gzip.compress(b" " * 10_000_000), 200, {"Content-Encoding": "gzip"})
    assert "compressed" in await failure(source(issuer))


@pytest.mark.parametrize("path", [DISCOVERY_PATH, "/keys"])
async def test_a_server_that_hangs_is_left_in_time(issuer: IssuerServer, path: str) -> None:
    end = threading.Event()
    issuer.responses[path] = Response(b"{}", work=lambda: end.wait(60))
    try:
        assert "no complete response" in await failure(source(issuer), 0.5)
    finally:
        end.set()


async def test_the_event_loop_goes_on_while_a_server_hangs(issuer: IssuerServer) -> None:
    end = threading.Event()
    issuer.responses["/keys"] = Response(key_set(KEY), work=lambda: end.wait(60))
    fetching = asyncio.create_task(fetch_keys(source(issuer), 60))
    while "/keys" not in issuer.requests:
        await asyncio.sleep(0.01)
    end.set()
    assert len(await fetching) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"[" * 100_000])
@pytest.mark.parametrize("path", [DISCOVERY_PATH, "/keys"])
async def test_a_response_that_is_no_json_object_is_refused(
    issuer: IssuerServer, path: str, body: bytes
) -> None:
    issuer.responses[path] = Response(body)
    assert await failure(source(issuer))


@pytest.mark.parametrize("status", [204, 401, 404, 500])
async def test_another_status_than_200_is_refused(issuer: IssuerServer, status: int) -> None:
    issuer.responses["/keys"] = Response(b"", status)
    assert str(status) in await failure(source(issuer))


@pytest.mark.parametrize(
    "changed",
    [
        {"issuer": "https://attacker.example"},
        {"issuer": None},
        {"jwks_uri": "http://127.0.0.1/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "https://user:password@127.0.0.1/keys"},
        {"jwks_uri": None},
        {"jwks_uri": ["https://127.0.0.1/keys"]},
    ],
)
async def test_a_discovery_document_of_another_issuer_or_address_is_refused(
    issuer: IssuerServer, changed: dict[str, object]
) -> None:
    document = json.loads(issuer.responses[DISCOVERY_PATH].body) | changed
    issuer.responses[DISCOVERY_PATH] = Response(json.dumps(document).encode())
    assert "discovery document" in await failure(source(issuer))
    assert issuer.requests == [DISCOVERY_PATH]


async def test_a_server_with_an_untrusted_certificate_is_refused(issuer: IssuerServer) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in await failure(source(issuer, ca_file=None))
    assert not issuer.requests


async def test_a_broken_ca_file_is_named(issuer: IssuerServer, tmp_path: Path) -> None:
    file = tmp_path / "broken.pem"
    file.write_text("no certificate")
    assert await failure(source(issuer, ca_file=file))
    assert "missing.pem" in await failure(source(issuer, ca_file=tmp_path / "missing.pem"))


async def test_an_unreachable_server_is_a_failure(issuer: IssuerServer) -> None:
    issuer.stop()
    assert "ConnectError" in await failure(source(issuer))


@pytest.mark.parametrize(
    "url",
    [
        "http://sso.example.com",
        "https://",
        "https://sso.example.com/#a",
        "https://a:b@sso.example.com",
        "https://sso.example.com:x",
        "https://sso.example.com/ a",
        "https://sso.example.com/\n",
        "https://sso.ex\u00e4mple.com",
        "//sso.example.com",
        "https://[::1",
        7,
        None,
    ],
)
def test_what_is_no_https_address(url: object) -> None:
    assert not is_https_url(url)

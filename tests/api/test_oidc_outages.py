"""An issuer that misbehaves: its tokens get 503, the log says why, and other issuers are not affected."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from clustercert.http import middleware
from support import world as worlds
from support.log_capture import captured_logs
from support.oidc import IssuerServer, Response
from support.service import Service
from support.world import World

pytestmark = pytest.mark.slow

DISCOVERY = "/.well-known/openid-configuration"
SECONDS = 60


def ten_megabytes(issuer: IssuerServer, _: threading.Event) -> None:
    issuer.responses["/keys"] = Response(b'{"keys": [' + b" " * 10_000_000 + b"]}")


def hang(issuer: IssuerServer, released: threading.Event) -> None:
    issuer.responses["/keys"].work = lambda: released.wait(SECONDS)


def redirect(issuer: IssuerServer, _: threading.Event) -> None:
    issuer.responses["/keys"] = Response(b"", 302, {"Location": "https://attacker.example/keys"})


def name_another_issuer(issuer: IssuerServer, _: threading.Event) -> None:
    document = {"issuer": "https://attacker.example", "jwks_uri": f"{issuer.url}/keys"}
    issuer.responses[DISCOVERY] = Response(json.dumps(document).encode())


def fail(issuer: IssuerServer, _: threading.Event) -> None:
    issuer.responses[DISCOVERY] = Response(b"<html>", 500)


@pytest.mark.parametrize(
    ("break_issuer", "reason"),
    [
        (ten_megabytes, "sent more than 524288 bytes"),
        (hang, "no complete response within 10 seconds"),
        (redirect, "redirects to 'attacker.example'; redirects are not followed"),
        (name_another_issuer, "the discovery document names another issuer"),
        (fail, "answered with status 500"),
    ],
)
def test_an_issuer_that_misbehaves_does_not_touch_others(
    world: World, tmp_path: Path, break_issuer: Callable[[IssuerServer, threading.Event], None], reason: str
) -> None:
    released = threading.Event()
    (tmp_path / "bad").mkdir()
    with IssuerServer(tmp_path / "bad").running() as bad, IssuerServer(tmp_path).running() as good:
        break_issuer(bad, released)
        issuers = [
            each.settings(name=name, projects=["a" * 32]) for name, each in (("bad", bad), ("good", good))
        ]
        identity = {"region": worlds.REGION, "issuers": issuers}
        with Service(world.settings(identity=identity)).running() as service:

            def log_in(issuer: IssuerServer, subject: str) -> httpx.Response:
                headers = {"Authorization": f"Bearer {issuer.token(sub=subject)}"}
                return service.client.get("/v3/auth/projects", headers=headers)

            with captured_logs(middleware) as said, ThreadPoolExecutor(1) as pool:
                refused = pool.submit(log_in, bad, "alice")
                assert {log_in(good, f"user-{number}").status_code for number in range(20)} == {200}
                response = refused.result(SECONDS)
            released.set()
            assert (response.status_code, "Retry-After" in response.headers) == (503, True)
            [line] = [each for each in said if each.get("status") == 503]
            assert reason in str(line["cause"])
            assert reason not in response.text

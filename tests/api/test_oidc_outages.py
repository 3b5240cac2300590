"""Issuers that are away or misbehave, and withdrawn keys: who is refused, and that others are not affected."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from clustercert.http import middleware
from support import world as worlds
from support.log_capture import captured_logs
from support.oidc import IssuerServer, Response, new_key
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
        pytest.param(hang, "no complete response within 10 seconds", marks=pytest.mark.full),
        (redirect, "redirects to 'https://attacker.example/keys'; redirects are not followed"),
        (name_another_issuer, "the discovery document names a different issuer"),
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

            def log_in(issuer: IssuerServer, subject: str) -> httpx2.Response:
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


def test_failures_count_for_the_limit(service_with: Callable[..., Service], tmp_path: Path) -> None:
    with IssuerServer(tmp_path).running() as issuer:
        identity = {"region": worlds.REGION, "issuers": [issuer.settings(projects=["a" * 32])]}
        client = service_with(identity=identity, limits={"failures_per_minute": 3}).client
        wrong = {"Authorization": f"Bearer {issuer.token(aud='other')}"}
        statuses = [client.get("/v3/auth/projects", headers=wrong).status_code for _ in range(4)]
        assert statuses == [401, 401, 401, 429]
        right = {"Authorization": f"Bearer {issuer.token()}"}
        assert client.get("/v3/auth/projects", headers=right).status_code == 200


def test_tokens_of_an_issuer_that_is_away_count_for_the_limit(
    service_with: Callable[..., Service], tmp_path: Path
) -> None:
    with IssuerServer(tmp_path).running() as issuer:
        issuer.stop()
        identity = {"region": worlds.REGION, "issuers": [issuer.settings(projects=["a" * 32])]}
        client = service_with(identity=identity, limits={"failures_per_minute": 3}).client
        headers = {"Authorization": f"Bearer {issuer.token()}"}
        statuses = [client.get("/v3/auth/projects", headers=headers).status_code for _ in range(5)]
        assert statuses == [503, 503, 503, 429, 429]


def test_an_issuer_that_is_away_does_not_touch_others(
    service_with: Callable[..., Service], world: World, tmp_path: Path
) -> None:
    (tmp_path / "away").mkdir()
    with IssuerServer(tmp_path / "away").running() as away, IssuerServer(tmp_path).running() as issuer:
        away.stop()
        both = [
            away.settings(name="away", projects=[world.project.id]),
            issuer.settings(projects=[world.project.id], roles=[{"role": "member"}]),
        ]
        client = service_with(identity={"region": worlds.REGION, "issuers": both}).client
        response = client.get("/v3/projects", headers={"Authorization": f"Bearer {away.token()}"})
        assert (response.status_code, "Retry-After" in response.headers) == (503, True)
        headers = {"Authorization": f"Bearer {issuer.token()}"}
        assert len(client.get("/v3/projects", headers=headers).json()["projects"]) == 1
        issuer.stop()
        headers = {"Authorization": f"Bearer {issuer.token(sub='another')}"}
        assert client.get("/v3/projects", headers=headers).status_code == 200


def test_a_token_of_a_withdrawn_key_is_refused_although_it_was_cached(
    service_with: Callable[..., Service], world: World, tmp_path: Path
) -> None:
    with IssuerServer(tmp_path).running() as issuer:
        one = issuer.settings(projects=[world.project.id])
        client = service_with(identity={"region": worlds.REGION, "issuers": [one]}).client
        old = {"Authorization": f"Bearer {issuer.token()}"}
        assert client.get("/v3/auth/projects", headers=old).status_code == 200
        issuer.publish(new_key("other"))
        new = {"Authorization": f"Bearer {issuer.token()}"}
        assert client.get("/v3/auth/projects", headers=new).status_code == 200
        assert client.get("/v3/auth/projects", headers=old).status_code == 401

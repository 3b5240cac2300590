"""Two workers and an issuer on loopback: rotated keys under load, and a blocked user."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from support import world as worlds
from support.oidc import IssuerServer, new_key
from support.serve_process import serving
from support.wait import SECONDS, eventually

REQUESTS, ROTATED_AT = 200, 60
# A connection for each request, so that both workers get some.
UNKEPT = httpx.Limits(max_keepalive_connections=0)


def test_workers_follow_a_rotated_key_and_a_blocked_user(tmp_path: Path) -> None:
    world = worlds.make(tmp_path)
    with IssuerServer(tmp_path).running() as issuer:
        configured = json.dumps([issuer.settings(projects=[world.project.id], ca_file=str(issuer.ca_file))])
        with (
            serving(world, "--workers", "2", IDENTITY__ISSUERS=configured) as service,
            httpx.Client(base_url=service.url, trust_env=False, timeout=SECONDS, limits=UNKEPT) as client,
        ):

            def log_in(subject: str) -> int:
                headers = {"Authorization": f"Bearer {issuer.token(sub=subject)}"}
                return client.get("/v3/auth/projects", headers=headers).status_code

            def log_in_under_load(number: int) -> int:
                if number == ROTATED_AT:
                    issuer.publish(*issuer.keys, new_key(f"rotated-{time.time_ns()}"))
                return log_in(f"user-{number}")

            with ThreadPoolExecutor(8) as pool:
                assert set(pool.map(log_in_under_load, range(REQUESTS))) == {200}
            operator = world.people["operator"].headers
            token = {"token": issuer.token(sub="mallory")}
            said = client.post("/clustercert/v1/identity/explain", json=token, headers=operator).json()
            path = f"/clustercert/v1/users/{said['user']['id']}/block"
            assert client.post(path, headers=operator).status_code == 200
            eventually(lambda: {log_in("mallory") for _ in range(8)} == {401})

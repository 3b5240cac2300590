"""Each route refuses a body over its own limit unread, and accepts the largest body that its model allows."""

import json
from typing import Any

import httpx2
import pytest

from clustercert.authn.oidc.tokens import MAX_TOKEN_BYTES
from clustercert.certificates.recorder import MAX_NOTE
from clustercert.http.administration.ca_rotation import MAX_RESULTS
from clustercert.http.app import new_app
from clustercert.http.openapi import document
from clustercert.issuance.signers.account_tokens import MAX_TOKEN_BYTES as MAX_SIGNER_TOKEN
from clustercert.model.times import MAX_LABELS
from clustercert.pki.certificates import MAX_CSR_BYTES
from clustercert.policy.templates import MAX_REASON
from clustercert.requests.terms import MAX_GROUP, MAX_GROUPS
from support.service import Service
from support.world import World

KIB = 1024
OWN, CCE = "/clustercert/v1", ("/api/v3/", "/autopilot/v3/")
CLUSTER = f"{OWN}/projects/{{project_id}}/clusters/{{cluster}}"
ROTATION = f"{CLUSTER}/client-ca-rotation"
REQUEST = f"{OWN}/access-requests/{{access_request_id}}"
# The service reads these bodies in parts: `kubernetes/webhook`.
WEBHOOK = f"{OWN}/kubernetes/"

PASSWORD = "p" * 1024
NAME = "n" * 255
# A character in UTF-8 that Python's JSON encoder writes with six bytes.
WIDE = "é"
LABELS = {f"{'d' * 249}.{number:03}/{'k' * 63}": "v" * 63 for number in range(MAX_LABELS)}
PEM_64_KIB = ("A" * 64 + "\n") * (64 * KIB // 65)
NAMED = {"name": NAME, "domain": {"name": NAME}}

# For each route with a body, the largest body of an honest client.
LARGEST: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v3/auth/tokens"): {
        "auth": {
            "identity": {"methods": ["password"], "password": {"user": NAMED | {"password": PASSWORD}}},
            "scope": {"project": NAMED},
        }
    },
    ("POST", "/v3/users/{user_id}/password"): {
        "user": {"original_password": WIDE * 1024, "password": WIDE * 1024}
    },
    ("POST", "/v3.0/OS-CREDENTIAL/securitytokens"): {
        "auth": {"identity": {"methods": ["token"], "token": {"id": "t" * 255, "duration_seconds": "86400"}}}
    },
    ("POST", f"{OWN}/access-requests"): {
        "cluster_id": NAME,
        "groups": ["g" * MAX_GROUP] * MAX_GROUPS,
        "duration": 3600,
        "reason": WIDE * MAX_REASON,
        "ticket": NAME,
        "rule": NAME,
    },
    **{
        ("POST", f"{REQUEST}/{action}"): {"reason": WIDE * MAX_REASON, "duration": 3600, "part": "request"}
        for action in ("approve", "deny", "extend", "end")
    },
    **{
        ("POST", path): {"reason": "cessationOfOperation", "note": WIDE * MAX_NOTE, "signature": "s" * 1024}
        for path in (
            f"{CLUSTER}/revoke".replace("{cluster}", "{cluster_id}"),
            f"{CLUSTER}/users/{{user_id}}/revoke".replace("{cluster}", "{cluster_id}"),
            f"{CLUSTER}/certificates/{{certificate}}/revoke".replace("{cluster}", "{cluster_id}"),
            f"{OWN}/certificates/{{certificate}}/revoke",
            f"{OWN}/users/{{user_id}}/revoke",
            f"{OWN}/certificates/{{certificate}}/revoke-with-key",
        )
    },
    ("POST", f"{OWN}/caller/logout"): {"keys": True},
    ("POST", f"{OWN}/identity/explain"): {"token": "t" * MAX_TOKEN_BYTES},
    ("POST", ROTATION): {
        "signer": NAME,
        "secret": "s" * MAX_SIGNER_TOKEN,
        "auto_complete": True,
        "deny_old": True,
    },
    ("POST", f"{CLUSTER}/unknown-credentials"): {"count": 10**6},
    ("POST", f"{ROTATION}/complete"): {"force": True, "holders": 10**9},
    ("POST", f"{ROTATION}/certificates"): {"csr": ("A" * 64 + "\n") * (MAX_CSR_BYTES // 65)},
    ("POST", f"{ROTATION}/proofs"): {
        "results": [
            {"client_ca_id": "i" * 36, "address": "a" * 300, "outcome": "refused", "detail": "d" * 300}
        ]
        * MAX_RESULTS
    },
    ("PUT", CLUSTER): {
        "server_ca": PEM_64_KIB,
        "signer_token": "s" * MAX_SIGNER_TOKEN,
        "labels": LABELS,
        "description": WIDE * 255,
    },
    ("POST", f"{OWN}/users/{{name}}/access-keys"): {"description": WIDE * 255},
    ("PUT", f"{OWN}/access-keys/{{access_key}}"): {"description": WIDE * 255, "enabled": True},
    ("PUT", f"{OWN}/domains/{{name}}"): {"id": "i" * 32, "name": WIDE * 64, "enabled": True},
    ("PUT", f"{OWN}/users/{{name}}/password"): {"password": WIDE * 1024},
    **{
        ("PUT", f"{OWN}/{kind}/{{name}}"): {"labels": LABELS, "description": WIDE * 255, "password": PASSWORD}
        for kind in ("projects", "users", "groups")
    },
}
# Routes whose limit is above that of a login, in KiB. All others have 8 KiB or less.
LARGER = {
    ("POST", "/v3/users/{user_id}/password"): 16,
    ("POST", f"{OWN}/access-requests"): 32,
    ("POST", f"{OWN}/identity/explain"): 20,
    ("POST", ROTATION): 24,
    ("POST", f"{ROTATION}/certificates"): 20,
    ("POST", f"{ROTATION}/proofs"): 128,
    ("PUT", CLUSTER): 128,
    **{("PUT", f"{OWN}/{kind}/{{name}}"): 48 for kind in ("projects", "users", "groups")},
}


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in document(new_app("api")).get("paths", {}).items()
        for method, operation in methods.items()
    }


OPERATIONS = operations()
WITH_BODY = [
    each
    for each, operation in OPERATIONS.items()
    if "requestBody" in operation and not each[1].startswith(CCE)
]


def limit_of(method: str, path: str) -> int:
    return int(OPERATIONS[method, path].get("x-max-body-bytes", 8 * KIB))


def sent(client: httpx2.Client, method: str, path: str, size: int) -> httpx2.Response:
    address = path.replace("{", "").replace("}", "")
    # Spaces are no JSON, so a route that parses the body before it looks at the size answers with another status.
    return client.request(method, address, content=b" " * size, headers={"Content-Type": "application/json"})


def test_every_route_with_a_body_is_in_the_table() -> None:
    assert set(WITH_BODY) == LARGEST.keys()


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_the_largest_honest_body_fits_and_the_limit_is_not_much_larger(method: str, path: str) -> None:
    assert len(json.dumps(LARGEST[method, path])) <= limit_of(method, path)
    assert limit_of(method, path) <= LARGER.get((method, path), 8) * KIB


@pytest.mark.parametrize(("method", "path"), [each for each in OPERATIONS if each[1].startswith(CCE)])
def test_the_routes_of_cce_have_the_limit_of_the_contract(service: Service, method: str, path: str) -> None:
    assert sent(service.client, method, path, 64 * KIB).status_code != 413
    assert sent(service.client, method, path, 64 * KIB + 1).status_code == 413


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_body_over_the_limit_of_its_route_is_refused(service: Service, method: str, path: str) -> None:
    limit = limit_of(method, path)
    assert sent(service.client, method, path, limit).status_code != 413
    refused = sent(service.client, method, path, limit + 1)
    assert refused.status_code == 413
    assert f"larger than {limit} bytes" in json.dumps(refused.json())


def test_routes_without_a_body_refuse_a_large_one(service: Service, world: World) -> None:
    headers = world.people["admin"].headers
    for size, status in ((8 * KIB, 200), (8 * KIB + 1, 413)):
        answer = service.client.request("GET", f"{OWN}/caller", content=b" " * size, headers=headers)
        assert answer.status_code == status

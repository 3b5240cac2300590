"""Requests as Huawei Cloud's SDK for PHP sends and signs them.

Source: huaweicloud-sdk-php-v3, Core/src/Auth/BasicCredentials.php and Signer.php. The SDK is not in the package indexes
that the tests use.
"""

import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from support.world import World


def php_headers(
    world: World, method: str, path: str, query: dict[str, str] | None = None, secret: str | None = None
) -> dict[str, str]:
    """Sign as the SDK does: all its header fields, and UNSIGNED-PAYLOAD in place of the body."""
    access_key, own_secret = world.access_key
    date = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "User-Agent": "huaweicloud-usdk-php/3.0",
        "X-Project-Id": world.project.id,
        "X-Sdk-Content-Sha256": "UNSIGNED-PAYLOAD",
        "X-Sdk-Date": date,
    }
    signed = {name.lower(): value for name, value in sorted(headers.items())}
    pairs = "&".join(
        f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted((query or {}).items())
    )
    lines = [f"{name}:{value}" for name, value in signed.items()]
    canonical = "\n".join([method, f"{path}/", pairs, *lines, "", ";".join(signed), "UNSIGNED-PAYLOAD"])
    to_sign = f"SDK-HMAC-SHA256\n{date}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.new((secret or own_secret).encode(), to_sign.encode(), "sha256").hexdigest()
    authorization = (
        f"SDK-HMAC-SHA256 Access={access_key}, SignedHeaders={';'.join(signed)}, Signature={signature}"
    )
    return headers | {"Authorization": authorization}


def sent(client: httpx2.Client, world: World, method: str, path: str, **more: Any) -> httpx2.Response:
    headers = php_headers(world, method, path, more.get("params"), more.pop("secret", None))
    return client.request(method, path, headers=headers, **more)


def test_clusters_are_listed_and_shown(client: httpx2.Client, world: World) -> None:
    shown = sent(client, world, "GET", world.path("eip", ""))
    assert shown.status_code == 200
    assert [each["type"] for each in shown.json()["status"]["endpoints"]] == ["Internal", "External"]
    clusters = world.path("eip", "").rpartition("/")[0]
    listed = sent(client, world, "GET", clusters, params={"status": "Available", "type": "VirtualMachine"})
    assert shown.json() in listed.json()["items"]
    assert sent(client, world, "GET", world.path("eip", "/openapi")).status_code == 200
    projects = sent(client, world, "GET", "/v3/projects", params={"name": world.project.name})
    assert [each["id"] for each in projects.json()["projects"]] == [world.project.id]


def test_a_wrong_secret_is_refused_without_a_reason(client: httpx2.Client, world: World) -> None:
    refused = sent(client, world, "GET", world.path("eip", ""), secret="wrong")
    assert (refused.status_code, refused.json()["error_msg"]) == (401, "Authorization failed.")


@pytest.mark.parametrize("secret", [None, "wrong"])
def test_what_has_a_body_is_refused_and_the_answer_says_why(
    client: httpx2.Client, world: World, secret: str | None
) -> None:
    said = set()
    for path, body in (
        (world.path(), {"duration": 1}),
        (world.path(tail="/clustercertrevoke"), {"userId": world.people["admin"].user.id}),
        ("/v3.0/OS-CREDENTIAL/securitytokens", {"auth": {"identity": {"methods": ["token"]}}}),
    ):
        refused = sent(client, world, "POST", path, content=json.dumps(body).encode(), secret=secret)
        assert (refused.status_code, refused.json()["error_code"]) == (401, "CCE.01401001"), path
        assert "WWW-Authenticate" in refused.headers
        said.add(refused.json()["error_msg"])
    [text] = said
    assert text == (
        "Authorization failed. X-Sdk-Content-Sha256 is UNSIGNED-PAYLOAD, so the signature does not cover the body."
        " Sign the SHA-256 of the body instead."
    )

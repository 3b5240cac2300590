"""Service accounts of the double of kube-apiserver with a real kubectl: tokens, keys, and whom they name."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from support.apiserver import ApiServer
from support.apiserver.service_accounts import CACHE_SECONDS
from support.apiserver_clients import client_of
from support.kubectl import kubectl


def created(apiserver: ApiServer, *options: str) -> str:
    """A token of the service account monitoring/prometheus, as on the page about identity providers."""
    command = ("create", "token", "prometheus", "--namespace=monitoring", *options)
    done = kubectl(apiserver.admin_kubeconfig(), *command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def raw(apiserver: ApiServer, path: str) -> Any:
    done = kubectl(apiserver.admin_kubeconfig(), "get", "--raw", path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def part(token: str, number: int) -> Any:
    text = token.split(".")[number]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def test_kubectl_creates_a_token_whose_key_is_published(apiserver: ApiServer) -> None:
    uid = apiserver.add_service_account("monitoring", "prometheus")
    token = created(apiserver, "--audience=clustercert")
    discovery = raw(apiserver, "/.well-known/openid-configuration")
    assert discovery["jwks_uri"] == f"{apiserver.url}/openid/v1/jwks"
    claims = part(token, 1)
    assert (claims["iss"], claims["aud"]) == (discovery["issuer"], ["clustercert"])
    account = {"name": "prometheus", "uid": uid}
    assert claims["kubernetes.io"] == {"namespace": "monitoring", "serviceaccount": account}
    assert part(token, 0)["kid"] in {key["kid"] for key in raw(apiserver, "/openid/v1/jwks")["keys"]}


def test_a_token_of_a_deleted_service_account_ends(
    apiserver: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    apiserver.add_service_account("monitoring", "prometheus")
    token, admin = created(apiserver), apiserver.admin_kubeconfig()
    bearer = {"Authorization": f"Bearer {token}"}
    with client_of(apiserver, apiserver.folder, None) as client:
        said = client.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json={}, headers=bearer)
        assert said.json()["status"]["userInfo"]["username"] == "system:serviceaccount:monitoring:prometheus"
        assert kubectl(admin, "delete", "serviceaccount", "prometheus", "-n", "monitoring").returncode == 0
        assert client.get("/version", headers=bearer).status_code == 200, "the token is in the cache"
        after = datetime.now(UTC) + timedelta(seconds=CACHE_SECONDS)
        monkeypatch.setattr(apiserver, "now", lambda: after)
        assert client.get("/version", headers=bearer).status_code == 401

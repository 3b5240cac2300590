"""Clients for kube-apiserver's webhooks (authorization, audit), configured by kubeconfig files."""

import base64
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import yaml


class KubeconfigCaller:
    """POSTs JSON to the server of a kubeconfig's current context, as Go's client does.

    Over http the user's token stays here: client-go reads a user only for https.
    Source: kubernetes/client-go, tools/clientcmd/client_config.go, IsConfigTransportTLS.
    """

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Raises OSError, ValueError, KeyError or yaml.YAMLError if kube-apiserver would not start."""
        document = yaml.safe_load(path.read_text())
        context = _named(document["contexts"], document["current-context"])["context"]
        cluster = _named(document["clusters"], context["cluster"])["cluster"]
        user = _named(document["users"], context["user"])["user"] if context.get("user") else {}
        self.url = str(cluster["server"])
        self._timeout_s = timeout_s
        headers = {
            "Accept": "application/json, */*",
            "Content-Type": "application/json",
            "User-Agent": "Go-http-client/1.1",
            "Accept-Encoding": "gzip",
        }
        token = user.get("token")
        if token is None and "tokenFile" in user:
            token = (path.parent / user["tokenFile"]).read_text().strip()
        if token is not None and self.url.startswith("https:"):
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx2.Client(
            headers=headers, verify=_context(cluster, user, path.parent), timeout=timeout_s, trust_env=False
        )

    def post(self, body: bytes) -> httpx2.Response:
        """Raises httpx2.HTTPError."""
        return self._http.post(self.url, params={"timeout": f"{self._timeout_s:g}s"}, content=body)

    def close(self) -> None:
        self._http.close()


def _named(items: list[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    for item in items:
        if item["name"] == name:
            return item
    raise ValueError(f"the kubeconfig has no {name}")


def _context(cluster: Mapping[str, Any], user: Mapping[str, Any], folder: Path) -> ssl.SSLContext | bool:
    if not str(cluster["server"]).startswith("https:"):
        return False
    context = ssl.create_default_context()
    if "certificate-authority-data" in cluster:
        context.load_verify_locations(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    elif "certificate-authority" in cluster:
        context.load_verify_locations(cafile=folder / cluster["certificate-authority"])
    if "client-certificate" in user:
        context.load_cert_chain(folder / user["client-certificate"], folder / user["client-key"])
    return context

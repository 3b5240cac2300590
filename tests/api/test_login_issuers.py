"""What clients learn about the issuers at which people log in."""

from collections.abc import Callable
from pathlib import Path

import httpx2

from clustercert.pki.keys import key_pem, new_key
from support import world as worlds
from support.oidc import IssuerServer
from support.service import Service


def test_clients_see_where_people_log_in(
    service_with: Callable[..., Service], client: httpx2.Client, tmp_path: Path
) -> None:
    assert client.get("/clustercert/v1/issuers").json() == {"issuers": [], "urls": []}
    with IssuerServer(tmp_path).running() as issuer:
        machines = issuer.settings(name="ci", issuer="https://ci.example.com", projects=["a" * 32])
        people = issuer.settings(
            audiences=["https://clustercert.example.com"],
            projects=["a" * 32],
            client_id="clustercert-cli",
            scopes=["openid"],
            redirect_uris=["http://localhost:8000"],
            login_token="access",
            login_parameters={"prompt": "consent"},
            resource="https://clustercert.example.com",
            trusted_audiences=["https://mesh.example.com"],
        )
        ca_pem = issuer.ca_file.read_text()
        issuer.ca_file.write_text(f"{ca_pem}{key_pem(new_key('ec-p256')).decode()}")
        identity = {"region": worlds.REGION, "issuers": [machines, people]}
        addresses = {
            "public_url": "https://clustercert.example.com",
            "other_urls": ["https://10.0.0.5:8443", "https://clustercert.example.com"],
        }
        found = service_with(identity=identity, server=addresses).client.get("/clustercert/v1/issuers")
    assert found.json() == {
        "issuers": [
            {
                "name": "sso",
                "issuer": issuer.url,
                "client_id": "clustercert-cli",
                "scopes": ["openid"],
                "redirect_uris": ["http://localhost:8000"],
                "token": "access",
                "parameters": {"prompt": "consent"},
                "resource": "https://clustercert.example.com",
                "trusted_audiences": ["https://mesh.example.com"],
                "ca_pem": ca_pem,
            }
        ],
        "urls": ["https://clustercert.example.com", "https://10.0.0.5:8443"],
    }

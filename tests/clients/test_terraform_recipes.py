"""The Terraform recipes of docs/recipes.md: what the providers' SDKs send with these values, against a demo.

The providers themselves are not run. Recorded: requests of gophertelekomcloud. Read in its code: what the provider of
Huawei Cloud sends.
"""

import base64
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509

from support.go_clients import GoClient
from support.installed_demo import Demo
from support.page_steps import block

RECIPES = "docs/recipes.md"
ADDRESS = "https://clustercert.example.com:8443"
READS = re.compile(r"base64decode\(local\.prod\.(.*)\)$|= local\.prod\.(.*)$", re.MULTILINE)


def text_of(name: str) -> str:
    return block(RECIPES, f"recipe: {name}")


def value(hcl: str, field: str) -> str:
    """The text or number that a field is set to."""
    [found] = re.findall(rf'^ +{field} += (?:"(.*?)"|(-?\d+))', hcl, re.MULTILINE)
    text, number = found
    return str(text or number)


def read(document: Any, path: str) -> Any:
    """What an expression of Terraform reads, such as `users[0].user["client-key-data"]`."""
    for name, number, quoted in re.findall(r'(\w+)|\[(\d+)\]|\["([^"]+)"\]', path):
        document = document[int(number)] if number else document[quoted or name]
    return document


def assert_the_kubernetes_provider_gets_all(hcl: str, document: Any, demo: Demo) -> None:
    """The blocks read address, CA, certificate and key from what the data source has."""
    server, *encoded = [read(document, path or other) for path, other in sorted(READS.findall(hcl))]
    assert server.startswith("https://")
    pems = [base64.b64decode(text, validate=True) for text in encoded]
    assert [b"PRIVATE KEY" in pem for pem in pems] == [False, False, True]
    leaf = x509.load_pem_x509_certificate(pems[1])
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(demo.own.client_ca.read_bytes()))


def test_opentelekomcloud(demo: Demo) -> None:
    hcl, tenant, at = text_of("opentelekomcloud"), demo.own, datetime.now(UTC)
    assert value(hcl, "auth_url") == f"{ADDRESS}/v3"
    unsigned = {"X-Project-Id": tenant.project_id}
    client = GoClient(tenant.url, tenant.access_key, tenant.secret_key, scoped=True, unsigned={})
    project = value(hcl, "tenant_name")
    assert project == tenant.region
    for _ in range(2):
        found = client.get(f"/v3/projects?name={project}", content_type=False, at=at).json()["projects"]
        assert [each["id"] for each in found] == [tenant.project_id]
    # The demo's domain has another name than the one that `db upgrade` creates.
    assert value(hcl, "domain_name") == "Default"
    domains = client.get("/v3/auth/domains?name=demo", content_type=False).json()["domains"]
    assert [each["id"] for each in domains] == [tenant.domain_id]
    catalog = client.get("/v3/auth/catalog", content_type=False).json()["catalog"]
    assert [each["type"] for each in catalog if each["type"] == "ccev2.0"]
    assert "duration" not in hcl
    client = GoClient(tenant.url, tenant.access_key, tenant.secret_key, scoped=True, unsigned=unsigned)
    answer = client.post(tenant.clustercert_path, {"duration": -1})
    assert answer.status == 200, answer.body
    kubeconfig = json.loads(json.dumps(answer.json()))
    assert_the_kubernetes_provider_gets_all(hcl, kubeconfig, demo)


def test_huaweicloud(demo: Demo) -> None:
    hcl, tenant = text_of("huaweicloud"), demo.own
    assert value(hcl, "region") == tenant.region
    assert value(hcl, "auth_url") == f"{ADDRESS}/v3"
    assert value(hcl, "iam") == value(hcl, "cce") == f"{ADDRESS}/"
    client = GoClient(
        tenant.url,
        tenant.access_key,
        tenant.secret_key,
        scoped=False,
        unsigned={"X-Project-Id": tenant.project_id},
    )
    answer = client.post(tenant.clustercert_path, {"duration": int(value(hcl, "duration"))})
    assert answer.status == 200, answer.body
    document = answer.json()
    # The provider flattens the answer.
    flat = {
        "clusters": [
            {
                "server": each["cluster"]["server"],
                "certificate_authority_data": each["cluster"].get("certificate-authority-data"),
            }
            for each in document["clusters"]
        ],
        "users": [
            {name.replace("-", "_"): text for name, text in each["user"].items()}
            for each in document["users"]
        ],
    }
    assert_the_kubernetes_provider_gets_all(hcl, flat, demo)


@pytest.mark.parametrize("name", ["opentelekomcloud", "huaweicloud", "kubernetes-provider"])
def test_blocks_are_closed(name: str) -> None:
    hcl = text_of(name)
    assert hcl.count("{") == hcl.count("}")
    assert not re.search(r"secret_key += \"", hcl)

import base64
import json
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.http.cce.clustercert import kubeconfig, to_json, to_yaml
from clustercert.model import Cluster, Issued, JsonObject
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import new_signing_request
from support.leaf_builder import LeafBuilder
from support.leaf_checks import assert_key_matches, leaf_of, user_of
from support.samples import CA_KEY, client_ca, cluster, grant, server_ca_pem

GOLDEN = Path(__file__).parent.parent / "golden"
EXTERNAL_URL = "https://203.0.113.54:5443"
SAN_URLS = ("https://api.example.com:5443", "https://10.0.0.9:5443")

INTERNAL_ONLY = cluster()
WITH_EIP = cluster(external_url=EXTERNAL_URL)
WITH_SANS = cluster(external_url=EXTERNAL_URL, san_urls=SAN_URLS)


def issued(at: Cluster, *, from_csr: bool = False) -> Issued:
    key = new_key("ec-p256")
    ca = client_ca()
    request = new_signing_request(grant(), key.public_key(), ca, takes_serial=True)
    leaf = LeafBuilder(ca.ca_certificate, CA_KEY).build(request)
    return Issued(
        grant=grant(),
        cluster=at,
        leaf_der=leaf,
        private_key=None if from_csr else key,
        serial=request.credential_number or "",
        credential_number=request.credential_number or "",
        fingerprint="00" * 32,
    )


def without_data(document: JsonObject) -> JsonObject:
    """The document as the API reference prints it: certificates and keys left empty."""
    blank = cast("dict[str, Any]", deepcopy(document))
    for entry in [item["cluster"] for item in blank["clusters"]] + [item["user"] for item in blank["users"]]:
        for name in entry:
            if name.endswith("-data"):
                entry[name] = ""
    return blank


@pytest.mark.parametrize(
    ("golden", "at"),
    [
        ("cce_02_0248.json", INTERNAL_ONLY),
        ("cce_02_0248_eip.json", WITH_EIP),
        ("cce_custom_san.json", WITH_SANS),
    ],
)
def test_a_kubeconfig_is_the_documents_byte_for_byte(golden: str, at: Cluster) -> None:
    expected = json.loads((GOLDEN / golden).read_text())["kubeconfig"]
    document = without_data(kubeconfig(issued(at), insecure_external=True))
    assert json.dumps(document, indent=2) == json.dumps(expected, indent=2)


def test_custom_sans_without_an_eip_follow_the_internal_cluster() -> None:
    document = cast("Any", kubeconfig(issued(cluster(san_urls=SAN_URLS)), insecure_external=True))
    names = ["internalCluster", "customSAN-0", "customSAN-1"]
    assert [entry["name"] for entry in document["clusters"]] == names
    assert [entry["name"] for entry in document["contexts"]] == ["internal", "customSAN-0", "customSAN-1"]
    assert document["current-context"] == "internal"


def test_the_certificate_and_key_are_base64_of_pem_and_belong_together() -> None:
    one = issued(INTERNAL_ONLY)
    document = kubeconfig(one, insecure_external=True)
    assert leaf_of(document).public_bytes(Encoding.DER) == one.leaf_der
    assert_key_matches(document)
    for value in user_of(document).values():
        assert value.startswith("LS0tLS1CRUdJTi")


def test_the_ca_is_the_api_servers_own_and_not_the_client_ca() -> None:
    document = cast("Any", kubeconfig(issued(WITH_SANS), insecure_external=True))
    for entry in document["clusters"]:
        if entry["name"] != "externalCluster":
            assert base64.b64decode(entry["cluster"]["certificate-authority-data"]) == server_ca_pem()


def test_no_cluster_has_both_a_ca_and_the_skip() -> None:
    for at in (INTERNAL_ONLY, WITH_EIP, WITH_SANS):
        for insecure_external in (True, False):
            document = cast("Any", kubeconfig(issued(at), insecure_external=insecure_external))
            for entry in document["clusters"]:
                options = entry["cluster"].keys() & {"certificate-authority-data", "insecure-skip-tls-verify"}
                assert len(options) == 1, entry["name"]


def test_without_the_insecure_external_cluster_only_that_entry_changes() -> None:
    one = issued(WITH_SANS)
    verified = cast("Any", kubeconfig(one, insecure_external=False))
    usual = cast("Any", kubeconfig(one, insecure_external=True))
    entry = verified["clusters"][1]
    assert entry["name"] == "externalCluster"
    assert entry["cluster"] == verified["clusters"][2]["cluster"]
    usual["clusters"][1] = entry
    assert json.dumps(verified) == json.dumps(usual)


def test_a_csr_gets_no_key_back() -> None:
    document = kubeconfig(issued(INTERNAL_ONLY, from_csr=True), insecure_external=True)
    assert list(user_of(document)) == ["client-certificate-data"]


@pytest.mark.parametrize("at", [INTERNAL_ONLY, WITH_EIP, WITH_SANS], ids=["internal", "EIP", "SANs"])
def test_the_yaml_says_the_same_in_the_same_order(at: Cluster) -> None:
    document = kubeconfig(issued(at), insecure_external=True)
    text = to_yaml(document).decode()
    assert json.dumps(yaml.safe_load(text)) == json.dumps(document)
    assert text.startswith("kind: Config\n")
    assert "\ncurrent-context: " in text


@pytest.mark.parametrize("insecure_external", [True, False])
@pytest.mark.parametrize("from_csr", [True, False])
@pytest.mark.parametrize("at", [INTERNAL_ONLY, WITH_EIP, WITH_SANS], ids=["internal", "EIP", "SANs"])
def test_the_json_is_the_document_and_each_time_with_its_own_credential(
    at: Cluster, from_csr: bool, insecure_external: bool
) -> None:
    answers = []
    for _ in range(2):
        one = issued(at, from_csr=from_csr)
        document = kubeconfig(one, insecure_external=insecure_external)
        answers.append(to_json(document))
        assert json.loads(answers[-1]) == document
        assert answers[-1].isascii()
    assert answers[0] != answers[1]

"""Issued certificate + cluster -> the kubeconfig document: JSON as CCE answers it, YAML for kubectl.

| field of CCE                                 | our value                          | why                              |
| -------------------------------------------- | ---------------------------------- | -------------------------------- |
| kind, apiVersion, preferences                | Config, v1, {}                     | cce_02_0248, table 4             |
| clusters[0]                                  | internalCluster, with the CA       | otcextensions reads index 0      |
| externalCluster, if there is an EIP          | no CA, insecure-skip-tls-verify    | table 6; the names that CCE uses |
| externalCluster, `insecure_external = false` | the CA instead of the skip         | names stay, clients find them    |
| externalClusterTLSVerify, if there is an EIP | with the CA                        | real answers have it             |
| customSAN-N                                  | one for each further address       | real answers have the contexts   |
| users[0]                                     | `user`; no key if a CSR was sent   | table 7                          |
| current-context                              | `external` with an EIP, `internal` | table 4                          |

Source: CCE API reference, cce_02_0248, tables 4 to 10.
"""

import json
from base64 import b64encode

import yaml

from clustercert.certificate import der_pem
from clustercert.keypair import key_pem
from clustercert.model import Cluster, Issued, JsonObject

USER = "user"


def render(issued: Issued, *, insecure_external: bool) -> JsonObject:
    """The kubeconfig, its fields in CCE's order; certificates and keys are base64 of PEM."""
    entries = _entries(issued.cluster, insecure_external=insecure_external)
    return {
        "kind": "Config",
        "apiVersion": "v1",
        "preferences": {},
        "clusters": [{"name": cluster, "cluster": address} for _, cluster, address in entries],
        "users": [{"name": USER, "user": _credential(issued)}],
        "contexts": [
            {"name": context, "context": {"cluster": cluster, "user": USER}}
            for context, cluster, _ in entries
        ],
        "current-context": "external" if issued.cluster.external_url else "internal",
    }


def to_json(document: JsonObject) -> bytes:
    """The document as JSON in ASCII."""
    return json.dumps(document).encode("ascii")


def to_yaml(document: JsonObject) -> str:
    """The document as the YAML file that kubectl reads."""
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1_000_000)


def _credential(issued: Issued) -> dict[str, str]:
    credential = {"client-certificate-data": _base64(der_pem(issued.leaf_der))}
    if issued.private_key is not None:
        credential["client-key-data"] = _base64(key_pem(issued.private_key))
    return credential


def _entries(cluster: Cluster, *, insecure_external: bool) -> list[tuple[str, str, JsonObject]]:
    """(context, cluster, address) in CCE's order."""
    ca_b64 = _base64(cluster.server_ca_pem)

    def verified(url: str) -> JsonObject:
        return {"server": url, "certificate-authority-data": ca_b64}

    entries = [("internal", "internalCluster", verified(cluster.internal_url))]
    if external := cluster.external_url:
        # kubectl refuses a CA beside the skip.
        unverified: JsonObject = {"server": external, "insecure-skip-tls-verify": True}
        address = unverified if insecure_external else verified(external)
        entries.append(("external", "externalCluster", address))
        entries.append(("externalTLSVerify", "externalClusterTLSVerify", verified(external)))
    for number, url in enumerate(cluster.san_urls):
        entries.append((f"customSAN-{number}", f"customSAN-{number}", verified(url)))
    return entries


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")

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

import base64
import functools

import yaml

from clustercert.certificate import chain_pem
from clustercert.keypair import key_pem
from clustercert.model import Cluster, Issued, JsonObject

USER = "user"


def render(issued: Issued, *, insecure_external: bool) -> JsonObject:
    """The kubeconfig, its fields in CCE's order; certificates and keys are base64 of PEM."""
    credential: JsonObject = {"client-certificate-data": _b64(chain_pem(issued.chain))}
    if issued.private_key is not None:
        credential["client-key-data"] = _b64(key_pem(issued.private_key))
    entries = _entries(issued.cluster, insecure_external=insecure_external)
    return {
        "kind": "Config",
        "apiVersion": "v1",
        "preferences": {},
        "clusters": [{"name": cluster, "cluster": address} for _, cluster, address in entries],
        "users": [{"name": USER, "user": credential}],
        "contexts": [
            {"name": context, "context": {"cluster": cluster, "user": USER}}
            for context, cluster, _ in entries
        ],
        "current-context": "external" if issued.cluster.external_url else "internal",
    }


def to_yaml(document: JsonObject) -> str:
    """The same document as the YAML file that kubectl reads."""
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1_000_000)


def _entries(cluster: Cluster, *, insecure_external: bool) -> list[tuple[str, str, JsonObject]]:
    """(context, cluster, address) in CCE's order."""
    ca_b64 = _ca_b64(cluster.server_ca_pem)

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


def _b64(pem: bytes) -> str:
    return base64.b64encode(pem).decode()


# A cluster's CA is the same in each of its kubeconfigs.
_ca_b64 = functools.lru_cache(maxsize=4096)(_b64)

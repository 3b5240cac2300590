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

import functools
import json
from base64 import b64encode
from collections.abc import Iterable
from typing import NamedTuple

import yaml

from clustercert.certificate import der_pem
from clustercert.keypair import key_pem
from clustercert.model import Cluster, Issued, JsonObject

USER = "user"


class _Addresses(NamedTuple):
    """What of a cluster is in its kubeconfigs; meanings as in `Cluster`."""

    internal_url: str
    external_url: str | None
    san_urls: tuple[str, ...]
    server_ca_pem: bytes
    insecure_external: bool


def render(issued: Issued, *, insecure_external: bool) -> JsonObject:
    """The kubeconfig, its fields in CCE's order; certificates and keys are base64 of PEM."""
    credential = {name: value.decode("ascii") for name, value in _credential(issued).items()}
    return _document(_addresses(issued.cluster, insecure_external=insecure_external), credential)


def to_json(issued: Issued, *, insecure_external: bool) -> bytes:
    """The same document as JSON in ASCII."""
    credential = _credential(issued)
    pieces = _around(_addresses(issued.cluster, insecure_external=insecure_external), tuple(credential))
    filled = [pieces[0]]
    for value, piece in zip(credential.values(), pieces[1:], strict=True):
        filled += (value, piece)
    return b"".join(filled)


def to_yaml(document: JsonObject) -> str:
    """The same document as the YAML file that kubectl reads."""
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1_000_000)


# Of the text nothing but the credential differs between the kubeconfigs of a cluster.
@functools.lru_cache(maxsize=512)
def _around(addresses: _Addresses, names: Iterable[str]) -> tuple[bytes, ...]:
    """The text of the JSON before, between and behind the values of a credential's fields, which need no escapes."""
    # A control character can't stand in any other value of the document.
    marks = {name: f"\0{name}" for name in names}
    pieces, rest = [], json.dumps(_document(addresses, marks))
    for mark in marks.values():
        piece, _, rest = rest.partition(json.dumps(mark)[1:-1])
        pieces.append(piece)
    return tuple(piece.encode("ascii") for piece in (*pieces, rest))


def _addresses(cluster: Cluster, *, insecure_external: bool) -> _Addresses:
    return _Addresses(
        cluster.internal_url,
        cluster.external_url,
        cluster.san_urls,
        cluster.server_ca_pem,
        insecure_external,
    )


def _credential(issued: Issued) -> dict[str, bytes]:
    """The fields of the user: base64 of PEM."""
    credential = {"client-certificate-data": b64encode(der_pem(issued.leaf_der))}
    if issued.private_key is not None:
        credential["client-key-data"] = b64encode(key_pem(issued.private_key))
    return credential


def _document(addresses: _Addresses, credential: dict[str, str]) -> JsonObject:
    entries = _entries(addresses)
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
        "current-context": "external" if addresses.external_url else "internal",
    }


def _entries(addresses: _Addresses) -> list[tuple[str, str, JsonObject]]:
    """(context, cluster, address) in CCE's order."""
    ca_b64 = b64encode(addresses.server_ca_pem).decode("ascii")

    def verified(url: str) -> JsonObject:
        return {"server": url, "certificate-authority-data": ca_b64}

    entries = [("internal", "internalCluster", verified(addresses.internal_url))]
    if external := addresses.external_url:
        # kubectl refuses a CA beside the skip.
        unverified: JsonObject = {"server": external, "insecure-skip-tls-verify": True}
        address = unverified if addresses.insecure_external else verified(external)
        entries.append(("external", "externalCluster", address))
        entries.append(("externalTLSVerify", "externalClusterTLSVerify", verified(external)))
    for number, url in enumerate(addresses.san_urls):
        entries.append((f"customSAN-{number}", f"customSAN-{number}", verified(url)))
    return entries

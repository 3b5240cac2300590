"""Decodes a cluster like the Go clients: a value of another type than the struct's field is an error.

The structs are those of huaweicloud-sdk-go-v3 0.1.188 (`model_cluster.go` and others) and of gophertelekomcloud and
chnsz/golangsdk (`cce/v3/clusters/results.go`), as far as clients of certificates read them. As in Go, unknown fields
are ignored, and null leaves a field as it is. Python's lax clients hide what this finds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A struct is a mapping of field names, a slice a list of one type, map[string]string is MAP.
MAP = "map[string]string"

_SPEC: Mapping[str, Any] = {
    "category": str,
    "type": str,
    "flavor": str,
    "version": str,
    "description": str,
    "ipv6enable": bool,
    "supportIstio": bool,
    "hostNetwork": {"vpc": str, "subnet": str, "SecurityGroup": str},
    "containerNetwork": {"mode": str, "cidr": str, "cidrs": [{"cidr": str}]},
    "eniNetwork": {"eniSubnetId": str, "eniSubnetCIDR": str, "subnets": [{"subnetID": str}]},
    "serviceNetwork": {"IPv4CIDR": str},
    "authentication": {"mode": str, "authenticatingProxy": MAP},
    "billingMode": int,
    "extendParam": MAP,
    "kubernetesSvcIpRange": str,
    "kubeProxyMode": str,
    "clusterTags": [{"key": str, "value": str}],
}
_METADATA: Mapping[str, Any] = {
    "name": str,
    "uid": str,
    "alias": str,
    "labels": MAP,
    "annotations": MAP,
    "creationTimestamp": str,
    "updateTimestamp": str,
}
# Huawei Cloud's SDK has the first two fields, gophertelekomcloud and golangsdk all of them.
_ENTRY: Mapping[str, Any] = {"url": str, "type": str, "internal": str, "external": str, "external_otc": str}
_OBJECT: Mapping[str, Any] = {name: _ENTRY[name] for name in ("internal", "external", "external_otc")}


@dataclass(frozen=True)
class Endpoints:
    """A cluster's addresses, as a client reads them; empty if absent."""

    internal: str
    external: str


class DecodeError(Exception):
    """Go's decoder would fail."""


def decode_cluster(text: str, *, endpoints_as_list: bool) -> Endpoints:
    """Decode a cluster, and return its addresses.

    Huawei Cloud's SDK (list) reads `url` by `type`. gophertelekomcloud reads the object's fields, in both forms, and so
    the list is checked for both.
    """
    endpoints: Any = [_ENTRY] if endpoints_as_list else _OBJECT
    status = {"phase": str, "jobID": str, "reason": str, "message": str, "endpoints": endpoints}
    struct = {"kind": str, "apiVersion": str, "metadata": _METADATA, "spec": _SPEC, "status": status}
    cluster = decoded(json.loads(text), struct, "cluster")
    for part in ("metadata", "spec", "status"):
        # The Terraform providers dereference these pointers.
        if part not in cluster:
            raise DecodeError(f"cluster.{part}: nil pointer")
    for part in ("hostNetwork", "containerNetwork", "eniNetwork", "authentication"):
        if part not in cluster["spec"]:
            raise DecodeError(f"cluster.spec.{part}: nil pointer")
    found = cluster["status"]["endpoints"]
    if not endpoints_as_list:
        return Endpoints(found.get("internal", ""), found.get("external_otc", ""))
    by_type = {entry["type"]: entry["url"] for entry in found}
    of_huawei = Endpoints(by_type.get("Internal", ""), by_type.get("External", ""))
    of_otc = Endpoints(found[0].get("internal", ""), found[0].get("external_otc", ""))
    if of_huawei != of_otc:
        raise DecodeError(f"cluster.status.endpoints: {of_huawei} and {of_otc} differ")
    return of_huawei


def decoded(value: Any, struct: Any, where: str) -> Any:
    """Return the value without unknown fields. Raises DecodeError if its type is another one."""
    if isinstance(struct, Mapping):
        _expect(value, dict, where)
        return {
            name: decoded(value[name], kind, f"{where}.{name}")
            for name, kind in struct.items()
            if value.get(name) is not None
        }
    if isinstance(struct, list):
        _expect(value, list, where)
        return [decoded(each, struct[0], f"{where}[]") for each in value]
    if struct == MAP:
        _expect(value, dict, where)
        return {name: decoded(each, str, f"{where}.{name}") for name, each in value.items()}
    _expect(value, struct, where)
    return value


def _expect(value: Any, kind: type, where: str) -> None:
    # In Python, a bool is an int.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DecodeError(f"{where}: cannot decode {json.dumps(value)} into {kind.__name__}")

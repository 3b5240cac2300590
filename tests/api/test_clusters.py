"""Routes of clusters: the fields that real clients read, and the values that make them fail."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from support.service import Service
from support.world import EXTERNAL_URL, World

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


INTERNAL_URL = "https://192.168.1.7:5443"
CCE_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9} \+0000 UTC")
PHASES = {"Available", "Unavailable", "Creating", "Deleting", "Upgrading", "Resizing", "Empty"}


def get(client: httpx2.Client, world: World, path: str, who: str = "admin") -> Any:
    response = client.get(path, headers=world.people[who].headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def listing(world: World, query: str = "") -> str:
    return f"/api/v3/projects/{world.project.id}/clusters{query}"


def values(document: Any) -> Iterator[Any]:
    """Yield all values in a document, at any depth."""
    yield document
    for inner in document.values() if isinstance(document, dict) else []:
        yield from values(inner)
    for inner in document if isinstance(document, list) else []:
        yield from values(inner)


def test_the_list_is_the_projects_clusters_by_name(client: httpx2.Client, world: World) -> None:
    listed = get(client, world, listing(world))
    assert list(listed) == ["kind", "apiVersion", "items"]
    assert (listed["kind"], listed["apiVersion"]) == ("Cluster", "v3")
    assert [item["metadata"]["name"] for item in listed["items"]] == ["eip", "plain", "sans"]
    for item in listed["items"]:
        assert item == get(client, world, listing(world, f"/{item['metadata']['uid']}"))


@pytest.mark.parametrize("who", ["admin", "member", "reader", "inspector"])
def test_any_role_in_the_project_may_look(client: httpx2.Client, world: World, who: str) -> None:
    assert len(get(client, world, listing(world), who)["items"]) == 3
    assert get(client, world, world.path(tail=""), who)["kind"] == "Cluster"


def test_a_list_without_clusters_has_items_all_the_same(client: httpx2.Client, world: World) -> None:
    """otcextensions fails if the list has no `items`."""
    assert get(client, world, listing(world, "?status=Hibernating"))["items"] == []


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("?status=Available", ["eip", "plain", "sans"]),
        ("?status=Unavailable", []),
        ("?type=VirtualMachine", ["eip", "plain", "sans"]),
        ("?type=BareMetal", []),
        ("?version=v1.32", ["eip", "plain", "sans"]),
        ("?version=v1.1", []),
        ("?detail=true", ["eip", "plain", "sans"]),
        ("?limit=1&offset=5", ["eip", "plain", "sans"]),
        ("?limit=abc", ["eip", "plain", "sans"]),
        ("?unknown=1&status=Available&type=VirtualMachine", ["eip", "plain", "sans"]),
    ],
)
def test_the_documented_filters_filter(
    client: httpx2.Client, world: World, query: str, names: list[str]
) -> None:
    listed = get(client, world, listing(world, query))
    assert [item["metadata"]["name"] for item in listed["items"]] == names


def test_a_cluster_has_what_every_client_dereferences(client: httpx2.Client, world: World) -> None:
    cluster = get(client, world, world.path("eip", "?detail=true"))
    assert (cluster["kind"], cluster["apiVersion"]) == ("Cluster", "v3")
    metadata, spec, status = cluster["metadata"], cluster["spec"], cluster["status"]
    assert metadata["name"] == "eip"
    assert metadata["uid"] == world.clusters["eip"].id
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", metadata["uid"])
    assert CCE_TIME.fullmatch(metadata["creationTimestamp"])
    assert CCE_TIME.fullmatch(metadata["updateTimestamp"])
    assert metadata["labels"] == {"team": "tests"}
    assert metadata["annotations"] == {}
    assert spec["version"] == "v1.32"
    # If absent, these are nil pointers in the Go providers.
    assert spec["eniNetwork"] == {"eniSubnetId": "", "eniSubnetCIDR": "", "subnets": []}
    assert isinstance(spec["serviceNetwork"], dict)
    for name in ("hostNetwork", "containerNetwork", "authentication"):
        assert isinstance(spec[name], dict)
    assert spec["type"] == "VirtualMachine"
    assert isinstance(spec["supportIstio"], bool)
    assert isinstance(spec["billingMode"], int)
    # Go reads these two as maps of string to string.
    for mapping in (spec["extendParam"], spec["authentication"]["authenticatingProxy"]):
        assert all(isinstance(value, str) for value in mapping.values())
    assert status["phase"] in PHASES
    assert "conditions" not in status
    assert not any(value is None for value in values(cluster))


def test_endpoints_are_an_object_as_in_open_telekom_cloud(client: httpx2.Client, world: World) -> None:
    plain = get(client, world, world.path("plain", ""))["status"]["endpoints"]
    assert plain == {"internal": INTERNAL_URL}
    with_eip = get(client, world, world.path("eip", ""))["status"]["endpoints"]
    assert with_eip == {"internal": INTERNAL_URL, "external": EXTERNAL_URL, "external_otc": EXTERNAL_URL}


def clusters_path(world: World) -> str:
    return world.path(tail="").rpartition("/")[0]


HUAWEI_SDKS = (
    "huaweicloud-usdk-go/3.0; linux; amd64; go1.24",
    "huaweicloud-usdk-java/3.0; 17.0.18; a custom name",
    "huaweicloud-usdk-nodejs/3.0",
    "huaweicloud-usdk-python/3.0; linux; x86_64",
    "huaweicloud-usdk-net/3.0",
    "huaweicloud-usdk-php/3.0",
    "gateway/1 (a (nested \\) comment)) huaweicloud-usdk-go/3.0",
)
HUAWEI_TERRAFORM = (
    "terraform-provider-iac golangsdk/2.0.0",
    # The variable HW_TF_CUSTOM_UA is `acme-ci/1.0`.
    "acme-ci/1.0 terraform-provider-iac golangsdk/2.0.0",
    "golangsdk/2.0.0 terraform-provider-iac/1.80",
)
OTHERS = (
    "Terraform/1.9 terraform-provider-opentelekomcloud/1.36 golangsdk/2.0.0",
    "golangsdk/2.0.0",
    "openstacksdk/4.20.0 keystoneauth1/5.18",
    "",
    # Not as a product.
    "acme/1.0 (like huaweicloud-usdk-go/3.0 and terraform-provider-iac )",
    "acme/1.0 (an open comment huaweicloud-usdk-go/3.0",
    "acme/huaweicloud-usdk-go acme/terraform-provider-iac",
    "not-huaweicloud-usdk-go/3.0 terraform-provider-iac-mock/1.0 my-terraform-provider-iac/2",
    "acme/1.0 (x)huaweicloud-usdk-go/3.0",
    '"huaweicloud-usdk-go/3.0" a=terraform-provider-iac',
)


@pytest.mark.parametrize(
    ("user_agents", "is_list"), [((*HUAWEI_SDKS, *HUAWEI_TERRAFORM), True), (OTHERS, False)]
)
def test_the_form_of_endpoints_depends_on_the_client(
    service_with: Callable[..., Service], world: World, user_agents: tuple[str, ...], *, is_list: bool
) -> None:
    client = service_with().client  # its own: the next tests use the shared one
    for user_agent in user_agents:
        client.headers["User-Agent"] = user_agent
        for name, external in (("plain", ""), ("eip", EXTERNAL_URL)):
            shown = get(client, world, world.path(name, ""))
            listed = get(client, world, clusters_path(world))["items"]
            assert shown in listed
            decoded = [
                decode_cluster(json.dumps(each), endpoints_as_list=is_list) for each in (shown, *listed)
            ]
            assert (decoded[0].internal, decoded[0].external) == (INTERNAL_URL, external)


def test_huawei_clouds_sdks_get_cces_versions(client: httpx2.Client) -> None:
    """Source: CCE API reference of Huawei Cloud, "Obtaining API Versions", the example."""
    for user_agent in HUAWEI_SDKS:
        headers = {"User-Agent": user_agent, "X-Project-Id": "0" * 32}
        response = client.get("/", headers=headers)
        link = {"href": f"{str(client.base_url).rstrip('/')}/api/v3", "rel": "self"}
        version = {
            "id": "v3",
            "links": [link],
            "min_version": "",
            "status": "CURRENT",
            "updated": "2018-09-15 00:00:00Z",
            "version": "",
        }
        assert (response.status_code, response.json()) == (200, {"versions": [version]})
        assert response.headers["Vary"] == "Accept, User-Agent, X-Domain-Id"


def test_other_clients_and_huawei_clouds_sdk_for_iam_get_the_versions_of_the_identity(
    client: httpx2.Client,
) -> None:
    sdks_for_iam = [{"User-Agent": each, "X-Domain-Id": "0" * 32} for each in HUAWEI_SDKS]
    for headers in [*({"User-Agent": each} for each in (*HUAWEI_TERRAFORM, *OTHERS)), *sdks_for_iam]:
        response = client.get("/", headers=headers)
        assert response.status_code == 300
        assert [each["id"] for each in response.json()["versions"]["values"]] == ["v3.6"]


def test_the_list_of_endpoints_has_the_fields_of_the_object_in_its_first_entry(
    service_with: Callable[..., Service], world: World
) -> None:
    client = service_with().client
    client.headers["User-Agent"] = HUAWEI_SDKS[0]
    internal = {"url": INTERNAL_URL, "type": "Internal", "internal": INTERNAL_URL}
    assert get(client, world, world.path("plain", ""))["status"]["endpoints"] == [internal]
    external = {"external": EXTERNAL_URL, "external_otc": EXTERNAL_URL}
    public = {"url": EXTERNAL_URL, "type": "External"}
    with_eip = get(client, world, world.path("eip", ""))["status"]["endpoints"]
    assert with_eip == [internal | external, public]


def test_openapi_has_both_addresses(client: httpx2.Client, world: World) -> None:
    for name, public in (("plain", ""), ("eip", EXTERNAL_URL)):
        document = get(client, world, world.path(name, "/openapi"))
        assert list(document) == ["metadata", "spec", "status"]
        assert document["status"] == {"privateEndpoint": INTERNAL_URL, "publicEndpoint": public}
        assert document["spec"]["spec"]["eip"]["bandwidth"].keys() == {"size", "sharetype"}


def test_nothing_of_a_cluster_tells_its_keys(client: httpx2.Client, world: World) -> None:
    for tail in ("", "/openapi"):
        text = client.get(world.path("eip", tail), headers=world.people["admin"].headers).text
        assert "BEGIN" not in text
        assert "LS0t" not in text
        assert "sealed" not in text


@pytest.mark.parametrize("tail", ["", "/{plain}", "/{plain}/openapi"])
def test_no_cache_keeps_a_cluster(client: httpx2.Client, world: World, tail: str) -> None:
    path = f"/api/v3/projects/{world.project.id}/clusters{tail.format(plain=world.clusters['plain'].id)}"
    response = client.get(path, headers=world.people["admin"].headers)
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-store")

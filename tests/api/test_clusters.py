"""Routes of clusters: the fields that real clients read, and the values that make them fail."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from support.go_cluster import decode_cluster
from support.service import Service
from support.world import EXTERNAL_URL, World

INTERNAL_URL = "https://192.168.1.7:5443"
CCE_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9} \+0000 UTC")
PHASES = {"Available", "Unavailable", "Creating", "Deleting", "Upgrading", "Resizing", "Empty"}


def get(client: httpx.Client, world: World, path: str, who: str = "admin") -> Any:
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


def test_the_list_is_the_projects_clusters_by_name(client: httpx.Client, world: World) -> None:
    listed = get(client, world, listing(world))
    assert list(listed) == ["kind", "apiVersion", "items"]
    assert (listed["kind"], listed["apiVersion"]) == ("Cluster", "v3")
    assert [item["metadata"]["name"] for item in listed["items"]] == ["eip", "plain", "sans"]
    for item in listed["items"]:
        assert item == get(client, world, listing(world, f"/{item['metadata']['uid']}"))


@pytest.mark.parametrize("who", ["admin", "member", "reader", "auditor"])
def test_any_role_in_the_project_may_look(client: httpx.Client, world: World, who: str) -> None:
    assert len(get(client, world, listing(world), who)["items"]) == 3
    assert get(client, world, world.path(tail=""), who)["kind"] == "Cluster"


def test_a_list_without_clusters_has_items_all_the_same(client: httpx.Client, world: World) -> None:
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
        ("?unknown=1&status=Available&type=VirtualMachine", ["eip", "plain", "sans"]),
    ],
)
def test_the_documented_filters_filter(
    client: httpx.Client, world: World, query: str, names: list[str]
) -> None:
    listed = get(client, world, listing(world, query))
    assert [item["metadata"]["name"] for item in listed["items"]] == names


def test_a_cluster_has_what_every_client_dereferences(client: httpx.Client, world: World) -> None:
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
    assert spec["eniNetwork"] == {}
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


def test_endpoints_are_an_object_as_in_open_telekom_cloud(client: httpx.Client, world: World) -> None:
    plain = get(client, world, world.path("plain", ""))["status"]["endpoints"]
    assert plain == {"internal": INTERNAL_URL}
    with_eip = get(client, world, world.path("eip", ""))["status"]["endpoints"]
    assert with_eip == {"internal": INTERNAL_URL, "external": EXTERNAL_URL, "external_otc": EXTERNAL_URL}


def clusters_path(world: World) -> str:
    return world.path(tail="").rpartition("/")[0]


HUAWEI_GO = "huaweicloud-usdk-go/3.0; linux; amd64; go1.24"
HUAWEI_TERRAFORM = "terraform-provider-iac golangsdk/2.0.0"
OTHERS = (
    "Terraform/1.9 terraform-provider-opentelekomcloud/1.36 golangsdk/2.0.0",
    "golangsdk/2.0.0",
    "huaweicloud-usdk-python/3.0; linux; x86_64",
    "openstacksdk/4.20.0 keystoneauth1/5.18",
    "",
)


@pytest.mark.parametrize(
    ("form", "user_agents", "is_list"),
    [
        ("auto", (HUAWEI_GO, HUAWEI_TERRAFORM), True),
        ("auto", OTHERS, False),
        ("list", (HUAWEI_GO, *OTHERS), True),
        ("object", (HUAWEI_GO, HUAWEI_TERRAFORM, *OTHERS), False),
    ],
)
def test_the_form_of_endpoints_depends_on_the_setting_and_the_client(
    service_with: Callable[..., Service],
    world: World,
    form: str,
    user_agents: tuple[str, ...],
    *,
    is_list: bool,
) -> None:
    client = service_with(api={"endpoints": form}).client
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


def test_the_list_of_endpoints_has_the_fields_of_the_object_in_its_first_entry(
    service_with: Callable[..., Service], world: World
) -> None:
    client = service_with(api={"endpoints": "list"}).client
    internal = {"url": INTERNAL_URL, "type": "Internal", "internal": INTERNAL_URL}
    assert get(client, world, world.path("plain", ""))["status"]["endpoints"] == [internal]
    external = {"external": EXTERNAL_URL, "external_otc": EXTERNAL_URL}
    public = {"url": EXTERNAL_URL, "type": "External"}
    with_eip = get(client, world, world.path("eip", ""))["status"]["endpoints"]
    assert with_eip == [internal | external, public]


def test_openapi_has_both_addresses(client: httpx.Client, world: World) -> None:
    for name, public in (("plain", ""), ("eip", EXTERNAL_URL)):
        document = get(client, world, world.path(name, "/openapi"))
        assert list(document) == ["metadata", "spec", "status"]
        assert document["status"] == {"privateEndpoint": INTERNAL_URL, "publicEndpoint": public}
        assert document["spec"]["spec"]["eip"]["bandwidth"].keys() == {"size", "sharetype"}


def test_nothing_of_a_cluster_tells_its_keys(client: httpx.Client, world: World) -> None:
    for tail in ("", "/openapi"):
        text = client.get(world.path("eip", tail), headers=world.people["admin"].headers).text
        assert "BEGIN" not in text
        assert "LS0t" not in text
        assert "sealed" not in text

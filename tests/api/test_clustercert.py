import base64
import json
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from clustercert.model import KeyType
from clustercert.pki.keys import key_type_of
from support.leaf_checks import (
    BACKDATE,
    assert_client_leaf,
    assert_key_matches,
    credential_number_of,
    leaf_of,
    openssl,
)
from support.service import Service
from support.stores import rows
from support.world import World


def ask(
    client: httpx2.Client, world: World, cluster: str = "plain", who: str = "admin", **sent: Any
) -> httpx2.Response:
    sent.setdefault("json", {"duration": 30})
    headers = world.people[who].headers | sent.pop("headers", {})
    query = sent.pop("query", "")
    return client.post(world.path(cluster) + query, headers=headers, **sent)


def recorded(world: World) -> tuple[int, int]:
    """Return the numbers of recorded certificates and of `certificate.issued` events."""
    certificates = rows(world.database, "select count(*) from certificate")
    events = rows(world.database, "select count(*) from audit_event where kind = 'certificate.issued'")
    return int(str(certificates[0][0])), int(str(events[0][0]))


def without_data(document: Any) -> Any:
    blank = deepcopy(document)
    for entry in [item["cluster"] for item in blank["clusters"]] + [item["user"] for item in blank["users"]]:
        for name in entry:
            if name.endswith("-data"):
                entry[name] = ""
    return blank


GOLDEN = Path(__file__).parents[1] / "golden"


# The response


@pytest.mark.parametrize(
    ("cluster", "golden"),
    [("plain", "cce_02_0248"), ("eip", "cce_02_0248_eip"), ("sans", "cce_custom_san")],
)
def test_the_answer_is_the_documents(client: httpx2.Client, world: World, cluster: str, golden: str) -> None:
    response = ask(client, world, cluster)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    expected = json.loads((GOLDEN / f"{golden}.json").read_text())["kubeconfig"]
    assert json.dumps(without_data(response.json())) == json.dumps(expected)


@pytest.mark.parametrize(
    ("who", "groups"),
    [
        ("admin", ["clustercert:admins"]),
        ("member", ["clustercert:editors"]),
        ("reader", ["clustercert:viewers"]),
    ],
)
def test_the_certificate_is_the_callers(
    client: httpx2.Client, world: World, who: str, groups: list[str]
) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    response = ask(client, world, who=who)
    leaf = leaf_of(response.json())
    issued_at = leaf.not_valid_before_utc + BACKDATE
    assert before <= issued_at <= datetime.now(UTC)
    assert_client_leaf(
        leaf,
        ca=world.client_ca("plain"),
        username=world.people[who].user.id,
        groups=groups,
        issued_at=issued_at,
        lifetime=timedelta(days=30),
    )
    assert_key_matches(response.json())


def test_openssl_verifies_what_was_issued(client: httpx2.Client, world: World, tmp_path: Path) -> None:
    user = ask(client, world).json()["users"][0]["user"]
    (tmp_path / "leaf.pem").write_bytes(base64.b64decode(user["client-certificate-data"]))
    (tmp_path / "ca.pem").write_text(world.client_ca("plain").public_bytes(Encoding.PEM).decode())
    strict = ["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"]
    openssl(*strict, tmp_path / "ca.pem", tmp_path / "leaf.pem")


def test_each_request_gets_a_certificate_and_key_of_its_own(client: httpx2.Client, world: World) -> None:
    one, other = ask(client, world).json(), ask(client, world).json()
    assert leaf_of(one).serial_number != leaf_of(other).serial_number
    assert one["users"][0]["user"]["client-key-data"] != other["users"][0]["user"]["client-key-data"]


def test_headers_name_the_certificate_and_keep_it_out_of_caches(client: httpx2.Client, world: World) -> None:
    response = ask(client, world)
    leaf = leaf_of(response.json())
    assert int(response.headers["X-Clustercert-Serial"], 16) == leaf.serial_number
    assert response.headers["X-Clustercert-Serial"] == response.headers["X-Clustercert-Serial"].lower()
    pem = base64.b64decode(response.json()["users"][0]["user"]["client-certificate-data"])
    printed = openssl("x509", "-noout", "-fingerprint", "-sha256", stdin=pem).decode()
    fingerprint = printed.strip().split("=")[1].replace(":", "").lower()
    assert response.headers["X-Clustercert-Fingerprint"] == fingerprint
    not_after = datetime.fromisoformat(response.headers["X-Clustercert-Not-After"])
    assert not_after == leaf.not_valid_after_utc
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("key_type", get_args(KeyType))
def test_keys_are_of_the_type_in_the_settings(
    service_with: Callable[..., Service], world: World, key_type: KeyType
) -> None:
    service = service_with(issuing={"key_type": key_type})
    response = ask(service.client, world)
    assert key_type_of(leaf_of(response.json()).public_key()) == key_type  # type: ignore[arg-type] # one of ours
    assert_key_matches(response.json())
    preview = ask(service.client, world, query="?dryRun=All").json()
    assert preview["key_type"] == key_type


def test_without_the_insecure_external_cluster_its_name_stays(
    service_with: Callable[..., Service], world: World
) -> None:
    service = service_with(api={"insecure_external": False})
    document = ask(service.client, world, "sans").json()
    names = [entry["name"] for entry in document["clusters"]]
    assert names == [
        "internalCluster",
        "externalCluster",
        "externalClusterTLSVerify",
        "customSAN-0",
        "customSAN-1",
    ]
    assert "insecure-skip-tls-verify" not in json.dumps(document)
    assert document["clusters"][1]["cluster"] == document["clusters"][2]["cluster"]
    assert document["current-context"] == "external"


# YAML


@pytest.mark.parametrize(
    "accept",
    ["application/yaml", "application/yaml, application/json;q=0.5", "application/x-yaml", "text/yaml, */*"],
)
def test_yaml_is_the_same_document_for_whoever_asks(client: httpx2.Client, world: World, accept: str) -> None:
    response = ask(client, world, "sans", headers={"Accept": accept})
    assert response.headers["content-type"].split(";")[0] == "application/yaml"
    assert response.headers["Cache-Control"] == "no-store"
    document = yaml.safe_load(response.text)
    expected = json.loads((GOLDEN / "cce_custom_san.json").read_text())["kubeconfig"]
    assert json.dumps(without_data(document)) == json.dumps(expected)
    assert_key_matches(document)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/json",
        "application/json, */*;q=0.5",
        "text/html",
        "application/*",
        "application/yaml;q=0",
        "application/yaml; q=0.000, */*",
    ],
)
def test_everybody_else_gets_json(client: httpx2.Client, world: World, accept: str) -> None:
    response = ask(client, world, headers={"Accept": accept})
    assert response.headers["content-type"] == "application/json"
    assert response.json()["kind"] == "Config"


def test_an_error_is_json_even_for_whoever_asks_for_yaml(client: httpx2.Client, world: World) -> None:
    response = ask(client, world, json={}, headers={"Accept": "application/yaml"})
    assert response.headers["content-type"] == "application/json"
    assert response.json()["errorCode"] == "CCE.01400001"


# What is recorded


def test_each_issue_is_one_certificate_row_and_one_audit_event(client: httpx2.Client, world: World) -> None:
    before = recorded(world)
    reason = "incident 4711: Größe 🔐 <script>=cmd|'/C calc'!A0"
    response = ask(client, world, json={"duration": 7, "reason": reason})
    assert recorded(world) == (before[0] + 1, before[1] + 1)
    leaf, fingerprint = leaf_of(response.json()), response.headers["X-Clustercert-Fingerprint"]
    admin = world.people["admin"].user
    names = [
        "serial",
        "credential_number",
        "cluster_id",
        "project_id",
        "ca_id",
        "user_id",
        "user_name",
        "groups",
    ]
    names += ["key_type", "key_origin", "auth_method", "source_address", "request_id", "reason", "der"]
    query = f"select {', '.join(names)} from certificate where fingerprint = ?"
    ((*values,),) = rows(world.database, query, bytes.fromhex(fingerprint))
    row = dict(zip(names, values, strict=True))
    assert row["serial"] == response.headers["X-Clustercert-Serial"]
    assert row["credential_number"] == row["serial"] == credential_number_of(leaf)
    assert str(row["cluster_id"]).replace("-", "") == world.clusters["plain"].id.replace("-", "")
    assert (row["project_id"], row["ca_id"]) == (world.project.id, world.clusters["plain"].client_ca.id)
    assert (row["user_id"], row["user_name"]) == (admin.id, admin.name)
    assert json.loads(str(row["groups"])) == ["clustercert:admins"]
    assert (row["key_type"], row["key_origin"], row["auth_method"]) == ("ec-p256", "generated", "token")
    assert row["source_address"] == "127.0.0.1"
    assert row["request_id"] == response.headers["X-Request-Id"]
    assert row["reason"] == reason
    assert row["der"] == leaf.public_bytes(Encoding.DER)
    ((kind, project_id, actor, body),) = rows(
        world.database,
        "select kind, project_id, actor, body from audit_event where subject = ?",
        fingerprint,
    )
    assert (kind, project_id, actor) == ("certificate.issued", world.project.id, admin.id)
    assert isinstance(body, bytes)
    event = json.loads(body)
    assert event["detail"]["request"]["reason"] == reason
    assert event["detail"]["serial"] == row["serial"]
    assert event["detail"]["credential_number"] == row["credential_number"]
    own_group = f"clustercert:credential:{row['credential_number']}"
    assert event["detail"]["organizations"] == ["clustercert:admins", own_group]
    assert event["detail"]["common_name"] == admin.id
    assert (event["source"], event["request_id"]) == ("127.0.0.1", row["request_id"])


def test_no_private_key_is_anywhere_in_the_database(client: httpx2.Client, world: World) -> None:
    user = ask(client, world).json()["users"][0]["user"]
    pem = base64.b64decode(user["client-key-data"])
    key = load_pem_private_key(pem, password=None)
    number = key.private_numbers().private_value.to_bytes(32, "big")  # type: ignore[union-attr] # P-256
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    wanted = (number, der, pem, user["client-key-data"].encode(), base64.b64encode(der)[40:80])
    files = [path for path in world.database.parent.iterdir() if path.name.startswith("clustercert.db")]
    assert len(files) >= 1
    for file in files:
        content = file.read_bytes()
        assert not any(secret in content for secret in wanted), file.name


def test_who_is_recorded_is_the_peer_and_not_what_a_header_says(client: httpx2.Client, world: World) -> None:
    forged = {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.7", "X-Request-Id": "forged"}
    response = ask(client, world, headers=forged)
    assert response.headers["X-Request-Id"] != "forged"
    ((address,),) = rows(
        world.database,
        "select source_address from certificate where request_id = ?",
        response.headers["X-Request-Id"],
    )
    assert address == "127.0.0.1"


# Dry runs


def test_a_dry_run_says_what_would_be_issued_and_records_nothing(client: httpx2.Client, world: World) -> None:
    before, begun = recorded(world), datetime.now(UTC)
    response = ask(client, world, json={"duration": 7}, query="?dryRun=All")
    assert response.status_code == 200
    assert recorded(world) == before
    preview = response.json()
    not_before = datetime.fromisoformat(preview.pop("not_before"))
    not_after = datetime.fromisoformat(preview.pop("not_after"))
    assert not_after - not_before == timedelta(days=7) + BACKDATE
    assert begun - timedelta(seconds=1) < not_before + BACKDATE <= datetime.now(UTC)
    trace = preview.pop("trace")
    assert datetime.fromisoformat(trace.pop("requested_not_after")) == not_after
    assert datetime.fromisoformat(trace.pop("allowed_until")) == not_before + BACKDATE + timedelta(days=1825)
    assert datetime.fromisoformat(trace.pop("decided_at")).replace(microsecond=0) == not_before + BACKDATE
    assert trace == {
        "roles": ["admin"],
        "key_type": "ec-p256",
        "skipped_rules": ["member", "reader"],
        "rule": "admin",
        "rules": ["admin"],
        "groups": ["clustercert:admins"],
        "allowed_by": "policy",
        "shortened": False,
    }
    assert preview == {
        "kind": "IssuancePreview",
        "rule": "admin",
        "common_name": world.people["admin"].user.id,
        "organizations": ["clustercert:admins", "clustercert:credential:<number>"],
        "issuer": world.client_ca("plain").subject.rfc4514_string(),
        "key_type": "ec-p256",
        "credential": "certificate",
        "left_out": [],
        "access_request": None,
    }
    assert response.headers["Cache-Control"] == "no-store"
    assert "X-Clustercert-Serial" not in response.headers


@pytest.mark.parametrize("name", ["dryrun", "DRYRUN", "DryRun", "%64ryrun"])
def test_a_dry_run_in_other_case_issues_nothing(client: httpx2.Client, world: World, name: str) -> None:
    before = recorded(world)
    headers = world.people["admin"].headers
    for path in (world.path(), world.path().replace("/api/v3/", "/autopilot/v3/")):
        response = client.post(f"{path}?{name}=All", json={"duration": 30}, headers=headers)
        assert response.status_code == 400
        shown = name.replace("%64", "d")
        assert response.json()["errorMessage"] == f"{shown}: unknown query parameter. Write it dryRun."
    assert client.get(f"{world.path()}?{name}=All", headers=headers).status_code == 400
    assert recorded(world) == before


@pytest.mark.parametrize("body", [{"duration": 0}, {"duration": 30, "reason": "a\nb"}, {}])
def test_a_dry_run_judges_the_body_all_the_same(
    client: httpx2.Client, world: World, body: dict[str, object]
) -> None:
    assert ask(client, world, json=body, query="?dryRun=All").status_code == 400


def test_a_dry_run_of_get_records_nothing_either(client: httpx2.Client, world: World) -> None:
    before = recorded(world)
    response = client.get(world.path() + "?dryRun=All", headers=world.people["admin"].headers)
    assert response.json()["kind"] == "IssuancePreview"
    assert recorded(world) == before


@pytest.mark.parametrize("value", ["all", "ALL", "true", "None", "", "All,All", "All&dryRun=None"])
def test_any_other_dry_run_is_refused_and_issues_nothing(
    client: httpx2.Client, world: World, value: str
) -> None:
    before = recorded(world)
    response = ask(client, world, query=f"?dryRun={value}")
    assert (response.status_code, response.json()["errorCode"]) == (400, "CCE.01400001")
    assert "dryRun" in response.json()["errorMessage"]
    assert recorded(world) == before


def test_a_bad_dry_run_without_a_credential_is_a_401(client: httpx2.Client, world: World) -> None:
    assert client.post(world.path() + "?dryRun=x", json={"duration": 30}).status_code == 401


# GET, deprecated


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json"}])
def test_get_gives_thirty_days(client: httpx2.Client, world: World, headers: dict[str, str]) -> None:
    response = client.get(world.path("eip"), headers=world.people["admin"].headers | headers)
    assert response.status_code == 200
    leaf = leaf_of(response.json())
    assert_client_leaf(
        leaf,
        ca=world.client_ca("eip"),
        username=world.people["admin"].user.id,
        groups=["clustercert:admins"],
        issued_at=leaf.not_valid_before_utc + BACKDATE,
        lifetime=timedelta(days=30),
    )
    assert_key_matches(response.json())
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Clustercert-Fingerprint"]
    expected = json.loads((GOLDEN / "cce_02_0248_eip.json").read_text())["kubeconfig"]
    assert json.dumps(without_data(response.json())) == json.dumps(expected)


# Autopilot


def autopilot(world: World, cluster: str = "plain") -> str:
    return world.path(cluster).replace("/api/v3/", "/autopilot/v3/")


def test_the_autopilot_form_is_the_same_but_for_expire_at(client: httpx2.Client, world: World) -> None:
    headers = world.people["admin"].headers
    body = {"duration": 3, "expire_at": "not even a time"}
    response = client.post(autopilot(world, "eip"), json=body, headers=headers)
    assert response.status_code == 200
    leaf = leaf_of(response.json())
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=3) + BACKDATE
    expected = json.loads((GOLDEN / "cce_02_0248_eip.json").read_text())["kubeconfig"]
    assert json.dumps(without_data(response.json())) == json.dumps(expected)
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "body", [{}, {"duration": 0}, {"duration": "3"}, {"expire_at": "2030-01-01 16:00:00 +0000 UTC"}]
)
def test_the_autopilot_form_needs_a_duration(
    client: httpx2.Client, world: World, body: dict[str, object]
) -> None:
    response = client.post(autopilot(world), json=body, headers=world.people["admin"].headers)
    assert (response.status_code, response.json()["errorCode"]) == (400, "CCE.01400001")


def test_the_autopilot_form_has_no_get(client: httpx2.Client, world: World) -> None:
    response = client.get(autopilot(world), headers=world.people["admin"].headers)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"

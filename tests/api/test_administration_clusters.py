"""The administration API for clusters, webhook tokens, access keys, roles, assignments and members."""

import json
import unicodedata
from datetime import timedelta
from typing import Any

import pytest

from clustercert.model import ClusterOptions
from clustercert.store import tables
from clustercert.store.engine.database import Database
from support.administration import CLUSTER, Administration, unique
from support.samples import server_ca_pem

FORM_OF_AN_ID = "0a1b2c3d-0a1b-4c3d-8a1b-0a1b2c3d4e5f"


def clusters(administration: Administration) -> str:
    return f"/projects/{administration.world.project.id}/clusters"


def assignments(administration: Administration) -> str:
    return f"/projects/{administration.world.project.id}/assignments"


def test_a_replica_with_a_wrong_clock_creates_no_client_ca(
    administration: Administration, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, new = (f"{clusters(administration)}/{unique()}" for _ in range(2))
    assert administration.put(known, CLUSTER).status_code == 201

    async def offset(_database: Database) -> timedelta:
        return timedelta(seconds=-61)

    monkeypatch.setattr(Database, "clock_offset", offset)
    for answer in (administration.put(new, CLUSTER), administration.post(f"{known}/client-ca-rotation")):
        assert answer.status_code == 503, answer.text
        assert "clock of this replica is 61 seconds behind the database's" in answer.json()["message"]
        assert answer.headers["Retry-After"] == "60"
    assert administration.get(new).status_code == 404
    assert administration.put(known, CLUSTER | {"version": "v1.33"}).status_code == 200


def test_a_cluster_is_registered_changed_and_removed(administration: Administration) -> None:
    path = f"{clusters(administration)}/{unique()}"
    made = administration.put(path, CLUSTER, who="admin")
    assert made.status_code == 201, made.text
    key = made.json()["id"]
    assert CLUSTER.items() <= made.json().items()
    assert made.json()["client_ca"].startswith("-----BEGIN CERTIFICATE-----")
    assert administration.kinds(key) == ["cluster.added"]
    assert administration.events(key)[0]["actor"] == administration.world.people["admin"].user.id

    wanted = CLUSTER | {
        "labels": {"env": "prod"},
        "external_url": "https://203.0.113.9:5443",
        "san_urls": ["https://api.example.com:5443"],
        "webhook_mode": "known-only",
        "exemptions": ["system:nodes", "backup"],
        "listed_masters": ["ab" * 32],
        "unauthorized_ttl_seconds": 30,
        "version": "v1.33",
    }
    changed = administration.put(path, wanted)
    assert changed.status_code == 200, changed.text
    assert wanted.items() <= changed.json().items()
    assert changed.json()["client_ca_id"] == made.json()["client_ca_id"]
    again = administration.put(f"{clusters(administration)}/{key}", changed.json(), who="admin")
    assert (again.status_code, again.json()) == (200, changed.json())
    assert administration.kinds(key) == ["cluster.added", "cluster.updated"]

    renamed = administration.put(f"{clusters(administration)}/{key}", wanted | {"name": unique("renamed")})
    assert renamed.json()["id"] == key
    assert administration.get(path).status_code == 404
    removed = administration.delete(f"{clusters(administration)}/{key}", who="admin")
    assert removed.status_code == 200
    [fate] = removed.json()["keys"]
    ca_id = made.json()["client_ca_id"]
    assert (fate["client_ca_id"], fate["signer"], fate["deleted"]) == (ca_id, "local", True)
    assert "was deleted from the database" in fate["result"]
    assert administration.rows(tables.discarded_ca, id=ca_id) == []
    [deleted] = administration.events(ca_id)
    assert (deleted["kind"], deleted["detail"]["result"]) == ("client_ca.key_deleted", fate["result"])
    assert administration.kinds(key)[-1] == "cluster.removed"
    assert administration.rows(tables.cluster, id=key) == []


def test_the_client_ca_is_shown_with_the_place_of_its_key(administration: Administration) -> None:
    path = f"{clusters(administration)}/{unique()}"
    made = administration.put(path, CLUSTER, who="admin").json()
    shown = administration.get(f"{path}/client-ca", who="admin")
    assert shown.status_code == 200, shown.text
    body = shown.json()
    assert (body["id"], body["cluster_id"], body["signer"]) == (made["client_ca_id"], made["id"], "local")
    assert (body["certificate"], body["sha256"]) == (made["client_ca"], made["client_ca_sha256"])
    assert "database" in body["key_location"]
    assert administration.get(f"{path}/client-ca", who="member").status_code == 403


def test_ten_equal_registrations_make_one_cluster(administration: Administration) -> None:
    name = unique()
    answers = administration.put_at_once(f"{clusters(administration)}/{name}", CLUSTER)
    assert sorted(each.status_code for each in answers) == [200] * 9 + [201]
    rows = administration.rows(tables.cluster, name=name)
    assert len(rows) == 1
    assert administration.kinds(rows[0].id) == ["cluster.added"]
    changed = CLUSTER | {"version": "v1.34"}
    administration.put_at_once(f"{clusters(administration)}/{name}", changed)
    assert administration.kinds(rows[0].id) == ["cluster.added", "cluster.updated"]


def test_a_cluster_that_was_changed_is_not_overwritten_or_removed(administration: Administration) -> None:
    path = f"{clusters(administration)}/{unique()}"
    tag = administration.put(path, CLUSTER).headers["ETag"]
    assert administration.put(path, CLUSTER | {"version": "v1.33"}, If_Match=tag).status_code == 200
    assert administration.put(path, CLUSTER, If_Match=tag).status_code == 412
    assert administration.delete(path, If_Match=tag).status_code == 412


def test_a_dry_run_registers_nothing(administration: Administration) -> None:
    name, before = unique(), administration.event_count()
    path = f"{clusters(administration)}/{name}"
    planned = administration.put(path + "?dryRun=All", CLUSTER)
    assert planned.status_code == 201
    assert administration.rows(tables.cluster, name=name) == []
    assert administration.put(path, CLUSTER).status_code == 201
    assert administration.put(path + "?dryRun=All", CLUSTER | {"version": "v2"}).json()["version"] == "v2"
    assert administration.delete(path + "?dryRun=All").json() == {"keys": []}
    assert administration.get(path).json()["version"] == ""
    assert administration.event_count() == before + 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"internal_url": "http://10.0.0.1"}, "internal_url: "),
        ({"internal_url": None}, "internal_url"),
        ({"server_ca": "no PEM"}, "server_ca:"),
        ({"server_ca": server_ca_pem().decode() * 9}, "server_ca: 9 CAs"),
        # OpenSSL's older name of a block.
        ({"server_ca": server_ca_pem().decode().replace("CERT", "X509 CERT") * 9}, "server_ca: 9 CAs"),
        ({"server_ca": "-----BEGIN PRIVATE KEY-----"}, "server_ca: it must contain certificates only"),
        ({"server_ca": "ü"}, "server_ca:"),
        ({"signer": "nowhere"}, "signer"),
        ({"webhook_mode": "off"}, "webhook_mode"),
        ({"exemptions": ["*"]}, "exemptions: "),
        ({"listed_masters": ["xy"]}, "listed_masters: "),
        ({"unauthorized_ttl_seconds": 0}, "unauthorized_ttl_seconds"),
        ({"unauthorized_ttl_seconds": 301}, "unauthorized_ttl_seconds"),
        ({"credential_roles": {"nobody": "view"}}, "credential_roles"),
        ({"labels": {"-": "x"}}, "label"),
        ({"san_urls": ["https://a"] * 17}, "san_urls: "),
        ({"san_urls": ["a"]}, "san_urls: "),
        ({"api_servers": ["https://a"] * 33}, "api_servers: "),
        ({"api_servers": ["10.0.0.1:6443"]}, "api_servers: "),
        ({"external_url": "ftp://a"}, "external_url: "),
        ({"version": "x" * 200}, "version: "),
        ({"exemptions": ["a"] * 200 + [f"x{number}" for number in range(200)]}, "exemptions: "),
        ({"credential_roles": {"a": "-"}}, "credential_roles: "),
        ({"name": "another"}, "name"),
        ({"kubeconfig": "x"}, "kubeconfig"),
    ],
)
def test_an_error_names_what_is_wrong_with_a_cluster(
    administration: Administration, change: dict[str, Any], field: str
) -> None:
    before = administration.event_count()
    answer = administration.put(f"{clusters(administration)}/{unique()}", CLUSTER | change)
    assert answer.status_code == 400, answer.text
    assert field in answer.json()["message"]
    assert administration.event_count() == before


@pytest.mark.parametrize("name", ["0f" * 16, "0A" * 16, FORM_OF_AN_ID, FORM_OF_AN_ID.upper()])
def test_no_name_looks_like_an_id(administration: Administration, name: str) -> None:
    """A cluster named like another's id would match the rules for that id."""
    path = f"{clusters(administration)}/{unique()}"
    assert administration.put(path, CLUSTER).status_code == 201
    renamed = administration.put(path, CLUSTER | {"name": name})
    assert (renamed.status_code, renamed.json()["message"].partition(":")[0]) == (400, "name")
    assert administration.put(f"{clusters(administration)}/{name}", CLUSTER).status_code in {400, 404}
    if "-" not in name:
        for kind in ("users", "groups", "projects", "domains", "roles"):
            assert administration.put(f"/{kind}/{name}").status_code in {400, 404}


def test_roles_for_credentials_leave_an_empty_mapping(administration: Administration) -> None:
    """Bindings for earlier certificates are still removed after the last role."""
    path = f"{clusters(administration)}/{unique()}"
    rule = "admin"
    key = administration.put(path, CLUSTER | {"credential_roles": {rule: "view"}}).json()["id"]
    assert administration.put(path, CLUSTER).json()["credential_roles"] == {}
    (row,) = administration.rows(tables.cluster, id=key)
    assert row.options["credential_roles"] == {}
    assert ClusterOptions().credential_roles is None


def test_webhook_tokens_are_shown_once(administration: Administration) -> None:
    path = f"{clusters(administration)}/{unique()}"
    administration.put(path, CLUSTER)
    planned = administration.post(path + "/webhook-tokens?dryRun=All", who="admin")
    assert (planned.status_code, planned.json()["token"]) == (201, None)
    made = [administration.post(path + "/webhook-tokens", who="admin") for _ in range(2)]
    assert [each.status_code for each in made] == [201, 201]
    assert administration.post(path + "/webhook-tokens").status_code == 409
    listed = administration.get(path + "/webhook-tokens", who="admin")
    assert {each["id"] for each in listed.json()["webhook_tokens"]} == {each.json()["id"] for each in made}
    for each in made:
        key, token = each.json()["id"], each.json()["token"]
        assert token.startswith("ccw_")
        assert token not in listed.text
        shown = administration.get(f"{path}/webhook-tokens/{key}", who="admin")
        assert shown.json() in listed.json()["webhook_tokens"]
        other = administration.delete(f"{path}/webhook-tokens/{key}", who="admin", If_Match='"other"')
        assert other.status_code == 412
        assert administration.delete(f"{path}/webhook-tokens/{key}", who="admin").status_code == 204
        assert administration.kinds(key) == ["webhook_token.created", "webhook_token.removed"]
        assert token not in json.dumps(administration.events(key))
        assert administration.delete(f"{path}/webhook-tokens/{key}").status_code == 404


def test_access_keys_are_shown_once_and_can_be_disabled(
    administration: Administration, capfd: pytest.CaptureFixture[str]
) -> None:
    user = administration.put(f"/users/{unique()}").json()["id"]
    planned = administration.post(f"/users/{user}/access-keys?dryRun=All", {"description": "x"}).json()
    assert planned["secret_key"] is None
    made = administration.post(f"/users/{user}/access-keys", {"description": "ci"})
    assert made.status_code == 201, made.text
    key, secret = made.json()["access_key"], made.json()["secret_key"]
    assert len(secret) == 40
    listed = administration.get(f"/users/{user}/access-keys")
    assert [each["access_key"] for each in listed.json()["access_keys"]] == [key]
    shown = administration.get(f"/access-keys/{key}")
    assert shown.json()["description"] == "ci"
    for _ in range(2):
        assert not administration.put(f"/access-keys/{key}", {"enabled": False}).json()["enabled"]
    assert not administration.put(f"/access-keys/{key}").json()["enabled"]
    administration.put_at_once(f"/access-keys/{key}", {"enabled": True})
    assert administration.delete(f"/access-keys/{key}", If_Match=shown.headers["ETag"]).status_code == 204
    assert administration.get(f"/access-keys/{key}").status_code == 404
    kinds = [f"access_key.{change}" for change in ("created", "disabled", "enabled", "removed")]
    assert administration.kinds(key) == kinds
    for text in (
        listed.text,
        shown.text,
        json.dumps(administration.events(key)),
        "".join(capfd.readouterr()),
    ):
        assert secret not in text


def test_a_password_is_set_and_never_shown(
    administration: Administration, capfd: pytest.CaptureFixture[str]
) -> None:
    user = administration.put(f"/users/{unique()}").json()["id"]
    password = "a quite good password"
    body = {"password": password}
    assert administration.put(f"/users/{user}/password?dryRun=All", body).status_code == 204
    assert administration.kinds(user) == ["user.created"]
    assert administration.put(f"/users/{user}/password", body).status_code == 204
    assert administration.kinds(user) == ["user.created", "user.password_changed"]
    login = {"methods": ["password"], "password": {"user": {"id": user, "password": password}}}
    client = administration.service.client
    assert client.post("/v3/auth/tokens", json={"auth": {"identity": login}}).status_code == 201
    short = administration.put(f"/users/{user}/password", {"password": "short"})
    assert short.status_code == 400
    assert "password" in short.json()["message"].lower()
    assert password not in json.dumps(administration.events(user)) + "".join(capfd.readouterr())


def test_members_come_and_go(administration: Administration) -> None:
    group = administration.put(f"/groups/{unique()}").json()["id"]
    users = [administration.put(f"/users/{unique()}").json() for _ in range(3)]
    for user in users:
        answers = administration.put_at_once(f"/groups/{group}/members/{user['name']}", {}, 4)
        assert {each.status_code for each in answers} <= {200, 201}
    first = administration.get(f"/groups/{group}/members?limit=2").json()
    rest = administration.get(f"/groups/{group}/members?cursor={first['next']}").json()
    ids = [each["id"] for each in (*first["members"], *rest["members"])]
    assert ids == sorted(user["id"] for user in users)
    shown = rest["members"][0]
    assert administration.put(f"/groups/{group}/members/{shown['id']}", shown).status_code == 200
    wrong = administration.put(f"/groups/{group}/members/{shown['id']}", shown | {"name": "another"})
    assert (wrong.status_code, wrong.json()["message"].partition(":")[0]) == (400, "name")
    assert administration.delete(f"/groups/{group}/members/{ids[0]}").status_code == 200
    assert administration.delete(f"/groups/{group}/members/{ids[0]}").status_code == 404
    assert administration.kinds(group) == [
        "group.created",
        *["group.member_added"] * 3,
        "group.member_removed",
    ]


def test_roles_are_named_and_deleted_unless_they_are_assigned(administration: Administration) -> None:
    name, user = unique("role"), administration.put(f"/users/{unique()}").json()["id"]
    assigned = f"{assignments(administration)}/{name}/users/{user}"
    assert administration.put(assigned).status_code == 404
    role = administration.put(f"/roles/{name}").json()["id"]
    assert administration.put(f"/roles/{name}").status_code == 200
    shown = administration.get(f"/roles/{name}").json()
    assert administration.put(f"/roles/{name}", shown).status_code == 200
    assert administration.put(f"/roles/{name}", {"color": "red"}).status_code == 400
    assert administration.put(assigned).status_code == 201
    assert administration.delete(f"/roles/{name}").status_code == 409
    assert administration.delete(assigned).status_code == 200
    assert administration.delete(f"/roles/{name}").status_code == 204
    assert administration.kinds(role) == ["role.created", "role.removed"]
    assert administration.delete("/roles/admin").status_code == 409


@pytest.mark.parametrize("place", ["project", "service"])
def test_an_assignment_is_found_by_the_id_of_its_role_and_by_each_spelling(
    administration: Administration, place: str
) -> None:
    path = assignments(administration) if place == "project" else "/assignments"
    role = administration.get("/roles/auditor").json()["id"]
    user = unique("Zo\u00eb")
    administration.put(f"/users/{user}")
    for spelling in (user, unicodedata.normalize("NFD", user)):
        one = f"{path}/{role}/users/{spelling}"
        answers = [administration.put(one), administration.put(one), administration.get(one)]
        assert [each.status_code for each in answers] == [201, 200, 200]
        if place == "service":
            assert all("Warning" not in each.headers for each in answers)
        assert administration.delete(one).is_success
        assert administration.get(one).status_code == 404


@pytest.mark.parametrize("place", ["project", "service"])
def test_roles_are_assigned_once_and_removed(administration: Administration, place: str) -> None:
    path = assignments(administration) if place == "project" else "/assignments"
    user = administration.put(f"/users/{unique()}").json()
    group = administration.put(f"/groups/{unique()}").json()
    for kind, each in (("users", user), ("groups", group)):
        one = f"{path}/member/{kind}/{each['name']}"
        answers = administration.put_at_once(one, {}, 5)
        assert {each.status_code for each in answers} <= {200, 201}
        shown = administration.get(one).json()
        assert (shown["role"], shown["assignee_id"]) == ("member", each["id"])
        assert administration.put(one, shown).status_code == 200
        assert shown in administration.get(f"{path}?limit=500").json()["assignments"]
        assert administration.delete(one + "?dryRun=All").is_success
        assert administration.delete(one, If_Match='"other"').status_code == 412
        assert administration.delete(one).is_success
        assert administration.get(one).status_code == 404
        kinds = administration.kinds(each["id"])
        assert kinds[1:] == ["role.assigned", "role.unassigned"]


def test_the_ca_is_stored_without_other_text(administration: Administration) -> None:
    path = f"{clusters(administration)}/{unique()}"
    noisy = {"server_ca": "# comment\n" + server_ca_pem().decode()}
    made = administration.put(path, CLUSTER | noisy)
    assert "comment" not in made.text
    assert administration.put(path, CLUSTER).status_code == 200
    assert administration.kinds(made.json()["id"]) == ["cluster.added"]

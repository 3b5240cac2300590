import json
import re
from datetime import UTC, datetime, timedelta

from clustercert.model import User
from support.accounts import enable
from support.keystone import BY, PASSWORD, UNAUTHORIZED, Keystone, in_project, login_body
from support.service import BASE_URL


def test_discovery_says_where_version_3_is_with_and_without_a_slash(keystone: Keystone) -> None:
    for path in ("/v3", "/v3/"):
        response = keystone.http.get(path)
        assert response.status_code == 200
        version = response.json()["version"]
        assert (version["id"], version["status"]) == ("v3.6", "stable")
        assert version["links"] == [{"rel": "self", "href": f"{BASE_URL}/v3/"}]
    root = keystone.http.get("/", headers={"Accept": "application/json"})
    assert root.status_code in (200, 300)
    assert root.json()["versions"]["values"] == [version]


def test_a_login_answers_as_keystone_does(keystone: Keystone) -> None:
    before = datetime.now(UTC)
    response = keystone.http.post(
        "/v3/auth/tokens", json=login_body(keystone.alice, in_project(keystone.project))
    )
    assert response.status_code == 201
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", response.headers["x-subject-token"])
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["vary"] == "X-Auth-Token"
    token = response.json()["token"]
    issued_at, expires_at = (
        datetime.strptime(token[name], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        for name in ("issued_at", "expires_at")
    )
    assert before <= issued_at <= datetime.now(UTC)
    assert expires_at - issued_at == timedelta(hours=24)
    (role,) = token["roles"]
    assert role["name"] == "admin"
    domain = {"id": keystone.domain.id, "name": "OTC1"}
    assert token["methods"] == ["password"]
    assert token["user"] == {
        "id": keystone.alice.id,
        "name": "alice",
        "domain": domain,
        "password_expires_at": "",
    }
    assert token["project"] == {"id": keystone.project.id, "name": "eu-de", "domain": domain}
    assert len(token["audit_ids"]) == 1
    assert "domain" not in token


def test_the_catalog_has_the_bare_address_for_cce_and_v3_for_identity(keystone: Keystone) -> None:
    token = keystone.login(scope=in_project(keystone.project))
    shown = keystone.http.get("/v3/auth/tokens", headers={"X-Auth-Token": token, "X-Subject-Token": token})
    listed = keystone.http.get("/v3/auth/catalog", headers={"X-Auth-Token": token})
    assert shown.json()["token"]["catalog"] == listed.json()["catalog"]
    by_type = {entry["type"]: entry["endpoints"] for entry in listed.json()["catalog"]}
    assert {kind: endpoint["url"] for kind, (endpoint,) in by_type.items()} == {
        "ccev2.0": BASE_URL,
        "identity": f"{BASE_URL}/v3",
    }
    for (endpoint,) in by_type.values():
        assert (endpoint["interface"], endpoint["region"], endpoint["region_id"]) == (
            "public",
            "eu-de",
            "eu-de",
        )
    assert listed.json()["links"] == {"self": f"{BASE_URL}/v3/auth/catalog"}


def test_nocatalog_leaves_the_catalog_out(keystone: Keystone) -> None:
    body = login_body(keystone.alice, in_project(keystone.project))
    for query in ("?nocatalog", "?nocatalog=", "?nocatalog=true"):
        response = keystone.http.post(f"/v3/auth/tokens{query}", json=body)
        assert "catalog" not in response.json()["token"]


# As recorded from openstacksdk and gophertelekomcloud, whose body ends with a line feed.
RECORDED = [
    """{"auth": {"identity": {"methods": ["password"], "password": {"user": {"password": "correct horse",
    "name": "alice", "domain": {"name": "OTC1"}}}},
    "scope": {"project": {"name": "eu-de", "domain": {"name": "OTC1"}}}}}""",
    """{"auth":{"identity":{"methods":["password"],"password":{"user":{"domain":{"name":"OTC1"},"name":"alice",
    "password":"correct horse"}}},"scope":{"project":{"domain":{"name":"OTC1"},"name":"eu-de"}}}}\n""",
    """{"auth":{"identity":{"methods":["password"],"password":{"user":{"id":null,"name":"alice",
    "domain":{"id":null,"name":"OTC1"},"password":"correct horse"}}},
    "scope":{"project":{"id":null,"name":"eu-de"},"domain":null}}}""",
]


def test_the_bodies_of_real_clients_log_in(keystone: Keystone) -> None:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    for body in RECORDED:
        response = keystone.http.post("/v3/auth/tokens", content=body, headers=headers)
        assert response.status_code == 201
        assert response.json()["token"]["project"]["id"] == keystone.project.id


def test_the_id_of_keystones_first_domain_stands_for_the_domain_default(keystone: Keystone) -> None:
    default = keystone.do(keystone.directory.create_domain("Default", **BY))
    bob, project = keystone.new_user("bob", domain=default), keystone.new_project("eu-de", default)
    keystone.assign("member", bob, project)
    user = {"name": "bob", "domain": {"id": "default"}, "password": PASSWORD}
    for scope, kind, name in (
        ({"project": {"name": "eu-de", "domain": {"id": "default"}}}, "project", "eu-de"),
        ({"domain": {"id": "default"}}, "domain", "Default"),
    ):
        identity = {"methods": ["password"], "password": {"user": user}}
        response = keystone.http.post(
            "/v3/auth/tokens", json={"auth": {"identity": identity, "scope": scope}}
        )
        assert response.status_code == 201
        assert response.json()["token"][kind]["name"] == name
    user["name"] = "alice"  # She is in another domain.
    response = keystone.http.post("/v3/auth/tokens", json={"auth": {"identity": identity}})
    assert (response.status_code, response.json()) == (401, UNAUTHORIZED)


def test_a_domain_and_no_scope_give_tokens_without_a_project(keystone: Keystone) -> None:
    for scope in ({"domain": {"id": keystone.domain.id}}, {"domain": {"name": "OTC1"}}):
        response = keystone.http.post("/v3/auth/tokens", json=login_body(keystone.alice, scope))
        token = response.json()["token"]
        assert token["domain"] == {"id": keystone.domain.id, "name": "OTC1"}
        assert token["roles"] == []
        assert "catalog" in token
        assert "project" not in token
    for no_scope in (None, "unscoped"):
        response = keystone.http.post("/v3/auth/tokens", json=login_body(keystone.alice, no_scope))
        assert response.status_code == 201
        assert not {"project", "domain", "roles", "catalog"} & response.json()["token"].keys()


def test_a_token_exchanged_for_another_scope_keeps_its_expiry(
    keystone: Keystone,
) -> None:
    first = keystone.login()
    body = {
        "auth": {
            "identity": {"methods": ["token"], "token": {"id": first}},
            "scope": in_project(keystone.project),
        }
    }
    response = keystone.http.post("/v3/auth/tokens", json=body, headers={"X-Auth-Token": first})
    assert response.status_code == 201
    assert response.json()["token"]["methods"] == ["password", "token"]
    shown = keystone.http.get("/v3/auth/tokens", headers={"X-Auth-Token": first, "X-Subject-Token": first})
    assert shown.json()["token"]["expires_at"] == response.json()["token"]["expires_at"]


def test_every_failed_login_says_the_same(keystone: Keystone) -> None:
    stranger = keystone.new_project("elsewhere")
    bodies = [
        login_body(keystone.alice, password="wrong"),
        login_body(keystone.alice, password="\ud800"),
        login_body(User(id="0" * 32, name="", domain=keystone.domain)),
        login_body(User(id="\x00", name="", domain=keystone.domain)),
        login_body(keystone.alice, in_project(stranger)),
        login_body(keystone.alice, {"project": {"name": "nowhere"}}),
        login_body(keystone.alice, {"domain": {"name": "OTC9"}}),
        {"auth": {"identity": {"methods": ["token"], "token": {"id": "x" * 43}}}},
        {"auth": {"identity": {"methods": ["token"], "token": {"id": ""}}}},
    ]
    for body in bodies:
        response = keystone.http.post("/v3/auth/tokens", content=json.dumps(body))
        assert (response.status_code, response.json()) == (401, UNAUTHORIZED), body


BAD_BODIES = {
    "": "empty",
    "[]": "object",
    "{": "not valid JSON",
    '{"auth": {}}': "auth.identity",
    '{"auth": null}': "auth",
    '{"auth": {"identity": {"methods": []}}}': 'methods must be ["password"] or ["token"]',
    '{"auth": {"identity": {"methods": ["totp"]}}}': "methods must be",
    '{"auth": {"identity": {"methods": ["password", "token"]}}}': "methods must be",
    '{"auth": {"identity": {"methods": "password"}}}': "methods must be",
    '{"auth": {"identity": []}}': "methods must be",
    '{"auth": {"identity": {"methods": ["token"]}}}': "token",
    '{"auth": {"identity": {"methods": ["token"], "token": {"id": 7}}}}': "string",
    '{"auth": {"identity": {"methods": ["password"]}}}': "password",
    '{"auth": {"identity": {"methods": ["password"], "password": {"user": {"name": "a", "password": "b"}}}}}': "domain",
    '{"auth": {"identity": {"methods": ["password"], "password": {"user": {"id": "a"}}}}}': "password",
    '{"auth": {"identity": {"methods": ["token"], "token": {"id": "x"}}, "scope": {"system": {"all": true}}}}': "scope",
    '{"auth": {"identity": {"methods": ["token"], "token": {"id": "x"}}, "scope": {}}}': "scope",
    '{"auth": {"identity": {"methods": ["token"], "token": {"id": "x"}}, "scope": {"project": {}}}}': "name",
    '{"auth": {"identity": {"methods": ["token"], "token": {"id": "x"}}, "scope":'
    ' {"project": {"id": "x"}, "domain": {"id": "y"}}}}': "domain",
    '{"auth": {"identity": {"methods": ["token"], "token": {"id": "x"}}}, "auth": {}}': "duplicate key",
}


def test_a_login_that_says_nothing_is_a_clear_400_in_keystones_form(keystone: Keystone) -> None:
    for body, said in BAD_BODIES.items():
        response = keystone.http.post("/v3/auth/tokens", content=body)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["title"]) == (400, 400, "Bad Request"), body
        assert said in error["message"], body


def test_a_login_over_8_kib_is_413(keystone: Keystone) -> None:
    response = keystone.http.post("/v3/auth/tokens", content=b'{"a": "' + b"x" * 8 * 1024 + b'"}')
    assert response.status_code == 413
    assert response.json()["error"]["code"] == 413


PROTECTED = [
    ("GET", "/v3/auth/tokens"),
    ("DELETE", "/v3/auth/tokens"),
    ("GET", "/v3/projects"),
    ("GET", f"/v3/projects/{'0' * 32}"),
    ("GET", "/v3/auth/projects"),
    ("GET", "/v3/auth/catalog"),
    ("GET", "/v3/auth/domains"),
    ("GET", f"/v3/users/{'0' * 32}"),
    ("POST", "/v3.0/OS-CREDENTIAL/securitytokens"),
]


def test_without_a_good_credential_every_other_answer_is_the_same_401(
    keystone: Keystone,
) -> None:
    body = {"auth": {"identity": {"methods": ["token"]}}}
    bad: list[dict[str, str]] = [
        {},
        {"X-Auth-Token": "x" * 43},
        {"X-Auth-Token": "nonsense"},
        {"Authorization": "Bearer x"},
    ]
    for method, path in PROTECTED:
        for headers in bad:
            response = keystone.http.request(
                method, path, headers=headers, json=body if method == "POST" else None
            )
            assert (response.status_code, response.json()) == (401, UNAUTHORIZED), (method, path, headers)


def test_the_callers_projects_are_listed_and_filtered_and_no_others(keystone: Keystone) -> None:
    other = keystone.do(keystone.directory.create_domain("OTC2", **BY))
    theirs, closed = keystone.new_project("eu-nl", other), keystone.new_project("closed")
    strange = keystone.new_project("strange")
    for project in (theirs, closed):
        keystone.assign("reader", keystone.alice, project)
    keystone.do(enable(keystone.directory, closed, enabled=False, **BY))
    headers = {"X-Auth-Token": keystone.login(scope=in_project(keystone.project))}

    def names(query: str = "") -> list[str]:
        response = keystone.http.get(f"/v3/projects{query}", headers=headers)
        assert response.headers["vary"] == "X-Auth-Token"
        body = response.json()
        assert body["links"] == {"self": f"{BASE_URL}/v3/projects", "previous": None, "next": None}
        return [project["name"] for project in body["projects"]]

    assert names() == ["closed", "eu-de", "eu-nl"]
    assert names("?name=eu-de") == ["eu-de"]
    assert names("?name=strange") == []
    spelled = keystone.new_project("Mu\u0308nchen")
    keystone.assign("reader", keystone.alice, spelled)
    assert names("?name=Mu%CC%88nchen") == names("?name=M%C3%BCnchen") == [spelled.name] == ["M\u00fcnchen"]
    keystone.do(keystone.directory.remove_project(spelled, **BY))
    assert names(f"?domain_id={other.id}") == ["eu-nl"]
    assert names("?enabled=true") == ["eu-de", "eu-nl"]
    assert names("?enabled=False") == ["closed"]
    assert names(f"?name=eu-de&domain_id={keystone.domain.id}&enabled=true") == ["eu-de"]
    assert (keystone.http.get("/v3/projects?enabled=maybe", headers=headers)).status_code == 400
    scopes = keystone.http.get("/v3/auth/projects", headers=headers)
    assert [project["name"] for project in scopes.json()["projects"]] == ["eu-de", "eu-nl"]
    one = keystone.http.get(f"/v3/projects/{keystone.project.id}", headers=headers)
    assert one.json()["project"] == {
        "id": keystone.project.id,
        "name": "eu-de",
        "domain_id": keystone.domain.id,
        "parent_id": keystone.domain.id,
        "is_domain": False,
        "enabled": True,
        "description": "",
        "links": {"self": f"{BASE_URL}/v3/projects/{keystone.project.id}"},
    }
    for missing in (strange.id, "0" * 32, "eu-de", "%00"):
        response = keystone.http.get(f"/v3/projects/{missing}", headers=headers)
        assert response.status_code == 404
        assert response.json()["error"]["message"] == "Could not find project."


def test_the_callers_own_domain_is_listed(keystone: Keystone) -> None:
    keystone.do(keystone.directory.create_domain("OTC2", **BY))
    headers = {"X-Auth-Token": keystone.login()}
    for query, names in (("", ["OTC1"]), ("?name=OTC1", ["OTC1"]), ("?name=OTC2", [])):
        response = keystone.http.get(f"/v3/auth/domains{query}", headers=headers)
        assert [domain["name"] for domain in response.json()["domains"]] == names
        assert response.json()["links"]["next"] is None


def test_a_signed_request_finds_the_project_by_its_region(keystone: Keystone) -> None:
    key = keystone.new_key(keystone.alice)
    response = keystone.signed("GET", "/v3/projects", key, query="name=eu-de")
    assert response.status_code == 200
    (project,) = response.json()["projects"]
    assert project["id"] == keystone.project.id
    assert (keystone.signed("GET", "/v3/auth/catalog", key)).status_code == 200
    assert (keystone.signed("GET", "/v3/auth/domains", key)).status_code == 200
    assert (keystone.signed("GET", "/v3/projects", (key[0], "x" * 40))).json() == UNAUTHORIZED


def test_the_operators_changes_hold_within_a_second(keystone: Keystone) -> None:
    first = keystone.login(scope=in_project(keystone.project))
    keystone.do(keystone.directory.set_password(keystone.alice, PASSWORD, **BY))
    keystone.eventually_refused(first)
    second = keystone.login(scope=in_project(keystone.project))
    keystone.do(keystone.directory.enable_user(keystone.alice, enabled=False, **BY))
    keystone.eventually_refused(second)


def test_the_api_describes_itself(keystone: Keystone) -> None:
    document = (keystone.http.get("/openapi.json")).json()
    paths = {
        path: set(operations) for path, operations in document["paths"].items() if path.startswith("/v3")
    }
    assert paths == {
        "/v3": {"get"},
        "/v3/auth/tokens": {"post", "get", "head", "delete"},
        "/v3/projects": {"get"},
        "/v3/projects/{project_id}": {"get"},
        "/v3/auth/projects": {"get"},
        "/v3/auth/catalog": {"get"},
        "/v3/auth/domains": {"get"},
        "/v3/users/{user_id}": {"get"},
        "/v3/users/{user_id}/password": {"post"},
        "/v3.0/OS-CREDENTIAL/securitytokens": {"post"},
    }
    for path in paths.keys() - {"/v3"}:
        for operation in document["paths"][path].values():
            assert operation["summary"]
            assert operation["description"]
            for status in ("400", "401", "403", "404", "413", "503"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/KeystoneError"}
            assert "422" not in operation["responses"]
    assert '"$defs"' not in json.dumps(document)

"""GET /clustercert/v1/caller: who sends the request, and with what; and the caller's own access keys."""

from support.accounts import enable
from support.keystone import BY, Keystone, in_project

PATH = "/clustercert/v1/caller"


def test_the_owner_of_an_access_key_is_named(keystone: Keystone) -> None:
    answer = keystone.signed("GET", PATH, keystone.new_key(keystone.alice))
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "id": keystone.alice.id,
        "name": "alice",
        "domain": keystone.domain.name,
        "issuer": "built-in",
        "groups": [],
        "service_roles": [],
        "method": "access_key",
        "expires_at": None,
        "recommended_client": None,
        "missed_role_claims": None,
        "projects": [
            {
                "id": keystone.project.id,
                "name": keystone.project.name,
                "domain": keystone.domain.name,
                "domain_id": keystone.domain.id,
                "roles": ["admin"],
            }
        ],
    }


def test_a_token_has_an_end(keystone: Keystone) -> None:
    token = keystone.login(scope=in_project(keystone.project))
    body = keystone.http.get(PATH, headers={"X-Auth-Token": token}).json()
    assert (body["name"], body["method"]) == ("alice", "token")
    assert body["expires_at"].endswith("Z")


def test_projects_that_are_disabled_are_left_out(keystone: Keystone) -> None:
    key = keystone.new_key(keystone.alice)
    project = keystone.do(keystone.directory.create_project("closed", keystone.domain, **BY))
    keystone.assign("reader", keystone.alice, project)
    assert "closed" in [each["name"] for each in keystone.signed("GET", PATH, key).json()["projects"]]
    keystone.do(enable(keystone.directory, project, enabled=False, **BY))
    assert "closed" not in [each["name"] for each in keystone.signed("GET", PATH, key).json()["projects"]]


def test_users_list_and_delete_only_their_own_keys(keystone: Keystone) -> None:
    bob = keystone.new_user("bob")
    kept, ended, foreign = (keystone.new_key(user) for user in (keystone.alice, keystone.alice, bob))
    headers = {"X-Auth-Token": keystone.login()}
    asked = {"auth": {"identity": {"methods": ["token"], "token": {}}}}
    made = keystone.http.post("/v3.0/OS-CREDENTIAL/securitytokens", json=asked, headers=headers).json()
    temporary = made["credential"]["access"]

    listed = keystone.http.get(f"{PATH}/access-keys", headers=headers).json()["access_keys"]
    assert [each["access_key"] for each in listed] == sorted([kept[0], ended[0], temporary])
    assert [each["access_key"] for each in listed if each["expires_at"]] == [temporary]
    assert all("secret" not in name for each in listed for name in each)

    # Another user's key looks like a key that does not exist.
    answers = [
        keystone.http.delete(f"{PATH}/access-keys/{key}", headers=headers) for key in (foreign[0], "A" * 20)
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert keystone.signed("GET", PATH, foreign).status_code == 200

    assert keystone.http.delete(f"{PATH}/access-keys/{ended[0]}", headers=headers).status_code == 204
    left = keystone.http.get(f"{PATH}/access-keys", headers=headers).json()["access_keys"]
    assert [each["access_key"] for each in left] == [kept[0]]
    assert keystone.signed("GET", PATH, kept).status_code == 200

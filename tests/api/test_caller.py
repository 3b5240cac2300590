"""GET /clustercert/v1/caller: who sends the request, and with what."""

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

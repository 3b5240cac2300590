"""GET /clustercert/v1/caller: who sends the request, and with what."""

from support.keystone import Keystone, in_project

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
        "projects": [
            {"id": keystone.project.id, "name": keystone.project.name, "domain": keystone.domain.name}
        ],
    }


def test_a_token_has_an_end(keystone: Keystone) -> None:
    token = keystone.login(scope=in_project(keystone.project))
    body = keystone.http.get(PATH, headers={"X-Auth-Token": token}).json()
    assert (body["name"], body["method"]) == ("alice", "token")
    assert body["expires_at"].endswith("Z")

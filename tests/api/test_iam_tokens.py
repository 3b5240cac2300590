"""Tokens of the built-in identity are shown, checked and revoked."""

from support.accounts import enable
from support.keystone import BY, Keystone, in_project


def test_a_token_is_shown_checked_and_revoked_by_its_user(keystone: Keystone) -> None:
    own, subject = keystone.login(), keystone.login(scope=in_project(keystone.project))
    headers = {"X-Auth-Token": own, "X-Subject-Token": subject}
    shown = keystone.http.get("/v3/auth/tokens", headers=headers)
    assert shown.status_code == 200
    assert shown.json()["token"]["project"]["id"] == keystone.project.id
    checked = keystone.http.head("/v3/auth/tokens", headers=headers)
    assert (checked.status_code, checked.content) == (200, b"")
    for response in (shown, checked):
        assert response.headers["x-subject-token"] == subject
        assert response.headers["cache-control"] == "no-store"
    # The token is in the worker's cache.
    path = f"/v3/users/{keystone.alice.id}"
    assert keystone.http.get(path, headers={"X-Auth-Token": subject}).status_code == 200
    revoked = keystone.http.delete("/v3/auth/tokens", headers=headers)
    assert (revoked.status_code, revoked.content) == (204, b"")
    assert keystone.http.get(path, headers={"X-Auth-Token": subject}).status_code == 401
    assert keystone.http.head("/v3/auth/tokens", headers=headers).status_code == 404
    gone = keystone.http.get("/v3/auth/tokens", headers=headers)
    assert gone.json()["error_code"] == "CCE.01404001"
    assert gone.json()["error"] == {"code": 404, "message": "Could not find token.", "title": "Not Found"}
    again = keystone.http.delete("/v3/auth/tokens", headers=headers)
    assert again.status_code == 404


def test_users_read_themselves_and_nobody_else(keystone: Keystone) -> None:
    headers, bob = {"X-Auth-Token": keystone.login()}, keystone.new_user("another")
    shown = keystone.http.get(f"/v3/users/{keystone.alice.id}", headers=headers)
    assert shown.status_code == 200
    user = shown.json()["user"]
    assert (user["id"], user["name"], user["domain_id"], user["enabled"]) == (
        keystone.alice.id,
        keystone.alice.name,
        keystone.alice.domain.id,
        True,
    )
    answers = [keystone.http.get(f"/v3/users/{each}", headers=headers) for each in (bob.id, "0" * 32, "me")]
    assert [answer.status_code for answer in answers] == [404] * 3
    assert len({answer.text for answer in answers}) == 1


def test_the_tokens_of_a_disabled_project_end_for_good(keystone: Keystone) -> None:
    project = keystone.new_project("leaky")
    keystone.assign("reader", keystone.alice, project)
    own, subject = keystone.login(), keystone.login(scope=in_project(project))
    keystone.do(enable(keystone.directory, project, enabled=False, **BY))
    keystone.eventually_refused(subject)
    headers = {"X-Auth-Token": own, "X-Subject-Token": subject}
    assert keystone.http.get("/v3/auth/tokens", headers=headers).status_code == 404
    assert keystone.http.delete("/v3/auth/tokens", headers=headers).status_code == 404
    keystone.do(enable(keystone.directory, project, enabled=True, **BY))
    again = keystone.login(scope=in_project(project))
    assert keystone.http.get("/v3/auth/projects", headers={"X-Auth-Token": again}).status_code == 200
    assert keystone.http.get("/v3/auth/projects", headers={"X-Auth-Token": subject}).status_code == 401
    keystone.do(keystone.directory.remove_project(project, **BY))


def test_a_token_may_ask_about_itself(keystone: Keystone) -> None:
    token = keystone.login(scope=in_project(keystone.project))
    headers = {"X-Auth-Token": token, "X-Subject-Token": token}
    assert (keystone.http.get("/v3/auth/tokens", headers=headers)).status_code == 200
    assert (keystone.http.delete("/v3/auth/tokens", headers=headers)).status_code == 204
    keystone.eventually_refused(token)


def test_anothers_token_does_not_exist_except_for_operators(keystone: Keystone) -> None:
    subject = keystone.login()
    bob, root = keystone.new_user("bob"), keystone.new_user("root")
    keystone.assign("operator", root, None)
    for user, status in ((bob, 404), (root, 200)):
        headers = {"X-Auth-Token": keystone.login(user), "X-Subject-Token": subject}
        assert (keystone.http.get("/v3/auth/tokens", headers=headers)).status_code == status
        assert (keystone.http.head("/v3/auth/tokens", headers=headers)).status_code == status
    stranger = {"X-Auth-Token": keystone.login(bob), "X-Subject-Token": subject}
    assert (keystone.http.delete("/v3/auth/tokens", headers=stranger)).status_code == 404
    alive = keystone.http.get("/v3/auth/projects", headers={"X-Auth-Token": subject})
    assert alive.status_code == 200


def test_without_a_subject_token_there_is_nothing_to_show(keystone: Keystone) -> None:
    token = keystone.login()
    for method in ("GET", "HEAD", "DELETE"):
        response = keystone.http.request(method, "/v3/auth/tokens", headers={"X-Auth-Token": token})
        assert response.status_code == 400
        twice = [("X-Auth-Token", token), ("X-Subject-Token", token), ("X-Subject-Token", token)]
        assert (keystone.http.request(method, "/v3/auth/tokens", headers=twice)).status_code == 400

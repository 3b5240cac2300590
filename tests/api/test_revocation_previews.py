"""Revoking certificates by their name alone, and previews of revocations."""

import httpx2

from clustercert.pki.certificates import fingerprint
from support.administration import CLUSTER
from support.leaf_checks import leaf_of
from support.revocation_client import OWN, RevocationClient
from support.stores import Store


def preview(place: RevocationClient, who: str, path: str) -> httpx2.Response:
    return place.post(who, f"{path}?dryRun=All")


def named(
    place: RevocationClient, who: str, name: str, path: str = f"{OWN}/users-by-name"
) -> httpx2.Response:
    return place.client.get(path, params={"name": name}, headers=place.world.people[who].headers)


def of_user(place: RevocationClient, user: str, cluster: str = "plain") -> str:
    return place.own(f"/users/{user}/revoke", cluster)


def test_owners_and_administrators_revoke_by_the_name_alone(place: RevocationClient) -> None:
    certificate, others = place.issue("member"), place.issue("admin")
    path = f"{OWN}/certificates/{fingerprint(certificate).hex()}/revoke"
    for who in ("reader", "stranger"):
        assert place.post(who, path).status_code == 404
    answer = place.post("member", path, {"reason": "superseded"})
    assert (answer.status_code, answer.json()["by"]) == (200, place.user("member"))
    assert place.states(certificate, others) == ["revoked", "live"]
    assert place.post("member", f"{OWN}/certificates/{fingerprint(others).hex()}/revoke").status_code == 404
    # An abbreviation shows a certificate, but revokes none.
    assert (
        place.post("admin", f"{OWN}/certificates/{fingerprint(others).hex()[:16]}/revoke").status_code == 404
    )
    assert place.post("admin", path).json()["by"] == place.user("admin")


def test_certificates_of_removed_clusters_are_revoked(place: RevocationClient) -> None:
    operator = place.world.people["operator"].headers
    project = f"{OWN}/projects/{place.world.project.id}"
    added = place.client.put(f"{project}/clusters/gone", json=CLUSTER, headers=operator).json()
    issuing = f"/api/v3/projects/{place.world.project.id}/clusters/{added['id']}/clustercert"
    certificate = leaf_of(place.post("member", issuing, {"duration": 1}).json())
    place.client.delete(f"{project}/clusters/gone", headers=operator).raise_for_status()
    name = fingerprint(certificate).hex()
    answer = place.post("member", f"{OWN}/certificates/{name}/revoke")
    assert (answer.status_code, answer.json()["enforced_by"]) == (200, None)
    shown = place.client.get(
        f"{OWN}/certificates/{name}", headers=place.world.people["member"].headers
    ).json()
    assert (shown["state"], shown["cluster_name"], shown["project_name"]) == ("revoked", None, "eu-de")


def test_a_user_of_a_cluster_is_revoked_with_a_reason(place: RevocationClient) -> None:
    theirs, elsewhere = place.issue("member"), place.issue("member", "eip")
    path = of_user(place, place.user("member"))
    assert place.post("reader", path).status_code == 403
    assert place.post("stranger", path).status_code == 404
    answer = place.post("member", path, {"reason": "keyCompromise", "note": "lost"})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["reason"], said["note"], said["can_be_undone"]) == ("keyCompromise", "lost", False)
    assert place.states(theirs, elsewhere) == ["revoked", "live"]
    assert place.events("user.revoked")[-1]["detail"]["note"] == "lost"


def test_the_answer_names_what_enforces_it(place: RevocationClient) -> None:
    assert place.post("operator", place.own("/webhook-tokens", "sans"), {}).status_code == 201
    path = place.own("/revoke", "sans")
    said = place.post("admin", path).json()
    assert said["enforced_by"] == []
    assert "never called" in said["lacking"]


def test_previews_name_whom_they_would_revoke_and_count(place: RevocationClient) -> None:
    world = place.world
    place.post("operator", place.own("/revoke", "eip"))
    theirs, others = place.issue("reader", "eip"), place.issue("admin", "eip")
    cluster = {"cluster_id": world.clusters["eip"].id, "cluster_name": "eip"}
    user = {"user_id": place.user("reader"), "user_name": "reader", "user_domain": "tests"}
    everyone = {"user_id": None, "user_name": None, "user_domain": None}
    before = len(place.events("user.revoked", "cluster.revoked"))
    for who in ("admin", "operator"):
        assert preview(place, who, place.own("/revoke", "eip")).json() == {**everyone, **cluster, "live": 2}
    for who in ("reader", "admin", "operator"):
        (found,) = named(place, who, "reader", place.own("/users-by-name", "eip")).json()["users"]
        assert preview(place, who, of_user(place, found["id"], "eip")).json() == {
            **user,
            **cluster,
            "live": 1,
        }
    everywhere = {"cluster_id": None, "cluster_name": None}
    found = preview(place, "operator", f"{OWN}/users/{place.user('reader')}/revoke").json()
    assert found == {**user, **everywhere, "live": found["live"]}
    assert found["live"] >= 1
    assert place.states(theirs, others) == ["live", "live"]
    assert len(place.events("user.revoked", "cluster.revoked")) == before


def test_previews_need_the_rights_of_the_revocation(place: RevocationClient) -> None:
    for who, status in (("member", 403), ("stranger", 404)):
        assert preview(place, who, place.own("/revoke")).status_code == status
        assert preview(place, who, of_user(place, place.user("admin"))).status_code == status
        for name in ("admin", "nobody"):
            assert named(place, who, name, place.own("/users-by-name")).status_code == status
    for who in ("admin", "member", "stranger"):
        assert preview(place, who, f"{OWN}/users/{place.user('reader')}/revoke").status_code == 403
        assert named(place, who, "reader").status_code == 403
    assert place.post("admin", place.own("/revoke?dryRun=all")).status_code == 400
    assert place.post("admin", place.own("/revoke?dryrun=All")).status_code == 400


def test_users_of_a_cluster_are_found_with_their_domain(place: RevocationClient) -> None:
    place.issue("reader", "eip")
    user = {"id": place.user("reader"), "name": "reader", "domain": "tests", "issuer": "built-in"}
    for who in ("reader", "admin", "auditor"):
        for name in ("reader", "tests/reader"):
            found = named(place, who, name, place.own("/users-by-name", "eip"))
            assert found.json() == {"users": [user]}, (who, name)
    assert named(place, "admin", "other/reader", place.own("/users-by-name", "eip")).json() == {"users": []}
    assert named(place, "reader", "tests/admin", place.own("/users-by-name", "eip")).status_code == 403


def test_previews_find_no_users_out_of_reach(place: RevocationClient) -> None:
    # The stranger exists, but has no certificate in this cluster.
    for name in ("stranger", "tests/stranger", "nobody", "tests/nobody"):
        assert named(place, "admin", name, place.own("/users-by-name")).json() == {"users": []}
    for name in ("", "\0", "a\u202eb", "a" * 256):
        assert named(place, "admin", name, place.own("/users-by-name")).status_code == 400
    for name in ("stranger", "%00", "a%2Fb"):
        assert preview(place, "admin", of_user(place, name)).status_code in {400, 404}, name
    assert named(place, "operator", "nobody").json() == {"users": []}
    # Nor does their id tell an admin that they exist.
    path = of_user(place, place.user("stranger"))
    assert preview(place, "admin", path).status_code == 404
    assert preview(place, "operator", path).json()["user_name"] == "stranger"


def test_a_name_of_one_user_in_certificates_of_another_is_ambiguous(place: RevocationClient) -> None:
    store = Store(place.world.settings().store_url)
    store.execute("INSERT INTO username (name, user_id) VALUES ('inspector', ?)", place.user("admin"))
    store.execute("INSERT INTO username (name, user_id) VALUES ('chosen', ?)", place.user("admin"))
    place.issue("admin")
    store.execute("UPDATE certificate SET username = 'reader' WHERE user_name = 'admin'")
    place.issue("reader")
    both = sorted((place.user("admin"), place.user("reader")))
    found = named(place, "operator", "reader", place.own("/users-by-name")).json()["users"]
    assert [each["id"] for each in found] == both
    found = named(place, "operator", "inspector").json()["users"]
    assert {(each["id"], each["name"]) for each in found} == {
        (place.user("admin"), "admin"),
        (place.user("inspector"), "inspector"),
    }
    (only,) = named(place, "operator", "chosen").json()["users"]
    assert (only["id"], only["issuer"]) == (place.user("admin"), "built-in")
    store.execute("UPDATE certificate SET username = NULL")
    store.execute("DELETE FROM username")

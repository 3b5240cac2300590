"""Attacks on the administration API by callers without its rights."""

from collections.abc import Callable

import pytest

from clustercert.store import tables
from support.administration import CLUSTER, Administration, unique
from support.certificate_authority import Authority
from support.service import Service
from support.wait import eventually
from support.world import World

DIRECTORY = ("domains", "projects", "users", "groups")
OTHERS = ("admin", "member", "reader", "stranger")


@pytest.mark.parametrize("who", OTHERS)
@pytest.mark.parametrize("kind", DIRECTORY)
def test_the_directory_is_the_operators_alone(administration: Administration, kind: str, who: str) -> None:
    name, before = unique(), administration.event_count()
    answers = [
        administration.put(f"/{kind}/{name}", who=who),
        administration.put(f"/{kind}/{name}?dryRun=All", who=who),
        administration.get(f"/{kind}", who=who),
    ]
    assert [each.status_code for each in answers] == [403, 403, 403]
    assert administration.get(f"/{kind}/{name}").status_code == 404
    refused = administration.event_count() - before
    assert refused == len(answers)


@pytest.mark.parametrize("who", OTHERS)
def test_what_exists_is_not_told_to_others(administration: Administration, who: str) -> None:
    """The answer is the same for names, ids and domains that exist and for others."""
    project = administration.world.project
    messages = {
        (answer.status_code, answer.json()["message"])
        for path in (
            f"/projects/{project.name}",
            f"/projects/{project.id}",
            f"/projects/{unique()}",
            f"/projects/{project.name}?domain={project.domain.name}",
            f"/projects/{project.name}?domain=nowhere",
        )
        for answer in (
            administration.get(path, who=who),
            administration.put(path, who=who),
            administration.delete(path, who=who, If_Match='"x"'),
        )
    }
    assert messages == {(403, "Only operators can do this.")}


OPERATORS_ALONE = (
    "/roles",
    "/assignments",
    "/users/{user}/access-keys",
    "/groups/{group}/members",
    "/access-keys/AAAA",
)


@pytest.mark.parametrize("who", OTHERS)
def test_credentials_and_memberships_are_the_operators_alone(
    administration: Administration, who: str
) -> None:
    world, group = administration.world, administration.put(f"/groups/{unique()}").json()["id"]
    me = world.people[who].user.id
    names = {"user": me, "group": group}
    answers = [administration.get(path.format(**names), who=who) for path in OPERATORS_ALONE]
    answers += [
        administration.post(f"/users/{world.people['operator'].user.id}/access-keys", who=who),
        administration.put(f"/users/{me}/password", {"password": "another password"}, who=who),
        administration.put(f"/groups/{group}/members/{me}", who=who),
        administration.put(f"/assignments/operator/users/{me}", who=who),
        administration.put(f"/roles/{unique('role')}", who=who),
    ]
    assert {each.status_code for each in answers} == {403}
    assert administration.rows(tables.service_role, actor_id=me) == []
    assert administration.rows(tables.group_member, user_id=me) == []


def test_a_project_admin_assigns_no_role_above_their_own(administration: Administration) -> None:
    world, role = administration.world, unique("role")
    assert administration.put(f"/roles/{role}").status_code == 201
    me, path = world.people["admin"].user.id, f"/projects/{world.project.id}/assignments"
    for name in (role, "operator", "Admin", unique("unknown")):
        assert administration.put(f"{path}/{name}/users/{me}", who="admin").status_code == 403
    assert administration.put(f"{path}/reader/users/{me}", who="admin").status_code == 201
    assert administration.delete(f"{path}/reader/users/{me}", who="admin").status_code == 200
    for who in ("member", "reader"):
        assert administration.put(f"{path}/reader/users/{me}", who=who).status_code == 403
    # Not even with that role can they take it away: a rule of the policy may refuse those who have it.
    assert administration.put(f"{path}/{role}/users/{me}").status_code == 201
    eventually(lambda: administration.put(f"{path}/{role}/users/{me}", who="admin").status_code == 200)
    assert administration.delete(f"{path}/{role}/users/{me}", who="admin").status_code == 403


def test_a_project_admin_names_a_role_by_its_id_with_the_same_limits(administration: Administration) -> None:
    world, role = administration.world, unique("role")
    me, path = world.people["admin"].user.id, f"/projects/{world.project.id}/assignments"
    reader, other = (administration.get(f"/roles/{name}").json()["id"] for name in ("reader", "auditor"))
    one = f"{path}/{reader}/users/{me}"
    assert administration.put(one, who="admin").json()["role"] == "reader"
    assert administration.delete(one, who="admin").status_code == 200
    for forbidden in (other, "0" * 32):
        assert administration.put(f"{path}/{forbidden}/users/{me}", who="admin").status_code == 403
        assert administration.delete(f"{path}/{forbidden}/users/{me}", who="admin").status_code == 403
    # The name of a role is the id of another one, which the admin may not assign or remove.
    assert administration.put(f"/roles/{role}").status_code == 201
    hidden = administration.get(f"/roles/{role}").json()["id"]
    assert administration.put(f"/roles/{hidden}").status_code in {200, 201}
    assert administration.put(f"{path}/{hidden}/users/{me}", who="admin").status_code == 403


def test_a_project_admin_reaches_no_other_project_or_domain(administration: Administration) -> None:
    world, domain = administration.world, unique("domain")
    administration.put(f"/domains/{domain}")
    stranger = administration.put(f"/users/{unique()}?domain={domain}").json()
    path, other = f"/projects/{world.project.id}/assignments", f"/projects/{world.other_project.id}"
    missing = administration.put(f"{path}/reader/users/{'0' * 32}", who="admin")
    answers = [
        administration.put(f"{path}/reader/users/{stranger['id']}", who="admin"),
        administration.put(f"{path}/reader/users/{stranger['name']}", who="admin"),
        administration.put(f"{path}/reader/users/{stranger['name']}?domain={domain}", who="admin"),
        administration.put(f"{path}/reader/users/{stranger['name']}?domain=nowhere", who="admin"),
        administration.get(f"{other}/assignments", who="admin"),
        administration.put(f"{other}/assignments/admin/users/{stranger['id']}", who="admin"),
        administration.get(f"{other}/clusters", who="admin"),
        administration.put(f"{other}/clusters/foreign", CLUSTER, who="admin"),
        administration.delete(f"{other}/clusters/foreign", who="admin"),
        administration.post(f"{other}/clusters/foreign/webhook-tokens", who="admin"),
        administration.get(
            f"/projects/{world.project.id}/clusters/{world.clusters['foreign'].id}", who="admin"
        ),
        administration.delete(f"/projects/{world.project.id}/clusters/{world.clusters['foreign'].id}"),
    ]
    assert {each.status_code for each in (missing, *answers)} == {404}
    known, unknown = (answer.json()["message"] for answer in (answers[0], missing))
    assert known.replace(stranger["id"], "0" * 32) == unknown
    assert answers[2].json()["message"].replace(domain, "nowhere") == answers[3].json()["message"]
    # Whom an operator gave a role there, an admin of the project may take it away.
    assert administration.put(f"{path}/reader/users/{stranger['id']}").status_code == 201
    assert administration.delete(f"{path}/reader/users/{stranger['id']}", who="admin").status_code == 200


@pytest.mark.parametrize(
    "change", [{"admission": True}, {"credential_roles": {"admin": "cluster-admin"}}, {"signer": "other"}]
)
def test_a_project_admin_makes_the_service_connect_nowhere(
    administration: Administration, change: dict[str, object]
) -> None:
    path = f"/projects/{administration.world.project.id}/clusters/{unique()}"
    refused = administration.put(path, CLUSTER | change, who="admin")
    assert (refused.status_code, refused.json()["message"].partition(":")[0]) == (403, next(iter(change)))
    assert administration.put(path, CLUSTER, who="admin").status_code == 201
    assert administration.put(path, CLUSTER | change, who="admin").status_code == 403


LOCAL_HOSTS = (
    *(
        "127.0.0.1",
        "127.9.9.9",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "0",
        "localhost",
    ),
    *(
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "127.0.0.1.",
        "169.254.169.254",
        "[::1]",
        "[::]",
        "[fe80::1]",
    ),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:169.254.169.254]", "[fe80::1%25eth0]"),
)


@pytest.mark.parametrize("host", LOCAL_HOSTS)
def test_a_project_admin_registers_no_address_of_this_machine(
    administration: Administration, host: str
) -> None:
    path, url = f"/projects/{administration.world.project.id}/clusters/{unique()}", f"https://{host}:22"
    changes = ({"internal_url": url}, {"external_url": url}, {"san_urls": ["https://a.example", url]})
    for change in changes:
        refused = administration.put(path, CLUSTER | change, who="admin")
        assert (refused.status_code, refused.json()["message"].partition(":")[0]) == (403, next(iter(change)))
    # An operator may, and then the admin may change the rest.
    made = administration.put(path, CLUSTER | changes[0])
    assert made.status_code == 201, made.text
    assert administration.put(path, made.json() | {"version": "v1.33"}, who="admin").status_code == 200
    assert administration.put(path, made.json() | changes[1], who="admin").status_code == 200


def test_only_operators_let_a_cluster_name_its_api_servers(administration: Administration) -> None:
    path = f"/projects/{administration.world.project.id}/clusters/{unique()}"
    discovers = {"discover_api_servers": True}
    early = administration.put(path, CLUSTER | discovers)
    assert (early.status_code, early.json()["message"].partition(":")[0]) == (400, "discover_api_servers")
    made = administration.put(path, CLUSTER | {"admission": True}).json()
    assert made["discover_api_servers"] is False
    refused = administration.put(path, made | discovers, who="admin")
    assert refused.status_code == 403
    assert refused.json()["message"] == "discover_api_servers: only operators may set or change this."
    assert administration.put(path, made | discovers).json()["discover_api_servers"] is True
    assert administration.put(path, made, who="admin").status_code == 403


@pytest.mark.parametrize("options", [{"admission": True}, {"credential_roles": {"admin": "view"}}])
def test_a_project_admin_sends_the_services_certificate_to_no_other_address(
    administration: Administration, options: dict[str, object]
) -> None:
    """The service authenticates to these clusters."""
    path = f"/projects/{administration.world.project.id}/clusters/{unique()}"
    connected = administration.put(path, CLUSTER | options).json()
    other_ca = Authority("another CA").certificate_pem.decode()
    for change in ({"internal_url": "https://192.0.2.1:6443"}, {"server_ca": other_ca}):
        assert administration.put(path, connected | change, who="admin").status_code == 403
    # Neither by switching it off first.
    moved = CLUSTER | {"internal_url": "https://192.0.2.1:6443"}
    assert administration.put(path, moved, who="admin").status_code == 403
    assert administration.put(path, connected | {"version": "v1.33"}, who="admin").status_code == 200
    assert administration.get(path).json()["internal_url"] == CLUSTER["internal_url"]


def test_a_project_admin_moves_no_cluster_while_its_ca_is_rotated(administration: Administration) -> None:
    """The service connects to the cluster to prove its CAs."""
    path = f"/projects/{administration.world.project.id}/clusters/{unique()}"
    other_ca = Authority("another CA").certificate_pem.decode()
    moves = ({"internal_url": "https://192.0.2.1:6443"}, {"server_ca": other_ca})
    assert administration.put(path, CLUSTER, who="admin").status_code == 201
    assert administration.post(f"{path}/client-ca-rotation").status_code == 201
    for move in moves:
        refused = administration.put(path, CLUSTER | move, who="admin")
        assert (refused.status_code, refused.json()["message"].partition(":")[0]) == (403, next(iter(move)))
    assert administration.put(path, CLUSTER | {"version": "v1.33"}, who="admin").status_code == 200
    assert administration.put(path, CLUSTER | moves[0]).status_code == 200
    assert administration.post(f"{path}/client-ca-rotation/abort").status_code == 200
    assert administration.put(path, CLUSTER | moves[1], who="admin").status_code == 200


@pytest.mark.parametrize("change", [{"labels": {"env": "test"}}, {"labels": {}}, {"name": "shop-test"}])
def test_a_project_admin_changes_nothing_that_rules_depend_on(
    administration: Administration, change: dict[str, object]
) -> None:
    path, field = f"/projects/{administration.world.project.id}/clusters/{unique()}", next(iter(change))
    made = administration.put(path, CLUSTER | {"labels": {"env": "production"}}).json()
    for where in (path, path + "?dryRun=All"):
        refused = administration.put(where, made | change, who="admin")
        assert (refused.status_code, refused.json()["message"].partition(":")[0]) == (403, field)
    assert administration.put(path, made | {"version": "v1.33"}, who="admin").status_code == 200
    kept = administration.get(path).json()
    assert (kept["name"], kept["labels"]) == (made["name"], made["labels"])
    assert administration.put(path, kept | change).status_code == 200


def test_a_project_admin_registers_no_cluster_with_labels(administration: Administration) -> None:
    path = f"/projects/{administration.world.project.id}/clusters/{unique()}"
    refused = administration.put(path, CLUSTER | {"labels": {"env": "test"}}, who="admin")
    assert (refused.status_code, refused.json()["message"].partition(":")[0]) == (403, "labels")
    assert administration.get(path).status_code == 404
    assert administration.put(path, CLUSTER, who="admin").status_code == 201


def test_a_project_admin_learns_no_template_by_an_exemption(
    world: World, service_with: Callable[..., Service]
) -> None:
    rules = [{"name": "teams", "grant": {"groups": ["{group}:secret-suffix"]}, "when": {"roles": ["admin"]}}]
    asked = Administration(world, service_with(policy={"rules": rules}))
    path = f"/projects/{world.project.id}/clusters/{unique()}"
    body = CLUSTER | {"exemptions": ["a:*"]}
    for where in (path, path + "?dryRun=All"):
        refused = asked.put(where, body, who="admin")
        assert refused.status_code == 400
        assert "exemptions: a:* could exempt a group" in refused.json()["message"]
        assert "secret-suffix" not in refused.text
    assert "secret-suffix" in asked.put(path, body).json()["message"]

"""The administration API's lists by name, user, group and project; warnings and suggestions for roles."""

import json

import pytest

from clustercert.store import tables
from support.administration import Administration, unique
from support.certificate_authority import large_ca_pem

PASSWORD = "hunter2-hunter2"


def assignments(administration: Administration, project_id: str) -> str:
    return f"/projects/{project_id}/assignments"


@pytest.mark.parametrize("kind", ["projects", "users", "groups"])
def test_a_list_has_the_objects_of_a_name_in_all_domains(administration: Administration, kind: str) -> None:
    name, other = unique(), unique("domain")
    administration.put(f"/domains/{other}")
    made = [administration.put(f"/{kind}/{name}{domain}").json() for domain in ("", f"?domain={other}")]
    administration.put(f"/{kind}/{name}-2")

    def found(query: str) -> list[dict[str, object]]:
        return list(administration.get(f"/{kind}?{query}").json()[kind])

    assert found(f"name={name}") == sorted(made, key=lambda each: str(each["id"]))
    assert found(f"name={name}&domain={other}") == [made[1]]
    assert found(f"name={name}&limit=1")[0] in made
    for nothing in ("a%00b", "x" * 300, "", made[0]["id"]):
        assert found(f"name={nothing}") == []


def test_a_page_is_bounded_in_bytes_and_the_next_one_goes_on(administration: Administration) -> None:
    project = administration.put(f"/projects/{unique()}").json()["id"]
    clusters = f"/projects/{project}/clusters"
    body = {"internal_url": "https://10.0.0.1:6443", "server_ca": large_ca_pem(7_000).decode() * 6}
    made = {administration.put(f"{clusters}/{unique()}", body).json()["id"] for _ in range(24)}
    seen, cursor, sizes = list[str](), "", list[int]()
    while True:
        answer = administration.get(f"{clusters}?limit=500{cursor}")
        sizes.append(len(answer.content))
        seen += [each["id"] for each in answer.json()["clusters"]]
        if answer.json()["next"] is None:
            break
        cursor = f"&cursor={answer.json()['next']}"
    assert seen == sorted(made)
    assert len(sizes) == 2
    assert max(sizes) <= 1024 * 1024 * 1.1


def test_assignments_are_listed_for_one_user_or_group(administration: Administration) -> None:
    first, second = (administration.put(f"/projects/{unique()}").json() for _ in range(2))
    user, group = (administration.put(f"/{kind}/{unique()}").json() for kind in ("users", "groups"))
    for project in (first, second):
        administration.put(f"{assignments(administration, project['id'])}/reader/users/{user['id']}")
    administration.put(f"/assignments/operator/groups/{group['id']}")

    def found(query: str) -> list[dict[str, object]]:
        return list(administration.get(f"/assignments?limit=500&{query}").json()["assignments"])

    of_user = found(f"user={user['name']}")
    assert {each["project_id"] for each in of_user} == {first["id"], second["id"]}
    assert {each["project"] for each in of_user} == {first["name"], second["name"]}
    (of_group,) = found(f"group={group['id']}")
    assert (of_group["role"], of_group["project"], of_group["project_id"]) == ("operator", None, None)
    everywhere, in_service = found(""), found("scope=service")
    ids = [str(each["id"]) for each in everywhere]
    assert ids == sorted(set(ids))
    assert [each for each in everywhere if each["project_id"] is None] == in_service
    assert of_group in in_service
    assert of_user[0] in everywhere
    for query, status in (("user=nobody", 404), ("scope=all", 400), (f"user={user['id']}&group=x", 400)):
        assert administration.get(f"/assignments?{query}").status_code == status


def test_the_projects_of_a_user_are_listed(administration: Administration) -> None:
    user, group = (administration.put(f"/{kind}/{unique()}").json()["id"] for kind in ("users", "groups"))
    projects = [administration.put(f"/projects/{unique()}").json() for _ in range(3)]
    administration.put(f"{assignments(administration, projects[0]['id'])}/reader/users/{user}")
    administration.put(f"{assignments(administration, projects[1]['id'])}/reader/groups/{group}")
    administration.put(f"/groups/{group}/members/{user}")
    found = administration.get(f"/users/{user}/projects").json()["projects"]
    assert found == sorted(projects[:2], key=lambda each: str(each["id"]))


def test_a_new_user_may_get_a_password(
    administration: Administration, capfd: pytest.CaptureFixture[str]
) -> None:
    name = unique()
    refused = administration.put(f"/users/{name}", {"password": "short"})
    assert refused.status_code == 400
    assert administration.rows(tables.user, name=name) == []
    made = administration.put(f"/users/{name}", {"password": PASSWORD})
    assert made.status_code == 201
    assert "password" not in made.json()
    domain = administration.world.project.domain.name
    user = {"name": name, "domain": {"name": domain}, "password": PASSWORD}
    login = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
    assert administration.service.client.post("/v3/auth/tokens", json=login).status_code == 201
    (event,) = administration.events(made.json()["id"])
    assert event["detail"]["password"] is True

    again = administration.put(f"/users/{name}", {"password": PASSWORD})
    assert (again.status_code, again.json()) == (200, made.json())
    assert administration.events(made.json()["id"]) == [event]
    other = administration.put(f"/users/{name}", {"password": "another-password"})
    assert other.status_code == 400
    assert other.json()["message"].startswith("password: the user exists.")
    (row,) = administration.rows(tables.user, name=name)
    assert row.password_hash.startswith("$argon2id$")
    assert administration.service.client.post("/v3/auth/tokens", json=login).status_code == 201
    assert PASSWORD not in json.dumps(event) + "".join(capfd.readouterr())


def test_a_role_that_has_no_effect_is_assigned_with_a_warning(administration: Administration) -> None:
    role, user = unique("role"), administration.put(f"/users/{unique()}").json()["id"]
    administration.put(f"/roles/{role}")
    project = assignments(administration, administration.world.project.id)
    for path, warning in (
        (
            f"{project}/{role}/users/{user}",
            '299 - "No policy rule names this role, so the role grants no certificates."',
        ),
        (
            f"/assignments/{role}/users/{user}",
            '299 - "Only the roles operator and auditor have rights in the whole service."',
        ),
        (f"{project}/reader/users/{user}", None),
        (f"/assignments/operator/users/{user}", None),
        (f"/assignments/auditor/users/{user}", None),
    ):
        answer = administration.put(path)
        assert (answer.status_code, answer.headers.get("Warning")) == (201, warning)


@pytest.mark.parametrize(("who", "status"), [("operator", 404), ("admin", 403)])
def test_a_mistyped_role_is_refused_with_a_suggestion(
    administration: Administration, who: str, status: int
) -> None:
    user = administration.put(f"/users/{unique()}").json()["id"]
    project = assignments(administration, administration.world.project.id)
    answer = administration.put(f"{project}/memeber/users/{user}", who=who)
    assert answer.status_code == status
    assert answer.json()["message"].endswith(" Did you mean member?")
    assert administration.rows(tables.role, name="memeber") == []

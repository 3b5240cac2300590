"""The administration API for domains, projects, users and groups: state, events, preconditions, dry runs, paging."""

import uuid
from typing import Any

import pytest
from sqlalchemy import Table

from clustercert.store import tables
from support.administration import Administration, unique

KINDS: dict[str, tuple[Table, dict[str, Any], dict[str, Any]]] = {
    "domains": (tables.domain, {"enabled": False}, {"enabled": True}),
    "projects": (
        tables.project,
        {"description": "one", "labels": {"team": "a"}},
        {"description": "two", "enabled": False, "labels": {"team": "b", "env": "test"}},
    ),
    "users": (tables.user, {"labels": {"team": "a"}}, {"enabled": False, "labels": {"team": "b"}}),
    "groups": (tables.group, {"labels": {"team": "a"}}, {"labels": {}}),
}
CHANGES = {
    "domains": ["domain.enabled"],
    "projects": ["project.disabled", "project.updated"],
    "users": ["user.disabled", "user.revoked", "user.updated"],
    "groups": ["group.updated"],
}
CREATION = {"domains": ["domain.created", "domain.disabled"]}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def created(kind: str) -> list[str]:
    return CREATION.get(kind, [f"{kind[:-1]}.created"])


def deletion_status(kind: str) -> int:
    """The answer to the deletion of a group counts the certificates of its members."""
    return 200 if kind == "groups" else 204


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def test_an_object_is_created_changed_shown_and_deleted(administration: Administration, kind: str) -> None:
    table, first, second = KINDS[kind]
    path = f"/{kind}/{unique()}"
    made = administration.put(path, first)
    assert made.status_code == 201, made.text
    key = made.json()["id"]
    assert administration.kinds(key) == created(kind)
    assert first.items() <= made.json().items()
    assert [row.id for row in administration.rows(table, name=made.json()["name"])] == [key]

    changed = administration.put(path, second)
    assert changed.status_code == 200, changed.text
    assert changed.json() == made.json() | second
    assert administration.kinds(key) == [*created(kind), *CHANGES[kind]]
    assert changed.headers["ETag"] != made.headers["ETag"]

    for named in (path, f"/{kind}/{key}"):
        shown = administration.get(named)
        assert (shown.status_code, shown.json()) == (200, changed.json())
        assert shown.headers["ETag"] == changed.headers["ETag"]

    assert administration.delete(path).status_code == deletion_status(kind)
    assert administration.kinds(key)[-1] in {f"{kind[:-1]}.removed", "user.revoked"}
    assert administration.rows(table, id=key) == []
    assert administration.get(path).status_code == 404
    assert administration.delete(path).status_code == 404


def test_an_events_actor_is_the_operator(administration: Administration, kind: str) -> None:
    made = administration.put(f"/{kind}/{unique()}")
    event = administration.events(made.json()["id"])[0]
    assert event["actor"] == administration.world.people["operator"].user.id
    assert event["request_id"] == made.headers["X-Request-Id"]


def test_repeating_a_request_changes_nothing(administration: Administration, kind: str) -> None:
    _, first, _ = KINDS[kind]
    path = f"/{kind}/{unique()}"
    made, before = administration.put(path, first), administration.event_count()
    again = administration.put(path, first)
    assert (again.status_code, again.json()) == (200, made.json())
    by_id = administration.put(f"/{kind}/{made.json()['id']}", made.json())
    assert (by_id.status_code, by_id.json()) == (200, made.json())
    assert administration.event_count() == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "groups"])
def test_a_request_without_enabled_does_not_enable_a_disabled_object(
    administration: Administration, kind: str
) -> None:
    path = f"/{kind}/{unique()}"
    assert administration.put(path).json()["enabled"] is True
    disabled = administration.put(path, {"enabled": False}).json()
    before = administration.event_count()
    again = administration.put(path)
    assert (again.status_code, again.json()) == (200, disabled)
    assert administration.event_count() == before
    assert administration.put(path, {"enabled": True}).json() == disabled | {"enabled": True}
    assert administration.put(path).json()["enabled"] is True


def test_ten_equal_requests_at_once_create_one_object(administration: Administration, kind: str) -> None:
    table, first, second = KINDS[kind]
    name = unique()
    for body, events in ((first, created(kind)), (second, [*created(kind), *CHANGES[kind]])):
        answers = administration.put_at_once(f"/{kind}/{name}", body)
        assert {each.status_code for each in answers} <= {200, 201}
        assert len({each.text for each in answers}) == 1
        rows = administration.rows(table, name=name)
        assert len(rows) == 1
        assert administration.kinds(rows[0].id) == events
    assert sum(each.status_code == 201 for each in answers) == 0


def test_an_etag_that_no_longer_matches_is_refused(administration: Administration, kind: str) -> None:
    _, first, second = KINDS[kind]
    path = f"/{kind}/{unique()}"
    old = administration.put(path, first).headers["ETag"]
    assert administration.put(path, second, If_Match=old).status_code == 200
    before = administration.event_count()
    for answer in (
        administration.put(path, first, If_Match=old),
        administration.delete(path, If_Match=old),
        administration.put(path, first, If_None_Match="*"),
        administration.put(f"/{kind}/{unique()}", first, If_Match="*"),
        administration.put(path, first, If_Match=f"W/{old}"),
    ):
        assert answer.status_code == 412
        assert answer.json()["error_code"] == "CCE.01412001"
    assert administration.event_count() == before
    now = administration.get(path).headers["ETag"]
    assert administration.delete(path, If_Match=f'"other", {now}').status_code == deletion_status(kind)


def test_of_two_changes_with_the_same_etag_one_is_refused(administration: Administration) -> None:
    path = f"/projects/{unique()}"
    tag = administration.put(path).headers["ETag"]
    statuses = [
        administration.put(path, {"description": text}, If_Match=tag).status_code for text in ("a", "b")
    ]
    assert statuses == [200, 412]


def test_a_dry_run_answers_like_the_change_and_changes_nothing(
    administration: Administration, kind: str
) -> None:
    table, first, second = KINDS[kind]
    name = unique()
    path, before = f"/{kind}/{name}", administration.event_count()
    planned = administration.put(path + "?dryRun=All", first)
    assert planned.status_code == 201
    assert administration.rows(table, name=name) == []
    made = administration.put(path, first)
    assert without(planned.json(), "id") == without(made.json(), "id")
    after = administration.event_count()
    assert after == before + len(created(kind))

    planned = administration.put(path + "?dryRun=All", second)
    assert (planned.status_code, planned.json()) == (200, made.json() | second)
    assert administration.delete(path + "?dryRun=All").status_code == deletion_status(kind)
    assert administration.get(path).json() == made.json()
    assert administration.event_count() == after


def test_a_dry_run_finds_what_the_database_would_refuse(administration: Administration) -> None:
    world = administration.world
    for path in (f"/projects/{world.project.id}", f"/domains/{world.project.domain.id}"):
        answer = administration.delete(path + "?dryRun=All")
        assert answer.status_code == 409
        assert "Delete them first" in answer.text or "Remove them first" in answer.text


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/projects/{}", {"descriptoin": "x"}, "descriptoin"),
        ("/projects/{}", {"description": 1}, "description"),
        ("/projects/{}", {"description": None}, "description"),
        ("/projects/{}", {"description": "x" * 256}, "description"),
        ("/projects/{}", {"description": "a\u202eb"}, "description"),
        ("/projects/{}", {"enabled": "yes"}, "enabled"),
        ("/projects/{}", {"enabled": 1}, "enabled"),
        ("/projects/{}", {"id": "0" * 31}, "id"),
        ("/users/{}", {"id": "0" * 32}, "id"),
        ("/users/{}", {"labels": {"team": 1}}, "labels.team"),
        ("/users/{}", {"labels": {"bad key!": "x"}}, "label"),
        ("/users/{}", {"labels": {f"key-{number}": "" for number in range(65)}}, "labels"),
        ("/users/{}", {"password": "hunter2"}, "password"),
        ("/users/{}", {"password": 1}, "password"),
        ("/groups/{}", {"members": []}, "members"),
        ("/domains/{}", {"name": "x"}, "name"),
        ("/projects/{}?dryrun=All", {}, "dryrun"),
        ("/projects/{}?dryRun=all", {}, "dryRun"),
        ("/projects/" + "x" * 65, {}, "name"),
        ("/projects/a%00b", {}, "name"),
        ("/projects/a%E2%80%AEb", {}, "name"),
        ("/projects?limit=0", None, "limit"),
        ("/projects?cursor=%27", None, "cursor"),
        ("/projects?nmae=eu-de", None, "nmae: unknown query parameter"),
    ],
)
def test_an_error_names_the_field(
    administration: Administration, path: str, body: object, field: str
) -> None:
    method, before = "GET" if body is None else "PUT", administration.event_count()
    answer = administration.send(method, path.format(unique()), body)
    assert answer.status_code == 400, answer.text
    assert field in answer.json()["message"]
    assert "hunter2" not in answer.text
    assert administration.event_count() == before


@pytest.mark.parametrize("name", ["f" * 32, "0123456789abcdef" * 2])
def test_an_id_can_not_be_chosen(administration: Administration, kind: str, name: str) -> None:
    assert administration.put(f"/{kind}/{name}").status_code == 404


def test_a_project_keeps_the_id_that_it_was_created_with(administration: Administration) -> None:
    path, own_id = f"/projects/{unique()}", uuid.uuid4().hex
    made = administration.put(path, {"id": own_id})
    assert (made.status_code, made.json()["id"]) == (201, own_id)
    assert administration.put(path, {"id": own_id, "description": "x"}).status_code == 200
    other = administration.put(path, {"id": uuid.uuid4().hex})
    assert (other.status_code, other.json()["message"][:3]) == (400, "id:")
    assert administration.put(f"/projects/{unique()}", {"id": own_id}).status_code == 409


def test_what_can_not_be_changed_may_be_sent_back_as_it_is(administration: Administration) -> None:
    shown = administration.put(f"/users/{unique()}").json()
    path = f"/users/{shown['id']}"
    assert administration.put(path, shown | {"labels": {"a": "b"}}).status_code == 200
    other = administration.put(path, shown | {"name": "another"})
    assert other.status_code == 400
    assert other.json()["message"].startswith("name:")


def test_a_list_has_pages(administration: Administration, kind: str) -> None:
    made = {administration.put(f"/{kind}/{unique()}").json()["id"] for _ in range(3)}
    found: list[str] = []
    cursor = ""
    while True:
        page = administration.get(f"/{kind}?limit=2{cursor}").json()
        assert len(page[kind]) <= 2
        found += [each["id"] for each in page[kind]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert found == sorted(found)
    assert made <= set(found)
    assert len(found) == len(set(found))


def test_a_name_belongs_to_the_domain_that_is_named_or_to_the_callers(administration: Administration) -> None:
    name, other = unique(), unique("domain")
    assert administration.put(f"/domains/{other}").status_code == 201
    home = administration.world.project.domain.name
    for domain in (home, other):
        assert administration.put(f"/projects/{name}?domain={domain}").status_code == 201
    assert administration.get(f"/projects/{name}").json()["domain"] == home
    assert administration.get(f"/projects/{name}?domain={other}").json()["domain"] == other
    assert administration.get(f"/projects?domain={other}").json()["projects"][0]["name"] == name
    # A new object is in the caller's domain.
    assert administration.put(f"/projects/{unique()}").json()["domain"] == home
    assert administration.put(f"/projects/{unique()}?domain=nowhere").status_code == 404
    assert administration.delete(f"/domains/{other}").status_code == 409
    assert administration.delete(f"/projects/{name}?domain={other}").status_code == 204
    assert administration.delete(f"/domains/{other}").status_code == 204


def test_disabling_a_user_revokes_their_certificates(administration: Administration) -> None:
    made = administration.put(f"/users/{unique()}").json()
    assert administration.put(f"/users/{made['id']}", {"enabled": False}).status_code == 200
    rows = administration.rows(tables.revocation, user_id=made["id"])
    assert [row.by for row in rows] == [administration.world.people["operator"].user.id]

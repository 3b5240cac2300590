import uuid

import pytest
from sqlalchemy import func, insert, select

from clustercert.model import Actor, RoleAssignment, User
from clustercert.model.errors import Conflict, InvalidRequest, NotFound
from clustercert.store import tables
from support.accounts import ACTOR, ORIGIN, PASSWORD, Accounts, enable


async def rows(accounts: Accounts, *names: str) -> dict[str, int]:
    async with accounts.database.read() as connection:
        return {
            name: (
                await connection.execute(select(func.count()).select_from(tables.metadata.tables[name]))
            ).scalar_one()
            for name in names
        }


async def test_everything_is_found_by_id_and_by_name(accounts: Accounts) -> None:
    directory = accounts.identity.directory
    alice = await accounts.new_user()
    group = await directory.create_group("devs", accounts.domain, actor=Actor(ACTOR, ORIGIN))
    assert (
        await directory.find_domain(accounts.domain.id)
        == await directory.find_domain("OTC1")
        == accounts.domain
    )
    assert (
        await directory.find_project(accounts.project.id)
        == await directory.find_project("eu-de")
        == accounts.project
    )
    assert await directory.find_user(alice.id) == await directory.find_user("alice", accounts.domain) == alice
    assert await directory.find_group(group.id) == await directory.find_group("devs") == group
    assert await directory.queries.domains() == (accounts.domain,)
    for only in (accounts.project, alice, group):
        found = [await directory.page(type(only), domain, limit=9) for domain in (accounts.domain, None)]
        assert found == [(only,), (only,)]


@pytest.mark.parametrize("wanted", ["", "nobody", "0" * 32, "x\x00", "\ud800", "x" * 300])
async def test_what_is_not_there_is_not_found(accounts: Accounts, wanted: str) -> None:
    directory = accounts.identity.directory
    for find in (directory.find_domain, directory.find_project, directory.find_user, directory.find_group):
        with pytest.raises(NotFound, match="There is no"):
            await find(wanted)


async def test_a_name_in_several_domains_wants_the_domain(accounts: Accounts) -> None:
    directory = accounts.identity.directory
    other = await accounts.new_domain("OTC2")
    first, second = await accounts.new_user("alice"), await accounts.new_user("alice", domain=other)
    await accounts.new_project("eu-de", other)
    with pytest.raises(Conflict, match=r"or give the id: OTC1/\S+ \(\w+\), OTC2/\S+ \(\w+\)\.$"):
        await directory.find_user("alice")
    with pytest.raises(Conflict, match=r"or give the id: OTC1/\S+ \(\w+\), OTC2/\S+ \(\w+\)\.$"):
        await directory.find_project("eu-de")
    assert await directory.find_user("alice", accounts.domain) == first
    assert await directory.find_user("alice", other) == second
    assert await directory.page(User, limit=9) == tuple(sorted((first, second), key=lambda user: user.id))


async def test_a_name_is_unique_in_a_domain_and_a_refusal_is_not_recorded(accounts: Accounts) -> None:
    directory = accounts.identity.directory
    await accounts.new_user("alice")
    await directory.create_group("devs", accounts.domain, actor=Actor(ACTOR, ORIGIN))
    before = await accounts.events()
    for attempt in (
        accounts.new_domain("OTC1"),
        accounts.new_project("eu-de"),
        accounts.new_user(" alice "),
        directory.create_group("devs", accounts.domain, actor=Actor(ACTOR, ORIGIN)),
    ):
        with pytest.raises(Conflict, match="already exists"):
            await attempt
    assert await accounts.events() == before


async def test_bad_names_passwords_and_descriptions_are_refused(accounts: Accounts) -> None:
    directory = accounts.identity.directory
    for attempt in (
        accounts.new_domain(""),
        accounts.new_project("x" * 65),
        accounts.new_user("a\u202eb"),
        directory.create_group("\n", accounts.domain, actor=Actor(ACTOR, ORIGIN)),
        directory.create_project("fine", accounts.domain, description="x" * 256, actor=Actor(ACTOR, ORIGIN)),
        accounts.new_user("carol", password="short"),
        directory.set_password(await accounts.new_user("dave"), "short", actor=Actor(ACTOR, ORIGIN)),
    ):
        with pytest.raises(InvalidRequest):
            await attempt


async def test_changes_are_audited_without_passwords(accounts: Accounts) -> None:
    directory = accounts.identity.directory
    before = len(await accounts.events())
    alice = await accounts.new_user()
    group = await directory.create_group("devs", accounts.domain, actor=Actor(ACTOR, ORIGIN))
    await directory.add_member(group, alice, actor=Actor(ACTOR, ORIGIN))
    await directory.remove_member(group, alice, actor=Actor(ACTOR, ORIGIN))
    await directory.set_password(alice, "another horse", actor=Actor(ACTOR, ORIGIN))
    for enabled in (False, True):
        await directory.enable_user(alice, enabled=enabled, actor=Actor(ACTOR, ORIGIN))
        await enable(directory, accounts.project, enabled=enabled, actor=Actor(ACTOR, ORIGIN))
        await enable(directory, accounts.domain, enabled=enabled, actor=Actor(ACTOR, ORIGIN))
    await directory.remove_group(group, actor=Actor(ACTOR, ORIGIN))
    await directory.remove_user(alice, actor=Actor(ACTOR, ORIGIN))
    await directory.remove_project(accounts.project, actor=Actor(ACTOR, ORIGIN))
    events = (await accounts.events())[before:]
    assert [event["kind"] for event in events] == [
        "user.created",
        "group.created",
        "group.member_added",
        "group.member_removed",
        "user.password_changed",
        "user.disabled",
        "user.revoked",
        "project.disabled",
        "domain.disabled",
        "user.enabled",
        "project.enabled",
        "domain.enabled",
        "group.removed",
        "user.removed",
        "user.revoked",
        "project.removed",
    ]
    assert {event["actor"] for event in events} == {ACTOR}
    assert {event["source"] for event in events} == {ORIGIN.address}
    assert [event["subject"] for event in events if str(event["kind"]).startswith("user")] == [alice.id] * 7
    assert events[0]["detail"] == {"name": "alice", "password": True, "domain_id": accounts.domain.id}
    assert events[-1]["project_id"] == accounts.project.id
    assert PASSWORD not in str(events)
    assert "another horse" not in str(events)


async def test_a_removed_user_leaves_nothing_but_events(accounts: Accounts) -> None:
    directory = accounts.identity.directory
    alice = await accounts.new_user("alice", "admin", "reader")
    await accounts.assign("operator", alice, None)
    group = await directory.create_group("devs", accounts.domain, actor=Actor(ACTOR, ORIGIN))
    await directory.add_member(group, alice, actor=Actor(ACTOR, ORIGIN))
    await accounts.new_key(alice)
    caller = await accounts.identity.tokens.caller_of_token((await accounts.login(alice)).text, ORIGIN)
    await accounts.identity.access_keys.create_temporary(caller)
    await directory.remove_user(alice, actor=Actor(ACTOR, ORIGIN))
    left = await rows(
        accounts, "user", "token", "access_key", "group_member", "role_assignment", "service_role"
    )
    assert left == dict.fromkeys(left, 0)


async def test_a_removed_group_takes_its_roles_and_memberships_along(accounts: Accounts) -> None:
    directory, roles = accounts.identity.directory, accounts.identity.roles
    alice = await accounts.new_user()
    group = await directory.create_group("devs", accounts.domain, actor=Actor(ACTOR, ORIGIN))
    await directory.add_member(group, alice, actor=Actor(ACTOR, ORIGIN))
    await directory.add_member(group, alice, actor=Actor(ACTOR, ORIGIN))
    assert await directory.queries.member_page(group.id, "", 9) == (alice,)
    await roles.assign("admin", group, accounts.project, actor=Actor(ACTOR, ORIGIN))
    await roles.assign("operator", group, None, actor=Actor(ACTOR, ORIGIN))
    await directory.remove_group(group, actor=Actor(ACTOR, ORIGIN))
    left = await rows(accounts, "group", "group_member", "role_assignment", "service_role")
    assert left == dict.fromkeys(left, 0)
    with pytest.raises(NotFound):
        await directory.remove_group(group, actor=Actor(ACTOR, ORIGIN))
    with pytest.raises(Conflict, match="Concurrent modification"):
        await directory.add_member(group, alice, actor=Actor(ACTOR, ORIGIN))
    with pytest.raises(NotFound, match="not a member"):
        await directory.remove_member(group, alice, actor=Actor(ACTOR, ORIGIN))


async def test_a_project_without_clusters_is_removed_with_roles_and_tokens(accounts: Accounts) -> None:
    directory = accounts.identity.directory
    alice = await accounts.new_user("alice", "admin")
    await accounts.login(alice, accounts.project)
    cluster_id = str(uuid.uuid4())
    async with accounts.database.transaction() as connection:
        row = {
            "id": cluster_id,
            "project_id": accounts.project.id,
            "name": "one",
            "internal_url": "https://10.0.0.5:6443",
            "san_urls": [],
            "api_servers": [],
            "server_ca_pem": b"",
            "signer": "local",
            "version": "v1.32",
            "labels": {},
            "options": {},
            "created_at": accounts.clock(),
            "updated_at": accounts.clock(),
        }
        await connection.execute(insert(tables.cluster).values(row))
    with pytest.raises(Conflict, match="clusters"):
        await directory.remove_project(accounts.project, actor=Actor(ACTOR, ORIGIN))
    assert await directory.find_project(accounts.project.id) == accounts.project
    assert await rows(accounts, "role_assignment", "token") == {"role_assignment": 1, "token": 1}
    async with accounts.database.transaction() as connection:
        await connection.execute(tables.cluster.delete().where(tables.cluster.c.id == cluster_id))
    await directory.remove_project(accounts.project, actor=Actor(ACTOR, ORIGIN))
    assert await rows(accounts, "project", "role_assignment", "token") == {
        "project": 0,
        "role_assignment": 0,
        "token": 0,
    }


async def test_changing_what_is_gone_is_not_found_and_not_recorded(accounts: Accounts) -> None:
    directory = accounts.identity.directory
    alice = await accounts.new_user()
    await directory.remove_user(alice, actor=Actor(ACTOR, ORIGIN))
    await directory.remove_project(accounts.project, actor=Actor(ACTOR, ORIGIN))
    before = await accounts.events()
    for attempt in (
        directory.remove_user(alice, actor=Actor(ACTOR, ORIGIN)),
        directory.enable_user(alice, enabled=True, actor=Actor(ACTOR, ORIGIN)),
        directory.set_password(alice, "another horse", actor=Actor(ACTOR, ORIGIN)),
        directory.remove_project(accounts.project, actor=Actor(ACTOR, ORIGIN)),
        directory.update_project(
            accounts.project, description="", enabled=False, labels={}, actor=Actor(ACTOR, ORIGIN)
        ),
    ):
        with pytest.raises(NotFound, match="no longer exists"):
            await attempt
    assert await accounts.events() == before


async def test_the_built_in_roles_are_made_once_and_others_by_name(accounts: Accounts) -> None:
    roles = accounts.identity.roles
    await roles.bootstrap()
    assert [role.name for role in await roles.queries.roles()] == [
        "admin",
        "auditor",
        "member",
        "operator",
        "reader",
    ]
    alice = await accounts.new_user()
    with pytest.raises(NotFound, match="There is no role inspector"):
        await accounts.assign("inspector", alice, accounts.project)
    await roles.create("inspector", actor=Actor(ACTOR, ORIGIN))
    await accounts.assign("inspector", alice, accounts.project)
    assert [role.name for role in await roles.queries.roles()] == [
        "admin",
        "auditor",
        "inspector",
        "member",
        "operator",
        "reader",
    ]
    with pytest.raises(InvalidRequest):
        await roles.create("two\nlines", actor=Actor(ACTOR, ORIGIN))


async def test_assignments_are_listed_by_assignee_and_by_project(accounts: Accounts) -> None:
    directory, roles = accounts.identity.directory, accounts.identity.roles
    other = await accounts.new_project("eu-nl")
    alice = await accounts.new_user("alice", "member")
    group = await directory.create_group("devs", accounts.domain, actor=Actor(ACTOR, ORIGIN))
    await roles.assign("reader", group, other, actor=Actor(ACTOR, ORIGIN))
    await accounts.assign("operator", alice, None)
    await accounts.assign("operator", alice, None)
    by_name = {role.name: role for role in await roles.queries.roles()}
    member = RoleAssignment(by_name["member"], alice, accounts.project)
    operator = RoleAssignment(by_name["operator"], alice, None)
    reader = RoleAssignment(by_name["reader"], group, other)
    assert await roles.assignments() == (member, operator, reader)
    assert await roles.assignments(assignee=alice) == (member, operator)
    assert await roles.assignments(assignee=group) == (reader,)
    assert await roles.assignments(project=other) == (reader,)
    assert await roles.assignments(assignee=alice, project=other) == ()


async def test_a_role_is_taken_away_where_it_was_given(accounts: Accounts) -> None:
    roles = accounts.identity.roles
    alice = await accounts.new_user("alice", "member")
    await accounts.assign("operator", alice, None)
    for project, role in ((accounts.project, "member"), (None, "operator")):
        await roles.unassign(role, alice, project, actor=Actor(ACTOR, ORIGIN))
        before = await accounts.events()
        assert before[-1]["kind"] == "role.unassigned"
        assert before[-1]["detail"] == {
            "role": role,
            "assignee": "user",
            "name": "alice",
            "project": project.name if project else None,
        }
        with pytest.raises(NotFound, match="not assigned"):
            await roles.unassign(role, alice, project, actor=Actor(ACTOR, ORIGIN))
        assert await accounts.events() == before
    assert await roles.assignments() == ()


async def test_a_role_in_a_project_that_is_gone_is_refused(accounts: Accounts) -> None:
    alice = await accounts.new_user()
    await accounts.identity.directory.remove_project(accounts.project, actor=Actor(ACTOR, ORIGIN))
    with pytest.raises(Conflict, match="Concurrent modification"):
        await accounts.assign("member", alice, accounts.project)


async def test_a_users_projects_come_once_from_roles_and_groups(accounts: Accounts) -> None:
    directory, roles = accounts.identity.directory, accounts.identity.roles
    alice = await accounts.new_user("alice", "member", "admin")
    shared, closed = await accounts.new_project("shared"), await accounts.new_project("closed")
    await accounts.new_project("other")
    group = await directory.create_group("devs", accounts.domain, actor=Actor(ACTOR, ORIGIN))
    await directory.add_member(group, alice, actor=Actor(ACTOR, ORIGIN))
    for project in (shared, accounts.project, closed):
        await roles.assign("reader", group, project, actor=Actor(ACTOR, ORIGIN))
    await enable(directory, closed, enabled=False, actor=Actor(ACTOR, ORIGIN))
    assert [(p.name, p.enabled) for p in await roles.queries.projects_of(alice.id)] == [
        ("closed", False),
        ("eu-de", True),
        ("shared", True),
    ]
    assert await roles.project_of(alice, shared.id) == shared
    for missing in ("0" * 32, "shared", "\x00"):
        with pytest.raises(NotFound, match="Could not find project"):
            await roles.project_of(alice, missing)

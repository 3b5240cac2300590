import uuid

import pytest
from sqlalchemy import func, insert, select

from clustercert.errors import Conflict, InvalidRequest, NotFound
from clustercert.model import RoleAssignment
from clustercert.store import tables
from identities import ACTOR, ORIGIN, PASSWORD, House


async def rows(house: House, *names: str) -> dict[str, int]:
    async with house.database.read() as connection:
        return {
            name: (
                await connection.execute(select(func.count()).select_from(tables.metadata.tables[name]))
            ).scalar_one()
            for name in names
        }


async def test_everything_is_found_by_id_and_by_name(house: House) -> None:
    directory = house.identity.directory
    alice = await house.new_user()
    group = await directory.create_group("devs", house.domain, actor=ACTOR, origin=ORIGIN)
    assert await directory.find_domain(house.domain.id) == await directory.find_domain("OTC1") == house.domain
    assert (
        await directory.find_project(house.project.id)
        == await directory.find_project("eu-de")
        == house.project
    )
    assert await directory.find_user(alice.id) == await directory.find_user("alice", house.domain) == alice
    assert await directory.find_group(group.id) == await directory.find_group("devs") == group
    assert await directory.domains() == (house.domain,)
    assert await directory.projects(house.domain) == await directory.projects() == (house.project,)
    assert await directory.users(house.domain) == await directory.users() == (alice,)
    assert await directory.groups(house.domain) == await directory.groups() == (group,)


@pytest.mark.parametrize("wanted", ["", "nobody", "0" * 32, "x\x00", "\ud800", "x" * 300])
async def test_what_is_not_there_is_not_found(house: House, wanted: str) -> None:
    directory = house.identity.directory
    for find in (directory.find_domain, directory.find_project, directory.find_user, directory.find_group):
        with pytest.raises(NotFound, match="There is no"):
            await find(wanted)


async def test_a_name_in_several_domains_wants_the_domain(house: House) -> None:
    directory = house.identity.directory
    other = await house.new_domain("OTC2")
    first, second = await house.new_user("alice"), await house.new_user("alice", domain=other)
    await house.new_project("eu-de", other)
    with pytest.raises(Conflict, match="Say which domain"):
        await directory.find_user("alice")
    with pytest.raises(Conflict, match="Say which domain"):
        await directory.find_project("eu-de")
    assert await directory.find_user("alice", house.domain) == first
    assert await directory.find_user("alice", other) == second
    assert await directory.users() == (first, second)


async def test_a_name_is_taken_once_in_a_domain_and_nothing_is_recorded_of_a_refusal(house: House) -> None:
    directory = house.identity.directory
    await house.new_user("alice")
    await directory.create_group("devs", house.domain, actor=ACTOR, origin=ORIGIN)
    before = await house.events()
    for attempt in (
        house.new_domain("OTC1"),
        house.new_project("eu-de"),
        house.new_user(" alice "),
        directory.create_group("devs", house.domain, actor=ACTOR, origin=ORIGIN),
    ):
        with pytest.raises(Conflict, match="exists already"):
            await attempt
    assert await house.events() == before


async def test_bad_names_passwords_and_descriptions_are_refused(house: House) -> None:
    directory = house.identity.directory
    for attempt in (
        house.new_domain(""),
        house.new_project("x" * 65),
        house.new_user("a\u202eb"),
        directory.create_group("\n", house.domain, actor=ACTOR, origin=ORIGIN),
        directory.create_project("fine", house.domain, description="x" * 256, actor=ACTOR, origin=ORIGIN),
        house.new_user("carol", password="short"),
        directory.set_password(await house.new_user("dave"), "short", actor=ACTOR, origin=ORIGIN),
    ):
        with pytest.raises(InvalidRequest):
            await attempt


async def test_changes_are_audited_without_passwords(house: House) -> None:
    directory = house.identity.directory
    before = len(await house.events())
    alice = await house.new_user()
    group = await directory.create_group("devs", house.domain, actor=ACTOR, origin=ORIGIN)
    await directory.add_member(group, alice, actor=ACTOR, origin=ORIGIN)
    await directory.remove_member(group, alice, actor=ACTOR, origin=ORIGIN)
    await directory.set_password(alice, "another horse", actor=ACTOR, origin=ORIGIN)
    for enabled in (False, True):
        await directory.enable_user(alice, enabled=enabled, actor=ACTOR, origin=ORIGIN)
        await directory.enable_project(house.project, enabled=enabled, actor=ACTOR, origin=ORIGIN)
        await directory.enable_domain(house.domain, enabled=enabled, actor=ACTOR, origin=ORIGIN)
    await directory.remove_group(group, actor=ACTOR, origin=ORIGIN)
    await directory.remove_user(alice, actor=ACTOR, origin=ORIGIN)
    await directory.remove_project(house.project, actor=ACTOR, origin=ORIGIN)
    events = (await house.events())[before:]
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
    assert events[0]["detail"] == {"name": "alice", "password": True, "domain_id": house.domain.id}
    assert events[-1]["project_id"] == house.project.id
    assert PASSWORD not in str(events)
    assert "another horse" not in str(events)


async def test_a_removed_user_leaves_nothing_but_events(house: House) -> None:
    directory = house.identity.directory
    alice = await house.new_user("alice", "admin", "reader")
    await house.assign("operator", alice, None)
    group = await directory.create_group("devs", house.domain, actor=ACTOR, origin=ORIGIN)
    await directory.add_member(group, alice, actor=ACTOR, origin=ORIGIN)
    await house.new_key(alice)
    caller = await house.identity.tokens.caller_of_token((await house.login(alice)).text, ORIGIN)
    await house.identity.access_keys.create_temporary(caller)
    await directory.remove_user(alice, actor=ACTOR, origin=ORIGIN)
    left = await rows(house, "user", "token", "access_key", "group_member", "role_assignment", "service_role")
    assert left == dict.fromkeys(left, 0)


async def test_a_removed_group_takes_its_roles_and_memberships_along(house: House) -> None:
    directory, roles = house.identity.directory, house.identity.roles
    alice = await house.new_user()
    group = await directory.create_group("devs", house.domain, actor=ACTOR, origin=ORIGIN)
    await directory.add_member(group, alice, actor=ACTOR, origin=ORIGIN)
    await directory.add_member(group, alice, actor=ACTOR, origin=ORIGIN)
    assert await directory.members(group) == (alice,)
    await roles.assign("admin", group, house.project, actor=ACTOR, origin=ORIGIN)
    await roles.assign("operator", group, None, actor=ACTOR, origin=ORIGIN)
    await directory.remove_group(group, actor=ACTOR, origin=ORIGIN)
    left = await rows(house, "group", "group_member", "role_assignment", "service_role")
    assert left == dict.fromkeys(left, 0)
    with pytest.raises(NotFound):
        await directory.remove_group(group, actor=ACTOR, origin=ORIGIN)
    with pytest.raises(Conflict, match="same moment"):
        await directory.add_member(group, alice, actor=ACTOR, origin=ORIGIN)
    with pytest.raises(NotFound, match="no member"):
        await directory.remove_member(group, alice, actor=ACTOR, origin=ORIGIN)


async def test_a_project_is_removed_with_its_roles_and_tokens_once_it_has_no_clusters(house: House) -> None:
    directory = house.identity.directory
    alice = await house.new_user("alice", "admin")
    await house.login(alice, house.project)
    cluster_id = str(uuid.uuid4())
    async with house.database.write() as connection:
        row = {
            "id": cluster_id,
            "project_id": house.project.id,
            "name": "one",
            "internal_url": "https://10.0.0.5:6443",
            "san_urls": [],
            "server_ca_pem": b"",
            "signer": "local",
            "version": "v1.32",
            "labels": {},
            "created_at": house.clock(),
            "updated_at": house.clock(),
        }
        await connection.execute(insert(tables.cluster).values(row))
    with pytest.raises(Conflict, match="clusters"):
        await directory.remove_project(house.project, actor=ACTOR, origin=ORIGIN)
    assert await directory.find_project(house.project.id) == house.project
    assert await rows(house, "role_assignment", "token") == {"role_assignment": 1, "token": 1}
    async with house.database.write() as connection:
        await connection.execute(tables.cluster.delete().where(tables.cluster.c.id == cluster_id))
    await directory.remove_project(house.project, actor=ACTOR, origin=ORIGIN)
    assert await rows(house, "project", "role_assignment", "token") == {
        "project": 0,
        "role_assignment": 0,
        "token": 0,
    }


async def test_changing_what_is_gone_is_not_found_and_not_recorded(house: House) -> None:
    directory = house.identity.directory
    alice = await house.new_user()
    await directory.remove_user(alice, actor=ACTOR, origin=ORIGIN)
    await directory.remove_project(house.project, actor=ACTOR, origin=ORIGIN)
    before = await house.events()
    for attempt in (
        directory.remove_user(alice, actor=ACTOR, origin=ORIGIN),
        directory.enable_user(alice, enabled=True, actor=ACTOR, origin=ORIGIN),
        directory.set_password(alice, "another horse", actor=ACTOR, origin=ORIGIN),
        directory.remove_project(house.project, actor=ACTOR, origin=ORIGIN),
        directory.enable_project(house.project, enabled=True, actor=ACTOR, origin=ORIGIN),
    ):
        with pytest.raises(NotFound, match="does not exist any more"):
            await attempt
    assert await house.events() == before


async def test_the_built_in_roles_are_made_once_and_others_on_demand(house: House) -> None:
    roles = house.identity.roles
    await roles.bootstrap()
    assert [role.name for role in await roles.all()] == ["admin", "member", "operator", "reader"]
    await house.assign("auditor", await house.new_user(), house.project)
    assert [role.name for role in await roles.all()] == ["admin", "auditor", "member", "operator", "reader"]
    with pytest.raises(InvalidRequest):
        await house.assign("two\nlines", await house.new_user("bob"), house.project)


async def test_assignments_are_listed_by_assignee_and_by_project(house: House) -> None:
    directory, roles = house.identity.directory, house.identity.roles
    other = await house.new_project("eu-nl")
    alice = await house.new_user("alice", "member")
    group = await directory.create_group("devs", house.domain, actor=ACTOR, origin=ORIGIN)
    await roles.assign("reader", group, other, actor=ACTOR, origin=ORIGIN)
    await house.assign("operator", alice, None)
    await house.assign("operator", alice, None)
    by_name = {role.name: role for role in await roles.all()}
    member = RoleAssignment(by_name["member"], alice, house.project)
    operator = RoleAssignment(by_name["operator"], alice, None)
    reader = RoleAssignment(by_name["reader"], group, other)
    assert await roles.assignments() == (member, operator, reader)
    assert await roles.assignments(assignee=alice) == (member, operator)
    assert await roles.assignments(assignee=group) == (reader,)
    assert await roles.assignments(project=other) == (reader,)
    assert await roles.assignments(assignee=alice, project=other) == ()


async def test_a_role_is_taken_away_where_it_was_given(house: House) -> None:
    roles = house.identity.roles
    alice = await house.new_user("alice", "member")
    await house.assign("operator", alice, None)
    for project, role in ((house.project, "member"), (None, "operator")):
        await roles.unassign(role, alice, project, actor=ACTOR, origin=ORIGIN)
        before = await house.events()
        assert before[-1]["kind"] == "role.unassigned"
        assert before[-1]["detail"] == {
            "role": role,
            "assignee": "user",
            "name": "alice",
            "project": project.name if project else None,
        }
        with pytest.raises(NotFound, match="not assigned"):
            await roles.unassign(role, alice, project, actor=ACTOR, origin=ORIGIN)
        assert await house.events() == before
    assert await roles.assignments() == ()


async def test_a_role_in_a_project_that_is_gone_is_refused(house: House) -> None:
    alice = await house.new_user()
    await house.identity.directory.remove_project(house.project, actor=ACTOR, origin=ORIGIN)
    with pytest.raises(Conflict, match="same moment"):
        await house.assign("member", alice, house.project)


async def test_the_projects_of_a_user_come_from_direct_roles_and_groups_each_once(house: House) -> None:
    directory, roles = house.identity.directory, house.identity.roles
    alice = await house.new_user("alice", "member", "admin")
    shared, closed = await house.new_project("shared"), await house.new_project("closed")
    await house.new_project("other")
    group = await directory.create_group("devs", house.domain, actor=ACTOR, origin=ORIGIN)
    await directory.add_member(group, alice, actor=ACTOR, origin=ORIGIN)
    for project in (shared, house.project, closed):
        await roles.assign("reader", group, project, actor=ACTOR, origin=ORIGIN)
    await directory.enable_project(closed, enabled=False, actor=ACTOR, origin=ORIGIN)
    assert [(p.name, p.enabled) for p in await roles.projects_of(alice)] == [
        ("closed", False),
        ("eu-de", True),
        ("shared", True),
    ]
    assert await roles.project_of(alice, shared.id) == shared
    for missing in ("0" * 32, "shared", "\x00"):
        with pytest.raises(NotFound, match="Could not find project"):
            await roles.project_of(alice, missing)

"""Users read for policy decisions have the same roles and groups as when they authenticate."""

from clustercert.model import Actor
from clustercert.store.identity.roles import Member, MemberQueries
from support.accounts import ACTOR, ORIGIN, Accounts, caller_of, enable

BY = Actor(ACTOR, ORIGIN)


async def populate(accounts: Accounts) -> None:
    """Users with roles directly, through groups, both, elsewhere and nowhere."""
    directory, project = accounts.identity.directory, accounts.project
    other = await accounts.new_project("eu-nl")
    admins = await directory.create_group("b-admins", accounts.domain, actor=BY)
    empty = await directory.create_group("a-empty", accounts.domain, actor=BY)
    await accounts.identity.roles.assign("admin", admins, project, actor=BY)
    await accounts.identity.roles.assign("operator", admins, None, actor=BY)
    direct = await accounts.new_user("direct", "reader", "member")
    both = await accounts.new_user("both", "admin", "reader")
    grouped = await accounts.new_user("grouped")
    for user in (both, grouped):
        await directory.add_member(admins, user, actor=BY)
        await directory.add_member(empty, user, actor=BY)
    elsewhere = await accounts.new_user("elsewhere")
    await accounts.assign("admin", elsewhere, other)
    await accounts.assign("operator", direct, None)
    await accounts.new_user("nowhere")
    disabled = await accounts.new_user("disabled", "reader")
    await directory.enable_user(disabled, enabled=False, actor=BY)


async def everybody(members: MemberQueries, project_id: str, limit: int) -> list[Member]:
    found: list[Member] = []
    while page := await members.page(project_id, after=found[-1].user.id if found else "", limit=limit):
        found += page
    return found


async def test_a_member_has_what_a_caller_has(accounts: Accounts) -> None:
    await populate(accounts)
    members = MemberQueries(accounts.database)
    for name in ("direct", "both", "grouped"):
        user = await accounts.identity.directory.find_user(name)
        caller = await caller_of(accounts, (await accounts.login(user, accounts.project)).text)
        assert await members.member(accounts.project.id, user.id) == Member(
            user, caller.roles_in(accounts.project.id), caller.service_roles, caller.groups
        )
    both = await members.member(accounts.project.id, (await accounts.identity.directory.find_user("both")).id)
    assert both is not None
    assert (both.roles, both.service_roles) == (("admin", "reader"), ("operator",))
    assert [group.name for group in both.groups] == ["a-empty", "b-admins"]


async def test_users_without_a_role_are_found_by_id_only(accounts: Accounts) -> None:
    await populate(accounts)
    members, directory = MemberQueries(accounts.database), accounts.identity.directory
    for name in ("elsewhere", "nowhere"):
        user = await directory.find_user(name)
        assert await members.member(accounts.project.id, user.id) == Member(user, (), (), ())
    disabled = await members.member(accounts.project.id, (await directory.find_user("disabled")).id)
    assert disabled is not None
    assert (disabled.user.enabled, disabled.roles) == (False, ("reader",))
    assert await members.member(accounts.project.id, "0" * 32) is None


async def test_pages_have_every_member_once(accounts: Accounts) -> None:
    await populate(accounts)
    members = MemberQueries(accounts.database)
    for limit in (1, 2, 100):
        found = await everybody(members, accounts.project.id, limit)
        assert sorted(each.user.name for each in found) == ["both", "direct", "grouped"]
        assert [each.user.id for each in found] == sorted(each.user.id for each in found)
        for each in found:
            assert each == await members.member(accounts.project.id, each.user.id)
    with accounts.counted_statements() as seen:
        await everybody(members, accounts.project.id, 100)
    assert len(seen) <= 12


async def test_members_of_a_disabled_project_or_domain_have_no_roles(accounts: Accounts) -> None:
    await populate(accounts)
    members, directory = MemberQueries(accounts.database), accounts.identity.directory
    await enable(directory, accounts.project, enabled=False, actor=BY)
    assert {each.roles for each in await everybody(members, accounts.project.id, 100)} == {()}
    await enable(directory, accounts.domain, enabled=False, actor=BY)
    assert await everybody(members, accounts.project.id, 100) == []


async def test_a_group_of_a_disabled_domain_gives_nothing(accounts: Accounts) -> None:
    directory, roles, project = accounts.identity.directory, accounts.identity.roles, accounts.project
    members, user = MemberQueries(accounts.database), await accounts.new_user("guest", "reader")
    only_grouped = await accounts.new_user("only-grouped")
    partner = await directory.create_domain("partner", actor=BY)
    group = await directory.create_group("partners", partner, actor=BY)
    for each in (user, only_grouped):
        await directory.add_member(group, each, actor=BY)
    await roles.assign("admin", group, project, actor=BY)
    await roles.assign("operator", group, None, actor=BY)
    for enabled in (True, False, True):
        await enable(directory, partner, enabled=enabled, actor=BY)
        caller = await caller_of(accounts, (await accounts.login(user, project)).text)
        found = await members.member(project.id, user.id)
        assert found == Member(user, caller.roles_in(project.id), caller.service_roles, caller.groups)
        expected = (("admin", "reader"), ("operator",), (group,)) if enabled else (("reader",), (), ())
        assert (found.roles, found.service_roles, found.groups) == expected
        names = [each.user.name for each in await everybody(members, project.id, 100)]
        assert sorted(names) == (["guest", "only-grouped"] if enabled else ["guest"])
        assert (await roles.queries.projects_of(only_grouped.id) == (project,)) is enabled

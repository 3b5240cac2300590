"""Login with a password in the console, and its end."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustercert.http.console.visits import SESSION_COOKIE
from clustercert.identity.sessions import session_id
from clustercert.model.sessions import IDLE_LIFETIME, LIFETIME, RECENT_LOGIN
from support import world as worlds
from support.console import HTML, OWN_PAGE, Browser
from support.keystone_double import DOMAIN, KeystoneDouble
from support.service import Service
from support.stores import Store, execute
from support.wait import eventually
from support.world import World

# All that a form can carry: no surrogates, which have no UTF-8.
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
WRONG = "Wrong user name or password."
ATTEMPTS = 3


@pytest.fixture(scope="module")
def site(own: World) -> Iterator[Service]:
    with Service(own.settings(console={"enabled": True})).running() as service:
        yield service


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("console"))


def stored(world: World) -> list[tuple[object, ...]]:
    return Store(world.settings().store_url).rows("SELECT id, user_id, address FROM console_session")


def test_a_password_starts_a_session_and_leads_back_to_the_page(site: Service, own: World) -> None:
    browser, member = Browser(site.client), own.people["member"]
    first = browser.get("/console/clusters?page=2")
    assert '<input id="built-in-password" name="password" type="password"' in browser.follow(first).text
    answer = browser.log_in(member, next="/console/clusters?page=2")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/clusters?page=2")
    [cookie] = answer.headers.get_list("set-cookie")
    name, *attributes = cookie.split("; ")
    assert name.startswith(f"{SESSION_COOKIE}=")
    assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=lax", "Secure"]
    assert browser.get("/console/clusters").status_code == 200
    assert (session_id(browser.cookies[SESSION_COOKIE]), member.user.id, "127.0.0.1") in stored(own)
    # Who is logged in needs no login page.
    assert browser.get("/console/login?next=/console/clusters").headers["location"] == "/console/clusters"


@pytest.mark.parametrize("field", ["user", "domain", "password"])
def test_a_wrong_login_shows_the_form_again_with_one_text(site: Service, own: World, field: str) -> None:
    browser = Browser(site.client)
    answer = browser.log_in(own.people["member"], **{field: "<b>nobody", "next": "/console/clusters"})
    assert answer.status_code == 401
    assert WRONG in answer.text
    assert "set-cookie" not in answer.headers
    assert "<b>" not in answer.text
    assert 'name="next" value="/console/clusters"' in answer.text
    kept = own.people["member"].user.name if field != "user" else "&lt;b&gt;nobody"
    assert f'name="user" value="{kept}"' in answer.text
    assert own.people["member"].password not in answer.text
    assert browser.cookies == {}


def test_a_wrong_login_in_the_default_domain_says_how_to_name_another(site: Service, own: World) -> None:
    browser = Browser(site.client)
    texts = {
        domain: unescape(browser.log_in(own.people["member"], domain=domain).text)
        for domain in ("", "Default", "elsewhere")
    }
    hint = "If your account is in another domain, write the name of the domain."
    assert [hint in text for text in texts.values()] == [True, True, False]


@pytest.mark.parametrize(
    "address", ["https://evil.test/", "//evil.test/console", "/console/../x//y", "/v3", "\\\\evil.test", ""]
)
def test_a_login_leads_to_pages_of_the_console_only(site: Service, own: World, address: str) -> None:
    browser = Browser(site.client)
    assert "evil" not in browser.get("/console/login", {}).text
    page = browser._send(site.client.build_request("GET", "/console/login", params={"next": address}))
    assert 'name="next" value="/console"' in page.text
    assert browser.log_in(own.people["member"], next=address).headers["location"] == "/console"


def test_each_login_gets_a_new_cookie_and_ends_the_old_one(site: Service, own: World) -> None:
    browser = Browser.logged_in(site.client, own.people["member"])
    old = browser.cookies[SESSION_COOKIE]
    assert browser.log_in(own.people["reader"]).status_code == 303
    assert browser.cookies[SESSION_COOKIE] != old
    replayed = Browser(site.client)
    replayed.cookies[SESSION_COOKIE] = old
    assert replayed.get("/console/clusters").status_code == 303


@pytest.mark.parametrize("planted", ["x" * 43, "", "é", "a b"])
def test_a_planted_cookie_never_becomes_a_session(site: Service, own: World, planted: str) -> None:
    browser = Browser(site.client)
    headers = {**OWN_PAGE, "Cookie": f"{SESSION_COOKIE}={planted}".encode()}
    member = own.people["member"]
    fields = {"user": member.user.name, "domain": member.user.domain.name, "password": member.password}
    answer = site.client.post("/console/login", data=fields, headers=headers)  # type: ignore[arg-type] # bytes
    assert answer.status_code == 303
    assert f"{SESSION_COOKIE}={planted};" not in answer.headers["set-cookie"]
    browser.cookies[SESSION_COOKIE] = planted
    if planted.isascii():
        assert browser.get("/console/clusters").status_code == 303


def test_a_cookie_is_worth_nothing_after_the_logout(site: Service, own: World) -> None:
    browser = Browser.logged_in(site.client, own.people["member"])
    replayed = Browser(site.client)
    replayed.cookies = dict(browser.cookies)
    # A link ends nothing.
    assert replayed.get("/console/logout").status_code == 404
    assert replayed.get("/console/clusters").status_code == 200
    answer = browser.post("/console/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")
    assert SESSION_COOKIE not in browser.cookies
    assert "You are logged out." in browser.follow(answer).text
    assert replayed.get("/console/clusters").status_code == 303
    assert replayed.post("/console/missing").status_code == 404
    assert replayed.post("/console/logout").headers["location"] == "/console/login"


@pytest.mark.parametrize(
    ("column", "age", "status"),
    [
        ("seen_at", IDLE_LIFETIME, 303),
        ("seen_at", IDLE_LIFETIME - timedelta(minutes=5), 200),
        ("created_at", LIFETIME, 303),
        ("created_at", LIFETIME - timedelta(minutes=5), 200),
    ],
)
def test_a_cookie_is_worth_nothing_when_its_session_is_too_old(
    site: Service, own: World, column: str, age: timedelta, status: int
) -> None:
    browser = Browser.logged_in(site.client, own.people["member"])
    execute(
        own.database,
        f"UPDATE console_session SET {column} = strftime('%Y-%m-%d %H:%M:%f', {column}, ?) WHERE id = ?",
        f"-{age.total_seconds()} seconds",
        session_id(browser.cookies[SESSION_COOKIE]),
    )
    assert browser.get("/console/clusters").status_code == status
    # A form of the page that is still open in the browser.
    sent = browser.post(f"/console/requests/{'0' * 32}/end")
    assert sent.status_code == (401 if status == 303 else 404)


def test_a_form_over_its_limit_is_refused_unread(site: Service, own: World) -> None:
    form = HTML | OWN_PAGE | {"Content-Type": "application/x-www-form-urlencoded"}
    for path, limit in (("/console/login", 8 * 1024), ("/console/logout", 8 * 1024)):
        # Text without "=" is no form field, so a form that is read gets another answer.
        answers = [site.client.post(path, content=b"a" * size, headers=form) for size in (limit, limit + 1)]
        assert answers[0].status_code != 413
        assert answers[1].status_code == 413


def test_a_login_from_another_site_is_refused(site: Service, own: World) -> None:
    member = own.people["member"]
    fields = {"user": member.user.name, "domain": member.user.domain.name, "password": member.password}
    for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.test"}):
        assert Browser(site.client).post_exactly("/console/login", headers, fields).status_code == 403


def test_a_login_again_names_the_user_and_makes_the_login_recent(site: Service, own: World) -> None:
    member = own.people["member"]
    browser = Browser.logged_in(site.client, member)
    execute(
        own.database,
        "UPDATE console_session SET authenticated_at = strftime('%Y-%m-%d %H:%M:%f', authenticated_at, ?) WHERE id = ?",
        f"-{RECENT_LOGIN.total_seconds() + 60} seconds",
        session_id(browser.cookies[SESSION_COOKIE]),
    )
    page = browser.get("/console/login?again=1&next=/console/clusters").text
    assert "<h1>Log in again</h1>" in page
    assert f'name="user" value="{member.user.name}"' in page
    assert f'name="domain" value="{member.user.domain.name}"' in page
    wrong = browser.log_in(member, password="wrong horse", again="1")
    assert (wrong.status_code, WRONG in wrong.text) == (401, True)
    assert 'name="again" value="1"' in wrong.text
    # A failure ends nothing.
    assert browser.get("/console/clusters").status_code == 200
    assert browser.log_in(member, again="1", next="/console/clusters").status_code == 303
    query = "SELECT count(*) FROM console_session WHERE id = ? AND authenticated_at = created_at"
    assert Store(own.settings().store_url).rows(query, session_id(browser.cookies[SESSION_COOKIE])) == [(1,)]


def test_the_limit_of_failures_is_that_of_the_api(
    service_with: Callable[..., Service], own: World, world: World
) -> None:
    limited = service_with(console={"enabled": True}, limits={"failures_per_minute": ATTEMPTS})
    browser, member = Browser(limited.client), world.people["member"]
    statuses = [browser.log_in(member, password="wrong horse").status_code for _ in range(ATTEMPTS + 1)]
    assert statuses == [401] * ATTEMPTS + [429]
    # Not even the right password is checked now, neither here nor by the API.
    answer = browser.log_in(member)
    assert answer.status_code == 429
    assert "Too many failed authentications from your address." in answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert 'name="password"' in answer.text
    user = {"id": member.user.id, "password": member.password}
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
    assert limited.client.post("/v3/auth/tokens", json=body).status_code == 429


def test_a_user_logs_in_only_as_often_as_for_tokens(
    service_with: Callable[..., Service], world: World
) -> None:
    limited = service_with(console={"enabled": True}, limits={"tokens": "1/1h"})
    first, second = Browser(limited.client), Browser(limited.client)
    assert first.log_in(world.people["reader"]).status_code == 303
    answer = second.log_in(world.people["reader"])
    assert (answer.status_code, "You created too many tokens." in answer.text) == (429, True)


def test_without_a_browser_a_failure_is_the_json_of_the_api(site: Service, own: World) -> None:
    member = own.people["member"]
    fields = {"user": member.user.name, "domain": member.user.domain.name, "password": "wrong horse"}
    headers = {**OWN_PAGE, "Accept": "application/json"}
    answer = site.client.post("/console/login", data=fields, headers=headers)
    assert (answer.status_code, answer.json()["error_msg"]) == (401, "Authorization failed.")


@settings(max_examples=15)
@given(
    fields=st.dictionaries(st.sampled_from(["system", "user", "domain", "password", "next", "again"]), _TEXT)
)
def test_no_field_of_a_login_causes_an_internal_error(site: Service, fields: dict[str, str]) -> None:
    answer = Browser(site.client).post_exactly("/console/login", HTML | OWN_PAGE, {"csrf": ""} | fields)
    assert (answer.status_code, WRONG in answer.text) == (401, True)


def test_a_user_who_is_blocked_is_out_of_the_console(site: Service, own: World) -> None:
    operator, path = own.people["operator"].headers, "/clustercert/v1/users/leaving"
    made = site.client.put(path, json={"password": "correct horse"}, headers=operator).json()
    browser = Browser(site.client)
    fields = {"user": "leaving", "domain": made["domain"], "password": "correct horse"}
    assert browser.post("/console/login", None, **fields).status_code == 303
    assert browser.get("/console/clusters").status_code == 200
    blocked = site.client.post(f"/clustercert/v1/users/{made['id']}/block", headers=operator)
    assert blocked.status_code == 200
    assert eventually(lambda: browser.get("/console/clusters").status_code == 303)
    assert browser.post("/console/login", None, **fields).status_code == 401


@pytest.fixture(scope="module")
def keystone() -> Iterator[KeystoneDouble]:
    with KeystoneDouble().running() as running:
        yield running


@pytest.fixture(scope="module")
def at_keystone(
    keystone: KeystoneDouble, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, World]]:
    """A service that trusts a Keystone."""
    world = worlds.make(tmp_path_factory.mktemp("keystone"))
    for project in (world.project, world.other_project):
        keystone.add_project(project.id)
    own = keystone.settings(
        projects=[world.project.id, world.other_project.id], system_roles={"admin": "operator"}, cache="1s"
    )
    configured = world.settings(
        identity={"region": worlds.REGION, "keystone": own}, console={"enabled": True}
    )
    with Service(configured).running() as service:
        yield service, world


def person(keystone: KeystoneDouble, name: str, roles: dict[str, str]) -> dict[str, str]:
    """A new user of Keystone with a role by project. Returns the fields of the login form."""
    user_id = keystone.add_user(name)
    keystone.passwords[user_id] = "correct horse"
    for project_id, role in roles.items():
        keystone.roles[user_id, project_id] = [role]
    return {"system": "keystone", "user": name, "domain": DOMAIN["name"], "password": "correct horse"}


def clusters(browser: Browser) -> str:
    answer = browser.get("/console/clusters")
    assert answer.status_code == 200
    return answer.text


def test_a_user_of_keystone_logs_in_with_the_password_there(
    keystone: KeystoneDouble, at_keystone: tuple[Service, World]
) -> None:
    site, world = at_keystone
    fields = person(keystone, "one-project", {world.project.id: "member"})
    browser = Browser(site.client)
    assert "<summary>With an account of keystone</summary>" in browser.get("/console/login").text
    answer = browser.post("/console/login", None, **fields, next="/console/clusters")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/clusters")
    assert world.clusters["plain"].name in clusters(browser)
    again = browser.get("/console/login?again=1").text
    assert 'name="user" value="one-project"' in again
    assert 'value="acme"' in again
    assert "With an account of this service" not in again
    for wrong in ({"password": "wrong horse"}, {"user": "nobody"}, {"domain": "x"}, {"project": "missing"}):
        refused = Browser(site.client).post("/console/login", None, **(fields | wrong))
        assert (refused.status_code, WRONG in refused.text) == (401, True)


def test_a_user_of_several_projects_of_keystone_names_one(
    keystone: KeystoneDouble, at_keystone: tuple[Service, World]
) -> None:
    site, world = at_keystone
    projects = {world.project.id: "member", world.other_project.id: "member"}
    fields = person(keystone, "two-projects", projects)
    browser = Browser(site.client)
    answer = browser.post("/console/login", None, **fields)
    assert answer.status_code == 400
    assert "You have roles in several projects. Name one of these projects: eu-de, eu-de." in answer.text
    assert browser.post("/console/login", None, **fields, project=world.other_project.id).status_code == 303
    assert world.clusters["foreign"].name in clusters(browser)


def test_a_user_of_keystone_chooses_roles_in_the_whole_service(
    keystone: KeystoneDouble, at_keystone: tuple[Service, World]
) -> None:
    site, _ = at_keystone
    fields = person(keystone, "cloud-admin", {})
    user_id = next(key for key, user in keystone.users.items() if user["name"] == "cloud-admin")
    browser = Browser(site.client)
    assert browser.post("/console/login", None, **fields, in_system="on").status_code == 401
    keystone.system_roles[user_id] = ["admin"]
    assert browser.post("/console/login", None, **fields, in_system="on").status_code == 303
    assert "Fleet" in clusters(browser)


def test_an_outage_of_keystone_is_no_wrong_password(
    keystone: KeystoneDouble, at_keystone: tuple[Service, World]
) -> None:
    site, world = at_keystone
    fields = person(keystone, "unlucky", {world.project.id: "member"})
    keystone.stop()
    try:
        answer = Browser(site.client).post("/console/login", None, **fields)
    finally:
        keystone.start()
    assert answer.status_code == 503
    assert "The identity service can" in answer.text
    assert int(answer.headers["retry-after"]) >= 1


def test_a_user_of_keystone_logs_out_while_keystone_is_away(
    keystone: KeystoneDouble, at_keystone: tuple[Service, World]
) -> None:
    site, world = at_keystone
    browser = Browser(site.client)
    fields = person(keystone, "leaving", {world.project.id: "member"})
    # After an outage, the service waits for a moment before it connects again.
    assert eventually(lambda: browser.post("/console/login", None, **fields).status_code == 303)
    replayed = Browser(site.client)
    replayed.cookies = dict(browser.cookies)
    keystone.stop()
    try:
        assert eventually(lambda: browser.get("/console/clusters").status_code == 503)
        assert browser.get("/console/login").status_code == 200
        assert browser.post("/console/logout").status_code == 303
    finally:
        keystone.start()
    assert eventually(lambda: replayed.get("/console/clusters").status_code == 303)

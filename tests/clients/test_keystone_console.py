"""Login to the console with a password of a real Keystone."""

from collections.abc import Iterator

import httpx2
import pytest

from support.keystone_installation import Service, Site
from support.real_keystone.people import Person
from support.wait import eventually


@pytest.fixture(scope="module")
def console(site: Site) -> Iterator[Service]:
    """A service with the console. Roles in the scope `system` count."""
    settings = site.settings('[identity.keystone.system_roles]\nadmin = "operator"')
    with settings.open("a") as file:
        file.write("[console]\nenabled = true\n")
    with site.serving(settings) as service:
        yield service


def log_in(site: Site, service: Service, person: Person, **changed: str) -> httpx2.Response:
    domain = site.admin.call("GET", f"domains/{site.domain_id}")["domain"]["name"]
    fields = {"system": "keystone", "user": person.name, "domain": domain, "password": person.password}
    headers = {"Sec-Fetch-Site": "same-origin", "Accept": "text/html"}
    return service.http.post("/console/login", data=fields | changed, headers=headers)


def page(service: Service, login: httpx2.Response) -> httpx2.Response:
    """The page of the clusters, in the session of a login."""
    assert login.status_code == 303, login.text
    cookie = login.headers["set-cookie"].partition(";")[0]
    service.http.cookies.clear()
    return service.http.get("/console/clusters", headers={"Cookie": cookie})


def test_a_person_sees_their_clusters_until_keystone_disables_them(site: Site, console: Service) -> None:
    person = site.person()
    login = log_in(site, console, person)
    assert "prod" in page(console, login).text
    site.admin.change("user", person.id, enabled=False)
    assert eventually(lambda: page(console, login).status_code == 303)
    assert log_in(site, console, person).status_code == 401


@pytest.mark.parametrize("wrong", ["password", "user", "domain", "project"])
def test_keystones_refusals_are_mute(site: Site, console: Service, wrong: str) -> None:
    answer = log_in(site, console, site.person(), **{wrong: "wrong"})
    assert (answer.status_code, "Wrong user name or password." in answer.text) == (401, True)


def test_a_person_names_the_project_by_name_or_id(site: Site, console: Service) -> None:
    person = site.person()
    # Keystone takes no account of projects that this service does not know.
    site.admin.grant("member", f"users/{person.id}", f"projects/{site.other_project_id}")
    for project in ("", site.project_id, "eu-test"):
        assert "prod" in page(console, log_in(site, console, person, project=project)).text
    assert "prod" not in page(console, log_in(site, console, person, project=site.other_project_id)).text


def test_a_role_in_the_scope_system_is_one_in_the_whole_service(site: Site, console: Service) -> None:
    person = site.person()
    assert log_in(site, console, person, in_system="on").status_code == 401
    site.admin.grant("admin", f"users/{person.id}", "system")
    assert "Fleet" in page(console, log_in(site, console, person, in_system="on")).text

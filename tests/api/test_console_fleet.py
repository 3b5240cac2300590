"""The console's pages Now and Fleet: what they count, and where each number leads."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from html import unescape

import pytest

from clustercert.model import utc_now
from support import world as worlds
from support.console import Browser, page_text
from support.fleet_scene import FleetScene
from support.service import Service
from support.stores import execute, patient, sqlite_url
from support.world import World

_GROUP = re.compile(r'<a href="([^"]+)">(?:<bdi>)?([^<]*)(?:</bdi>)?</a> <b>(\d+)</b>')
_FIGURE = re.compile(r'<a class="figure[^"]*" href="([^"]+)"><b>(\d+)</b> <span>(.*?)</span></a>')
_ATTENTION = re.compile(r'<li><a href="([^"]+)"><b class="(\w+)">(\d+)</b> <span>(.*?)</span></a>')


@dataclass(frozen=True)
class Site:
    """A service with four clusters in different states: `sans` is fine, and `foreign` is in another project."""

    world: World
    service: Service

    def page(self, address: str, who: str = "operator", status: int = 200) -> str:
        answer = Browser.in_session(self.service, self.world.people[who]).get(address)
        assert answer.status_code == status, answer.text
        return answer.text

    def total(self, address: str, who: str = "operator") -> int:
        """The number of clusters or certificates that a list shows."""
        page = self.page(unescape(address), who)
        [found] = re.findall(
            r"(\d+) (?:cluster|certificate)s?\b",
            page_text(page.split('<p role="status">')[1].split("</p>")[0]),
        )
        rows = page.split("<tbody>")[-1].count("<tr>") if found != "0" else 0
        assert rows == int(found)
        return rows


async def prepare(world: World) -> None:
    database = patient(sqlite_url(world.database))
    scene, now = FleetScene(database, dict(world.clusters)), utc_now()
    await scene.called("sans", now)
    await scene.verified("sans", now)
    await scene.called("eip", now)
    await scene.rotate("foreign", "planned", "no route to <host>")
    await scene.saw_unknown("plain", "mallory", now - timedelta(hours=1))
    await database.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    world = worlds.make(tmp_path_factory.mktemp("fleet"))
    asyncio.run(prepare(world))
    with Service(world.settings(console={"enabled": True})).running() as service:
        for who, hours in (("admin", 2), ("member", 30)):
            answer = service.client.post(
                world.path("plain"), json={"expires_in": hours * 3600}, headers=world.people[who].headers
            )
            assert answer.status_code == 200, answer.text
        yield Site(world, service)


def test_now_says_who_has_access_and_what_needs_attention(site: Site) -> None:
    page = site.page("/console")
    figures = {label: int(number) for _, number, label in _FIGURE.findall(page)}
    assert {name: figures[name] for name in ("people", "machines", "live certificates", "clusters")} == {
        "people": 2,
        "machines": 0,
        "live certificates": 2,
        "clusters": 4,
    }
    assert [(int(number), kind, what) for _, kind, number, what in _ATTENTION.findall(page)] == [
        (2, "bad", "clusters: not enforced"),
        (1, "warn", "rotation of a client CA does not go on"),
        (1, "warn", "unknown identity is new within a day"),
        (1, "warn", "cluster: not verified"),
    ]


def test_each_number_on_now_leads_to_what_it_counts(site: Site) -> None:
    page = site.page("/console")
    for href, label, number in _GROUP.findall(page):
        assert site.total(href) == int(number), label
    for href, _, number, what in _ATTENTION.findall(page):
        assert site.total(href) == int(number), what
    found = {label: (unescape(href), int(number)) for href, number, label in _FIGURE.findall(page)}
    for label in ("clusters", "client CAs", "rotation of a client CA"):
        href, number = found[label]
        assert site.total(href) == number, label
    for label in ("live certificates", "certificate"):
        href, number = found[label]
        assert site.total(href) == number, label
    for label in ("requests for approval", "approved, not used yet", "access by request in use"):
        site.page(found[label][0])


def test_each_group_of_the_fleet_leads_to_its_clusters(site: Site) -> None:
    for who, expected in (("operator", 4), ("admin", 3)):
        groups = _GROUP.findall(site.page("/console/fleet", who))
        assert sum(int(number) for _, _, number in groups) == 2 * expected
        for href, label, number in groups:
            assert site.total(href, who) == int(number), label


def test_the_list_can_be_searched_and_filtered(site: Site) -> None:
    for query, expected in (
        ("text=PLAI", 1),
        ("text=eu-nl", 1),
        ("text=%25", 0),
        ("enforcement=behind", 3),
        ("seen=unknown", 1),
        ("seen=ending", 1),
        ("rotation=failing&text=", 1),
        ("label=team%3Dtests", 4),
        (f"project={site.world.project.id}", 3),
        ("ca_end=year", 0),
        ("order=ca_start", 4),
    ):
        assert site.total(f"/console/fleet?{query}") == expected, query


def test_the_name_of_a_cluster_leads_to_its_page(site: Site) -> None:
    browser = Browser.in_session(site.service, site.world.people["operator"])
    plain = site.world.clusters["plain"]
    for name in ("plain", "PLAI", " plain "):
        answer = browser.get(f"/console/fleet?find={name}")
        assert answer.headers["location"] == f"/console/projects/{plain.project_id}/clusters/{plain.id}"
    # Several clusters, or none: the list shows them.
    assert site.total("/console/fleet?find=eu-de") == 3
    assert site.total("/console/fleet?find=nowhere") == 0


def test_filters_without_a_field_are_named_and_can_be_removed(site: Site) -> None:
    project = site.world.project.id
    # The search finds ids too. They are hexadecimal, so they contain no "n".
    page = site.page(f"/console/fleet?project={project}&label=team&version=v1.32&text=n")
    said = page_text(page.split('<p role="status">')[1].split("</p>")[0])
    assert said == (
        "2 clusters · Project: tests/eu-de remove · Label: team remove · Version: v1.32 remove · Show all"
    )
    assert f'href="/console/fleet?text=n&amp;project={project}&amp;label=team"' in page
    assert "Version: not registered" in site.page("/console/fleet?version=")


def test_a_row_leads_to_the_cluster_and_its_rotation(site: Site) -> None:
    page = site.page("/console/fleet?text=foreign")
    foreign = site.world.clusters["foreign"]
    address = f"/console/projects/{foreign.project_id}/clusters/{foreign.id}"
    assert f'<a href="{address}">' in page
    assert f'<a href="{address}/rotation">' in page
    assert "foreign tests/eu-nl not enforced never v1.32 0 0" in page_text(page)


def test_an_unknown_filter_is_refused_by_the_api(site: Site) -> None:
    for query in ("enforcement=good", "order=size", "cursor=0"):
        site.page(f"/console/fleet?{query}", status=400)


def test_a_project_admin_sees_the_own_clusters(site: Site) -> None:
    assert "Your projects" in site.page("/console", "admin")
    assert "foreign" not in site.page("/console/fleet", "admin")
    assert site.total("/console/fleet?rotation=running", "admin") == 0


def test_others_begin_with_their_clusters(site: Site) -> None:
    answer = Browser.in_session(site.service, site.world.people["member"]).get("/console")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/clusters")


def test_without_clusters_the_pages_say_how_to_register_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    world = worlds.make(tmp_path_factory.mktemp("empty"))
    for table in ("client_ca", "cluster"):
        execute(world.database, f"DELETE FROM {table}")
    with Service(world.settings(console={"enabled": True})).running() as service:
        for address in ("/console", "/console/fleet"):
            page = Site(world, service).page(address)
            assert "No cluster is registered yet." in page
            assert "clustercert cluster add NAME --project DOMAIN/PROJECT" in page


def test_now_names_few_clusters_and_searches_many(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert "Who can get into</span>" in site.page("/console")
    world = worlds.make(tmp_path_factory.mktemp("many"))

    async def add_clusters() -> None:
        database = patient(sqlite_url(world.database))
        for number in range(20):
            await FleetScene(database).add(f"edge-{number}", world.project.id)
        await database.close()

    asyncio.run(add_clusters())
    with Service(world.settings(console={"enabled": True})).running() as service:
        page = Site(world, service).page("/console")
    assert "Who can get into</span>" not in page
    assert '<form class="filters" method="get" action="/console/fleet" role="search">' in page

"""The console's pages about the audit log: who sees which events, filters, proof, export."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from support import world as worlds
from support.audit_api import EVERYWHERE, issue, sealed
from support.console import Browser
from support.demo_process import COMMAND, uncovered
from support.service import Service
from support.stores import execute
from support.wait import eventually
from support.world import World

AUDIT = "/console/audit"
_TAG = re.compile(r"<[^>]*>")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("audited"))


@pytest.fixture(scope="module")
def site(world: World) -> Iterator[Service]:
    with Service(world.settings(console={"enabled": True})).running() as running:
        yield running


@pytest.fixture
def fingerprint(site: Service, world: World) -> str:
    """A certificate of the member for the cluster `plain`, whose event is sealed."""
    found = issue(site.client, world, "member")
    sealed(site.client, world, found)
    return found


def browser(site: Service, world: World, who: str = "operator") -> Browser:
    return Browser.in_session(site, world.people[who])


def text(page: str) -> str:
    """The text of a page, with single spaces."""
    return " ".join(unescape(_TAG.sub("", page)).split())


def sentences(page: str) -> list[str]:
    """What the rows of the list say, without the times."""
    return [text(row) for row in re.findall(r"<tr>\s*<td><time.*?</td>(.*?)</tr>", page, re.DOTALL)]


def test_the_list_says_who_did_what_with_names(site: Service, world: World, fingerprint: str) -> None:
    page = browser(site, world).get(f"{AUDIT}?object={fingerprint}")
    assert page.status_code == 200
    [said] = sentences(page.text)
    assert said.startswith("tests/member got a certificate for tests/eu-de/plain with ")
    assert said.split()[-2] == "tests/eu-de"
    cluster = f"/console/projects/{world.project.id}/clusters/{world.clusters['plain'].id}"
    assert f'<a href="{cluster}">' in page.text


@pytest.mark.parametrize(
    ("who", "status"),
    [
        ("auditor", 200),
        ("admin", 200),
        ("member", 403),
    ],
)
def test_the_log_is_for_operators_auditors_and_project_admins(
    site: Service, world: World, fingerprint: str, who: str, status: int
) -> None:
    event = sealed(site.client, world, fingerprint)
    visitor = browser(site, world, who)
    for tail in ("", f"/{event['leaf_index']}", f"/{event['leaf_index']}/proof", "/export"):
        assert visitor.get(AUDIT + tail).status_code == status, tail
    home = text(visitor.get("/console/clusters").text)
    assert (" Audit " in home) == (status == 200)


def test_the_admin_of_another_project_finds_no_event(site: Service, world: World, fingerprint: str) -> None:
    event, stranger = sealed(site.client, world, fingerprint), browser(site, world, "stranger")
    for tail in ("", f"?project={world.project.id}"):
        assert stranger.get(f"{AUDIT}/{event['leaf_index']}{tail}").status_code == 404
    for query in (f"?user={world.people['member'].user.id}", f"?object={fingerprint}"):
        assert "No events found." in stranger.get(AUDIT + query).text


def test_an_admin_sees_the_events_of_their_project_only(
    site: Service, world: World, fingerprint: str
) -> None:
    event, foreign = sealed(site.client, world, fingerprint), world.clusters["foreign"].id
    other = sealed(site.client, world, foreign, kind="cluster.added")
    admin = browser(site, world, "admin")
    page = admin.get(AUDIT)
    assert "tests/member got a certificate for tests/eu-de/plain" in text(page.text)
    assert "added the cluster tests/eu-de/plain" in text(admin.get(f"{AUDIT}?kind=cluster.added").text)
    assert f"/{other['leaf_index']}?" not in page.text
    assert admin.get(f"{AUDIT}/{event['leaf_index']}").status_code == 200
    assert admin.get(f"{AUDIT}/{other['leaf_index']}").status_code == 404
    for project in (world.other_project.id, "f" * 32):
        assert admin.get(f"{AUDIT}?project={project}").status_code == 404
        assert admin.get(f"{AUDIT}/{other['leaf_index']}?project={project}").status_code == 404
    assert admin.get(f"{AUDIT}?cluster={foreign}").text.count("<tbody>") == 0


def test_events_are_found_by_person_cluster_project_kind_and_time(
    site: Service, world: World, fingerprint: str
) -> None:
    event = sealed(site.client, world, fingerprint)
    operator, plain = browser(site, world), world.clusters["plain"]
    for query in (
        "user=tests/member",
        f"user={world.people['member'].user.id}",
        "cluster=plain",
        "cluster=tests/eu-de/plain",
        f"cluster={plain.id}",
        f"project={world.project.id}",
        "kind=certificate.issued",
        f"since={event['at'][:16]}",
        "user=tests/member&cluster=plain&kind=certificate.*",
    ):
        page = operator.get(f"{AUDIT}?{query}")
        assert page.status_code == 200, text(page.text)
        assert f'href="{AUDIT}/{event["leaf_index"]}"' in page.text, query
    for query in (
        "user=tests/reader",
        "user=cli:nobody",
        "cluster=eip",
        f"project={world.other_project.id}",
        "kind=role.*",
        "until=2020-01-01T00:00",
        f"request={'f' * 32}",
    ):
        page = operator.get(f"{AUDIT}?{query}")
        assert page.status_code == 200, text(page.text)
        assert f'href="{AUDIT}/{event["leaf_index"]}"' not in page.text, query


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("user=nobody", "There is no user nobody."),
        ("cluster=nowhere", "There is no cluster nowhere that you can see."),
        ("project=nowhere", "No project is named nowhere."),
        ("since=yesterday", "since: write it like 2027-01-01T16:00:00Z."),
        ("request=4711", "access_request_id: must be an id"),
        ("cursor=x", "cursor: send the value of `next` from the previous page."),
    ],
)
def test_a_filter_that_means_nothing_is_explained_above_the_list(
    site: Service, world: World, query: str, problem: str
) -> None:
    page = browser(site, world).get(f"{AUDIT}?{query}")
    assert page.status_code == 400
    assert problem in text(page.text)
    assert "<form" in page.text


def test_an_admin_finds_a_person_among_those_with_certificates_for_a_cluster(
    site: Service, world: World, fingerprint: str
) -> None:
    admin = browser(site, world, "admin")
    assert "got a certificate" in text(admin.get(f"{AUDIT}?user=tests/member&cluster=plain").text)
    assert "Also name a cluster" in text(admin.get(f"{AUDIT}?user=tests/member").text)


def test_pages_of_the_list_leave_nothing_out(site: Service, world: World) -> None:
    operator, address, found = browser(site, world), f"{AUDIT}?verifications=1", list[int]()
    for _ in range(60):
        issue(site.client, world, "member")
    last = issue(site.client, world, "member")
    newest = sealed(site.client, world, last)["leaf_index"]
    while address:
        page = operator.get(address).text
        found += [int(each) for each in re.findall(rf'href="{AUDIT}/(\d+)"', page)]
        links = re.findall(r'<a href="([^"]*)">Next page', page)
        address = unescape(links[0]) if links else ""
    assert [each for each in found if each <= newest] == list(range(newest, -1, -1))


def test_the_printed_command_verifies_the_copied_proof_offline(
    site: Service, world: World, fingerprint: str, tmp_path: Path
) -> None:
    event = sealed(site.client, world, fingerprint)
    for who in ("auditor", "admin"):
        visitor = browser(site, world, who)
        page = visitor.get(f"{AUDIT}/{event['leaf_index']}").text
        [command] = re.findall(r">(clustercert audit verify [^<]*)<", page)
        [proof] = re.findall(r'aria-label="Proof">(.*?)</pre>', page, re.DOTALL)
        [download] = re.findall(r'href="([^"]*)">Download the proof', page)
        program, *arguments = shlex.split(unescape(command))
        assert program == "clustercert"
        folder = tmp_path / who
        folder.mkdir()
        (folder / arguments[arguments.index("--proof") + 1]).write_text(unescape(proof))
        done = subprocess.run(
            [*COMMAND, *arguments, "-o", "json"],
            cwd=folder,
            env=uncovered({"HOME": str(folder), "PATH": "/usr/bin:/bin"}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["detail"] == event["detail"]
        file = visitor.get(unescape(download))
        assert (
            file.headers["content-disposition"] == f'attachment; filename="event-{event["leaf_index"]}.proof"'
        )
        assert file.text.partition("\n\n")[0].startswith("c2sp.org/tlog-proof@v1\n")


def test_an_event_leads_to_what_it_is_about(site: Service, world: World, fingerprint: str) -> None:
    event, operator = sealed(site.client, world, fingerprint), browser(site, world)
    page = operator.get(f"{AUDIT}/{event['leaf_index']}").text
    assert "tests/member got a certificate for tests/eu-de/plain" in text(page)
    assert (
        json.loads(unescape(re.findall(r'aria-label="Details of the event">(.*?)</pre>', page, re.DOTALL)[0]))
        == (event["detail"])
    )
    links = dict(re.findall(r'<li><a href="([^"]*)"><bdi>([^<]*)', page))
    assert f"/console/projects/{world.project.id}/clusters/{world.clusters['plain'].id}" in links
    for address, title in links.items():
        if title.startswith("All events of"):
            assert f'href="{AUDIT}/{event["leaf_index"]}"' in operator.get(unescape(address)).text, title


@pytest.mark.parametrize("place", ["x", "999999999", "-1", "9" * 30, "1.0", "%31%2F..", "٣"])
def test_an_unknown_event_is_not_found(site: Service, world: World, place: str) -> None:
    assert browser(site, world).get(f"{AUDIT}/{place}").status_code == 404


def test_the_export_has_the_selected_events_as_the_api_shows_them(
    site: Service, world: World, fingerprint: str
) -> None:
    operator = browser(site, world)
    page = operator.get(f"{AUDIT}?object={fingerprint}").text
    [address] = re.findall(r'href="([^"]*)">Download these events', page)
    answer = operator.get(unescape(address))
    assert answer.headers["content-disposition"] == 'attachment; filename="clustercert-events.jsonl"'
    *lines, last = map(json.loads, answer.text.splitlines())
    headers = world.people["operator"].headers
    listed = site.client.get(EVERYWHERE, headers=headers, params={"subject": fingerprint}).json()
    assert (lines, last) == (listed["events"], {"next": None})


def test_an_export_has_more_events_than_a_page(site: Service, world: World) -> None:
    for _ in range(60):
        issue(site.client, world, "member")
    sealed(site.client, world, issue(site.client, world, "member"))
    *lines, last = map(json.loads, browser(site, world).get(f"{AUDIT}/export").text.splitlines())
    assert [each["leaf_index"] for each in lines] == list(range(lines[0]["leaf_index"], -1, -1))
    assert len(lines) > 60
    assert last == {"next": None}


def test_a_name_with_markup_stays_text_and_a_reason_can_t_add_a_link(site: Service, world: World) -> None:
    headers = world.people["operator"].headers
    note = "<script>alert(1)</script>\u202e"
    cluster = f"/clustercert/v1/projects/{world.project.id}/clusters/{world.clusters['eip'].id}/revoke"
    answer = site.client.post(cluster, headers=headers, json={"note": note[:-1]})
    assert answer.status_code == 200, answer.text
    operator = browser(site, world)
    page = eventually(
        lambda: (
            operator.get(f"{AUDIT}?kind=cluster.revoked").text
            if "revoked all certificates" in operator.get(f"{AUDIT}?kind=cluster.revoked").text
            else None
        )
    )
    assert page is not None
    [address] = re.findall(rf'href="({AUDIT}/\d+)"', page)
    shown = operator.get(address).text
    assert "<script>" not in shown
    assert "&lt;script&gt;alert(1)" in shown


@pytest.mark.full
def test_an_export_ends_after_ten_thousand_events_and_says_where_to_continue(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    world = worlds.make(tmp_path_factory.mktemp("large"))
    with Service(world.settings(console={"enabled": True})).running() as large:
        place = sealed(large.client, world, issue(large.client, world))["leaf_index"]
        copies = (
            "(WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 12000)"
        )
        execute(
            world.database,
            "INSERT INTO audit_place SELECT (SELECT max(leaf_index) FROM audit_place) + n, -n, project_id"
            f" FROM audit_place, {copies} SELECT n FROM numbers) WHERE leaf_index = ?",
            place,
        )
        execute(
            world.database,
            "INSERT INTO audit_event SELECT -n, at, kind, project_id, actor, subject, body, salt, commitment"
            f" FROM audit_event, {copies} SELECT n FROM numbers)"
            " WHERE id = (SELECT event_id FROM audit_place WHERE leaf_index = ?)",
            place,
        )
        execute(world.database, "DELETE FROM audit_unsealed WHERE event_id < 0")
        *lines, last = map(json.loads, browser(large, world).get(f"{AUDIT}/export").text.splitlines())
    places = [each["leaf_index"] for each in lines]
    assert places == list(range(places[0], places[0] - 10_000, -1))
    assert last == {"next": str(places[-1])}

"""The console's list of certificates over all clusters, the page of a certificate, and how a revocation is undone."""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape

import httpx2
import pytest
from cryptography import x509

from clustercert.http.console.visits import login_address
from clustercert.model import utc_now
from clustercert.pki.certificates import fingerprint
from support.console import Browser, make_logins_old, page_text
from support.leaf_checks import credential_number_of, leaf_of
from support.service import Service
from support.stores import execute
from support.world import World, make

LIST = "/console/certificates"
V1 = "/clustercert/v1"
_ROW = re.compile(r'<td>\s*<a href="/console/certificates/([0-9a-f]{64})">')
# Owner, cluster, seconds until the certificate expires.
ISSUED = (
    ("member", "plain", 3 * 86400),
    ("member", "eip", 3600),
    ("admin", "plain", 3 * 86400),
    ("stranger", "foreign", 3600),
)


@dataclass(frozen=True)
class Site:
    """A service in which people have the certificates of `ISSUED`, the oldest first."""

    world: World
    service: Service
    certificates: tuple[x509.Certificate, ...]

    def browser(self, who: str) -> Browser:
        return Browser.in_session(self.service, self.world.people[who])

    def name(self, number: int) -> str:
        return fingerprint(self.certificates[number]).hex()

    def page(self, number: int) -> str:
        return f"{LIST}/{self.name(number)}"

    def listed(self, who: str, query: str = "") -> list[int]:
        """The numbers of the certificates on the first page of a list, the newest first."""
        answer = self.browser(who).get(f"{LIST}?{query}")
        assert answer.status_code == 200, answer.text
        names = [self.name(number) for number in range(len(self.certificates))]
        found = [names.index(each) for each in _ROW.findall(answer.text)]
        if found:
            assert f"{len(found)} certificate" in text(answer)
        return found

    def revoke(self, path: str) -> int:
        """Revoke as the operator. Returns the id of the revocation."""
        headers = self.world.people["operator"].headers
        return int(self.service.client.post(V1 + path, headers=headers).raise_for_status().json()["id"])

    def state(self, number: int) -> str:
        headers = self.world.people["operator"].headers
        found = self.service.client.get(f"{V1}/certificates/{self.name(number)}", headers=headers)
        return str(found.raise_for_status().json()["state"])

    def set_now(self, column: str, number: int) -> None:
        execute(
            self.world.database,
            f"UPDATE certificate SET {column} = ? WHERE fingerprint = ?",
            f"{utc_now():%Y-%m-%d %H:%M:%S.%f}",
            fingerprint(self.certificates[number]),
        )


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    world = make(tmp_path_factory.mktemp("certificates"))
    with Service(world.settings(console={"enabled": True})).running() as service:

        def issue(who: str, cluster: str, seconds: int) -> x509.Certificate:
            headers = world.people[who].headers
            answer = service.client.post(world.path(cluster), json={"expires_in": seconds}, headers=headers)
            assert answer.status_code == 200, answer.text
            return leaf_of(answer.json())

        yield Site(world, service, tuple(issue(*each) for each in ISSUED))


def text(answer: httpx2.Response) -> str:
    """The text of a page, in one line."""
    assert answer.status_code == 200, answer.text
    return page_text(answer.text)


def test_the_list_has_what_its_filters_select_of_what_the_visitor_may_see(site: Site) -> None:
    world = site.world
    for who, expected in (("operator", [3, 2, 1, 0]), ("auditor", [3, 2, 1, 0]), ("admin", [2, 1, 0])):
        assert site.listed(who) == expected, who
    assert site.listed("member") == [1, 0]
    assert site.listed("stranger") == [3]
    digits = site.name(2)
    for query, selected in (
        (f"certificate={digits[:8]}", [2]),
        (f"certificate=X509SHA256%3D{digits}", [2]),
        (f"certificate={credential_number_of(site.certificates[1])}", [1]),
        ("person=tests/member", [1, 0]),
        ("person=member", [1, 0]),
        (f"person={world.people['member'].user.id}&cluster=plain", [0]),
        ("cluster=tests/eu-de/eip", [1]),
        (f"project={world.other_project.id}", [3]),
        ("project=tests/eu-de&state=ending", [1]),
        ("domain=tests&state=live", [3, 2, 1, 0]),
        ("domain=elsewhere", []),
        ("state=ending", [3, 1]),
        ("state=expired", []),
        ("state=revoked", []),
    ):
        assert site.listed("operator", query) == selected, query
    # For an admin, the certificates of other projects do not exist.
    assert site.listed("admin", "person=tests/member") == [1, 0]
    assert site.listed("admin", "state=ending") == [1]
    assert site.listed("stranger", f"certificate={digits}") == []
    assert site.browser("stranger").get(f"{LIST}?project={world.project.id}").status_code == 404


def test_a_list_is_downloaded_whole_with_its_filters_in_the_name(site: Site) -> None:
    copied = (
        "epoch, cluster_id, project_id, ca_id, groups, user_id, not_before, not_after, key_type, key_origin,"
        " auth_method, source_address, request_id, issued_at, kind, der"
    )
    # More than one page of the API.
    execute(
        site.world.database,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600) INSERT INTO certificate"
        f" (fingerprint, serial, credential_number, user_name, {copied}) SELECT randomblob(32), i,"
        f" printf('%040x', i), '=1+1', {copied} FROM certificate, n WHERE certificate.id = 1",
    )
    admin, day = site.browser("admin"), f"{utc_now():%Y-%m-%d}"
    page = admin.get(f"{LIST}?cluster=plain&state=live").text
    links = {unescape(each) for each in re.findall(r'href="(/console/certificates/export[^"]*)"', page)}
    read = list[list[str]]()
    for format_ in ("csv", "jsonl"):
        (link,) = (each for each in links if each.endswith(f"format={format_}"))
        answer = admin.get(link)
        assert answer.status_code == 200, answer.text
        name = f"certificates-plain-live-{day}.{format_}"
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
        if format_ == "csv":
            rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
            # No spreadsheet runs a name as a formula.
            assert {row["user_name"] for row in rows} == {"'=1+1", "admin", "member"}
        else:
            rows = [json.loads(line) for line in answer.text.splitlines()]
        read.append([row["fingerprint"] for row in rows])
    assert read[0] == read[1]
    assert (len(read[0]), len(set(read[0]))) == (602, 602)
    # Another project's certificates are not in it.
    assert site.name(3) not in admin.get(f"{LIST}/export").text
    assert admin.get(f"{LIST}/export?format=xml").status_code == 400


def test_a_filter_that_names_nothing_is_refused_beside_the_form(site: Site) -> None:
    operator = site.browser("operator")
    for query, message in (
        ("person=nobody", "There is no user nobody."),
        ("cluster=nowhere", "There is no cluster nowhere that you can see."),
        ("project=nowhere", "No project is named nowhere."),
        ("state=good", "There is no state good."),
        ("certificate=alice", "certificate: write a fingerprint or its first digits"),
    ):
        answer = operator.get(f"{LIST}?{query}")
        assert answer.status_code == 400, query
        assert message in answer.text
        assert 'aria-label="Filters"' in answer.text


def test_revoked_certificates_are_listed_by_what_was_seen(site: Site) -> None:
    site.revoke(f"/certificates/{site.name(0)}/revoke")
    site.revoke(f"/users/{site.world.people['stranger'].user.id}/revoke")
    # Of a live certificate, a use is no use after a revocation.
    for number in (0, 2):
        site.set_now("revoked_used_at", number)
    for query, expected in (
        ("state=revoked", [3, 0]),
        ("state=accepted", [3, 0]),
        ("state=used", [0]),
        ("state=used_today", [0]),
        ("state=live", [2, 1]),
    ):
        assert site.listed("operator", query) == expected, query
    assert site.listed("admin", "state=accepted") == [0]
    assert site.listed("stranger", "state=used") == []
    # Each number of the first page leads to what it counts.
    now = text(site.browser("operator").get("/console"))
    assert "1 revoked certificate was used within a day" in now
    assert "2 revoked certificates still work until they expire" in now
    assert "1 certificate " in now.split("Ends within 24 hours")[1]


def test_the_page_of_a_certificate_says_who_how_and_what_was_seen(site: Site) -> None:
    world = site.world
    shown = text(site.browser("operator").get(site.page(0)))
    cluster = f"{world.project.domain.name}/{world.project.name}/plain"
    for each in (
        "live No control is known to end it before it expires.",
        f"Person tests/member Cluster {cluster} Groups clustercert:editors By rule or request member",
        f"In audit logs X509SHA256={site.name(0)}",
        "Last used never",
    ):
        assert each in shown
    # The first digits are enough, as in the API.
    assert site.browser("operator").get(f"{LIST}/{site.name(0)[:10]}").status_code == 200
    for who, status in (
        ("admin", 200),
        ("member", 200),
        ("auditor", 200),
        ("reader", 404),
        ("stranger", 404),
    ):
        assert site.browser(who).get(site.page(0)).status_code == status, who
    place = f"/console/projects/{world.project.id}/clusters/{world.clusters['plain'].id}"
    for who, may_revoke in (("admin", True), ("member", True), ("auditor", False)):
        answer = site.browser(who).get(site.page(0))
        assert (f'href="{place}/certificates/{site.name(0)}/revoke"' in answer.text) is may_revoke, who

    site.revoke(f"/certificates/{site.name(0)}/revoke")
    shown = text(site.browser("admin").get(site.page(0)))
    assert re.search(r"revoked (now|\d+ s ago) not refused in [23] d", shown)
    assert "this certificate, by tests/operator , unspecified" in shown
    site.set_now("revoked_used_at", 0)
    shown = text(site.browser("admin").get(site.page(0)))
    assert re.search(r"revoked \S.* used after the revocation (now|\d+ s ago)", shown)
    assert "Refused not seen" in shown


def test_pages_about_a_certificate_lead_to_it(site: Site) -> None:
    world, operator = site.world, site.browser("operator")
    place = f"/console/projects/{world.project.id}/clusters/{world.clusters['plain'].id}"
    for address in (place, f"{place}/certificates/{site.name(0)}/revoke"):
        assert f'href="{site.page(0)}"' in operator.get(address).text, address
    headers = world.people["operator"].headers
    events = site.service.client.get(f"{V1}/events?kind=certificate.issued", headers=headers).json()["events"]
    event = next(each for each in events if each["subject"] == site.name(0))
    assert f'href="{site.page(0)}"' in operator.get(f"/console/audit/{event['leaf_index']}").text
    assert "Events of this certificate" in text(operator.get(site.page(0)))


def test_a_revocation_is_undone_after_a_recent_login_and_the_typed_name(site: Site) -> None:
    own = site.revoke(f"/certificates/{site.name(0)}/revoke")
    everywhere = site.revoke(f"/users/{site.world.people['member'].user.id}/revoke")
    operator = site.browser("operator")
    page = operator.get(site.page(0))
    for number in (own, everywhere):
        assert f'href="{site.page(0)}/undo/{number}"' in page.text
    assert "undo" not in site.browser("admin").get(site.page(0)).text
    undo = f"{site.page(0)}/undo/{everywhere}"
    shown = text(operator.get(undo))
    assert "all certificates of this person in all clusters that were issued before the revocation" in shown
    assert "1 other revocation covers this certificate, so it stays revoked." in shown
    for typed in ("", "Member", "tests"):
        refused = operator.post(undo, None, name=typed)
        assert (refused.status_code, "Type member to confirm." in refused.text) == (400, True)
    # A revocation of another certificate is not undone by way of this one.
    assert operator.post(f"{site.page(2)}/undo/{own}", None, name="admin").status_code == 404
    assert [site.state(number) for number in (0, 1, 2)] == ["revoked", "revoked", "live"]
    done = operator.post(undo, None, name="member")
    assert done.headers["location"] == site.page(0)
    assert "Another revocation still covers this certificate." in text(operator.follow(done))
    assert [site.state(number) for number in (0, 1)] == ["revoked", "live"]
    operator.post(f"{site.page(0)}/undo/{own}", None, name="member")
    assert site.state(0) == "live"


def test_a_revocation_is_not_undone_with_an_old_login_or_by_others(site: Site) -> None:
    undo = f"{site.page(0)}/undo/{site.revoke(f'/certificates/{site.name(0)}/revoke')}"
    admin = site.browser("admin")
    assert "Only operators can undo a revocation." in text(admin.get(undo))
    assert admin.post(undo, None, name="member").status_code == 403
    operator = site.browser("operator")
    make_logins_old(site.world, "operator")
    answer = operator.post(undo, None, name="member")
    assert (answer.status_code, answer.headers["location"]) == (303, login_address(undo, again=True))
    assert site.state(0) == "revoked"

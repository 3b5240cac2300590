"""The console's page about access to a cluster, and what its confirmations revoke."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from html import unescape

import httpx2
import pytest
from cryptography import x509

from clustercert.http.console.visits import login_address
from clustercert.model import utc_now
from clustercert.pki.certificates import fingerprint
from support.console import Browser, make_logins_old, page_text
from support.kubernetes_messages import credential_id, review
from support.leaf_checks import credential_number_of, leaf_of
from support.service import Service
from support.stores import execute, rows
from support.wait import eventually
from support.world import World, make

MASTERS = '["system:masters"]'


@dataclass(frozen=True)
class Site:
    """A service in which the member has two certificates for the cluster `plain`, and the admin has one."""

    world: World
    service: Service
    certificates: tuple[x509.Certificate, ...]

    @property
    def page(self) -> str:
        return self.page_of("plain")

    def page_of(self, cluster: str) -> str:
        known = self.world.clusters[cluster]
        return f"/console/projects/{self.world.project.id}/clusters/{known.id}"

    def browser(self, who: str) -> Browser:
        return Browser.in_session(self.service, self.world.people[who])

    def id_of(self, who: str) -> str:
        return self.world.people[who].user.id

    def name(self, number: int) -> str:
        return fingerprint(self.certificates[number]).hex()

    def execute(self, statement: str, *values: object) -> None:
        execute(self.world.database, statement, *values)

    def states(self) -> list[str]:
        """The states of the certificates, by the API."""
        path = f"/clustercert/v1/projects/{self.world.project.id}/certificates"
        listed = self.service.client.get(path, headers=self.world.people["admin"].headers).json()
        found = {each["fingerprint"]: each["state"] for each in listed["certificates"]}
        return [found[self.name(number)] for number in range(len(self.certificates))]

    def revocations(self) -> list[tuple[object, ...]]:
        return rows(self.world.database, "SELECT reason, note FROM revocation ORDER BY id")

    def webhook_token(self) -> str:
        """A new token of the cluster's API server, which has called the webhook with it."""
        cluster = self.world.clusters["plain"].id
        path = f"/clustercert/v1/projects/{self.world.project.id}/clusters/{cluster}/webhook-tokens"
        made = self.service.client.post(path, headers=self.world.people["operator"].headers)
        token = str(made.raise_for_status().json()["token"])
        self.execute("UPDATE webhook_token SET last_asked_at = ?", f"{utc_now():%Y-%m-%d %H:%M:%S.%f}")
        return token


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    world = make(tmp_path_factory.mktemp("access"))
    with Service(world.settings(console={"enabled": True})).running() as service:

        def issue(who: str, days: int) -> x509.Certificate:
            headers = world.people[who].headers
            answer = service.client.post(world.path("plain"), json={"duration": days}, headers=headers)
            assert answer.status_code == 200, answer.text
            return leaf_of(answer.json())

        yield Site(world, service, (issue("member", 3), issue("member", 2), issue("admin", 1)))


def text(answer: httpx2.Response) -> str:
    """The text of a page, in one line."""
    assert answer.status_code == 200, answer.text
    return page_text(answer.text)


@pytest.mark.parametrize("who", ["admin", "operator", "auditor"])
def test_the_page_says_who_has_access_until_when_and_how_it_ends(site: Site, who: str) -> None:
    answer = site.browser(who).get(site.page)
    shown = text(answer)
    assert "2 people have access" in shown
    assert "3 certificates give access" in shown
    assert "not enforced The API server has never asked the webhook, and no other control is set up." in shown
    assert "The API server last asked the webhook: never" in shown
    assert "Use after a revocation is not seen: the cluster has no webhook token" in shown
    assert "clustercert kubernetes setup tests/eu-de/plain --out control-plane" in shown
    assert "Who can get into tests/eu-de/plain" in shown
    assert f"admin tests {site.name(2)[:12]} clustercert:admins admin in 2" in shown
    assert f"{site.name(0)[:12]} clustercert:editors member in 3 d never when it expires" in shown
    assert "system:authenticated" not in shown
    # Only those who may revoke see the links to it.
    assert (f"/certificates/{site.name(0)}/revoke" in answer.text) is (who != "auditor")
    assert ("Revoke everybody…" in shown) is (who != "auditor")


def test_a_member_sees_only_own_certificates(site: Site) -> None:
    shown = text(site.browser("member").get(site.page))
    assert "Your access to tests/eu-de/plain" in shown
    assert [site.name(number)[:12] in shown for number in range(3)] == [True, True, False]
    reader = site.browser("reader").get(site.page)
    assert "You have no valid certificate for this cluster. To get one, connect to the cluster ." in text(
        reader
    )


def test_a_page_exists_only_below_the_project_of_its_cluster(site: Site) -> None:
    other = f"/console/projects/{site.world.other_project.id}/clusters/{site.world.clusters['foreign'].id}"
    assert site.browser("admin").get(other).status_code == 404
    # The cluster's own project has to be in the address.
    wrong = site.page.replace(site.world.project.id, site.world.other_project.id)
    assert site.browser("operator").get(wrong).status_code == 404


def test_one_certificate_is_revoked_and_refused(site: Site) -> None:
    token, admin = site.webhook_token(), site.browser("admin")
    place = f"{site.page}/certificates/{site.name(0)}/revoke"
    before = text(admin.get(place))
    assert "Person tests/member" in before
    assert "webhook Within 3 seconds: this service notices a revocation within 1 second" in before
    assert "1 other certificate of this person. Revoke all of them instead" in before
    assert "A service-account token that the holder created" in before
    done = admin.post(place, None, reason="superseded", note="lost laptop")
    assert done.headers["location"] == f"{site.page}?user={site.id_of('member')}"
    shown = text(admin.follow(done))
    assert "Revoked the certificate of tests/member at 20" in shown
    # The page says by when the API server should refuse, and not that it does: nobody has seen that yet.
    assert re.search(r"Refusal expected by 20\S+ \S+ UTC \(webhook\)\.", shown)
    ago = r"(now|in \d+ s|\d+ (s|min) ago)"
    row = rf"{site.name(0)[:12]} clustercert:editors member in 3 d (never|{ago}) revoked {ago} by tests/admin"
    assert re.search(rf"{row} refusal expected {ago}", shown)
    assert site.states() == ["revoked", "live", "live"]
    assert site.revocations() == [("superseded", "lost laptop")]
    body = review(
        credential_id(fingerprint(site.certificates[0])),
        user=site.id_of("member"),
        groups=(
            "clustercert:editors",
            f"clustercert:credential:{credential_number_of(site.certificates[0])}",
        ),
    )
    answer = site.service.client.post(
        f"/clustercert/v1/kubernetes/clusters/{site.world.clusters['plain'].id}/authorize",
        content=body,
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    assert answer.json()["status"]["denied"] is True
    assert "This certificate was revoked" in text(admin.get(place))
    eventually(lambda: re.search(rf"{row} refused by the API server {ago}", text(admin.get(site.page))))


def test_no_page_says_that_the_certificate_of_a_master_is_refused(site: Site) -> None:
    admin, place = site.browser("admin"), f"{site.page}/certificates/{site.name(2)}/revoke"
    site.webhook_token()
    site.execute("UPDATE certificate SET groups = ? WHERE user_id = ?", MASTERS, site.id_of("admin"))
    shown = text(admin.get(site.page))
    assert "not verified A control is set up, but clustercert kubernetes verify has not found" in shown
    assert "To verify the cluster: clustercert kubernetes verify tests/eu-de/plain" in shown
    assert re.search(r"The API server last asked the webhook: (now|\d+ s ago)", shown)
    assert re.search(rf"{site.name(2)[:12]} system:masters admin in \S+ \S+ never only with the CA", shown)
    assert re.search(rf"{site.name(0)[:12]} \S+ member in 3 d never webhook, 3 s", shown)
    assert "the API server never asks the webhook about members of system:masters" in text(admin.get(place))
    shown = text(admin.follow(admin.post(place)))
    assert "No control enforces it: the API server accepts it until it expires." in shown
    assert "not refused in " in shown


def test_a_person_is_revoked(site: Site) -> None:
    admin, place = site.browser("admin"), f"{site.page}/users/{site.id_of('member')}/revoke"
    before = text(admin.get(place))
    assert "2 valid certificates of tests/member for this cluster" in before
    assert "No refusal is expected before the certificates expire: The API server has never asked" in before
    shown = text(admin.follow(admin.post(place, None, reason="affiliationChanged")))
    assert "Revoked 2 certificates of tests/member" in shown
    assert "No control enforces it: the API server accepts the certificates until they expire." in shown
    assert "not refused in " in shown
    assert site.states() == ["revoked", "revoked", "live"]
    assert site.revocations() == [("affiliationChanged", None)]
    # Nothing is left to revoke.
    after = admin.get(place)
    assert "Nothing: this person has no valid certificate for this cluster." in text(after)
    assert '<form method="post" action="/console/projects' not in after.text
    place = f"{site.page}/users/{site.id_of('admin')}/revoke"
    shown = text(admin.follow(admin.post(place)))
    assert "Revoked 1 certificate of tests/admin" in shown
    assert "No control enforces it: the API server accepts it until it expires." in shown
    assert "Revoke everybody…" not in text(admin.get(site.page))


def test_all_certificates_are_revoked_after_the_cluster_is_named(site: Site) -> None:
    operator, place = site.browser("operator"), f"{site.page}/revoke"
    assert "3 valid certificates of 2 users" in text(operator.get(place))
    for typed in ("", "Plain", "eip"):
        refused = operator.post(place, None, cluster=typed)
        assert (refused.status_code, "Type this name to confirm." in refused.text) == (400, True)
    assert site.revocations() == []
    done = operator.post(place, None, cluster="plain")
    assert done.headers["location"] == site.page
    assert "Revoked 3 certificates at 20" in text(operator.follow(done))
    assert site.states() == ["revoked"] * 3


def test_certificates_of_others_are_revoked_only_after_a_recent_login(site: Site) -> None:
    admin = site.browser("admin")
    make_logins_old(site.world, "admin")
    for tail in ("/revoke", f"/users/{site.id_of('member')}/revoke", f"/certificates/{site.name(0)}/revoke"):
        page = site.page + tail
        answer = admin.post(page, None, cluster="plain")
        assert (answer.status_code, answer.headers["location"]) == (303, login_address(page, again=True))
    assert site.revocations() == []


def test_the_login_is_asked_for_before_the_form_and_keeps_what_was_typed(site: Site) -> None:
    admin, page = site.browser("admin"), f"{site.page}/users/{site.id_of('member')}/revoke"
    make_logins_old(site.world, "admin")
    asked = admin.get(page)
    assert (asked.status_code, asked.headers["location"]) == (303, login_address(page, again=True))
    admin.post(page, None, reason="keyCompromise", note="stolen <laptop>")
    assert admin.log_in(site.world.people["admin"], again="1", next=page).headers["location"] == page
    shown = admin.get(page).text
    assert '<option value="keyCompromise" selected>' in shown
    assert 'value="stolen &lt;laptop&gt;"' in shown
    # Only once.
    assert "laptop" not in admin.get(page).text
    assert site.revocations() == []


@pytest.mark.parametrize("who", ["auditor", "member"])
def test_who_may_not_revoke_needs_no_new_login_to_read_so(site: Site, who: str) -> None:
    visitor = site.browser(who)
    make_logins_old(site.world, who)
    answer = visitor.get(f"{site.page}/certificates/{site.name(0)}/revoke")
    assert (answer.status_code, '<form method="post" action="/console/projects' in answer.text) == (
        200,
        who == "member",
    )


def test_own_certificates_are_revoked_with_an_old_login(site: Site) -> None:
    member = site.browser("member")
    make_logins_old(site.world, "member")
    for tail in (f"/certificates/{site.name(0)}/revoke", f"/users/{site.id_of('member')}/revoke"):
        assert member.post(site.page + tail).headers["location"].startswith(site.page)
    assert site.states() == ["revoked", "revoked", "live"]


def test_pages_of_ones_own_access_leave_no_refused_request_in_the_audit_log(site: Site) -> None:
    member = site.browser("member")
    for tail in ("", f"/users/{site.id_of('member')}/revoke", f"/certificates/{site.name(0)}/revoke"):
        assert member.get(site.page + tail).status_code == 200
    assert rows(site.world.database, "SELECT * FROM audit_event WHERE kind = 'request.refused'") == []


def test_a_refused_revocation_is_shown_with_what_was_typed(site: Site) -> None:
    admin, place = site.browser("admin"), f"{site.page}/certificates/{site.name(0)}/revoke"
    for fields in ({"reason": "bored"}, {"note": "a\u202eb"}):
        refused = admin.post(place, None, **fields)
        assert refused.status_code == 400
        assert 'role="alert"' in refused.text
    assert 'value="a\u202eb"' in refused.text
    assert site.revocations() == []


def test_an_auditor_reads_who_can_revoke(site: Site) -> None:
    auditor, page = site.browser("auditor"), f"{site.page}/certificates/{site.name(0)}/revoke"
    assert "Only admins of the project and operators can revoke" in text(auditor.get(page))
    assert auditor.post(page).status_code == 403
    assert site.revocations() == []


def test_a_member_revokes_own_certificates(site: Site) -> None:
    member = site.browser("member")
    own = f"{site.page}/certificates/{site.name(0)}/revoke"
    assert "The next page says whether the API server refuses it." in text(member.get(own))
    assert "Revoked the certificate" in text(member.follow(member.post(own)))
    assert member.post(f"{site.page}/users/{site.id_of('member')}/revoke").status_code == 303
    assert site.states() == ["revoked", "revoked", "live"]


def test_a_use_after_the_revocation_is_an_alert(site: Site) -> None:
    assert "Revoked certificates were used" not in text(site.browser("admin").get(site.page))
    site.execute(
        "UPDATE certificate SET revoked_at = '2026-01-01 00:00:00.000000', revoked_by = 'x',"
        " revoked_why = 'unspecified', revoked_used_at = ? WHERE fingerprint = ?",
        *(f"{utc_now():%Y-%m-%d %H:%M:%S.%f}", fingerprint(site.certificates[0])),
    )
    shown = text(site.browser("admin").get(site.page))
    assert "Revoked certificates were used" in shown
    assert shown.count("clustercert kubernetes verify tests/eu-de/plain") == 1
    assert f"member , certificate {site.name(0)[:12]} : revoked" in shown


def test_people_come_in_pages_and_are_searched(site: Site) -> None:
    others = (
        "epoch, cluster_id, project_id, ca_id, groups, not_before, not_after, key_type, key_origin, auth_method,"
        " source_address, request_id, issued_at, kind, der"
    )
    site.execute(
        "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 189) INSERT INTO certificate"
        f" (fingerprint, serial, credential_number, user_id, user_name, {others}) SELECT randomblob(32), i,"
        f" printf('%040x', i), 'user-' || (i % 60), 'user-' || (i % 60), {others} FROM certificate, n"
        " WHERE certificate.id = 1"
    )
    admin = site.browser("admin")
    first = admin.get(site.page)
    (link,) = re.findall(r'href="([^"]+)">Next page<', first.text)
    assert "62 people have access" in text(first)
    second = admin.get(unescape(link))
    people = [set(re.findall(r"<bdi>(user-\d+|admin|member)</bdi>", page.text)) for page in (first, second)]
    assert (len(people[0]), len(people[1]), people[0] & people[1]) == (50, 12, set())
    assert "First page" in text(second)
    found = admin.get(f"{site.page}?search=USER-7")
    assert set(re.findall(r"<bdi>(user-\d+)</bdi>", found.text)) == {"user-7"}
    assert "Nobody with access fits this search." in text(admin.get(f"{site.page}?search=nobody"))
    members = text(admin.get(f"{site.page}?group=clustercert:admins"))
    assert "In the group clustercert:admins" in members
    # What is about the whole cluster is not on a page about a part of it.
    for each in ("people have access", "Revoke everybody", "unknown origin"):
        assert each in text(first)
        assert each not in members
    assert admin.get(f"{site.page}?cursor=x").status_code == 400


def test_the_box_says_what_was_seen_and_never_green_beside_a_doubt(site: Site) -> None:
    """Each state in turn: the words of the page, and the colour of the badge."""
    site.webhook_token()
    cluster, admin = site.world.clusters["plain"], site.browser("admin")

    def ago(hours: float) -> str:
        return f"{utc_now() - timedelta(hours=hours):%Y-%m-%d %H:%M:%S.%f}"

    def shown(severity: str, words: str) -> None:
        answer = admin.get(site.page)
        assert f'<span class="badge {severity}">{words}</span>' in answer.text
        for other in {"good", "warn", "bad"} - {severity}:
            assert f'<p><span class="badge {other}">' not in answer.text

    shown("warn", "not verified")
    site.execute("UPDATE cluster SET verified_at = ? WHERE id = ?", ago(48), cluster.id)
    shown("good", "enforced and verified")
    site.execute("UPDATE webhook_token SET last_asked_at = ?, last_use_at = ?", ago(2), ago(1))
    shown("bad", "webhook bypassed")
    site.execute("UPDATE webhook_token SET last_asked_at = ?", ago(1))
    site.execute("UPDATE certificate SET revoked_used_at = ? WHERE user_id = ?", ago(3), site.id_of("admin"))
    shown("bad", "used after revocation")
    # Somebody verified the cluster after the use.
    site.execute("UPDATE cluster SET verified_at = ? WHERE id = ?", ago(2), cluster.id)
    shown("good", "enforced and verified")
    site.execute("UPDATE webhook_token SET last_asked_at = ?, last_use_at = ?", ago(25), ago(25))
    shown("warn", "quiet")
    assert "The API server last asked the webhook: 25 h ago" in text(admin.get(site.page))
    done = admin.post(f"{site.page}/certificates/{site.name(0)}/revoke")
    told = text(admin.follow(done))
    assert "It is not known whether the API server refuses it: the cluster is quiet." in told
    assert "refusal not known in " in told

"""The console's pages for everybody: my clusters, my account, and why the policy decides as it does."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from cryptography import x509

from clustercert.authn.federated import KeystonePassword
from clustercert.http.console.pages.account import _effect
from clustercert.http.console.visits import SESSION_COOKIE
from clustercert.identity.sessions import session_id
from clustercert.model import User
from support import keystone_site
from support import world as worlds
from support.accounts import ORIGIN
from support.administration import new_key
from support.console import Browser
from support.console_sessions import services_of
from support.keystone import login_body
from support.keystone_double import DOMAIN
from support.request_client import POLICY, REASON, RequestClient
from support.service import Service
from support.stores import execute
from support.world import Person, World

OWN = "/clustercert/v1"
CLUSTERS = "/console/clusters"
ACCOUNT = "/console/account"
READ = {
    "name": "read",
    "when": {"roles": ["reader"]},
    "grant": {"groups": ["onlookers"], "max_lifetime": "1h"},
}
NASTY = "<b onclick=x>\u202e'\"&"


@dataclass(frozen=True)
class Site:
    """A service with the console."""

    world: World
    service: Service

    @property
    def client(self) -> httpx2.Client:
        return self.service.client

    def browser(self, who: str) -> Browser:
        return Browser.in_session(self.service, self.world.people[who])

    def get(self, who: str, path: str, **query: str) -> Any:
        """The API's answer to a person."""
        headers = self.world.people[who].headers
        return self.client.get(OWN + path, params=query, headers=headers).raise_for_status().json()

    def issue(self, who: str, cluster: str = "plain") -> str:
        """Issue a certificate. Returns its fingerprint."""
        headers = self.world.people[who].headers
        answer = self.client.post(self.world.path(cluster), json={"duration": -1}, headers=headers)
        return str(answer.raise_for_status().headers["x-clustercert-fingerprint"])

    def state(self, fingerprint: str) -> str:
        return str(self.get("operator", f"/certificates/{fingerprint}")["state"])

    def cluster_page(self, cluster: str = "plain") -> str:
        return f"{CLUSTERS}/{self.world.clusters[cluster].id}"

    def why_page(self, cluster: str = "plain") -> str:
        known = self.world.clusters[cluster]
        return f"/console/projects/{known.project_id}/clusters/{known.id}/why"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    world = worlds.make(tmp_path_factory.mktemp("console"))
    policy = {"rules": [*POLICY["rules"], READ]}
    settings = world.settings(console={"enabled": True}, policy=policy)
    with Service(settings).running() as service:
        yield Site(world, service)


def shown(answer: httpx2.Response) -> str:
    """The text of a page, without its markup."""
    assert answer.status_code == 200, answer.text
    joined = re.sub("</?(a|bdi|code|span|strong|time)[^>]*>", "", answer.text)
    return unescape(" ".join(re.sub("<[^>]*>", " ", joined).split()))


def test_a_person_sees_their_clusters_with_access_and_the_line_to_copy(site: Site) -> None:
    text = shown(site.browser("member").get(CLUSTERS))
    for cluster in ("plain", "eip", "sans"):
        assert f"clustercert kubeconfig merge tests/eu-de/{cluster}" in text
    assert "foreign" not in text
    assert "access up to 8 h viewers · Why? tests/eu-de/plain" in text
    assert "Ask for access editors, debuggers" in text
    assert f"clustercert login {site.service.client.base_url}".rstrip("/") in text


def test_the_search_finds_clusters_by_a_part_of_their_name(site: Site) -> None:
    browser = site.browser("member")
    found = shown(browser.get(f"{CLUSTERS}?search=LAI"))
    assert ("merge tests/eu-de/plain" in found, "merge tests/eu-de/eip" in found) == (True, False)
    assert "None of your clusters has this text" in shown(browser.get(f"{CLUSTERS}?search=nothing"))
    assert "<b>" not in browser.get(f"{CLUSTERS}?search=<b>").text


def test_a_person_without_a_role_reads_what_to_do_first(site: Site) -> None:
    text = shown(site.browser("auditor").get(CLUSTERS))
    assert "You have no clusters yet." in text
    assert "ask an operator or an admin of a project for a role" in text


def test_the_kubeconfig_is_the_one_of_the_api(site: Site) -> None:
    answer = site.browser("member").get(f"{site.cluster_page('eip')}/kubeconfig")
    known = site.world.clusters["eip"]
    assert answer.headers["content-disposition"] == 'attachment; filename="eip.kubeconfig.yaml"'
    assert answer.headers["cache-control"] == "no-store"
    assert yaml.safe_load(answer.text) == site.get("member", f"/clusters/{known.id}/kubeconfig")


def test_a_key_of_the_service_is_downloaded_once_behind_a_warning(site: Site) -> None:
    browser, page = site.browser("member"), f"{site.cluster_page('eip')}/service-key"
    assert "The service makes the private key" in shown(browser.get(page))
    answer = browser.post(page, seconds="3600", reason="no laptop")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-disposition"] == 'attachment; filename="eip.secret.kubeconfig.yaml"'
    document, known = yaml.safe_load(answer.text), site.world.clusters["eip"]
    [cluster], [user] = document["clusters"], document["users"]
    assert cluster["cluster"]["server"] == known.external_url
    assert cluster["cluster"].keys() == {"server", "certificate-authority-data"}
    assert document["current-context"] == f"eip-{known.id[:8]}"
    leaf = x509.load_pem_x509_certificate(base64.b64decode(user["user"]["client-certificate-data"]))
    assert user["user"].keys() == {"client-certificate-data", "client-key-data"}
    [newest, *_] = site.get("member", "/certificates", own="true")["certificates"]
    assert (newest["key_origin"], newest["reason"]) == ("generated", "no laptop")
    assert int(newest["serial"], 16) == leaf.serial_number


def test_a_key_of_the_service_can_have_the_groups_of_an_approved_request(site: Site) -> None:
    requests = RequestClient(site.world, site.client)
    made = requests.created("member", "editors")
    browser, page = site.browser("member"), f"{site.cluster_page()}/service-key"
    try:
        assert "your access request" not in shown(browser.get(page))
        for approver in ("inspector", "admin"):
            requests.done(approver, made, "approve", **REASON)
        assert "groups of your access request: editors" in shown(browser.get(page))
        assert browser.post(page, seconds="3600", access_request=made).status_code == 200
        [newest, *_] = site.get("member", "/certificates", own="true")["certificates"]
        assert (newest["access_request_id"], newest["groups"]) == (made, ["editors", "viewers"])
    finally:
        requests.end_all()


def test_a_key_of_the_service_is_offered_where_the_policy_needs_a_reason_and_not_where_it_needs_a_csr(
    site: Site,
) -> None:
    def rule(**terms: object) -> dict[str, object]:
        return {"name": "m", "when": {"roles": ["member"]}, "grant": {"groups": ["g"], **terms}}

    texts = []
    for terms in ({"reason_required": True}, {"csr_required": True}):
        settings = site.world.settings(console={"enabled": True}, policy={"rules": [rule(**terms)]})
        with Service(settings).running() as service:
            browser = Browser.in_session(service, site.world.people["member"])
            texts.append(shown(browser.get(f"{site.cluster_page()}/service-key")))
    assert "The policy needs one. Make a key, and download the kubeconfig" in texts[0]
    assert "The policy gives you no certificate with a key that the service makes" in texts[1]
    assert "Make a key" not in texts[1]


def test_a_refused_key_of_the_service_keeps_the_person_on_the_form(site: Site) -> None:
    browser, page = site.browser("member"), f"{site.cluster_page()}/service-key"
    answer = browser.post(page, seconds="3600", reason="\u202e")
    assert answer.status_code == 400
    assert "reason: " in answer.text
    assert "Make a key" in answer.text
    assert browser.post(page, seconds="never").status_code == 400


def test_the_list_shows_an_open_access_request(site: Site) -> None:
    requests = RequestClient(site.world, site.client)
    made = requests.created("member", "editors")
    try:
        text = shown(site.browser("member").get(CLUSTERS))
        assert "pending editors" in text
        page = site.browser("member").get(site.cluster_page())
        assert f"/console/requests/{made}" in page.text
    finally:
        requests.end_all()


def test_a_person_revokes_one_certificate_and_others_stay(site: Site) -> None:
    first, second = site.issue("member"), site.issue("member", "eip")
    browser = site.browser("member")
    assert first[:16] in shown(browser.get(ACCOUNT))
    page = f"{ACCOUNT}/certificates/{first}/revoke"
    assert first in shown(browser.get(page))
    assert site.state(first) == "live"
    text = shown(browser.follow(browser.post(page, reason="keyCompromise")))
    assert "The certificate is revoked." in text
    assert "the cluster may accept this certificate until the certificate expires" in text
    assert first[:16] not in text
    assert second[:16] in text
    assert (site.state(first), site.state(second)) == ("revoked", "live")
    found = site.get("member", f"/certificates/{first}")
    assert found["revocation_reason"] == "keyCompromise"
    assert first[:16] in shown(browser.get(f"{ACCOUNT}?show=all"))


@pytest.mark.parametrize(
    ("refuses", "sentence"),
    [
        ("all", "The cluster should refuse this certificate by 2026-12-02 08:00:03 UTC."),
        ("writes", "The cluster should refuse writes with this certificate by 2026-12-02 08:00:03 UTC."),
        (
            "none",
            "No refusal is expected: the cluster may accept this certificate until the certificate expires.",
        ),
        (None, "The cluster was removed from this service."),
    ],
)
def test_the_notice_says_what_the_cluster_refuses(refuses: str | None, sentence: str) -> None:
    assert _effect({"refuses": refuses, "expected_by": "2026-12-02T08:00:03Z"}) == sentence


def test_a_person_revokes_all_their_certificates_and_only_theirs(site: Site) -> None:
    mine, theirs = (
        [site.issue("member", cluster) for cluster in ("plain", "eip")],
        site.issue("reader"),
    )
    browser = site.browser("member")
    page = f"{ACCOUNT}/certificates/revoke"
    preview = shown(browser.get(page))
    assert re.search(r"Ends \d+ valid certificates, in all clusters", preview)
    assert [site.state(each) for each in mine] == ["live", "live"]
    text = shown(browser.follow(browser.post(page, reason="cessationOfOperation")))
    assert "All your certificates are revoked." in text
    assert "You have no valid certificates." in text
    assert [site.state(each) for each in (*mine, theirs)] == ["revoked", "revoked", "live"]
    # The person is still logged in, and sees no certificate of others.
    assert theirs[:16] not in shown(browser.get(f"{ACCOUNT}?show=all"))


def test_a_person_ends_their_other_sessions(site: Site) -> None:
    here, there, stranger = site.browser("reader"), site.browser("reader"), site.browser("member")
    text = shown(here.get(ACCOUNT))
    assert "this one" in text
    assert "End all other sessions" in text
    assert "other session" in shown(here.follow(here.post(f"{ACCOUNT}/sessions/end-others")))
    assert there.get(ACCOUNT).status_code == 303
    assert here.get(ACCOUNT).status_code == 200
    assert stranger.get(ACCOUNT).status_code == 200
    assert "End all other sessions" not in shown(here.get(ACCOUNT))


def test_a_session_that_ends_meanwhile_keeps_no_other_open(site: Site) -> None:
    here, *others = (site.browser("reader") for _ in range(4))
    first, second = (session_id(browser.cookies[SESSION_COOKIE]) for browser in others[:2])
    # With the end of one of the two sessions, the other one ends, too.
    ends = f"DELETE FROM console_session WHERE id IN ('{first}', '{second}')"
    execute(
        site.world.database,
        f"CREATE TRIGGER meanwhile AFTER DELETE ON console_session WHEN OLD.id IN ('{first}', '{second}')"
        f" BEGIN {ends}; END",
    )
    try:
        answer = here.post(f"{ACCOUNT}/sessions/end-others")
    finally:
        execute(site.world.database, "DROP TRIGGER meanwhile")
    assert answer.headers["location"] == f"{ACCOUNT}#sessions"
    assert [each.get(ACCOUNT).status_code for each in (here, *others)] == [200, 303, 303, 303]


def test_a_person_who_ends_this_session_is_logged_out(site: Site) -> None:
    browser = site.browser("inspector")
    [own] = site.get("inspector", "/caller/sessions")["sessions"]
    answer = browser.post(f"{ACCOUNT}/sessions/{own['id']}/end")
    assert answer.headers["location"] == "/console/login"
    assert SESSION_COOKIE not in browser.cookies


def test_many_temporary_keys_hide_no_permanent_key(site: Site) -> None:
    key = new_key(site.client, site.world, "inspector")
    for number in range(250):
        execute(
            site.world.database,
            "INSERT INTO access_key SELECT ?, user_id, sealed_secret, '', enabled, created_at, randomblob(32),"
            " '2099-01-01 00:00:00.000000' FROM access_key WHERE id = ?",
            f"0{number:019}",
            key,
        )
    browser = site.browser("inspector")
    page = browser.get(ACCOUNT).text
    assert page.count("/delete") == 21
    assert f"{ACCOUNT}/keys/{key}/delete" in page
    assert "You have more temporary keys than are shown here." in page
    assert key in shown(browser.get(f"{ACCOUNT}/keys/{key}/delete"))
    assert "250 temporary access keys" in shown(browser.get(f"{ACCOUNT}/log-out-everywhere"))


def test_a_person_deletes_their_own_access_key(site: Site) -> None:
    key, theirs = (new_key(site.client, site.world, who) for who in ("reader", "member"))
    browser = site.browser("reader")
    text = shown(browser.get(ACCOUNT))
    assert (key in text, theirs in text) == (True, False)
    assert key in shown(browser.get(f"{ACCOUNT}/keys/{key}/delete"))
    left = shown(browser.follow(browser.post(f"{ACCOUNT}/keys/{key}/delete")))
    assert f"The access key {key} is deleted." in left
    assert (
        site.client.get(f"{OWN}/access-keys/{key}", headers=site.world.people["operator"].headers).status_code
        == 404
    )


@dataclass(frozen=True)
class Newcomer:
    """A new user, whose password is `first password`."""

    site: Site
    person: Person

    def browser(self) -> Browser:
        return Browser.in_session(self.site.service, self.person)

    def can_log_in(self, password: str) -> bool:
        body = login_body(self.person.user, password=password)
        return self.site.client.post("/v3/auth/tokens", json=body).status_code == 201


@pytest.fixture
def newcomer(site: Site) -> Iterator[Newcomer]:
    headers = site.world.people["operator"].headers
    path, domain = f"{OWN}/users/newcomer", {"domain": "tests"}
    body = {"password": "first password"}
    made = site.client.put(path, params=domain, json=body, headers=headers).raise_for_status().json()
    user = User(made["id"], "newcomer", site.world.project.domain)
    yield Newcomer(site, Person(user, "first password", ""))
    site.client.delete(path, params=domain, headers=headers).raise_for_status()


def fields(old: str, new: str, repeated: str | None = None) -> dict[str, str]:
    """The fields of the form for a new password."""
    return {"old": old, "new": new, "repeated": new if repeated is None else repeated}


def test_a_changed_password_ends_the_other_logins(newcomer: Newcomer) -> None:
    here, other = newcomer.browser(), newcomer.browser()
    page = f"{ACCOUNT}/password"
    assert "Old password" in shown(here.get(page))
    answer = here.post(page, None, **fields("first password", "second password"))
    assert "The password is changed." in shown(here.follow(answer))
    assert other.get(ACCOUNT).status_code == 303
    assert (newcomer.can_log_in("first password"), newcomer.can_log_in("second password")) == (False, True)


@pytest.mark.parametrize(
    ("sent", "status", "sentence"),
    [
        (fields("wrong", "second password"), 401, "The old password is wrong."),
        (fields("first password", "short"), 400, "password"),
        (fields("first password", "first password"), 400, "Choose a different password."),
        (fields("first password", "second password", "other"), 400, "Write the same password"),
    ],
)
def test_a_refused_password_keeps_the_person_on_the_form(
    newcomer: Newcomer, sent: dict[str, str], status: int, sentence: str
) -> None:
    browser = newcomer.browser()
    answer = browser.post(f"{ACCOUNT}/password", None, **sent)
    assert answer.status_code == status
    assert sentence in answer.text
    assert "Old password" in answer.text
    assert not any(f'"{secret}"' in answer.text for secret in sent.values())
    assert browser.get(ACCOUNT).status_code == 200
    assert newcomer.can_log_in("first password")


def test_wrong_old_passwords_count_as_failed_logins(site: Site) -> None:
    settings = site.world.settings(console={"enabled": True}, limits={"failures_per_minute": 3})
    with Service(settings).running() as service:
        browser = Browser.in_session(service, site.world.people["reader"])
        sent = fields("wrong", "second password")
        statuses = [browser.post(f"{ACCOUNT}/password", None, **sent).status_code for _ in range(5)]
    assert statuses[:3] == [401, 401, 401]
    assert statuses[-1] == 429


@pytest.mark.usefixtures("quick_propagation")
def test_log_out_everywhere_shows_what_ends_and_ends_it(newcomer: Newcomer) -> None:
    here, other = newcomer.browser(), newcomer.browser()
    page = f"{ACCOUNT}/log-out-everywhere"
    preview = shown(here.get(page))
    assert "2 sessions of this console" in preview
    assert "nothing that this service knows of" in preview
    assert other.get(ACCOUNT).status_code == 200
    answer = here.post(page)
    assert answer.headers["location"] == "/console/login"
    assert SESSION_COOKIE not in here.cookies
    assert [each.get(ACCOUNT).status_code for each in (here, other)] == [303, 303]


def test_why_names_the_rules_and_what_is_missing_first(site: Site) -> None:
    browser = site.browser("member")
    text = shown(browser.get(site.why_page()))
    assert "allowed You get a certificate for up to 8 h with the groups viewers" in text
    assert "edit on request editors, debuggers" in text
    assert "Ask for more access" in text
    assert "Only operators and auditors can search for it." in text
    refused = shown(browser.get(f"{site.why_page()}?expires_in=9h"))
    assert "refused You get no certificate." in refused
    assert "8 hours" in refused
    wrong = browser.get(f"{site.why_page()}?expires_in=soon")
    assert wrong.status_code == 400
    assert "write it like 30m, 8h or 30d" in wrong.text


def test_why_says_that_a_person_has_no_role_in_the_project(site: Site) -> None:
    text = shown(site.browser("operator").get(site.why_page()))
    assert "You have no role in the project tests/eu-de." in text
    assert "not found" not in text
    assert "The policy has no rules." not in text


def test_only_who_may_ask_the_api_asks_about_others(site: Site) -> None:
    site.issue("member")
    page = f"{site.why_page()}?user=member"
    assert "gets a certificate" not in shown(site.browser("reader").get(page))
    text = shown(site.browser("admin").get(page))
    assert "member gets a certificate for up to 8 h" in text
    unknown = site.browser("admin").get(f"{site.why_page()}?user=nobody")
    assert unknown.status_code == 404
    assert "belongs to a user nobody" in unknown.text


def test_readers_of_everything_find_who_else_could_get_a_group(site: Site) -> None:
    text = shown(site.browser("auditor").get(f"{site.why_page()}?group=viewers"))
    assert "tests/member" in text
    assert "tests/reader" not in text
    assert "Nobody could get a certificate with this group." in shown(
        site.browser("operator").get(f"{site.why_page()}?group=nothing")
    )


def test_a_user_of_keystone_reads_the_commands_for_openstacks_variables(tmp_path: Path) -> None:
    with keystone_site.running(tmp_path) as site:
        user_id = site.user("member")
        site.keystone.passwords[user_id] = "correct horse"
        login = KeystonePassword(site.keystone.users[user_id]["name"], DOMAIN["name"], "correct horse")
        sessions = services_of(site.service).sessions
        new = site.service.run(sessions.log_in_at_keystone(login, ORIGIN, None))
        browser = Browser(site.client)
        browser.cookies[SESSION_COOKIE] = new.cookie
        text = shown(browser.get(CLUSTERS))
        assert ". ./openrc clustercert kubeconfig merge --all --embed --from-env" in text
        assert "clustercert kubeconfig merge tests/eu-de/plain --embed --from-env" in text
        # The exec plugin needs a saved login.
        cluster = shown(browser.get(f"{CLUSTERS}/{site.world.clusters['plain'].id}"))
        assert "download a kubeconfig" not in cluster
        assert "Access keys" not in shown(browser.get(ACCOUNT))
        assert "Your password is not at this service." in shown(browser.get(f"{ACCOUNT}/password"))


def test_names_with_markup_stay_text(site: Site) -> None:
    known, database = site.world.clusters["sans"], site.world.database
    change = "UPDATE cluster SET name = ? WHERE id = ?"
    execute(database, change, NASTY, known.id)
    try:
        browser = site.browser("admin")
        for page in (CLUSTERS, site.cluster_page("sans"), f"{site.why_page('sans')}?user={NASTY}"):
            answer = browser.get(page)
            assert "<b onclick" not in answer.text
            assert "&lt;b onclick" in answer.text
    finally:
        execute(database, change, known.name, known.id)

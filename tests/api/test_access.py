"""The access report: users, groups, unknown credentials, controls and residual risks."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from cryptography import x509

from clustercert.certificates.access import AccessReports
from clustercert.model import ClusterOptions, rfc3339, utc_now
from clustercert.model.choices import WebhookMode
from clustercert.pki.certificates import fingerprint
from clustercert.store.certificates.access_reports import AccessReportQueries
from clustercert.store.engine.database import Database
from support import world as worlds
from support.leaf_checks import credential_number_of, leaf_of
from support.service import Service
from support.stores import execute
from support.world import World

MASTERS = '["system:masters"]'


@dataclass(frozen=True)
class Place:
    """A service. Member and admin have certificates for the cluster `plain`. The member's first one is revoked."""

    world: World
    client: httpx2.Client
    revoked: x509.Certificate
    live: x509.Certificate
    admins: x509.Certificate

    def get(self, who: str, cluster: str = "plain", **query: str) -> httpx2.Response:
        known = self.world.clusters[cluster]
        path = f"/clustercert/v1/projects/{self.world.project.id}/clusters/{known.id}/access"
        return self.client.get(path, params=query, headers=self.world.people[who].headers)

    def report(self, **query: str) -> dict[str, object]:
        response = self.get("admin", **query)
        assert response.status_code == 200, response.text
        body: dict[str, object] = response.json()
        return body

    def execute(self, statement: str, *values: object) -> None:
        execute(self.world.database, statement, *values)

    def name(self, certificate: x509.Certificate) -> str:
        return fingerprint(certificate).hex()


@dataclass(frozen=True)
class Prepared:
    """The store of a `Place`, which each test copies, and its certificates."""

    world: World
    revoked: x509.Certificate
    live: x509.Certificate
    admins: x509.Certificate


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    world = worlds.make(tmp_path_factory.mktemp("access"))
    with Service(world.settings()).running() as service:

        def issue(who: str, cluster: str, days: int) -> x509.Certificate:
            headers = world.people[who].headers
            response = service.client.post(world.path(cluster), json={"duration": days}, headers=headers)
            assert response.status_code == 200, response.text
            return leaf_of(response.json())

        revoked = issue("member", "plain", 3)
        path = (
            f"/clustercert/v1/projects/{world.project.id}/clusters/{world.clusters['plain'].id}/certificates"
        )
        response = service.client.post(
            f"{path}/{fingerprint(revoked).hex()}/revoke", headers=world.people["member"].headers
        )
        assert response.status_code == 200, response.text
        issue("member", "eip", 30)
        live, admins = issue("member", "plain", 2), issue("admin", "plain", 9)
    return Prepared(world, revoked, live, admins)


@pytest.fixture
def place(prepared: Prepared, tmp_path: Path) -> Iterator[Place]:
    folder = shutil.copytree(prepared.world.folder, tmp_path / "access")
    world = replace(prepared.world, folder=folder)
    with Service(world.settings()).running() as service:
        yield Place(world, service.client, prepared.revoked, prepared.live, prepared.admins)


def credentials(report: dict[str, object]) -> dict[str, tuple[str, bool, list[str]]]:
    """Return state, has_access and stopped_by of each certificate, by fingerprint."""
    users = report["users"]
    assert isinstance(users, list)
    return {
        each["fingerprint"]: (each["state"], each["has_access"], each["stopped_by"])
        for user in users
        for each in user["credentials"]
    }


def groups(report: dict[str, object]) -> list[tuple[str, int, int]]:
    found = report["groups"]
    assert isinstance(found, list)
    return [(each["name"], each["users"], each["credentials"]) for each in found]


def names(report: dict[str, object]) -> list[str]:
    users = report["users"]
    assert isinstance(users, list)
    return [user["user_name"] for user in users]


def give_token(place: Place, asked: datetime | None, number: int = 0) -> None:
    place.execute(
        "INSERT INTO webhook_token (id, cluster_id, hash, created_at, last_asked_at)"
        " VALUES (?, ?, ?, '2026-01-01 00:00:00.000000', ?)",
        f"{number:032}",
        place.world.clusters["plain"].id,
        bytes([number]) * 32,
        f"{asked:%Y-%m-%d %H:%M:%S.%f}" if asked else None,
    )


def webhook(place: Place) -> tuple[bool, str | None]:
    """Return whether the webhook is set up, and what its set-up lacks."""
    controls = place.report()["controls"]
    assert isinstance(controls, list)
    (found,) = (each for each in controls if each["name"] == "webhook")
    return found["set_up"], found["lacking"]


def test_where_nothing_is_set_up_a_revoked_certificate_still_has_access(place: Place) -> None:
    report = place.report()
    slow = ["ca", "expiry"]
    assert credentials(report) == {
        place.name(place.admins): ("live", True, slow),
        place.name(place.revoked): ("revoked", True, slow),
        place.name(place.live): ("live", True, slow),
    }
    users = report["users"]
    assert isinstance(users, list)
    assert [(user["user_name"], len(user["credentials"])) for user in users] == [("admin", 1), ("member", 2)]
    # The longest-lived certificate comes first.
    assert users[1]["credentials"][0]["fingerprint"] == place.name(place.revoked)
    assert users[1]["groups"] == ["clustercert:editors", "system:authenticated"]
    assert groups(report) == [
        ("clustercert:admins", 1, 1),
        ("clustercert:editors", 1, 2),
        ("system:authenticated", 2, 3),
    ]
    assert report["complete"] is True
    controls = report["controls"]
    assert isinstance(controls, list)
    assert {each["name"]: each["set_up"] for each in controls} == {
        "webhook": False,
        "binding": False,
        "admission": False,
        "ca": True,
        "expiry": True,
    }
    remains = json.dumps(report["residual_risks"])
    for word in (
        "watch",
        "service-account token",
        "certificatesigningrequests",
        "impersonate",
        "other certificates",
    ):
        assert word in remains


def test_a_webhook_keeps_revoked_ones_out_but_not_masters(place: Place) -> None:
    give_token(place, utc_now())
    quick = ["webhook", "ca", "expiry"]
    assert credentials(place.report()) == {
        place.name(place.admins): ("live", True, quick),
        place.name(place.revoked): ("revoked", False, quick),
        place.name(place.live): ("live", True, quick),
    }
    assert groups(place.report())[1] == ("clustercert:editors", 1, 1)
    place.execute("UPDATE certificate SET groups = ? WHERE revoked_at IS NOT NULL", MASTERS)
    report = place.report(group="system:masters")
    assert credentials(report) == {place.name(place.revoked): ("revoked", True, ["ca", "expiry"])}
    assert groups(report) == [("system:authenticated", 1, 1), ("system:masters", 1, 1)]


@pytest.mark.parametrize(
    ("after", "ago", "is_shown", "has_access"),
    [(5, 0, True, True), (5, 25, True, False), (-5, 0, False, False)],
)
def test_a_use_after_the_revocation_is_shown_and_means_access_for_a_day(
    place: Place, after: int, ago: int, is_shown: bool, has_access: bool
) -> None:
    """`after`: seconds from the revocation to the use. `ago`: hours since the revocation."""
    give_token(place, utc_now())
    revoked_at = utc_now() - timedelta(hours=ago, minutes=1)
    place.execute(
        "UPDATE certificate SET revoked_at = ?, revoked_used_at = ? WHERE revoked_at IS NOT NULL",
        *(f"{time:%Y-%m-%d %H:%M:%S.%f}" for time in (revoked_at, revoked_at + timedelta(seconds=after))),
    )
    report = place.report()
    assert credentials(report)[place.name(place.revoked)][1] is has_access
    users = report["users"]
    assert isinstance(users, list)
    used = [each["used_after_revocation_at"] for user in users for each in user["credentials"]]
    assert [time is not None for time in used].count(True) == is_shown
    alerts = report["used_after_revocation"]
    assert isinstance(alerts, list)
    shown = [(each["fingerprint"], each["user_name"]) for each in alerts]
    assert shown == ([(place.name(place.revoked), "member")] if is_shown else [])


def test_the_report_names_a_cluster_without_a_webhook_token(place: Place) -> None:
    risks = place.report()["residual_risks"]
    assert isinstance(risks, list)
    assert risks[0].startswith("Use after a revocation is not seen: the cluster has no webhook token")


@pytest.mark.parametrize(
    ("ago", "is_seen", "said"),
    [
        (None, False, "the API server has sent no audit events so far"),
        (23, True, ""),
        (25, False, "the API server has sent no audit events since 20"),
    ],
)
def test_the_report_says_whether_use_after_a_revocation_is_seen(
    place: Place, ago: int | None, is_seen: bool, said: str
) -> None:
    give_token(place, utc_now())
    if ago is not None:
        at = utc_now() - timedelta(hours=ago)
        place.execute("UPDATE webhook_token SET last_events_at = ?", f"{at:%Y-%m-%d %H:%M:%S.%f}")
    report = place.report()
    assert (report["use_not_seen"] is None) is is_seen
    risks = report["residual_risks"]
    assert isinstance(risks, list)
    assert risks[0].startswith(f"Use after a revocation is not seen: {said}") is not is_seen
    assert ("Use after a revocation is not seen" in json.dumps(report["residual_risks"])) is not is_seen


def test_a_token_alone_keeps_nobody_out(place: Place) -> None:
    assert webhook(place) == (False, None)
    give_token(place, None)
    set_up, lacking = webhook(place)
    assert not set_up
    assert lacking is not None
    assert "the API server has never called" in lacking
    assert credentials(place.report())[place.name(place.revoked)] == ("revoked", True, ["ca", "expiry"])
    long_ago = utc_now() - timedelta(days=1, minutes=1)
    give_token(place, long_ago, 1)
    assert webhook(place) == (False, None)
    report = place.report()
    assert (report["enforcement"], report["webhook_called_at"]) == ("quiet", f"{long_ago:%Y-%m-%dT%H:%M:%SZ}")
    place.execute(
        "UPDATE webhook_token SET last_asked_at = ? WHERE id = ?", f"{utc_now():%F %T}.0", f"{1:032}"
    )
    assert webhook(place) == (True, None)


def test_a_webhook_that_was_not_asked_about_a_use_keeps_nobody_out(place: Place) -> None:
    give_token(place, utc_now() - timedelta(hours=3))
    assert webhook(place) == (True, None)
    assert place.report()["enforcement"] == "unverified"
    place.execute("UPDATE webhook_token SET last_use_at = ?", f"{utc_now() - timedelta(hours=2):%F %T}.0")
    assert webhook(place) == (False, None)
    report = place.report()
    assert (report["enforcement"], report["refuses"]) == ("unreviewed", "none")
    assert credentials(report)[place.name(place.revoked)] == ("revoked", True, ["ca", "expiry"])


def test_the_report_is_narrowed_to_a_user_or_a_group(place: Place) -> None:
    admin = place.world.people["admin"].user.id
    assert list(credentials(place.report(user=admin))) == [place.name(place.admins)]
    assert list(credentials(place.report(group="clustercert:admins"))) == [place.name(place.admins)]
    assert len(credentials(place.report(group="system:authenticated"))) == 3
    assert credentials(place.report(user=admin, group="clustercert:editors")) == {}
    assert credentials(place.report(user="nobody")) == {}


def test_sights_and_strangers_are_told(place: Place) -> None:
    first, last = "2026-01-02 03:04:05.000000", "2026-02-03 04:05:06.000000"
    place.execute(
        "UPDATE certificate SET first_seen_at = ?, last_seen_at = ? WHERE revoked_at IS NULL", first, last
    )
    place.execute(
        "INSERT INTO unknown_identity (cluster_id, identity, username, groups, hashes, fingerprints, first_seen_at,"
        " last_seen_at, last_alert_at, alerts_of_each) VALUES (?, ?, 'root', ?, 21, ?, ?, ?, ?, 1)",
        place.world.clusters["plain"].id,
        bytes(32),
        MASTERS,
        json.dumps(["cd" * 32, "ab" * 32]),
        first,
        last,
        first,
    )
    report = place.report()
    users = report["users"]
    assert isinstance(users, list)
    seen = ("2026-01-02T03:04:05Z", "2026-02-03T04:05:06Z")
    assert [(user["first_seen_at"], user["last_seen_at"]) for user in users] == [seen, seen]
    assert [each["last_seen_at"] for each in users[1]["credentials"]] == [None, seen[1]]
    numbers = [each["credential_number"] for each in users[1]["credentials"]]
    assert numbers == [credential_number_of(each) for each in (place.revoked, place.live)]
    stranger = {
        "fingerprint": "ab" * 32,
        "has_access": True,
        "hashes": 21,
        "username": "root",
        "groups": ["system:masters"],
        "first_seen_at": seen[0],
        "last_seen_at": seen[1],
    }
    assert report["unknown_credentials"] == [stranger]
    assert place.report(group="system:masters")["unknown_credentials"] == [stranger]
    assert place.report(group="clustercert:admins")["unknown_credentials"] == []
    assert place.report(user="root")["unknown_credentials"] == []
    # If the API server sends no credential ids, the report has no fingerprint.
    place.execute("UPDATE unknown_identity SET fingerprints = '[]', hashes = 0")
    assert place.report()["unknown_credentials"] == [stranger | {"fingerprint": None, "hashes": 0}]


@pytest.mark.parametrize("mode", ["known-only", "default"])
async def test_what_the_webhook_refuses_has_no_access(place: Place, mode: WebhookMode) -> None:
    seen, fingerprint = "2026-01-02 03:04:05.000000", "ab" * 32
    identities = {
        "stranger": ["devs"],
        "forged": ["clustercert:editors"],
        "system:node:n1": ["system:nodes"],
        "not a kubelet": ["system:nodes"],
        "system:kube-scheduler": ["system:authenticated"],
        "root": ["system:masters"],
        # The webhook denies these in every mode.
        "numbered": ["clustercert:editors", f"clustercert:credential:{'a' * 40}"],
        "malformed": ["system:nodes", "clustercert:credential:A"],
    }
    for number, (username, groups) in enumerate(identities.items()):
        place.execute(
            "INSERT INTO unknown_identity (cluster_id, identity, username, groups, hashes, fingerprints, first_seen_at,"
            " last_seen_at, last_alert_at, alerts_of_each) VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, 0)",
            *(place.world.clusters["plain"].id, bytes([number] * 32), username, json.dumps(groups)),
            *(json.dumps([fingerprint]), seen, seen, seen),
        )
    database = Database(f"sqlite+aiosqlite:///{place.world.database}")
    reports = AccessReports(AccessReportQueries(database), utc_now, {"clustercert:editors"})
    options = ClusterOptions(mode=mode, exemptions=("system:nodes", "system:kube-scheduler"))

    async def with_access(options: ClusterOptions = options) -> set[str]:
        cluster = replace(place.world.clusters["plain"], options=options)
        report = await reports.report(cluster)
        return {each.identity.username for each in report.unknown if each.has_access}

    # Nothing is refused while the API server does not call the webhook.
    assert await with_access() == {*identities}
    give_token(place, utc_now(), 1)
    allowed = {*identities} - {"numbered", "malformed"}
    if mode == "known-only":
        allowed = {"system:node:n1", "system:kube-scheduler", "root"}
    assert await with_access() == allowed
    for pin, others in (("cd" * 32, {"system:kube-scheduler"}), (fingerprint, set[str]())):
        pinned = replace(options, pins=(pin,), pin_components=True)
        assert await with_access(pinned) == (allowed - others if mode == "known-only" else allowed)
    await database.close()


def test_a_report_has_a_page_of_users_and_counts_of_all(place: Place) -> None:
    first = place.report(limit="1")
    totals = {"certificates": 3, "with_access": 3, "revoked": 1, "users": 2, "users_with_access": 2}
    assert (names(first), first["totals"]) == (["admin"], totals)
    second = place.report(limit="1", cursor=str(first["next"]))
    assert (names(second), second["next"], second["totals"]) == (["member"], None, totals)
    assert second["groups"] == first["groups"]
    users = second["users"]
    assert isinstance(users, list)
    assert (users[0]["certificates"], users[0]["with_access"]) == (2, 2)
    assert users[0]["until"] == rfc3339(place.revoked.not_valid_after_utc)
    assert names(place.report(search="ADM")) == ["admin"]
    assert names(place.report(search="editors")) == ["member"]
    assert names(place.report(search="nobody")) == []


def test_a_cursor_of_another_cluster_is_refused(place: Place) -> None:
    first = place.report(limit="1")
    response = place.get("admin", cluster="eip", cursor=str(first["next"]))
    assert (response.status_code, "Begin with the first page" in response.json()["message"]) == (400, True)
    assert place.get("admin", cursor="x").status_code == 400


def test_a_foreign_cluster_and_wrong_filters_are_refused(place: Place) -> None:
    assert place.get("admin", cluster="foreign").status_code == 404
    assert place.get("admin", group="").status_code == 400
    assert place.get("admin", user="x" * 256).status_code == 400


async def test_bindings_and_admission_stop_what_they_can(place: Place) -> None:
    registered = place.world.clusters["plain"]
    place.execute("UPDATE certificate SET groups = '[]' WHERE id <> ?", 4)
    database = Database(f"sqlite+aiosqlite:///{place.world.database}")
    reports = AccessReports(AccessReportQueries(database), utc_now)
    slow, member = ("ca", "expiry"), {"member": "edit"}
    # The admin's certificate has groups from the policy, so there is no binding to delete.
    for options, bound, unbound, has_access, role in (
        (ClusterOptions(admission=True), ("admission", *slow), ("admission", *slow), True, None),
        (ClusterOptions(credential_roles=member), ("binding", *slow), slow, False, "edit"),
        (ClusterOptions(credential_roles={}), ("binding", *slow), slow, False, None),
        (ClusterOptions(), slow, slow, True, None),
    ):
        report = await reports.report(replace(registered, options=options))
        found = {
            each.certificate.fingerprint.hex(): each for user in report.users for each in user.credentials
        }
        live, revoked, admins = (
            found[place.name(each)] for each in (place.live, place.revoked, place.admins)
        )
        assert (live.end.stopped_by, live.end.has_access, live.cluster_role) == (bound, True, role)
        # Admission control stops writes only, so the certificate still gives access.
        assert (revoked.end.stopped_by, revoked.end.has_access, revoked.cluster_role) == (
            bound,
            has_access,
            role,
        )
        assert (admins.end.stopped_by, admins.end.has_access, admins.cluster_role) == (unbound, True, None)
    later = await AccessReports(AccessReportQueries(database), lambda: utc_now() + timedelta(days=5)).report(
        registered
    )
    assert [user.totals.user_name for user in later.users] == ["admin"]
    await database.close()

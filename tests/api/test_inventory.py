"""The inventory over HTTP: permissions, filters, pages, CSV."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.http.certificates import COLUMNS
from clustercert.pki.certificates import fingerprint
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import serial_hex
from support import world as worlds
from support.leaf_checks import credential_number_of, leaf_of
from support.service import Service
from support.stores import execute
from support.world import World

OWN = "/clustercert/v1"
FORMULA = '=HYPERLINK("http://203.0.113.1/","a, b")'


@dataclass(frozen=True)
class Place:
    """A service with a few certificates: user, cluster and certificate of each, the oldest first."""

    world: World
    client: httpx2.Client
    issued: list[tuple[str, str, x509.Certificate]]

    def project(self, tail: str = "") -> str:
        return f"{OWN}/projects/{self.world.project.id}{tail}"

    def cluster(self, name: str = "plain", tail: str = "") -> str:
        known = self.world.clusters[name]
        return f"{OWN}/projects/{known.project_id}/clusters/{known.id}{tail}"

    def get(self, who: str, path: str, **query: str) -> httpx2.Response:
        return self.client.get(path, params=query, headers=self.world.people[who].headers)

    def listed(self, who: str, path: str, **query: str) -> list[str]:
        """Return the fingerprints in a list of one page, the newest first."""
        response = self.get(who, path, **query)
        assert response.status_code == 200, response.text
        body = response.json()
        assert body["next"] is None
        return [each["fingerprint"] for each in body["certificates"]]

    def expected(self, *, who: str | None = None, clusters: tuple[str, ...] = ("plain", "eip")) -> list[str]:
        return [
            fingerprint(certificate).hex()
            for owner, cluster, certificate in reversed(self.issued)
            if who in (None, owner) and cluster in clusters
        ]


def csr() -> str:
    name = x509.Name([])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    key = new_key("ed25519")
    return request.sign(key, None).public_bytes(Encoding.PEM).decode()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place whose certificates no test revokes."""
    with new_place(tmp_path_factory.mktemp("inventory")) as place:
        yield place


@contextmanager
def new_place(folder: Path) -> Iterator[Place]:
    world = worlds.make(folder)
    with Service(world.settings()).running() as service:
        place = Place(world, service.client, [])
        asks: list[tuple[str, str, dict[str, object]]] = [
            ("admin", "plain", {"duration": 30}),
            ("member", "plain", {"duration": 30, "reason": FORMULA}),
            ("member", "eip", {"duration": 1, "csr": csr()}),
            ("stranger", "foreign", {"duration": 30}),
            ("member", "plain", {"duration": 2}),
        ]
        for who, cluster, body in asks:
            response = service.client.post(world.path(cluster), json=body, headers=world.people[who].headers)
            assert response.status_code == 200, response.text
            place.issued.append((who, cluster, leaf_of(response.json())))
        yield place


def test_admins_see_the_projects_and_others_their_own(place: Place) -> None:
    certificates = place.project("/certificates")
    assert place.listed("admin", certificates) == place.expected()
    assert place.listed("operator", certificates) == place.expected()
    assert place.listed("member", certificates) == place.expected(who="member")
    assert place.listed("reader", certificates) == []
    assert place.get("stranger", certificates).status_code == 404
    assert place.client.get(certificates).status_code == 401


def test_a_clusters_are_those_of_the_cluster(place: Place) -> None:
    certificates = place.cluster("plain", "/certificates")
    assert place.listed("admin", certificates) == place.expected(clusters=("plain",))
    assert place.listed("operator", certificates) == place.expected(clusters=("plain",))
    assert place.listed("member", certificates) == place.expected(who="member", clusters=("plain",))
    foreign = place.world.clusters["foreign"]
    assert place.get("stranger", certificates).status_code == 404
    for who in ("admin", "operator"):
        assert place.get(who, place.project(f"/clusters/{foreign.id}/certificates")).status_code == 404


def test_everywhere_is_for_operators_and_admins_of_projects(place: Place) -> None:
    everything = place.expected(clusters=("plain", "eip", "foreign"))
    assert place.listed("operator", f"{OWN}/certificates") == everything
    assert place.listed("admin", f"{OWN}/certificates") == place.expected()
    assert place.listed("stranger", f"{OWN}/certificates") == place.expected(clusters=("foreign",))
    for who in ("member", "reader"):
        assert place.get(who, f"{OWN}/certificates").status_code == 403


def test_a_certificate_is_listed_by_its_numbers(place: Place) -> None:
    certificates = f"{OWN}/certificates"
    _, _, issued = place.issued[0]
    digits = fingerprint(issued).hex()
    colons = ":".join(digits[start : start + 2] for start in range(0, 64, 2)).upper()
    for name in (digits[:8], digits, f"X509SHA256={digits}", colons, credential_number_of(issued)):
        assert place.listed("operator", certificates, certificate=name) == [digits], name
        assert place.listed("admin", certificates, certificate=name) == [digits], name
        # Another project's certificates do not exist.
        assert place.listed("stranger", certificates, certificate=name) == [], name
        assert place.listed("reader", place.project("/certificates"), certificate=name) == [], name
    assert (
        place.listed("operator", certificates, certificate="JTI=5b3a1c52-7c5e-4a31-9c93-6a7cf1b7f0aa") == []
    )


def test_certificates_are_listed_by_domain(place: Place) -> None:
    everything, certificates = place.expected(clusters=("plain", "eip", "foreign")), f"{OWN}/certificates"
    [domain] = {each["project_domain"] for each in place.get("operator", certificates).json()["certificates"]}
    assert place.listed("operator", certificates, domain=domain) == everything
    assert place.listed("stranger", certificates, domain=domain) == place.expected(clusters=("foreign",))
    assert place.listed("operator", certificates, domain="nowhere") == []


def test_everybody_sees_their_own_of_all_projects(place: Place) -> None:
    people = place.world.people
    assert place.listed("member", f"{OWN}/certificates", own="true") == place.expected(who="member")
    assert place.listed("operator", f"{OWN}/certificates", own="true") == []
    for path in (f"{OWN}/certificates", place.project("/certificates")):
        assert place.listed("admin", path, own="true") == place.expected(who="admin")
        answer = place.get("admin", path, own="true", user=people["member"].user.id)
        assert (answer.status_code, "own, user" in answer.text) == (400, True)
    members, admins = place.expected(who="member")[0], place.expected(who="admin")[0]
    strangers = place.expected(who="stranger", clusters=("foreign",))[0]
    for who, visible in (
        ("member", [members]),
        ("admin", [members, admins]),
        ("reader", []),
        ("stranger", [strangers]),
        ("operator", [members, admins, strangers]),
    ):
        for name in (members, admins, strangers):
            answer = place.get(who, f"{OWN}/certificates/{name}")
            assert answer.status_code == (200 if name in visible else 404), (who, name)
            in_project = name in visible and name != strangers
            found = place.get(who, place.project(f"/certificates/{name}"))
            assert found.status_code == (200 if in_project else 404), (who, name)


def test_abbreviations_tell_nothing_of_others(place: Place) -> None:
    members, admins = place.expected(who="member")[0], place.expected(who="admin")[0]
    for digits in (8, 41, 63):
        for path in (
            f"{OWN}/certificates",
            place.project("/certificates"),
            place.cluster("plain", "/certificates"),
        ):
            assert place.get("member", f"{path}/{members[:digits]}").json()["fingerprint"] == members
            assert place.get("member", f"{path}/{admins[:digits]}").status_code == 404
    assert place.get("member", f"{OWN}/certificates/{members[:7]}").status_code == 404
    # The admin's certificate begins alike, which makes the abbreviation ambiguous for those who may see both.
    alike = members[:8] + "0" * 56
    change = "UPDATE certificate SET fingerprint = ? WHERE fingerprint = ?"
    execute(place.world.database, change, bytes.fromhex(alike), bytes.fromhex(admins))
    assert place.get("member", f"{OWN}/certificates/{members[:8]}").json()["fingerprint"] == members
    assert place.get("admin", f"{OWN}/certificates/{members[:8]}").status_code == 409
    execute(place.world.database, change, bytes.fromhex(admins), bytes.fromhex(alike))


def test_certificates_are_selected_by_user_name(place: Place) -> None:
    certificates = place.project("/certificates")
    assert place.listed("admin", certificates, user_name="member") == place.expected(who="member")
    assert place.listed("admin", certificates, user_name="tests/member") == place.expected(who="member")
    assert place.listed("admin", certificates, user_name="eu-de/member") == []
    assert place.listed("member", certificates, user_name="admin") == []
    assert place.listed("member", certificates, user_name="tests/admin") == []
    execute(place.world.database, "UPDATE certificate SET username = 'boss' WHERE user_name = 'admin'")
    assert place.listed("operator", f"{OWN}/certificates", user_name="boss") == place.expected(who="admin")
    execute(place.world.database, "UPDATE certificate SET username = NULL")
    assert place.get("admin", certificates, user_name="a\nb").status_code == 400


def test_nobody_but_admins_asks_for_others(place: Place) -> None:
    certificates, people = place.project("/certificates"), place.world.people
    own, others = people["member"].user.id, people["admin"].user.id
    assert place.listed("member", certificates, user=own) == place.expected(who="member")
    assert place.get("member", certificates, user=others).status_code == 403
    assert place.listed("admin", certificates, user=own) == place.expected(who="member")


def test_a_certificate_is_shown_whole(place: Place) -> None:
    who, cluster, certificate = place.issued[1]
    name, serial = fingerprint(certificate).hex(), serial_hex(certificate.serial_number)
    colons = ":".join(name[at : at + 2] for at in range(0, len(name), 2)).upper()
    for reader in ("member", "admin", "operator"):
        for written in (name, colons, serial, serial.upper(), f"X509SHA256={name}"):
            body = place.get(reader, place.cluster(cluster, f"/certificates/{written}")).json()
            assert x509.load_pem_x509_certificate(body["pem"].encode()) == certificate
    assert body | {"pem": "", "source_address": "", "request_id": "", "client_ca_id": ""} == {
        "kind": "certificate",
        "fingerprint": name,
        "serial": serial,
        "credential_number": credential_number_of(certificate),
        "state": "live",
        "cluster_id": place.world.clusters["plain"].id,
        "cluster_name": "plain",
        "project_id": place.world.project.id,
        "project_name": "eu-de",
        "project_domain": "tests",
        "client_ca_id": "",
        "client_ca_state": "active",
        "user_id": place.world.people[who].user.id,
        "user_name": "member",
        "user_domain": "tests",
        "common_name": place.world.people[who].user.id,
        "groups": ["clustercert:editors"],
        "rule": "member",
        "access_request_id": None,
        "not_before": f"{certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        "key_type": "ec-p256",
        "key_origin": "generated",
        "auth_method": "token",
        "source_address": "",
        "request_id": "",
        "reason": FORMULA,
        "issued_at": body["issued_at"],
        "revoked_at": None,
        "revoked_by": None,
        "revoked_by_name": None,
        "revocation_reason": None,
        "first_seen_at": None,
        "last_seen_at": None,
        "altered_at": None,
        "used_after_revocation_at": None,
        "refused_at": None,
        "refusal": None,
        "expected_by": None,
        "ends_by": "expiry",
        "refuses": "none",
        "within_seconds": None,
        "revocations": [],
        "credential_id": f"X509SHA256={name}",
        "account": None,
        "pem": "",
    }
    assert body["client_ca_id"] == place.world.clusters["plain"].client_ca.id
    assert place.get("operator", f"{OWN}/certificates/{serial}").json() == body


@pytest.mark.parametrize("name", ["0" * 64, "ab", "", "x" * 64, "a" * 63, "%00", "ü"])
def test_what_names_no_certificate_is_not_found(place: Place, name: str) -> None:
    for path in (place.cluster("plain", f"/certificates/{name or '0'}"), f"{OWN}/certificates/{name or '0'}"):
        assert place.get("operator", path).status_code == 404


def test_anothers_certificate_does_not_exist(place: Place) -> None:
    name = fingerprint(place.issued[0][2]).hex()
    assert place.get("member", place.cluster("plain", f"/certificates/{name}")).status_code == 404
    assert place.get("stranger", place.cluster("plain", f"/certificates/{name}")).status_code == 404
    assert place.get("admin", place.cluster("eip", f"/certificates/{name}")).status_code == 404
    assert place.get("admin", place.cluster("plain", f"/certificates/{name}")).status_code == 200


def test_lists_are_narrowed_and_come_in_pages(place: Place) -> None:
    certificates, expected = place.project("/certificates"), place.expected()
    ends = sorted(each.not_valid_after_utc for _, cluster, each in place.issued if cluster != "foreign")
    middle = f"{ends[2]:%Y-%m-%dT%H:%M:%SZ}"
    before = set(place.listed("admin", certificates, expires_before=middle))
    after = set(place.listed("admin", certificates, expires_after=middle))
    assert (len(before), len(after), before | after) == (2, 2, set(expected))
    assert place.listed("admin", certificates, key_origin="csr") == [fingerprint(place.issued[2][2]).hex()]
    assert place.listed("admin", certificates, cluster=place.world.clusters["plain"].id) == place.expected(
        clusters=("plain",)
    )
    assert place.listed("admin", certificates, never_seen="true") == expected
    assert place.listed("admin", certificates, seen_after="2020-01-01T00:00:00+02:00") == []
    assert place.listed("admin", certificates, state="expired") == []

    found, query = [], {"limit": "1"}
    while True:
        response = place.get("admin", certificates, **query)
        body = response.json()
        found += [each["fingerprint"] for each in body["certificates"]]
        assert response.headers.get("x-clustercert-next") == body["next"]
        if body["next"] is None:
            break
        query["cursor"] = body["next"]
    assert found == expected


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("state=dead", "state"),
        ("key_origin=made", "key_origin"),
        ("expires_before=tomorrow", "expires_before"),
        ("expires_after=2026-01-01T00:00:00", "expires_after"),
        ("seen_after=0001-01-01T00:00:00%2B14:00", "seen_after"),
        ("seen_before=2026-02-30T00:00:00Z", "seen_before"),
        ("never_seen=false", "never_seen"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=%C2%B2", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=-1", "cursor"),
        ("cursor=9223372036854775808", "cursor"),
        ("format=xml", "format"),
        ("expire_before=2026-01-01T00:00:00Z", "nknown query parameter"),
        ("state=live&state=revoked", "once"),
        ("user=" + "x" * 256, "user"),
        ("user=%00", "user"),
        ("cluster=", "cluster"),
        ("certificate=alice", "certificate"),
        ("revoked_use_after=yesterday", "revoked_use_after"),
    ],
)
def test_a_query_that_says_nothing_clear_is_refused(place: Place, query: str, said: str) -> None:
    response = place.client.get(
        f"{place.project('/certificates')}?{query}", headers=place.world.people["admin"].headers
    )
    assert response.status_code == 400
    assert said in response.json()["message"]


def test_csv_has_the_same_and_no_formula(place: Place) -> None:
    certificates, headers = place.project("/certificates"), place.world.people["admin"].headers
    body = place.get("admin", certificates).json()["certificates"]
    assert {tuple(each) for each in body} == {COLUMNS}
    by_query = place.client.get(certificates, params={"format": "csv"}, headers=headers)
    by_accept = place.client.get(certificates, headers={**headers, "Accept": "text/csv;q=0.9, */*;q=0.1"})
    assert by_query.headers["content-type"] == "text/csv; charset=utf-8"
    assert by_accept.text == by_query.text
    assert by_query.text.startswith(",".join(COLUMNS) + "\r\n")
    rows = list(csv.DictReader(io.StringIO(by_query.text, newline="")))
    assert [row["fingerprint"] for row in rows] == [each["fingerprint"] for each in body]
    assert [row["groups"] for row in rows] == ['["clustercert:editors"]'] * 3 + ['["clustercert:admins"]']
    assert [row["reason"] for row in rows] == ["", "", f"'{FORMULA}", ""]
    asked = place.client.get(
        certificates, params={"format": "json"}, headers={**headers, "Accept": "text/csv"}
    )
    assert asked.json()["certificates"] == body
    page = place.get("admin", certificates, limit="1", format="csv")
    assert len(page.text.splitlines()) == 2
    assert page.headers["x-clustercert-next"]


def test_what_is_revoked_says_so_at_once(tmp_path: Path) -> None:
    """One certificate, then all of a user in a cluster."""
    with new_place(tmp_path) as place:
        revoke_some(place)


def revoke_some(place: Place) -> None:
    world, admin = place.world, place.world.people["admin"].headers
    certificates = place.project("/certificates")
    _, _, one = place.issued[0]
    name = fingerprint(one).hex()
    revoked = place.client.post(
        place.cluster("plain", f"/certificates/{name}/revoke"), json={"reason": "superseded"}, headers=admin
    )
    assert revoked.status_code == 200, revoked.text
    assert place.listed("admin", certificates, state="revoked") == [name]
    response = place.client.post(
        world.path("plain", "/clustercertrevoke"),
        json={"userId": world.people["member"].user.id},
        headers=admin,
    )
    assert response.status_code == 200
    gone = place.expected(clusters=("plain",))
    assert place.listed("admin", certificates, state="revoked") == gone
    assert place.listed("admin", certificates, state="live") == place.expected(clusters=("eip",))
    shown = {each["fingerprint"]: each for each in place.get("admin", certificates).json()["certificates"]}
    assert [shown[each]["revocation_reason"] for each in gone] == ["unspecified", "unspecified", "superseded"]
    assert {shown[each]["revoked_by"] for each in gone} == {world.people["admin"].user.id}
    assert {shown[each]["revoked_by_name"] for each in gone} == {"tests/admin"}
    assert all(shown[each]["revoked_at"] for each in gone)

"""Revocation over HTTP: permissions and effects."""

from pathlib import Path

import httpx2
import pytest

from clustercert.model import Actor, Origin
from clustercert.pki.certificates import fingerprint
from clustercert.pki.leaf import serial_hex
from clustercert.wiring import Components
from support import world as worlds
from support.revocation_client import OWN, RevocationClient
from support.service import Service
from support.stores import Store
from support.world import ACTOR

ORIGIN = Origin(address="local", request_id="c" * 32)
JSON = {"Content-Type": "application/json"}


# --- clustercertrevoke, the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["reader", "member", "admin"])
def test_everybody_revokes_their_own_and_the_next_one_is_good(place: RevocationClient, who: str) -> None:
    other = "admin" if who == "member" else "member"
    own, elsewhere, others = place.issue(who), place.issue(who, "eip"), place.issue(other)
    answer = place.clustercertrevoke(who, who)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "0"
    assert place.states(own, elsewhere, others) == ["revoked", "live", "live"]
    assert place.state(place.issue(who)) == "live"
    assert place.state(own) == "revoked"


@pytest.mark.parametrize("by", ["admin", "operator"])
def test_administrators_revoke_others(place: RevocationClient, by: str) -> None:
    theirs, own = place.issue("reader"), place.issue("admin")
    assert place.clustercertrevoke(by, "reader").status_code == 200
    assert place.states(theirs, own) == ["revoked", "live"]
    said = place.events("user.revoked")[-1]
    assert (said["actor"], said["subject"]) == (place.user(by), place.user("reader"))
    assert said["project_id"] == place.world.project.id
    assert said["detail"]["cluster_id"] == place.world.clusters["plain"].id


@pytest.mark.parametrize("by", ["member", "reader"])
def test_others_revoke_nobody_elses(place: RevocationClient, by: str) -> None:
    theirs = place.issue("admin")
    answer = place.clustercertrevoke(by, "admin")
    assert (answer.status_code, answer.json()["errorCode"]) == (403, "CCE.01403001")
    assert place.state(theirs) == "live"


def test_another_projects_cluster_does_not_exist(place: RevocationClient) -> None:
    theirs = place.issue("stranger", "foreign")
    foreign, home = place.world.clusters["foreign"], place.world.project.id
    body = {"userId": place.user("stranger")}
    mixed = f"/api/v3/projects/{home}/clusters/{foreign.id}/clustercertrevoke"
    answers = [
        place.post("admin", place.world.path("foreign", "/clustercertrevoke"), body),
        place.post("admin", mixed, body),
        place.post("stranger", place.world.path("plain", "/clustercertrevoke"), body),
        place.post("operator", mixed, body),
    ]
    assert [answer.status_code for answer in answers] == [404] * 4
    assert len({answer.json()["errorMessage"] for answer in answers}) == 1
    assert place.state(theirs) == "live"


def test_an_auditor_reads_certificates_and_revokes_none(place: RevocationClient) -> None:
    certificate = place.issue("member")
    path = f"{OWN}/certificates/{fingerprint(certificate).hex()}"
    shown = place.client.get(path, headers=place.world.people["auditor"].headers)
    assert shown.json()["user_id"] == place.user("member")
    refused = [place.post("auditor", each) for each in (f"{path}/revoke", place.own("/revoke"))]
    assert [each.status_code for each in refused] == [403, 403]
    assert refused[1].json()["message"].startswith("The role auditor does not allow this.")
    assert place.state(certificate) == "live"
    # The role auditor does not give certificates either.
    assert place.post("auditor", place.world.path("plain"), {"duration": 1}).status_code == 404


@pytest.mark.parametrize("field", ["userId", "agencyId"])
def test_a_deleted_users_raw_id_is_enough(place: RevocationClient, field: str) -> None:
    """The id of an agency is the user id of callers that act in its name."""
    path = place.world.path("plain", "/clustercertrevoke")
    assert place.post("admin", path, {field: "0123456789abcdef0123456789abcdef"}).status_code == 200
    assert place.post("reader", path, {field: "0123456789abcdef0123456789abcdef"}).status_code == 403
    assert place.post("reader", path, {field: place.user("reader")}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"userId": None},
        {"userId": "a", "agencyId": "b"},
        {"userId": 5},
        {"userId": ["a"]},
        {"userId": ""},
        {"userId": "a" * 65},
        {"userId": "a\u0000b"},
        {"userId": "a\u202eb"},
        {"user_id": "a"},
        [],
        "userId",
    ],
)
def test_a_body_that_names_not_exactly_one_is_refused(place: RevocationClient, body: object) -> None:
    answer = place.post("admin", place.world.path("plain", "/clustercertrevoke"), body)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "CCE.01400001")


def test_the_body_is_judged_as_that_of_clustercert_is(place: RevocationClient) -> None:
    path, headers = place.world.path("plain", "/clustercertrevoke"), place.world.people["admin"].headers
    body = b'{"userId": "0123", "new": 1}'
    said = [
        place.client.post(path, content=content, headers=headers | more)
        for content, more in (
            (body, {}),
            (body, {"Content-Type": "text/plain"}),
            (b"", JSON),
            (b'{"userId": "0123", "userId": "0123"}', JSON),
            (b" " * 70_000, JSON),
            (body, JSON),
        )
    ]
    assert [answer.status_code for answer in said] == [400, 400, 400, 400, 413, 200]
    assert said[0].json()["errorCode"] == "CCE.01400006"
    assert place.client.post(path, content=body).status_code == 401


# --- our own routes --------------------------------------------------------------------------------------------------


def test_one_certificate_by_fingerprint_or_serial_and_twice_is_once(place: RevocationClient) -> None:
    by_fingerprint, by_serial, kept = (place.issue("member") for _ in range(3))
    name = fingerprint(by_fingerprint).hex()
    path = place.own(f"/certificates/{name}/revoke")
    answer = place.post("member", path, {"reason": "superseded", "note": "lost my laptop"})
    assert answer.status_code == 200
    said = answer.json()
    assert {**said, "id": 0, "at": ""} == {
        "id": 0,
        "fingerprint": name,
        "user_id": place.user("member"),
        "cluster_id": place.world.clusters["plain"].id,
        "reason": "superseded",
        "note": "lost my laptop",
        "at": "",
        "by": place.user("member"),
        "proved": False,
        "undone_at": None,
        "undone_by": None,
        "can_be_undone": True,
        "enforcement": "none",
        "webhook_called_at": None,
        "enforced_by": [],
        "refuses": "none",
        "within_seconds": None,
        "expected_by": None,
        "lacking": None,
        "does_not_stop": None,
    }
    assert place.post("member", path, {"reason": "unspecified"}).json() == said
    for written in (serial_hex(by_serial.serial_number), serial_hex(by_serial.serial_number).upper()):
        assert place.post("member", place.own(f"/certificates/{written}/revoke")).status_code == 200
    assert place.states(by_fingerprint, by_serial, kept) == ["revoked", "revoked", "live"]
    [event] = [each for each in place.events("certificate.revoked") if each["subject"] == name]
    assert event["detail"] == {
        "serial": serial_hex(by_fingerprint.serial_number),
        "user_id": place.user("member"),
        "cluster_id": place.world.clusters["plain"].id,
        "reason": "superseded",
        "note": "lost my laptop",
        "proved": False,
    }


def test_a_list_of_revocations_names_who_revoked_and_who_undid(place: RevocationClient) -> None:
    """Also to admins of the project, who get no names of revoked users."""
    certificate = place.issue("member")
    made = place.post("admin", place.own(f"/certificates/{fingerprint(certificate).hex()}/revoke")).json()
    place.post("operator", f"{OWN}/revocations/{made['id']}/undo")
    for who in ("admin", "operator"):
        path = f"{OWN}/projects/{place.world.project.id}/revocations"
        answer = place.client.get(path, headers=place.world.people[who].headers).json()
        [listed] = [each for each in answer["revocations"] if each["id"] == made["id"]]
        assert (listed["by_name"], listed["undone_by_name"]) == ("tests/admin", "tests/operator")


def test_what_two_revoke_is_good_again_when_neither_stands(place: RevocationClient) -> None:
    """Undoing one leaves the other in force. The owner does not see the administrator's note."""
    certificate = place.issue("member")
    path = place.own(f"/certificates/{fingerprint(certificate).hex()}/revoke")
    theirs = place.post("admin", path, {"note": "suspected insider"}).json()
    own = place.post("member", path).json()
    assert (own["by"], own["note"]) == (place.user("member"), None)
    for made, state in ((theirs, "revoked"), (own, "live")):
        assert place.post("operator", f"{OWN}/revocations/{made['id']}/undo").status_code == 200
        assert place.state(certificate) == state


def test_a_certificate_is_its_owners_and_the_administrators(place: RevocationClient) -> None:
    certificate = place.issue("member")
    path = place.own(f"/certificates/{fingerprint(certificate).hex()}/revoke")
    missing = place.own(f"/certificates/{'0' * 64}/revoke")
    answers = [place.post("reader", path), place.post("reader", missing)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json()["errorMessage"] == answers[1].json()["errorMessage"]
    assert place.post("stranger", path).status_code == 404
    other_cluster = place.own(f"/certificates/{fingerprint(certificate).hex()}/revoke", "eip")
    assert place.post("admin", other_cluster).status_code == 404
    assert place.state(certificate) == "live"
    assert place.post("operator", path).status_code == 200
    assert place.state(certificate) == "revoked"


@pytest.mark.parametrize("wanted", ["x", "0" * 41, "0" * 63, "0" * 65, "g" * 64, "%20", "0%00", "é"])
def test_what_is_no_fingerprint_or_serial_is_not_found(place: RevocationClient, wanted: str) -> None:
    assert place.post("admin", place.own(f"/certificates/{wanted}/revoke")).status_code == 404


def test_a_whole_cluster(place: RevocationClient) -> None:
    there = [place.issue(who, "sans") for who in ("reader", "admin")]
    elsewhere = place.issue("reader")
    for who, status in (("member", 403), ("reader", 403), ("stranger", 404)):
        assert place.post(who, place.own("/revoke", "sans")).status_code == status
    assert place.states(*there) == ["live", "live"]
    answer = place.post("admin", place.own("/revoke", "sans"), {"reason": "affiliationChanged"})
    assert (answer.json()["user_id"], answer.json()["fingerprint"]) == (None, None)
    assert place.states(*there, elsewhere) == ["revoked", "revoked", "live"]
    assert place.state(place.issue("reader", "sans")) == "live"
    assert place.events("cluster.revoked")[-1]["subject"] == place.world.clusters["sans"].id


def test_everybody_revokes_all_their_own(place: RevocationClient) -> None:
    own, others = [place.issue("member", cluster) for cluster in ("plain", "eip")], place.issue("admin")
    path = f"{OWN}/users/{place.user('member')}/revoke"
    headers = place.world.people["member"].headers
    preview = place.client.post(path, params={"dryRun": "All"}, headers=headers).json()
    assert (preview["user_name"], preview["cluster_id"]) == ("member", None)
    assert preview["live"] >= 2
    assert place.post("member", path).json()["user_id"] == place.user("member")
    assert place.states(*own, others) == ["revoked", "revoked", "live"]
    assert place.state(place.issue("member")) == "live"
    assert place.post("stranger", path).status_code == 403


def test_a_user_everywhere_is_for_operators(place: RevocationClient) -> None:
    theirs, others = [place.issue("reader", cluster) for cluster in ("plain", "eip")], place.issue("admin")
    path = f"{OWN}/users/{place.user('reader')}/revoke"
    for who in ("admin", "member", "stranger"):
        assert place.post(who, path).status_code == 403
    answer = place.post("operator", path, {"note": "left us"})
    assert (answer.status_code, answer.json()["cluster_id"]) == (200, None)
    assert place.states(*theirs, others) == ["revoked", "revoked", "live"]
    listed = place.client.get(
        f"{OWN}/users/{place.user('reader')}/revocations", headers=place.world.people["operator"].headers
    ).json()
    only_new, only_listed = (
        dict.fromkeys(
            (
                "enforcement",
                "webhook_called_at",
                "enforced_by",
                "refuses",
                "within_seconds",
                "expected_by",
                "lacking",
                "does_not_stop",
            )
        ),
        {"user_name": "reader", "user_domain": "tests", "by_name": "tests/operator", "undone_by_name": None}
        | dict.fromkeys(("cluster_name", "project_name", "project_domain")),
    )
    assert [each | only_new for each in listed["revocations"]] == [answer.json() | only_listed]
    said = place.events("user.revoked")[-1]
    assert (said["project_id"], said["detail"]["note"]) == (None, "left us")


@pytest.mark.parametrize(
    "body",
    [
        {"reason": "certificateHold"},
        {"reason": "KeyCompromise"},
        {"reason": 1},
        {"note": "x" * 513},
        {"note": "a\nb"},
        {"note": 5},
        [],
    ],
)
def test_reasons_and_notes_have_their_bounds(place: RevocationClient, body: object) -> None:
    certificate = place.issue("member")
    path = place.own(f"/certificates/{fingerprint(certificate).hex()}/revoke")
    assert place.post("member", path, body).status_code == 400
    assert place.state(certificate) == "live"


def test_a_list_of_a_cluster_is_for_administrators_and_in_pages(place: RevocationClient) -> None:
    made = []
    for number in range(3):
        # Without a new certificate, the next revocation would change nothing.
        place.issue("member", "eip")
        response = place.post("admin", place.own("/revoke", "eip"), {"note": f"number {number}"})
        made.append(response.json()["id"])
    path = place.own("/revocations", "eip")

    def listed(who: str, **query: str) -> httpx2.Response:
        return place.client.get(path, params=query, headers=place.world.people[who].headers)

    first = listed("admin", limit="2").json()
    assert [each["id"] for each in first["revocations"]] == made[:0:-1]
    second = listed("operator", limit="2", cursor=first["next"]).json()
    assert second["revocations"][0]["id"] == made[0]
    for who, status in (("member", 403), ("reader", 403), ("stranger", 404)):
        assert listed(who).status_code == status
    for query in ({"limit": "0"}, {"limit": "501"}, {"limit": "x"}, {"cursor": "-1"}, {"cursor": "9" * 19}):
        assert listed("admin", **query).status_code == 400


def test_a_list_since_a_time_ends_there(place: RevocationClient) -> None:
    headers = place.world.people["auditor"].headers
    place.issue("member", "eip")
    made = place.post("admin", place.own("/revoke", "eip")).json()

    def listed(**query: str) -> httpx2.Response:
        return place.client.get(f"{OWN}/revocations", params=query, headers=headers)

    body = listed(since=made["at"], limit="1").json()
    assert [each["id"] for each in body["revocations"]] == [made["id"]]
    assert listed(since="2999-01-01T00:00:00Z").json() == {"revocations": [], "next": None}
    assert listed(since="yesterday").status_code == 400


# --- users whom the service, or the caller, does not know ---------------------------------------------------------

NEVER_SEEN = "5eed" * 8


def recorded(place: RevocationClient) -> tuple[object, ...]:
    """Return all data that a revocation writes."""
    store = Store(place.world.settings().store_url)
    return (
        store.rows("SELECT id, user_id FROM revocation"),
        store.rows("SELECT value FROM generation"),
        len(place.events("user.revoked")),
    )


@pytest.mark.parametrize("field", ["userId", "agencyId"])
def test_an_admin_stores_no_revocation_of_an_id_that_was_never_seen(
    place: RevocationClient, field: str
) -> None:
    before = recorded(place)
    path = place.world.path("plain", "/clustercertrevoke")
    for user_id in (NEVER_SEEN, "a name that nobody has", field):
        answer = place.post("admin", path, {field: user_id})
        assert (answer.status_code, answer.content) == (200, b"")
    assert recorded(place) == before


def test_an_operator_stores_a_revocation_of_any_id(place: RevocationClient) -> None:
    path = place.world.path("plain", "/clustercertrevoke")
    for number, user_id in enumerate((f"{1:032x}", f"{2:032x}")):
        own = place.own(f"/users/{user_id}/revoke")
        answer = place.post("operator", own) if number else place.post("operator", path, {"userId": user_id})
        assert answer.status_code == 200
        stored = Store(place.world.settings().store_url).rows(
            "SELECT cluster_id FROM revocation WHERE user_id = ?", user_id
        )
        assert stored == [(place.world.clusters["plain"].id,)]


def test_an_admin_revokes_a_deleted_user_by_id_in_cces_call(tmp_path: Path) -> None:
    """Source: CCE API reference, "Revoking Cluster Certificates": the user may already be deleted."""
    world = worlds.make(tmp_path)
    with Service(world.settings()).running() as service:
        place = RevocationClient(world, service.client)
        leaver = world.people["member"].user

        async def go(components: Components) -> None:
            await components.identity.directory.remove_user(leaver, actor=Actor(ACTOR, ORIGIN))

        place.operate(go)
        before = recorded(place)
        assert place.clustercertrevoke("admin", "member").status_code == 200
        assert recorded(place) != before


def test_our_own_api_knows_no_user_whom_the_admin_cant_see(place: RevocationClient) -> None:
    place.issue("stranger", "foreign")
    before = recorded(place)
    answers = [
        place.client.post(
            place.own(f"/users/{user_id}/revoke"), params=query, headers=place.world.people["admin"].headers
        )
        for user_id in (NEVER_SEEN, place.user("stranger"))
        for query in ({}, {"dryRun": "All"})
    ]
    assert [answer.status_code for answer in answers] == [404] * 4
    text = (
        f"No user with the id {NEVER_SEEN} has a role in this project, or had a certificate for one of its clusters."
        " `clustercert certificate list --cluster CLUSTER` shows the ids of users with certificates."
    )
    texts = {answer.json()["errorMessage"].replace(place.user("stranger"), NEVER_SEEN) for answer in answers}
    assert texts == {text}
    assert recorded(place) == before


def test_an_admin_revokes_a_member_without_certificates(tmp_path: Path) -> None:
    world = worlds.make(tmp_path)
    with Service(world.settings()).running() as service:
        place = RevocationClient(world, service.client)
        path = place.own(f"/users/{place.user('member')}/revoke")
        assert place.post("admin", path).json()["user_id"] == place.user("member")


# --- limits --------------------------------------------------------------------------------------------------------


def test_revocations_beyond_a_rate_are_a_429_but_not_for_operators(tmp_path: Path) -> None:
    world = worlds.make(tmp_path)
    limits = {"revocations": "4/1h", "project_revocations": "3/1h"}
    with Service(world.settings(limits=limits)).running() as service:
        place = RevocationClient(world, service.client)
        certificate, own = place.issue("reader"), place.issue("member")
        one = place.own(f"/certificates/{fingerprint(certificate).hex()}/revoke")
        unknown = place.post("admin", place.world.path("plain", "/clustercertrevoke"), {"userId": NEVER_SEEN})
        statuses = [place.post("admin", path).status_code for path in (one, place.own("/users/x/revoke"))]
        assert [unknown.status_code, *statuses] == [200, 200, 404]
        # Of the project's three, the admin has used all. Of the admin's own four, one is left.
        everywhere = f"{OWN}/users/{place.user('admin')}/revoke"
        for path in (one, place.own("/revoke"), f"{OWN}/certificates/{fingerprint(own).hex()}/revoke"):
            refused = place.post("admin", path)
            assert (refused.status_code, refused.json()["errorCode"]) == (429, "CCE.02429001")
            assert refused.json()["errorMessage"].startswith("The admins of this project sent too many")
            assert 0 < int(refused.headers["Retry-After"]) <= 1200
        assert place.post("admin", everywhere).status_code == 200
        refused = place.post("admin", everywhere)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "900")
        assert refused.json()["errorMessage"].startswith(
            "You sent too many revocations. Try again in 15 minutes"
        )
        # What the project's admins did stops neither its members, nor operators, nor a logout.
        assert place.clustercertrevoke("member", "member").status_code == 200
        for _ in range(5):
            assert place.post("operator", one).status_code == 200
            assert place.post("operator", place.own("/revoke")).status_code == 200
        blocked = place.post("operator", f"{OWN}/users/{place.user('reader')}/block")
        assert blocked.status_code == 200
        assert place.post("admin", f"{OWN}/caller/logout", {}).status_code == 200
        assert place.states(certificate, own) == ["revoked", "revoked"]


# --- undoing ---------------------------------------------------------------------------------------------------------


def test_an_operator_undoes(place: RevocationClient) -> None:
    certificate = place.issue("member")
    path = place.own(f"/certificates/{fingerprint(certificate).hex()}/revoke")
    made = place.post("admin", path).json()
    undo = f"{OWN}/revocations/{made['id']}/undo"
    for who in ("admin", "member", "stranger"):
        assert place.post(who, undo).status_code == 403
    answer = place.post("operator", undo)
    assert answer.status_code == 200
    said = answer.json()
    enforcement: dict[str, object] = {
        "enforcement": "none",
        "webhook_called_at": None,
        "enforced_by": [],
        "refuses": "none",
        "within_seconds": None,
        "expected_by": None,
        "lacking": None,
        "does_not_stop": None,
    }
    assert {**said, "undone_at": None, **enforcement} == {
        **made,
        "undone_by": place.user("operator"),
        "can_be_undone": False,
    }
    assert place.state(certificate) == "live"
    again = place.post("operator", undo)
    assert (again.status_code, again.json()["errorCode"]) == (409, "CCE.01409001")
    assert place.events("revocation.undone")[-1]["detail"]["revoked_by"] == place.user("admin")
    assert place.post("admin", path).json()["id"] > made["id"]
    assert place.state(certificate) == "revoked"


def test_what_a_compromised_key_revoked_stays_revoked(place: RevocationClient) -> None:
    certificate = place.issue("member")
    path = place.own(f"/certificates/{fingerprint(certificate).hex()}/revoke")
    weak = place.post("member", path).json()
    strong = place.post("member", path, {"reason": "keyCompromise"}).json()
    assert (weak["can_be_undone"], strong["can_be_undone"]) == (True, False)
    assert weak["id"] != strong["id"]
    assert place.post("operator", f"{OWN}/revocations/{strong['id']}/undo").status_code == 409
    assert place.post("operator", f"{OWN}/revocations/{weak['id']}/undo").status_code == 200
    assert place.state(certificate) == "revoked"


@pytest.mark.parametrize("wanted", ["0", "x", "-1", "9" * 18, "9" * 30, "1.0", "%20"])
def test_there_is_no_such_revocation(place: RevocationClient, wanted: str) -> None:
    assert place.post("operator", f"{OWN}/revocations/{wanted}/undo").status_code == 404


def test_after_the_window_nothing_is_undone(place: RevocationClient) -> None:
    with Service(place.world.settings(revocation={"undo_window": "0s"})).running() as service:
        strict = RevocationClient(place.world, service.client)
        certificate = strict.issue("member")
        made = strict.post("member", strict.own(f"/certificates/{fingerprint(certificate).hex()}/revoke"))
        answer = strict.post("operator", f"{OWN}/revocations/{made.json()['id']}/undo")
    assert answer.status_code == 409
    assert "revocation.undo_window" in answer.json()["errorMessage"]
    assert place.state(certificate) == "revoked"


# --- disabled and deleted users --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["disabled", "removed"])
def test_a_user_who_goes_has_nothing_that_is_good(tmp_path: Path, what: str) -> None:
    world = worlds.make(tmp_path)
    with Service(world.settings()).running() as service:
        place = RevocationClient(world, service.client)
        theirs, others = [place.issue("member", name) for name in ("plain", "eip")], place.issue("admin")
        leaver = world.people["member"].user

        async def go(components: Components) -> None:
            directory = components.identity.directory
            if what == "disabled":
                await directory.enable_user(leaver, enabled=False, actor=Actor(ACTOR, ORIGIN))
            else:
                await directory.remove_user(leaver, actor=Actor(ACTOR, ORIGIN))

        place.operate(go)
        assert place.states(*theirs, others) == ["revoked", "revoked", "live"]
        path = f"{OWN}/users/{leaver.id}/revocations"
        [listed] = place.client.get(path, headers=world.people["operator"].headers).json()["revocations"]
        assert (listed["by"], listed["by_name"], listed["reason"], listed["note"]) == (
            ACTOR,
            None,
            "cessationOfOperation",
            f"user.{what}",
        )
        undo = place.post("operator", f"{OWN}/revocations/{listed['id']}/undo")
        assert (undo.status_code, listed["can_be_undone"]) == (409, False)
        assert [said["kind"] for said in place.events("user.disabled", "user.removed", "user.revoked")] == [
            f"user.{what}",
            "user.revoked",
        ]


# --- Repetitions -----------------------------------------------------------------------------------------------------


def generation(place: RevocationClient) -> object:
    [(value,)] = Store(place.world.settings().store_url).rows("SELECT value FROM generation")
    return value


def test_repeating_a_revocation_that_covers_everything_raises_no_generation(place: RevocationClient) -> None:
    first = place.issue("member")
    assert place.clustercertrevoke("member", "member").status_code == 200
    before = generation(place), len(place.events("user.revoked"))
    assert {place.clustercertrevoke("member", "member").status_code for _ in range(200)} == {200}
    assert (generation(place), len(place.events("user.revoked"))) == before
    # A certificate that was issued meanwhile is revoked by the next repetition.
    second = place.issue("member")
    assert place.clustercertrevoke("member", "member").status_code == 200
    assert generation(place) != before[0]
    assert place.states(first, second) == ["revoked", "revoked"]


def test_a_revocation_by_another_person_counts_on_its_own(place: RevocationClient) -> None:
    assert place.clustercertrevoke("member", "member").status_code == 200
    before = generation(place)
    assert place.clustercertrevoke("admin", "member").status_code == 200
    assert generation(place) != before


def test_a_stronger_reason_and_an_undone_revocation_are_no_repetitions(place: RevocationClient) -> None:
    theirs = place.issue("member")
    path = place.own("/revoke")
    made = place.post("admin", path, {"reason": "superseded"})
    assert place.post("admin", path, {"reason": "superseded"}).json() == made.json()
    undone = place.post("operator", f"{OWN}/revocations/{made.json()['id']}/undo")
    assert (undone.status_code, place.state(theirs)) == (200, "live")
    again = place.post("admin", path, {"reason": "superseded"})
    stronger = place.post("admin", path, {"reason": "keyCompromise"})
    assert len({response.json()["id"] for response in (made, again, stronger)}) == 3
    assert place.state(theirs) == "revoked"

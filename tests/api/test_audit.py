"""The audit log over HTTP: public routes, who can see which event, and verification of every proof."""

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from clustercert.merkle.notes import VerifierKey, verify_checkpoint
from clustercert.merkle.tiles import ENTRIES, TileId, TilePath, all_tiles, decode_bundle
from clustercert.merkle.tree import leaf_hash, verify_consistency, verify_inclusion
from support import world as worlds
from support.audit_api import EVERYWHERE, LOG, got, head, issue, of_project, sealed
from support.merkle_frontier import Frontier
from support.sealer_process import root
from support.service import Service
from support.stores import rows
from support.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world of its own, whose log is small and has events only from this module."""
    return worlds.make(tmp_path_factory.mktemp("audited"))


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx2.Client]:
    with Service(world.settings()).running() as service:
        # The tests assume a log with events, whichever is run first.
        head(service.client)
        yield service.client


def walked(
    client: httpx2.Client, world: World, path: str, who: str, **query: str
) -> Iterator[dict[str, Any]]:
    """Yield all events in a list, page by page."""
    cursor: str | None = None
    while True:
        page = got(client, world, path, who, **query, **({"cursor": cursor} if cursor else {}))
        yield from page["events"]
        cursor = page["next"]
        if cursor is None:
            return


def test_an_event_is_sealed_and_its_commitment_is_that_of_its_text(
    client: httpx2.Client, world: World
) -> None:
    fingerprint = issue(client, world)
    event = sealed(client, world, fingerprint)
    assert (event["kind"], event["project_id"]) == ("certificate.issued", world.project.id)
    assert (event["actor"], event["subject"]) == (world.people["admin"].user.id, fingerprint)
    said = json.loads(event["canonical"])
    assert said == {name: event[name] for name in said}
    canonical = event["canonical"].encode()
    assert hashlib.sha256(bytes.fromhex(event["salt"]) + canonical).hexdigest() == event["commitment"]
    names = {event["actor"]: "tests/admin", event["project_id"]: "tests/eu-de"}
    assert got(client, world, f"{EVERYWHERE}/{event['leaf_index']}") == event | {"names": names}
    of_admin = got(client, world, f"{of_project(world)}/{event['leaf_index']}", "admin")
    assert of_admin == event | {"names": {}}


def test_the_tiles_are_those_of_the_checkpoint(client: httpx2.Client, world: World) -> None:
    sealed(client, world, issue(client, world))
    checkpoint = head(client)
    frontier, leaves = Frontier(), list[bytes]()
    for path in all_tiles(checkpoint.size):
        response = client.get(f"{LOG}/tile/{path}")
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        if path.tile.level == ENTRIES:
            leaves += decode_bundle(response.content)
        elif path.tile.level == 0:
            hashes = [response.content[at : at + 32] for at in range(0, len(response.content), 32)]
            assert len(hashes) == path.width
            for each in hashes:
                frontier.append(each)
    assert (len(leaves), frontier.root()) == (checkpoint.size, checkpoint.root)
    assert root(leaves) == checkpoint.root


def test_a_tile_can_be_had_as_narrow_as_an_older_log_had_it(client: httpx2.Client, world: World) -> None:
    sealed(client, world, issue(client, world))
    size = head(client).size
    widest = client.get(f"{LOG}/tile/{TilePath(TileId(0, 0), min(size, 255))}").content
    for width in range(1, min(size, 40)):
        assert client.get(f"{LOG}/tile/0/000.p/{width}").content == widest[: 32 * width]
        assert len(client.get(f"{LOG}/tile/entries/000.p/{width}").content) == 34 * width


@pytest.mark.parametrize(
    "path",
    [
        "0/000",
        "0/999",
        "1/000",
        "0/000.p/0",
        "63/000",
        "entries/001",
        "x",
        "",
        "0/../key",
        "0/000.p/256",
        "-1/000",
    ],
)
def test_what_is_no_tile_of_the_log_is_not_found(client: httpx2.Client, world: World, path: str) -> None:
    assert head(client).size < 256, "the tests issue fewer certificates"
    response = client.get(f"{LOG}/tile/{path}")
    assert response.status_code == 404, response.text
    assert "errorCode" in response.json()


def test_an_event_is_proved_to_be_in_the_log(client: httpx2.Client, world: World) -> None:
    event = sealed(client, world, issue(client, world))
    key = VerifierKey.parse(client.get(f"{LOG}/key").text)
    for path, who in ((EVERYWHERE, "operator"), (of_project(world), "admin")):
        proof = got(client, world, f"{path}/{event['leaf_index']}/proof", who)
        checkpoint = verify_checkpoint(proof["checkpoint"], key)
        assert (proof["tree_size"], proof["root"]) == (checkpoint.size, checkpoint.root.hex())
        assert (proof["leaf_index"], proof["commitment"]) == (event["leaf_index"], event["commitment"])
        leaf = leaf_hash(bytes.fromhex(event["commitment"]))
        assert proof["leaf_hash"] == leaf.hex()
        hashes = [bytes.fromhex(each) for each in proof["hashes"]]
        verify_inclusion(leaf, event["leaf_index"], checkpoint.size, hashes, checkpoint.root)


def test_an_event_is_proved_against_an_older_checkpoint(client: httpx2.Client, world: World) -> None:
    event = sealed(client, world, issue(client, world))
    older = head(client)
    sealed(client, world, issue(client, world))
    path = f"{EVERYWHERE}/{event['leaf_index']}/proof"
    proof = got(client, world, path, size=str(older.size))
    hashes = [bytes.fromhex(each) for each in proof["hashes"]]
    leaf = leaf_hash(bytes.fromhex(event["commitment"]))
    verify_inclusion(leaf, event["leaf_index"], older.size, hashes, older.root)
    headers = world.people["operator"].headers
    assert client.get(path, params={"size": str(10**9)}, headers=headers).status_code == 404
    assert client.get(path, params={"size": "x"}, headers=headers).status_code == 400
    # The first checkpoint was made before this event happened.
    [(first,)] = rows(world.database, "SELECT min(size) FROM audit_checkpoint")
    refused = client.get(path, params={"size": str(first)}, headers=headers)
    assert refused.status_code == 400
    assert "larger" in refused.json()["message"]


def test_a_proof_can_be_kept_as_a_file_that_says_it_all(client: httpx2.Client, world: World) -> None:
    event = sealed(client, world, issue(client, world))
    headers = world.people["operator"].headers | {"Accept": "text/plain"}
    response = client.get(f"{EVERYWHERE}/{event['leaf_index']}/proof", headers=headers)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    proof, _, note = response.text.partition("\n\n")
    version, extra, index, *hashes = proof.split("\n")
    assert version == "c2sp.org/tlog-proof@v1"
    leaf = hashlib.sha256(base64.b64decode(extra.removeprefix("extra "))).digest()
    checkpoint = verify_checkpoint(note, VerifierKey.parse(client.get(f"{LOG}/key").text))
    verify_inclusion(
        leaf_hash(leaf),
        int(index.removeprefix("index ")),
        checkpoint.size,
        [base64.b64decode(each) for each in hashes],
        checkpoint.root,
    )


def test_the_log_is_proved_to_have_only_grown(client: httpx2.Client, world: World) -> None:
    sealed(client, world, issue(client, world))
    older = head(client)
    sealed(client, world, issue(client, world))
    newer = head(client)
    response = client.get(f"{LOG}/consistency", params={"from": older.size, "to": newer.size})
    body = response.json()
    assert (body["from"], body["to"]) == (older.size, newer.size)
    hashes = [bytes.fromhex(each) for each in body["hashes"]]
    verify_consistency(older.size, older.root, newer.size, newer.root, hashes)
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 400),
        ({"from": "1"}, 400),
        ({"from": "2", "to": "1"}, 400),
        ({"from": "-1", "to": "1"}, 400),
        ({"from": "1", "to": "x"}, 400),
        ({"from": "1", "to": "9" * 30}, 400),
        ({"from": "1", "to": "999999999"}, 404),
        ({"from": "0", "to": "1"}, 200),
        ({"from": "1", "to": "1"}, 200),
    ],
)
def test_sizes_that_prove_nothing_are_refused(
    client: httpx2.Client, query: dict[str, str], status: int
) -> None:
    assert head(client).size > 1
    assert client.get(f"{LOG}/consistency", params=query).status_code == status


@pytest.mark.parametrize(
    ("who", "project", "everywhere"),
    [
        ("operator", 200, 200),
        ("admin", 200, 403),
        ("member", 403, 403),
        ("reader", 403, 403),
        ("inspector", 403, 403),
        ("auditor", 200, 200),
        ("stranger", 404, 403),
        (None, 401, 401),
    ],
)
def test_events_are_for_the_projects_admins_and_operators(
    client: httpx2.Client, world: World, who: str | None, project: int, everywhere: int
) -> None:
    event = sealed(client, world, issue(client, world))
    headers = world.people[who].headers if who else {}
    for path, status in ((of_project(world), project), (EVERYWHERE, everywhere)):
        for tail in ("", f"/{event['leaf_index']}", f"/{event['leaf_index']}/proof"):
            assert client.get(path + tail, headers=headers).status_code == status, path + tail


def test_a_projects_events_are_its_own(client: httpx2.Client, world: World) -> None:
    foreign = world.clusters["foreign"]
    event = sealed(client, world, foreign.id, kind="cluster.added")
    assert event["project_id"] == world.other_project.id
    admin = world.people["admin"].headers
    for tail in ("", "/proof"):
        assert (
            client.get(f"{of_project(world)}/{event['leaf_index']}{tail}", headers=admin).status_code == 404
        )
    seen = list(walked(client, world, of_project(world), "admin", limit="50"))
    assert {each["project_id"] for each in seen} == {world.project.id}
    everything = list(walked(client, world, EVERYWHERE, "operator"))
    assert {each["project_id"] for each in everything} >= {world.project.id, world.other_project.id, None}
    # Events from other tests may have been sealed in the meantime.
    until = max(each["leaf_index"] for each in seen)
    known = [each for each in everything if each["leaf_index"] <= until]
    assert [each for each in known if each["project_id"] == world.project.id] == seen


def test_both_orders_walk_the_same_events_and_pages_leave_nothing_out(
    client: httpx2.Client, world: World
) -> None:
    sealed(client, world, issue(client, world))
    until = head(client).size
    places = [
        [
            event["leaf_index"]
            for event in walked(client, world, EVERYWHERE, "operator", limit="7", order=order)
        ]
        for order in ("oldest", "newest")
    ]
    assert places[0][:until] == list(range(until))
    assert places[1][-until:] == list(range(until))[::-1]


def test_who_goes_on_behind_the_last_event_sees_what_came_since(client: httpx2.Client, world: World) -> None:
    last = sealed(client, world, issue(client, world))
    fingerprint = issue(client, world)
    sealed(client, world, fingerprint)
    page = got(client, world, EVERYWHERE, order="oldest", cursor=str(last["leaf_index"]))
    assert page["events"][0]["leaf_index"] == last["leaf_index"] + 1
    assert fingerprint in [event["subject"] for event in page["events"]]
    assert page["next"] is None


def test_a_list_names_users_and_places_for_those_who_see_everything(
    client: httpx2.Client, world: World
) -> None:
    event = sealed(client, world, issue(client, world))
    at = {"order": "oldest", "cursor": str(event["leaf_index"] - 1), "limit": "1"}
    user, project = world.people["admin"].user, world.project
    for who in ("operator", "auditor"):
        names = got(client, world, EVERYWHERE, who, **at)["names"]
        assert names == {user.id: user.shown_name, project.id: f"{project.domain.name}/{project.name}"}
    names = got(client, world, EVERYWHERE, kind="cluster.added")["names"]
    assert names[world.clusters["plain"].id] == f"{project.domain.name}/{project.name}/plain"
    assert names[world.clusters["foreign"].id].endswith(f"/{world.other_project.name}/foreign")
    # An admin could record an event about any user's id.
    assert got(client, world, of_project(world), "admin", **at)["names"] == {}


def test_events_are_found_by_kind_actor_and_time(client: httpx2.Client, world: World) -> None:
    event = sealed(client, world, issue(client, world, "member"))
    member = world.people["member"].user.id
    for query, kinds in (
        ({"kind": "certificate.issued"}, {"certificate.issued"}),
        ({"kind": "cluster.*"}, {"cluster.added"}),
        ({"kind": "cluster"}, set()),
        ({"kind": "%"}, set()),
        ({"actor": member, "kind": "certificate.i*"}, {"certificate.issued"}),
        ({"actor": member, "kind": "cluster.*"}, set()),
        ({"since": event["at"], "until": event["at"], "actor": member}, {"certificate.issued"}),
        ({"until": "2020-01-01T00:00:00Z"}, set()),
        ({"since": "2999-01-01T00:00:00Z"}, set()),
    ):
        found = list(walked(client, world, EVERYWHERE, "operator", **query))
        assert {each["kind"] for each in found} == kinds, query
    everything = list(walked(client, world, EVERYWHERE, "operator"))
    since = list(walked(client, world, EVERYWHERE, "operator", since=event["at"]))
    # Other events may have been sealed in the meantime.
    until = max(each["leaf_index"] for each in everything)
    known = [each for each in since if each["leaf_index"] <= until]
    assert known == [each for each in everything if each["at"] >= event["at"]]


def test_events_are_found_by_the_user_and_the_cluster_that_they_mention(
    client: httpx2.Client, world: World
) -> None:
    fingerprint = issue(client, world, "member")
    sealed(client, world, fingerprint)
    admin = world.people["admin"].headers
    cluster = f"/clustercert/v1/projects/{world.project.id}/clusters/{world.clusters['plain'].id}"
    assert client.post(f"{cluster}/certificates/{fingerprint}/revoke", headers=admin).status_code == 200
    sealed(client, world, fingerprint, kind="certificate.revoked")
    member, plain, foreign = (
        world.people["member"].user.id,
        world.clusters["plain"].id,
        world.clusters["foreign"].id,
    )
    about = {"subject": fingerprint}
    both = ["certificate.revoked", "certificate.issued"]
    for query, kinds in (
        ({"user_id": member, "cluster_id": plain} | about, both),
        ({"user_id": member, "cluster_id": foreign} | about, []),
        ({"user_id": world.people["reader"].user.id} | about, []),
        ({"access_request_id": "f" * 32}, []),
    ):
        for each, who in ((EVERYWHERE, "operator"), (of_project(world), "admin")):
            assert [event["kind"] for event in walked(client, world, each, who, **query)] == kinds, query
    revoked = got(client, world, EVERYWHERE, subject=fingerprint, kind="certificate.revoked")
    assert revoked["names"][member] == "tests/member"


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:05:00Z", "9999-12-31T23:54:59Z"]
)
def test_a_time_at_the_end_of_the_calendar_is_a_time(
    client: httpx2.Client, world: World, name: str, time: str
) -> None:
    response = client.get(EVERYWHERE, headers=world.people["operator"].headers, params={name: time})
    assert response.status_code == 200
    assert bool(response.json()["events"]) == (time.startswith("0001") == (name == "since"))


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "501"},
        {"limit": "x"},
        {"cursor": "-1"},
        {"user_id": "alice"},
        {"cluster_id": ""},
        {"access_request_id": "F" * 32},
        {"cursor": "9" * 30},
        {"order": "random"},
        {"since": "yesterday"},
        {"until": "2027-01-01"},
        {"kind": ""},
        {"actor": "x" * 300},
        {"subject": "a\nb"},
        {"kinds": "certificate.issued"},
    ],
)
def test_a_question_that_makes_no_sense_is_refused_by_name(
    client: httpx2.Client, world: World, query: dict[str, str]
) -> None:
    response = client.get(EVERYWHERE, headers=world.people["operator"].headers, params=query)
    assert response.status_code == 400
    [name] = query
    assert ("query parameter" if name == "kinds" else name) in response.json()["message"]


@pytest.mark.parametrize("event_id", ["999999999", "x", "-1", "9" * 30])
def test_no_such_event_is_not_found(client: httpx2.Client, world: World, event_id: str) -> None:
    for tail in ("", "/proof"):
        response = client.get(f"{EVERYWHERE}/{event_id}{tail}", headers=world.people["operator"].headers)
        assert response.status_code == 404

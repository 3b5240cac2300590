"""The webhooks over HTTP: the whole application and real certificates."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.x509.oid import NameOID

from clustercert.http.webhook import MAX_REVIEW
from clustercert.model import Actor, Cluster, ClusterOptions, Origin
from clustercert.store.kubernetes.credential_cache import RevocationFeed
from clustercert.wiring import Components, open_components
from support import programs, stores
from support import world as worlds
from support.kubernetes_messages import audit_event, credential_id, event_list, review
from support.leaf_checks import credential_number_of, leaf_of
from support.service import Service
from support.stores import event
from support.wait import SECONDS, eventually
from support.world import ACTOR, World

ORIGIN = Origin(address="local", request_id="e" * 32)


@dataclass(frozen=True)
class Shown:
    """A certificate as an API server describes it."""

    fingerprint: bytes
    user: str
    groups: tuple[str, ...]

    @property
    def id(self) -> str:
        return credential_id(self.fingerprint)

    @property
    def identity(self) -> dict[str, Any]:
        """User name and groups."""
        return {"user": self.user, "groups": self.groups}

    @property
    def review(self) -> bytes:
        return review(self.id, **self.identity)

    def event(self, **said: Any) -> dict[str, object]:
        return audit_event(self.id, **(self.identity | said))


@dataclass(frozen=True)
class ApiServer:
    """The API server of a cluster, as a client of the webhooks."""

    service: Service
    world: World
    cluster: Cluster
    token: str

    @property
    def path(self) -> str:
        return f"/clustercert/v1/kubernetes/clusters/{self.cluster.id}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}

    def post(self, raw: bytes, tail: str = "/authorize?timeout=3s", **headers: str) -> httpx2.Response:
        return self.service.client.post(self.path + tail, content=raw, headers=self.headers | headers)

    def status(self, *credential_ids: str, **said: object) -> dict[str, object]:
        """The status in the answer."""
        answer = self.post(review(*credential_ids, **said))  # type: ignore[arg-type] # as a test says it
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert document.keys() == {"apiVersion", "kind", "status"}
        assert (document["apiVersion"], document["kind"]) == (
            "authorization.k8s.io/v1",
            "SubjectAccessReview",
        )
        status: dict[str, object] = document["status"]
        assert status["allowed"] is False
        return status

    def issue(self, person: str = "admin") -> Shown:
        """A new certificate."""
        path = f"/api/v3/projects/{self.cluster.project_id}/clusters/{self.cluster.id}/clustercert"
        headers = self.world.people[person].headers
        answer = self.service.client.post(path, json={"duration": 1}, headers=headers)
        assert answer.status_code == 200, answer.text
        leaf = leaf_of(answer.json())
        assert credential_number_of(leaf) == answer.headers["X-Clustercert-Serial"]
        return Shown(
            fingerprint=bytes.fromhex(answer.headers["X-Clustercert-Fingerprint"]),
            user=self.world.people[person].user.id,
            groups=tuple(
                str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
            ),
        )

    def judged(self, shown: Shown, **said: object) -> dict[str, object]:
        """The status in the answer for a certificate."""
        return self.status(shown.id, **(shown.identity | said))

    def revoke(self, shown: Shown) -> None:
        cluster = f"/projects/{self.cluster.project_id}/clusters/{self.cluster.id}"
        path = f"/clustercert/v1{cluster}/certificates/{shown.fingerprint.hex()}/revoke"
        answer = self.service.client.post(path, json={}, headers=self.world.people["admin"].headers)
        assert answer.is_success, answer.text

    def revoke_all_of(self, person: str) -> None:
        path = f"/api/v3/projects/{self.cluster.project_id}/clusters/{self.cluster.id}/clustercertrevoke"
        user = self.world.people[person].user
        answer = self.service.client.post(
            path, json={"userId": user.id}, headers=self.world.people["admin"].headers
        )
        assert answer.status_code == 200, answer.text


def operated(own: World, work: Callable[[Components], Awaitable[None]]) -> None:
    """Run work of the operator, as in another process."""

    async def opened() -> None:
        async with open_components(own.settings()) as components:
            await work(components)

    asyncio.run(opened())


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("webhook"))


@pytest.fixture(scope="module")
def running(own: World) -> Iterator[Service]:
    with Service(own.settings()).running() as service:
        yield service


def api_server(own: World, running: Service, name: str) -> ApiServer:
    texts: list[str] = []

    async def create(components: Components) -> None:
        issued = await components.webhook.tokens.create(own.clusters[name], actor=Actor(ACTOR, ORIGIN))
        texts.append(issued.text)

    operated(own, create)
    return ApiServer(running, own, own.clusters[name], texts[0])


@pytest.fixture(scope="module")
def default(own: World, running: Service) -> ApiServer:
    return api_server(own, running, "plain")


@pytest.fixture(scope="module")
def foreign(own: World, running: Service) -> ApiServer:
    return api_server(own, running, "foreign")


@pytest.fixture(scope="module")
def known_only(own: World, running: Service) -> ApiServer:
    options = ClusterOptions(
        mode="known-only",
        exemptions=("system:nodes", "system:kube-scheduler"),
        pins=(PINNED.hex(),),
        pin_components=True,
    )
    guarded = replace(own.clusters["eip"], options=options)

    async def guard(components: Components) -> None:
        await components.clusters.queries.replace(guarded, event("cluster.updated"))

    operated(own, guard)
    return api_server(own, running, "eip")


NO_OPINION: dict[str, object] = {"allowed": False}
PINNED = bytes(range(32))


def test_a_valid_certificate_gets_no_opinion(default: ApiServer) -> None:
    shown = default.issue()
    for release in ("1.32", "1.36"):
        assert default.judged(shown, release=release) == NO_OPINION
    # Before 1.32 it sends no credential id.
    assert default.status(**shown.identity) == NO_OPINION


def test_a_revoked_certificate_is_denied_within_a_second(default: ApiServer) -> None:
    shown, others = default.issue("member"), default.issue("reader")
    assert default.judged(shown) == NO_OPINION
    default.revoke_all_of("member")
    eventually(lambda: default.judged(shown) != NO_OPINION)
    status = default.judged(shown)
    assert status == {
        "allowed": False,
        "denied": True,
        "reason": "This certificate was revoked. Get another one: for kubectl's plugin, run"
        " `clustercert credential CLUSTER --refresh >/dev/null`; for a file, `clustercert kubeconfig get`.",
    }
    assert default.status(**shown.identity) == status
    assert default.judged(others) == NO_OPINION
    assert default.judged(default.issue("member")) == NO_OPINION


def test_the_denial_of_one_revoked_certificate_says_when(default: ApiServer) -> None:
    revoked, good = default.issue("reader"), default.issue("reader")
    default.revoke(revoked)
    eventually(lambda: default.judged(revoked) != NO_OPINION)
    assert str(default.judged(revoked)["reason"]).startswith("This certificate was revoked on 20")
    assert default.judged(good) == NO_OPINION


def test_one_denied_id_denies_in_any_order(known_only: ApiServer) -> None:
    """For certificates without a credential group; otherwise a second id means an altered copy."""
    scheduler: dict[str, object] = {"user": "system:kube-scheduler", "groups": []}
    pinned, other = credential_id(PINNED), credential_id(os.urandom(32))
    assert known_only.status(pinned, **scheduler) == NO_OPINION
    status = known_only.status(pinned, other, **scheduler)
    assert status["denied"] is True
    assert status == known_only.status(other, pinned, **scheduler)


def test_altered_copies_and_forged_identities_are_denied(default: ApiServer) -> None:
    shown = default.issue()
    altered = default.judged(replace(shown, fingerprint=os.urandom(32)))
    assert altered["denied"] is True
    assert "altered copy" in str(altered["reason"])
    for id_too in ("X509SHA256=AB", credential_id(os.urandom(32))):
        assert default.status(shown.id, id_too, **shown.identity) == altered
    for forged in (
        default.judged(shown, user="bob"),
        default.judged(shown, groups=[*shown.groups, "system:masters"]),
        default.judged(shown, groups=shown.groups[-1:]),
        default.status(shown.id, "JTI=7f3d1a52", **shown.identity),
        default.status("JTI=7f3d1a52", **shown.identity),
    ):
        assert forged["denied"] is True
        assert "does not match its credential number" in str(forged["reason"])
    assert default.judged(shown) == NO_OPINION


def test_an_unknown_number_is_denied_despite_exemptions(default: ApiServer, known_only: ApiServer) -> None:
    for server in (default, known_only):
        for credential in (credential_id(os.urandom(32)), None):
            ids = [credential] if credential else []
            groups = ["system:nodes", "clustercert:credential:" + "0" * 40]
            status = server.status(*ids, user="system:node:n1", groups=groups)
            assert status["denied"] is True
            assert "not in the ledger" in str(status["reason"])


def test_a_certificate_of_another_cluster_is_denied(default: ApiServer, foreign: ApiServer) -> None:
    shown = foreign.issue("stranger")
    assert foreign.judged(shown) == NO_OPINION
    status = default.judged(shown)
    assert status == default.status(**shown.identity)
    assert status["denied"] is True
    assert "another cluster" in str(status["reason"])
    assert foreign.cluster.id not in str(status)
    assert foreign.cluster.name not in str(status)


def test_unknown_certificates_get_no_opinion_by_default(default: ApiServer) -> None:
    for credential in (credential_id(os.urandom(32)), "X509SHA256=AB", "JTI=7f3d1a52", ""):
        assert default.status(credential) == NO_OPINION
    assert default.status() == NO_OPINION


def test_known_only_denies_unknown_certificates(known_only: ApiServer) -> None:
    assert known_only.judged(known_only.issue()) == NO_OPINION
    shown = known_only.issue("reader")
    assert known_only.judged(shown, groups=shown.groups[:-1])["denied"] is True, (
        "without its credential group"
    )
    for credential in (credential_id(os.urandom(32)), "X509SHA256=AB", f"X509SHA256={'A' * 64}"):
        status = known_only.status(credential)
        assert status["denied"] is True
        assert "only certificates" in str(status["reason"])
        # The helper adds system:authenticated, which every caller has.
        assert known_only.status(credential, groups=["system:unauthenticated"])["denied"] is True
        assert known_only.status(credential, user="system:node:n1", groups=["system:nodes"]) == NO_OPINION
        assert known_only.status(credential, user="system:node:n1", groups=[])["denied"] is True
        assert known_only.status(credential, groups=["system:nodes"])["denied"] is True
        # All groups must be exempt; groups of the policy never are.
        assert known_only.status(credential, user="system:node:n1", groups=["devs"])["denied"] is True
        assert known_only.status(credential, groups=["system:nodes", "devs"])["denied"] is True
        assert known_only.status(credential, groups=["system:nodes", "clustercert:admins"])["denied"] is True
    assert known_only.status("JTI=7f3d1a52") == NO_OPINION
    assert known_only.status() == NO_OPINION


def test_exemptions_do_not_apply_to_issued_certificates(known_only: ApiServer, foreign: ApiServer) -> None:
    elsewhere = foreign.issue("stranger")
    assert known_only.judged(elsewhere)["denied"] is True
    groups = ["system:nodes", elsewhere.groups[-1]]
    assert known_only.judged(elsewhere, user="system:node:n1", groups=groups)["denied"] is True


@pytest.mark.parametrize("tail", ["/authorize", "/audit-events"])
def test_without_a_valid_token_every_answer_is_the_same_401(
    default: ApiServer, foreign: ApiServer, tail: str
) -> None:
    raw = review() if tail == "/authorize" else event_list()
    client, path = default.service.client, default.path + tail
    unknown = path.replace(default.cluster.id, "00000000-0000-4000-8000-000000000000")
    answers = [
        client.post(path, content=raw),
        client.post(path, content=raw, headers={"Authorization": f"Bearer {foreign.token}"}),
        client.post(path, content=raw, headers={"Authorization": f"Basic {default.token}"}),
        client.post(path, content=raw, headers=[(b"Authorization", "Bearer ccw_ä".encode())]),
        client.post(path, content=raw, headers=default.world.people["admin"].headers),
        client.post(path, content=raw, headers=default.world.people["operator"].headers),
        client.post(path, content=raw, headers=[("Authorization", f"Bearer {default.token}")] * 2),
        client.post(unknown, content=raw, headers=default.headers),
        client.post(path.replace(default.cluster.id, "nonsense"), content=raw, headers=default.headers),
        client.post(path.replace(default.cluster.id, "%00"), content=raw, headers=default.headers),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.json()["error_msg"] for answer in answers} == {"Authorization failed."}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        review().replace(b"authorization.k8s.io/v1", b"authorization.k8s.io/v1beta1"),
        review().replace(b'"SubjectAccessReview"', b'"TokenReview"'),
    ],
)
def test_other_documents_are_a_400(default: ApiServer, raw: bytes) -> None:
    answer = default.post(raw)
    assert answer.status_code == 400
    assert answer.json()["errorCode"] == "CCE.01400001"


@pytest.mark.parametrize("length", [MAX_REVIEW + 1, 4 * MAX_REVIEW])
def test_a_review_that_is_too_large_is_denied(default: ApiServer, length: int) -> None:
    """After an error the failurePolicy would decide, and the holder of a revoked certificate could cause one."""
    answer = default.post(review(path="x" * length))
    assert answer.status_code == 200
    assert answer.json()["status"]["denied"] is True
    assert "too large" in answer.json()["status"]["reason"]


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_review_is_answered_in_its_version(default: ApiServer, version: str) -> None:
    """An API server before 1.30 may send v1beta1, and reads no other answer."""
    api_version = f"authorization.k8s.io/{version}"
    shown = default.issue("member")
    default.revoke(shown)
    large = {"nonResourceAttributes": {"path": "x" * MAX_REVIEW}}
    status = {}
    for name, more in (("revoked", {}), ("large", large)):
        document = json.loads(shown.review)
        spec = document["spec"] | more
        if version == "v1beta1":
            spec["group"] = spec.pop("groups")
        raw = json.dumps(document | {"apiVersion": api_version, "spec": spec}).encode()

        def denied(raw: bytes = raw) -> dict[str, object] | None:
            answer = default.post(raw).json()
            assert (answer["apiVersion"], answer["kind"]) == (api_version, "SubjectAccessReview")
            found: dict[str, object] = answer["status"]
            return found if found != NO_OPINION else None

        status[name] = eventually(denied)
    assert "was revoked" in str(status["revoked"])
    assert "too large" in str(status["large"])


def test_a_review_of_maximum_size_is_decided(default: ApiServer) -> None:
    padding = MAX_REVIEW - len(review(path=""))
    assert default.post(review(path="x" * padding)).json()["status"] == NO_OPINION


def test_a_review_in_pieces_is_read_completely(default: ApiServer) -> None:
    raw = default.issue().review
    headers = [(b"authorization", f"Bearer {default.token}".encode()), (b"host", b"localhost")]
    pieces = [raw[:10], b"", raw[10:]]
    answer = default.service.send_raw("POST", f"{default.path}/authorize", headers, pieces)
    assert answer.json()["status"] == NO_OPINION


def test_a_review_that_ends_early_is_a_408(default: ApiServer) -> None:
    headers = [(b"authorization", f"Bearer {default.token}".encode()), (b"host", b"localhost")]
    assert default.service.send_raw("POST", f"{default.path}/authorize", headers, []).status_code == 408


def test_without_database_memory_answers_for_a_second(own: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long, to the millisecond, is tested with the feed's own clock."""
    assert RevocationFeed.STALE_AFTER == 1
    monkeypatch.setattr(RevocationFeed, "STALE_AFTER", 2 * SECONDS)
    reads, refresh = [0], RevocationFeed.refresh

    async def counted(feed: RevocationFeed) -> None:
        await refresh(feed)
        reads[0] += 1

    monkeypatch.setattr(RevocationFeed, "refresh", counted)
    with Service(own.settings()).running() as service:
        server = api_server(own, service, "sans")
        shown, revoked, database = server.issue(), server.issue("member"), own.database
        assert server.judged(shown) == NO_OPINION
        server.revoke(revoked)
        # A revocation that the feed reads after the certificate would make the memory of the certificate unusable.
        enough = reads[0] + 2
        eventually(lambda: reads[0] >= enough)
        denial = eventually(lambda: server.judged(revoked).get("denied") and server.judged(revoked))
        stores.execute(database, "ALTER TABLE generation RENAME TO generation_elsewhere")
        stores.execute(database, "ALTER TABLE certificate RENAME TO certificate_elsewhere")
        try:
            assert server.judged(shown) == NO_OPINION
            monkeypatch.setattr(RevocationFeed, "STALE_AFTER", 0)
            eventually(lambda: server.post(shown.review).status_code == 503)
            assert server.judged(revoked) == denial, "an error could allow it"
            # Whoever has no name of ours is never in the ledger.
            assert server.status(user="system:kube-scheduler", groups=[]) == NO_OPINION
            other = f"Bearer {server.token}x"
            assert server.post(review(), Authorization=other).status_code == 401
            answer = server.post(shown.review)
            assert answer.json()["errorCode"] == "CCE.01503001"
            # A kube-apiserver would wait that long instead of following its failurePolicy.
            assert "Retry-After" not in answer.headers
            told = server.post(event_list(shown.event()), "/audit-events")
            assert told.status_code == 503
            assert "Retry-After" not in told.headers
        finally:
            stores.execute(database, "ALTER TABLE generation_elsewhere RENAME TO generation")
            stores.execute(database, "ALTER TABLE certificate_elsewhere RENAME TO certificate")
        eventually(lambda: server.post(shown.review).status_code == 200)


def test_pending_uses_are_recorded_at_shutdown(own: World) -> None:
    begun = datetime.now(UTC)
    with Service(own.settings()).running() as service:
        server = api_server(own, service, "sans")
        used, told, unused = server.issue(), server.issue(), server.issue()
        server.judged(used)
        log = event_list(
            told.event(at="2026-03-01T10:00:00Z"),
            # Another encoding is the same certificate.
            replace(told, fingerprint=os.urandom(32)).event(at="2026-03-02T10:00:00.000001Z"),
            told.event(at="2999-01-01T00:00:00Z"),
        )
        tells = api_server(own, service, "eip")
        assert tells.post(event_list(), "/audit-events").status_code == 200
        answer = server.post(log, "/audit-events?timeout=30s")
        assert answer.status_code == 200
        assert answer.json() == {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"}
    query = "SELECT first_seen_at, last_seen_at FROM certificate WHERE fingerprint = ?"
    days = {f"{at:%Y-%m-%d}" for at in (begun, datetime.now(UTC))}
    (of_used,) = stores.rows(own.database, query, used.fingerprint)
    assert {str(at)[:10] for at in of_used} <= days
    (of_told,) = stores.rows(own.database, query, told.fingerprint)
    # A time in the future counts as now.
    assert of_told[0] == "2026-03-01 10:00:00.000000"
    assert str(of_told[1])[:10] in days
    assert stores.rows(own.database, query, unused.fingerprint) == [(None, None)]
    events = [
        json.loads(stores.blob(body)) for (body,) in stores.rows(own.database, "SELECT body FROM audit_event")
    ]
    events_of_told = [said for said in events if said["subject"] == told.fingerprint.hex()]
    assert [said["kind"] for said in events_of_told] == ["certificate.issued", "credential.altered"]
    assert events_of_told[1]["detail"]["reported_by"] == "audit-events"
    query = "SELECT last_asked_at FROM webhook_token WHERE cluster_id = ? ORDER BY created_at DESC LIMIT 1"
    [(asked_at,)] = stores.rows(own.database, query, server.cluster.id)
    assert str(asked_at)[:10] in days
    # Audit events do not count as a use of the authorization webhook.
    assert stores.rows(own.database, query, tells.cluster.id) == [(None,)]


def test_audit_events_raise_alerts(own: World) -> None:
    fingerprint = os.urandom(32)
    with Service(own.settings()).running() as service:
        server = api_server(own, service, "foreign")
        seen = audit_event(credential_id(fingerprint), user="kubernetes-admin", groups=["system:masters"])
        assert server.post(event_list(seen), "/audit-events").status_code == 200
    events = [
        json.loads(stores.blob(body)) for (body,) in stores.rows(own.database, "SELECT body FROM audit_event")
    ]
    kinds = [said["kind"] for said in events if said["subject"] == fingerprint.hex()]
    assert kinds == ["credential.unknown", "credential.masters"]


def test_decisions_are_counted_by_outcome(default: ApiServer, foreign: ApiServer) -> None:
    def count(outcome: str) -> float:
        name = f'clustercert_webhook_decisions_total{{outcome="{outcome}"}} '
        lines = default.service.client.get("/metrics").text.splitlines()
        return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    outcomes = ("no_opinion", "other_cluster", "forged", "altered", "unknown")
    before = [count(outcome) for outcome in outcomes]
    shown = default.issue()
    default.status()
    default.judged(foreign.issue("stranger"))
    default.judged(shown, user="bob")
    default.judged(replace(shown, fingerprint=os.urandom(32)))
    default.judged(shown, groups=["clustercert:credential:" + "0" * 40])
    assert [count(outcome) for outcome in outcomes] == [each + 1 for each in before]


@pytest.mark.full
def test_no_opinion_is_not_logged(tmp_path: Path) -> None:
    done = programs.run("logged_service", "webhook-requests", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["denied"] for line in requests] == ["unknown", "unknown"]
    for line in requests:
        cluster_id = line["path"].split("/")[-2]
        assert line["caller_id"] == line["caller"] == f"cluster:{cluster_id}"

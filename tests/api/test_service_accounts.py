"""Service accounts of a registered cluster: by its published keys, and by its answers about tokens (TokenReview)."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from clustercert.authn.oidc import authenticator, explanation
from clustercert.http import middleware
from clustercert.kubernetes.setup.rbac import issuer_keys_access, token_review_access
from clustercert.model import Cluster, JsonObject
from support import world as worlds
from support.apiserver import ApiServer, kinds
from support.apiserver.service_accounts import CACHE_SECONDS, ISSUER, JWKS
from support.log_capture import captured_logs
from support.managed_cluster import apply, register
from support.service import Service
from support.world import World

pytestmark = pytest.mark.slow

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"


@dataclass(frozen=True)
class Place:
    """A world, and a registered cluster with a service account that may log in here."""

    world: World
    double: ApiServer
    cluster: Cluster

    def allow(self, documents: Iterable[JsonObject]) -> None:
        apply(self.double, documents)

    @contextmanager
    def serving(self, **changed: object) -> Iterator[Service]:
        """A service that accepts the cluster's service accounts."""
        issuer = {
            "name": "cluster-a",
            "preset": "kubernetes",
            "issuer": ISSUER,
            "audiences": ["clustercert"],
            "projects": [self.world.project.id],
            "roles": [{"role": "reader", "claims": {"/kubernetes.io/namespace": ["monitoring"]}}],
        } | changed
        identity = {"region": worlds.REGION, "issuers": [issuer]}
        with Service(self.world.settings(identity=identity)).running() as service:
            yield service

    def token(self, audience: str = "clustercert") -> str:
        return self.double.tokens.token("monitoring", "prometheus", [audience])

    def asked(self, path: str = REVIEWS) -> int:
        """How often the service has asked the cluster."""
        return len([each for each in self.double.seen if each.path == path and each.identity is not None])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = worlds.make(tmp_path)
    (tmp_path / "cluster-a").mkdir()
    with ApiServer(tmp_path / "cluster-a") as double:
        cluster = register(world, double, "cluster-a")
        double.add_service_account("monitoring", "prometheus")
        yield Place(world, double, cluster)


def projects(service: Service, token: str) -> httpx2.Response:
    return service.client.get("/v3/auth/projects", headers={"Authorization": f"Bearer {token}"})


def reason(service: Service, token: str, status: int) -> str:
    """Why the log says that a login failed."""
    with captured_logs(middleware) as said:
        assert projects(service, token).status_code == status
    [line] = [each for each in said if each["event"] == "request"]
    return str(line.get("cause") or line["reason"])


# Keys


def test_keys_are_found_by_discovery_if_the_cluster_allows_it_to_everybody(place: Place) -> None:
    place.double.bind("system:unauthenticated", "system:service-account-issuer-discovery")
    with place.serving(discovery_url=place.double.url, ca_file=str(place.double.server_ca)) as service:
        [found] = projects(service, place.token()).json()["projects"]
        assert found["id"] == place.world.project.id
        place.double.tokens.rotate()
        assert projects(service, place.token()).status_code == 200


def test_keys_are_read_with_the_services_own_certificate(place: Place) -> None:
    place.allow(issuer_keys_access())
    with place.serving(cluster=place.cluster.id) as service:
        assert projects(service, place.token()).status_code == 200
        place.double.tokens.rotate()
        assert projects(service, place.token()).status_code == 200
    seen = {each.identity.username for each in place.double.seen if each.path == JWKS and each.identity}
    assert seen == {"clustercert:service"}


def test_a_cluster_that_hides_its_keys_is_an_issuer_that_is_away(place: Place) -> None:
    with place.serving(cluster=place.cluster.id) as service:
        assert "status 403" in reason(service, place.token(), 503)


# TokenReview


def test_the_cluster_is_asked_about_a_token_once_in_a_while(place: Place) -> None:
    place.allow(token_review_access())
    with place.serving(cluster=place.cluster.id, token_review=True) as service:
        token = place.token()
        with ThreadPoolExecutor(8) as pool:
            statuses = {
                response.status_code for response in pool.map(lambda _: projects(service, token), range(20))
            }
        assert (statuses, place.asked()) == ({200}, 1)
        assert projects(service, place.token()).status_code == 200
        assert place.asked() == 2


def test_a_deleted_service_account_ends_with_the_cached_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.allow(token_review_access())
    monkeypatch.setattr(authenticator, "CACHED_SECONDS", 0)
    with place.serving(cluster=place.cluster.id, token_review=True) as service:
        token = place.token()
        assert projects(service, token).status_code == 200
        place.double.storage.delete(kinds.SERVICE_ACCOUNTS, "monitoring", "prometheus")
        with monkeypatch.context() as later:
            # The API server keeps its own answer for ten seconds.
            after = datetime.now(UTC) + timedelta(seconds=CACHE_SECONDS)
            later.setattr(place.double, "now", lambda: after)
            assert "not found" in reason(service, token, 401)
        place.double.add_service_account("monitoring", "prometheus")
        assert projects(service, place.token()).status_code == 200
        assert projects(service, token).status_code == 401


def test_a_token_for_another_audience_is_refused_without_asking(place: Place) -> None:
    place.allow(token_review_access())
    with place.serving(cluster=place.cluster.id, token_review=True) as service:
        assert reason(service, place.token(ISSUER), 401).startswith("aud: the token has ")
        assert place.asked() == 0


def test_patterns_are_compared_with_nothing_that_the_cluster_has_not_confirmed(place: Place) -> None:
    place.allow(token_review_access())
    claims = {"/kubernetes.io/namespace": ["*-team-*-prod"]}
    with place.serving(cluster=place.cluster.id, token_review=True, claims=claims) as service:
        assert reason(service, place.token(), 401).startswith("/kubernetes.io/namespace: the token has ")
        assert place.asked() == 1


def test_a_token_of_another_cluster_is_refused(place: Place, tmp_path: Path) -> None:
    place.allow(token_review_access())
    (tmp_path / "other").mkdir()
    with (
        ApiServer(tmp_path / "other") as other,
        place.serving(cluster=place.cluster.id, token_review=True) as service,
    ):
        other.add_service_account("monitoring", "prometheus")
        token = other.tokens.token("monitoring", "prometheus", ["clustercert"])
        assert "failed to verify signature" in reason(service, token, 401)


def test_a_cluster_that_is_away_gives_503(place: Place) -> None:
    place.allow(token_review_access())
    asks: dict[str, Any] = {"cluster": place.cluster.id, "token_review": True}
    with place.serving(**asks) as service:
        known = place.token()
        assert projects(service, known).status_code == 200
        # An open connection outlives the listener, so another service is the one that can't connect.
        place.double.__exit__(None, None, None)
        with place.serving(**asks) as other:
            response = projects(other, known)
            assert (response.status_code, "Retry-After" in response.headers) == (503, True)
            assert "can't be reached" in reason(other, known, 503)
        assert projects(service, known).status_code == 200


def test_a_cluster_without_the_right_gives_503(place: Place) -> None:
    with place.serving(cluster=place.cluster.id, token_review=True) as service:
        said = reason(service, place.token(), 503)
    assert 'status 403: tokenreviews.authentication.k8s.io is forbidden: User "clustercert:service"' in said


def test_a_cluster_that_is_not_registered_gives_503(place: Place) -> None:
    with place.serving(cluster="0" * 8 + "-0000-0000-0000-" + "0" * 12, token_review=True) as service:
        assert "is not registered" in reason(service, place.token(), 503)


def test_operators_see_why_the_cluster_refuses_a_token(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "KEYS_SECONDS", 60)
    place.allow(token_review_access())
    headers = place.world.people["operator"].headers
    with place.serving(cluster=place.cluster.id, token_review=True) as service:

        def explained(token: str) -> Any:
            return service.client.post(
                "/clustercert/v1/identity/explain", json={"token": token}, headers=headers
            ).json()

        good, bad = explained(place.token()), explained(place.token(ISSUER))
    assert (good["accepted"], good["checks"][0]["check"]) == (True, "token review")
    assert good["user"]["name"] == "cluster-a/monitoring/prometheus"
    [check] = bad["checks"]
    assert (check["check"], check["passed"]) == ("token review", False)
    assert "token audiences" in check["came"]


def test_a_project_admin_moves_no_cluster_that_is_an_issuer(place: Place) -> None:
    path = f"/clustercert/v1/projects/{place.world.project.id}/clusters/{place.cluster.name}"
    body = {"internal_url": "https://evil.example.com:5443", "server_ca": place.double.server_ca.read_text()}
    with place.serving(cluster=place.cluster.id, token_review=True) as service:
        for who, status in (("admin", 403), ("operator", 200)):
            headers = place.world.people[who].headers
            response = service.client.put(path, json=body, headers=headers)
            assert response.status_code == status, response.text

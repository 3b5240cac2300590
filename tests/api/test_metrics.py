from collections.abc import Callable

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from clustercert import __version__
from support.service import Service
from support.world import World

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(client: httpx2.Client) -> Samples:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def rise(before: Samples, after: Samples, name: str, **labels: str) -> float:
    key = (name, tuple(sorted(labels.items())))
    return after.get(key, 0) - before.get(key, 0)


ROUTE = "/api/v3/projects/{project_id}/clusters/{cluster_id}/clustercert"


def test_requests_are_counted_by_route_method_and_status(client: httpx2.Client, world: World) -> None:
    before = scrape(client)
    client.post(world.path(), json={"duration": 1}, headers=world.people["admin"].headers)
    client.post(world.path(), json={"duration": 0}, headers=world.people["admin"].headers)
    client.get(world.path())
    after = scrape(client)
    total = "clustercert_requests_total"
    assert rise(before, after, total, route=ROUTE, method="POST", status="200") == 1
    assert rise(before, after, total, route=ROUTE, method="POST", status="400") == 1
    assert rise(before, after, total, route=ROUTE, method="GET", status="401") == 1
    assert rise(before, after, "clustercert_request_seconds_count", route=ROUTE) == 3


def test_pages_of_the_console_are_counted_by_route(service_with: Callable[..., Service]) -> None:
    client = service_with(console={"enabled": True}).client
    before = scrape(client)
    for path in ("/console/login", "/console/login?again=1", "/console/static/none.css", "/console/nope"):
        client.get(path)
    after = scrape(client)
    for route, status, count in (
        ("/console/login", "200", 2),
        ("/console/static/{name}", "404", 1),
        ("/console/{rest:path}", "404", 1),
    ):
        assert (
            rise(before, after, "clustercert_requests_total", route=route, method="GET", status=status)
            == count
        )


def test_the_metrics_have_the_version_and_no_times_of_creation(client: httpx2.Client) -> None:
    found = scrape(client)
    assert found["clustercert_build_info", (("version", __version__),)] == 1
    assert [name for name, _ in found if name.endswith("_created")] == []


def test_series_of_alerts_on_an_increase_exist_before_the_first_error(client: httpx2.Client) -> None:
    found = scrape(client)
    for tail in ("authorize", "audit-events"):
        route = f"/clustercert/v1/kubernetes/clusters/{{cluster_id}}/{tail}"
        for status in ("500", "503"):
            labels = (("method", "POST"), ("route", route), ("status", status))
            assert ("clustercert_requests_total", labels) in found
    for outcome in ("failed", "published"):
        assert ("clustercert_audit_checkpoints_total", (("outcome", outcome),)) in found
    assert ("clustercert_access_before_approval_total", ()) in found
    for outcome in ("failed", "given_up"):
        assert ("clustercert_access_request_notifications_total", (("outcome", outcome),)) in found


def test_issuances_are_counted_by_outcome(client: httpx2.Client, world: World) -> None:
    before = scrape(client)
    client.post(world.path(), json={"duration": 1}, headers=world.people["admin"].headers)
    client.post(world.path(), json={"duration": 1}, headers=world.people["inspector"].headers)
    client.post(world.path(), json={"duration": 1}, headers=world.people["stranger"].headers)
    client.post(world.path() + "?dryRun=All", json={"duration": 1}, headers=world.people["admin"].headers)
    after = scrape(client)
    outcomes = {
        labels[0][1]: after[name, labels] - before.get((name, labels), 0)
        for name, labels in after
        if name == "clustercert_issuances_total"
    }
    assert {name: count for name, count in outcomes.items() if count} == {
        "issued": 1,
        "Forbidden": 1,
        "NotFound": 1,
    }
    assert rise(before, after, "clustercert_issuance_seconds_count") == 1


def test_live_certificates_are_counted_by_the_window_of_their_end(
    service_with: Callable[..., Service], world: World
) -> None:
    first = service_with().client
    before = scrape(first)
    for days in (1, 1, 5, 20, 100):
        body = {"duration": days}
        assert first.post(world.path(), json=body, headers=world.people["admin"].headers).is_success
    after = scrape(service_with().client)
    assert rise(before, after, "clustercert_certificates_live") == 5
    windows = {
        window: rise(before, after, "clustercert_certificates_expiring", window=window)
        for window in ("1h", "24h", "7d", "30d")
    }
    assert windows == {"1h": 0, "24h": 2, "7d": 3, "30d": 4}


def test_clusters_that_were_never_verified_are_counted(client: httpx2.Client, world: World) -> None:
    counts = {
        dict(labels)["since"]: value
        for (name, labels), value in scrape(client).items()
        if name == "clustercert_clusters_unverified"
    }
    assert counts == {"7d": 0, "30d": 0, "90d": 0, "never": len(world.clusters)}


def test_no_label_tells_of_a_cluster_user_project_or_path(client: httpx2.Client, world: World) -> None:
    for path in (world.path(), "/nope/secret-path", f"/api/v3/projects/{world.project.id}/nope"):
        client.get(path, headers=world.people["admin"].headers)
    text = client.get("/metrics").text
    admin = world.people["admin"]
    names = [world.project.id, world.project.domain.id, admin.user.id, admin.token, "secret-path"]
    names += [cluster.id for cluster in world.clusters.values()]
    assert [name for name in names if name in text] == []


def test_a_caller_cannot_make_labels(service: Service, world: World) -> None:
    """Each label value uses memory forever, and callers can send any path and method."""
    before = set(scrape(service.client))
    for number in range(30):
        service.send_raw(f"X{number}", f"/nope/{number}", [])
        service.send_raw(f"Y{number}", world.path(), [])
    # At most one new label set for each kind of counter, whatever was requested.
    new = [key for key in set(scrape(service.client)) - before if key[0] == "clustercert_requests_total"]
    assert len(new) <= 4, new


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("198.51.100.7", {}),
        ("::ffff:198.51.100.7", {}),
        ("198.51.100.7", {"X-Forwarded-For": "127.0.0.1"}),
        ("127.0.0.1", {"X-Forwarded-For": "198.51.100.7"}),
        ("127.0.0.1", {"Forwarded": "for=198.51.100.7"}),
        ("198.51.100.7", {"Authorization": "Bearer wrong"}),
        ("198.51.100.7", {"Authorization": "Bearer "}),
        ("198.51.100.7", {"Authorization": "the metrics token"}),
    ],
)
def test_metrics_are_not_for_everybody(
    service_with: Callable[..., Service], address: str, headers: dict[str, str]
) -> None:
    service = service_with(address, metrics={"token": "the metrics token", "loopback": True})
    response = service.client.get("/metrics", headers=headers)
    assert (response.status_code, response.json()["errorCode"]) == (403, "CCE.01403001")


def test_metrics_are_not_for_loopback_by_default(service_with: Callable[..., Service]) -> None:
    """Many proxies on the same machine send no header that would show that the client is elsewhere."""
    response = service_with("127.0.0.1", metrics={}).client.get("/metrics")
    assert (response.status_code, response.json()["errorCode"]) == (403, "CCE.01403001")
    assert "metrics.token" in response.json()["errorMessage"]


def test_metrics_are_for_the_token_and_for_loopback_if_it_is_trusted(
    service_with: Callable[..., Service],
) -> None:
    for address in ("127.0.0.1", "127.9.9.9", "::1"):
        trusting = service_with(address, metrics={"loopback": True})
        assert trusting.client.get("/metrics").status_code == 200
    service = service_with("198.51.100.7", metrics={"token": "the metrics token"})
    allowed = {"Authorization": "Bearer the metrics token"}
    assert service.client.get("/metrics", headers=allowed).status_code == 200


def test_an_empty_metrics_token_is_none(service_with: Callable[..., Service]) -> None:
    service = service_with("198.51.100.7", metrics={"token": ""})
    for headers in ({}, {"Authorization": ""}, {"Authorization": "Bearer "}):
        assert service.client.get("/metrics", headers=headers).status_code == 403


def test_metrics_are_for_everybody_where_the_settings_say_so(service_with: Callable[..., Service]) -> None:
    service = service_with("198.51.100.7", metrics={"public": True})
    assert service.client.get("/metrics").status_code == 200

"""The source address behind a trusted proxy, in certificates, audit events and logs."""

import json
from collections.abc import Callable

import httpx2
import pytest
from prometheus_client import REGISTRY

from clustercert.http import middleware
from support.log_capture import captured_logs
from support.service import Service
from support.stores import blob, rows
from support.world import World

CLIENT, OTHER = "192.0.2.7", "203.0.113.9"


def issue(client: httpx2.Client, world: World, headers: dict[str, str]) -> httpx2.Response:
    return client.post(world.path(), headers=world.people["admin"].headers | headers, json={"duration": 1})


def ignored() -> float:
    """The number of ignored forwarding headers."""
    return REGISTRY.get_sample_value("clustercert_forwarding_ignored_total") or 0


@pytest.mark.parametrize("peer", ["127.0.0.1", "198.51.100.1"])
def test_one_address_is_in_the_certificate_the_event_and_the_log(
    service_with: Callable[..., Service], world: World, peer: str
) -> None:
    proxied = service_with(peer, server={"trusted_proxies": ["127.0.0.1"]})
    with captured_logs(middleware) as lines:
        response = issue(proxied.client, world, {"X-Forwarded-For": f"{OTHER}, {CLIENT}"})
    assert response.status_code == 200
    expected = CLIENT if peer == "127.0.0.1" else peer
    request_id = response.headers["X-Request-Id"]
    query = "SELECT source_address FROM certificate WHERE request_id = ?"
    assert rows(world.database, query, request_id) == [(expected,)]
    bodies = rows(world.database, "SELECT body FROM audit_event ORDER BY id DESC LIMIT 20")
    [event] = [json.loads(blob(body)) for (body,) in bodies if request_id.encode() in blob(body)]
    assert event["source"] == expected
    assert [line["source"] for line in lines if line["event"] == "request"] == [expected]


@pytest.mark.parametrize("proxies", [[], ["192.0.2.0/24"]])
def test_a_proxy_that_is_not_trusted_is_told_once_and_counted(
    service_with: Callable[..., Service], world: World, proxies: list[str]
) -> None:
    service = service_with(server={"trusted_proxies": proxies})
    before = ignored()
    with captured_logs(middleware) as lines:
        for header in ({}, {"X-Forwarded-For": CLIENT}, {"X-Forwarded-For": OTHER}):
            assert issue(service.client, world, header).status_code == 200
    [line] = [line for line in lines if line["event"].startswith("forwarding header ignored")]
    assert (line["log_level"], line["peer"]) == ("warning", "127.0.0.1")
    assert ignored() == before + 2


def test_a_trusted_proxy_is_not_counted(service_with: Callable[..., Service], world: World) -> None:
    service = service_with(server={"trusted_proxies": ["127.0.0.1"]})
    before = ignored()
    with captured_logs(middleware) as lines:
        # Also if the header names no address.
        for header in ({"X-Forwarded-For": CLIENT}, {"X-Forwarded-For": "unknown"}):
            assert issue(service.client, world, header).status_code == 200
    assert not [line for line in lines if line["event"].startswith("forwarding header ignored")]
    assert ignored() == before

"""Limits of issued certificates over HTTP, and their sharing by processes through the audit log."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from support import world as worlds
from support.service import Service
from support.wait import eventually
from support.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Data of its own, since certificates from other tests would count as well."""
    return worlds.make(tmp_path_factory.mktemp("limits"))


@pytest.fixture
def service_with(world: World) -> Iterator[Callable[..., Service]]:
    """Start applications. Each seals its events at its end, so the next test's application does not count them."""
    with ExitStack() as stack:

        def start(policy: object = None, **limits: object) -> Service:
            return stack.enter_context(Service(world.settings(limits=limits, policy=policy or {})).running())

        yield start


def issue(service: Service, world: World, who: str = "member", cluster: str = "plain") -> httpx2.Response:
    return service.client.post(world.path(cluster), headers=world.people[who].headers, json={"duration": 1})


def statuses(service: Service, world: World, count: int, **whose: str) -> list[int]:
    return [issue(service, world, **whose).status_code for _ in range(count)]


@pytest.mark.parametrize("limit", ["caller", "project", "source"])
def test_a_certificate_beyond_a_rate_is_a_429(
    service_with: Callable[..., Service], world: World, limit: str
) -> None:
    limited = service_with(rates={limit: "2/1h"})
    assert statuses(limited, world, 2) == [200, 200]
    refused = issue(limited, world)
    assert (refused.status_code, refused.json()["errorCode"]) == (429, "CCE.02429001")
    assert 0 < int(refused.headers["Retry-After"]) <= 1800
    headers = world.people["member"].headers
    assert limited.client.get(world.path(), headers=headers).status_code == 429
    preview = limited.client.post(f"{world.path()}?dryRun=All", headers=headers, json={"duration": 1})
    assert preview.status_code == 200
    others = statuses(limited, world, 1, who="admin")
    assert others == ([200] if limit == "caller" else [429])


def test_a_quota_of_live_certificates_ends_with_a_revocation(
    service_with: Callable[..., Service], world: World
) -> None:
    limited = service_with(live_certificates=2)
    assert statuses(limited, world, 3, who="reader", cluster="eip") == [200, 200, 429]
    assert issue(limited, world, "reader", "plain").status_code == 200
    reader = world.people["reader"]
    path, body = world.path("eip", "/clustercertrevoke"), {"userId": reader.user.id}
    assert limited.client.post(path, headers=reader.headers, json=body).status_code == 200
    eventually(lambda: issue(limited, world, "reader", "eip").status_code == 200)


def test_a_quota_also_counts_certificates_with_a_chosen_user_name(
    service_with: Callable[..., Service], world: World
) -> None:
    policy = {"rules": [{"grant": {"groups": ["g"]}}], "username": "{user.name}"}
    first, second = (service_with(policy, live_certificates=2) for _ in range(2))
    # A process counts those of the other only in the ledger.
    assert statuses(first, world, 2, who="inspector", cluster="eip") == [200, 200]
    assert issue(second, world, "inspector", "eip").status_code == 429


def test_processes_share_a_rate(service_with: Callable[..., Service], world: World) -> None:
    first, second = (service_with(rates={"caller": "5/30d"}) for _ in range(2))
    assert statuses(first, world, 3) == [200] * 3
    assert statuses(second, world, 2) == [200] * 2
    # Each process learns of the other's certificates when they are sealed.
    eventually(lambda: issue(first, world).status_code == 429)
    eventually(lambda: issue(second, world).status_code == 429)


def test_without_limits_a_request_does_not_pass_through_them(service_with: Callable[..., Service]) -> None:
    app: Any = service_with().app
    assert type(app.app.default.state.services.issuance).__name__ == "Issuance"

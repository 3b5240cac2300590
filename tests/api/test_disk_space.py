"""A disk that is almost full: issuing stops, and everything else continues."""

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from clustercert.model.errors import Unavailable
from clustercert.store import disk_space
from clustercert.store.disk_space import MIB, DiskSpace
from support import world as worlds
from support.log_capture import captured_lines
from support.service import Service
from support.small_disk import small_disk
from support.stores import rows
from support.wait import eventually
from support.world import World

SMALL_DISK_MIB = 96


def post(
    service: Service,
    world: World,
    tail: str = "/clustercert",
    query: str = "",
    user_id: str = "",
    who: str = "admin",
) -> httpx2.Response:
    person = world.people[who]
    body = {"duration": 1} if tail == "/clustercert" else {"userId": user_id or person.user.id}
    return service.client.post(world.path(tail=tail) + query, json=body, headers=person.headers)


def assert_only_issuing_stops(service: Service, world: World) -> None:
    refused = eventually(lambda: (answer := post(service, world)).status_code == 503 and answer)
    assert isinstance(refused, httpx2.Response)
    assert refused.json()["errorCode"] == "CCE.01503001"
    assert "disk is almost full" in refused.json()["errorMessage"]
    assert int(refused.headers["Retry-After"]) >= 1
    headers = world.people["admin"].headers
    assert service.client.get(world.path(), headers=headers).status_code == 503
    clusters = f"/api/v3/projects/{world.project.id}/clusters"
    certificates = f"/clustercert/v1/projects/{world.project.id}/certificates"
    ready = service.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "not issuing")
    assert "disk is almost full" in ready.json()["reason"]
    for path in (clusters, certificates):
        assert service.client.get(path, headers=headers).status_code == 200
    assert post(service, world, query="?dryRun=All").status_code == 200
    assert post(service, world, "/clustercertrevoke").status_code == 200


def test_below_the_reserve_only_issuing_stops(service_with: Callable[..., Service], world: World) -> None:
    free_mib = shutil.disk_usage(world.database.parent).free // MIB
    service = service_with(issuing={"disk_reserve_mib": 2 * free_mib + 1024})
    assert_only_issuing_stops(service, world)


def test_free_space_and_the_reserve_are_metrics(service_with: Callable[..., Service]) -> None:
    service = service_with(issuing={"disk_reserve_mib": 3})

    def disk(name: str) -> list[float]:
        lines = service.client.get("/metrics").text.split("\n")
        return [float(line.split()[1]) for line in lines if line.startswith(f'{name}{{disk="database"}} ')]

    assert eventually(lambda: disk("clustercert_disk_free_bytes"))
    assert disk("clustercert_disk_reserve_bytes") == [3 * MIB]


def test_a_disk_fills_up_and_gets_space_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", SMALL_DISK_MIB * 1024) as disk:
        fill_and_empty(disk)


def fill_and_empty(disk: Path) -> None:
    world = worlds.make(disk)
    filler = disk / "filler"
    with Service(world.settings()).running() as service:
        assert post(service, world).status_code == 200
        free = shutil.disk_usage(disk).free
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - 60 * MIB)
        assert_only_issuing_stops(service, world)
        for number in range(50):
            # Another user each time, because a repetition would change nothing. Only operators may name unknown ones.
            answer = post(service, world, "/clustercertrevoke", user_id=f"user{number}", who="operator")
            assert answer.status_code == 200
        # Durable: another process sees them at once.
        assert rows(world.database, "SELECT count(*) FROM revocation") == [(51,)]
        filler.unlink()
        eventually(lambda: post(service, world).status_code == 200)
        assert service.client.get("/readyz").json() == {"status": "ready"}


def test_a_full_disk_is_known_until_a_certificate_is_recorded(tmp_path: Path) -> None:
    """Without a reserve, as on PostgreSQL, whose disk the service does not measure."""
    with small_disk(tmp_path / "disk", 8 * 1024) as disk:
        world = worlds.make(disk)
        filler = disk / "filler"
        with Service(world.settings(issuing={"disk_reserve_mib": 0})).running() as service:
            with filler.open("wb") as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    file.flush()
            eventually(lambda: post(service, world).status_code == 503)
            ready = service.client.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "not issuing")
            assert "disk is full" in ready.json()["reason"]
            filler.unlink()
            assert post(service, world).status_code == 200
            assert service.client.get("/readyz").json() == {"status": "ready"}


def test_each_level_is_logged_once(tmp_path: Path) -> None:
    free = disk_space.free_bytes(tmp_path)
    assert free is not None
    space = DiskSpace(tmp_path, 0)
    with captured_lines(disk_space) as said:
        for reserve in (0, free // 2, free // 2, 2 * free, 2 * free, 0, 0):
            space._reserve_bytes = reserve
            space._take(free)
    assert [(line["event"], line["log_level"]) for line in said] == [
        ("disk space low", "warning"),
        ("disk almost full: issuing stopped", "error"),
        ("disk space sufficient", "info"),
    ]


def test_one_failed_measurement_is_ignored(tmp_path: Path) -> None:
    space = DiskSpace(tmp_path, MIB)
    assert disk_space.free_bytes(tmp_path / "missing") is None
    space._take(None)
    space.require()


async def test_a_disk_that_hangs_stops_issuing_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), []

    def hang(folder: Path) -> int:
        asked.append(folder)
        answers.wait()
        return 1024 * MIB

    monkeypatch.setattr(disk_space, "free_bytes", hang)
    space = DiskSpace(tmp_path, MIB)
    try:
        # The event loop runs this loop while the thread hangs.
        for _ in range(disk_space.MOST_MISSED):
            space._start_measurement(tmp_path)
        space.require()
        space._start_measurement(tmp_path)
        with pytest.raises(Unavailable, match="disk does not respond"):
            space.require()
    finally:
        answers.set()
    while space._is_measuring:
        await asyncio.sleep(0.01)
    space.require()
    assert asked == [tmp_path]

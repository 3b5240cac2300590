"""Processes that send traces: all workers do, and a dead collector does not keep a process from ending."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from support import ports
from support import world as worlds
from support.serve_process import Serving, serving
from support.trace_collector import ReceivedSpan, trace_collector
from support.wait import SECONDS, eventually
from support.world import World

# The library alone waits for 30 seconds at the end of a process.
LIBRARY_SECONDS = 30
REQUESTS = 40


@contextmanager
def dead_collector(kind: str) -> Iterator[str]:
    """The address of a port that refuses connections, or that accepts them and never answers."""
    with ports.reserve() as port:
        if kind == "silent":
            port.listen(128)
        yield f"http://127.0.0.1:{ports.port_of(port)}"


def issue(world: World, running: Serving, client: httpx2.Client) -> int:
    url = f"{running.url}{world.path()}"
    return client.post(url, headers=world.people["admin"].headers, json={"duration": 1}).status_code


# How soon it ends is measured in long runs only, because a busy machine takes its time.
@pytest.mark.parametrize("seconds", [SECONDS, pytest.param(LIBRARY_SECONDS, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["refusing", "silent"])
@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.long), "2"])
def test_a_process_ends_although_its_collector_is_dead(
    tmp_path: Path, kind: str, workers: str, seconds: float
) -> None:
    world = worlds.make(tmp_path)
    with dead_collector(kind) as url:
        settings = {"TRACING__ENDPOINT": url, "TRACING__SAMPLE_RATIO": "1"}
        with (
            serving(world, "--workers", workers, **settings) as running,
            httpx2.Client(trust_env=False, timeout=SECONDS) as client,
        ):
            assert [issue(world, running, client) for _ in range(REQUESTS)] == [200] * REQUESTS
            client.close()
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(seconds) == 0


def test_the_spans_of_all_workers_arrive_and_the_log_names_their_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = worlds.make(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20for-the-collector")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "certificates-eu")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with trace_collector() as collector:
        settings = {
            "TRACING__ENDPOINT": f"{collector.url}/",
            "TRACING__SAMPLE_RATIO": "1",
            "LOG__FORMAT": "json",
        }
        with serving(world, "--workers", "2", **settings) as running:

            def both_have_issued() -> bool:
                # Over a connection of its own, which either worker may accept.
                with httpx2.Client(trust_env=False, timeout=SECONDS) as client:
                    assert issue(world, running, client) == 200
                return len({each.resource["service.instance.id"] for each in requests()}) == 2

            def requests() -> list[ReceivedSpan]:
                return [span for span in collector.spans if span.name.startswith("POST ")]

            eventually(both_have_issued)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    logged = {line["trace_id"] for line in lines if line["event"] == "request"}
    # A process does not wait long for its last spans, and a slow machine may lose them.
    assert {span.trace_id for span in requests()} <= logged
    assert {span.resource["service.name"] for span in collector.spans} == {"certificates-eu"}
    assert {path for path, _ in collector.requests} == {"/v1/traces"}
    assert {sent["authorization"] for _, sent in collector.requests} == {"Bearer for-the-collector"}

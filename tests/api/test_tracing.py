"""Traces, with a real collector: what is in them, which requests have them, and who may continue one."""

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from prometheus_client import REGISTRY

from clustercert.http.app import new_app
from clustercert.http.middleware import METHODS, OTHER
from clustercert.model.errors import ClustercertError
from clustercert.observability import tracing
from clustercert.observability.otlp import OtlpTracer
from clustercert.pki.keys import KEY_TYPES
from clustercert.wiring import leader_jobs, open_components
from support import programs
from support import world as worlds
from support.access_table import API_SERVERS, PEOPLE, CellRequests, cells
from support.request_client import OFFERED_TO_ALL
from support.service import Service
from support.trace_collector import ReceivedSpan, TraceCollector, trace_collector, wait_for_flush
from support.world import World, webhook_token

CLUSTERCERT = "/api/v3/projects/{project_id}/clusters/{cluster_id}/clustercert"
STEPS = ["authenticate", "decide", "sign", "record"]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
Traced = Callable[..., Service]


@pytest.fixture
def collector() -> Iterator[TraceCollector]:
    with trace_collector() as running:
        yield running


@pytest.fixture
def traced(collector: TraceCollector, world: World) -> Traced:
    """An application whose traces are all recorded. Its last spans arrive when it ends."""

    def with_settings(ratio: float = 1, **changed: object) -> Service:
        settings = {"endpoint": collector.url, "sample_ratio": ratio}
        return Service(world.settings(tracing=settings, **changed))

    return with_settings


def issue(service: Service, world: World, who: str = "admin", **headers: str) -> int:
    sent = world.people[who].headers | headers
    return service.client.post(world.path(), headers=sent, json={"duration": 1}).status_code


def test_a_certificate_is_a_request_with_its_four_steps(
    traced: Traced, collector: TraceCollector, world: World
) -> None:
    with traced().running() as service:
        assert issue(service, world) == 200
    [request] = collector.traced_requests()
    assert request.name == f"POST {CLUSTERCERT}"
    assert request.attributes == {
        "http.route": CLUSTERCERT,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "clustercert.outcome": "done",
    }
    trace = collector.trace(request.trace_id)
    steps = {span.name: span for span in trace[1:]}
    # A worker that can't rule out a change of rights authenticates and decides again before it records.
    assert [span.name for span in trace] in (
        [request.name, *STEPS],
        [request.name, *STEPS[:3], *STEPS[:2], "record"],
    )
    assert {span.sent.parent_span_id for span in trace[1:]} == {request.sent.span_id}
    assert not request.sent.parent_span_id
    signed = {"clustercert.signer": "local", "clustercert.key_type": "ec-p256"}
    for name, step in steps.items():
        assert step.attributes == {"clustercert.outcome": "done", **(signed if name == "sign" else {})}
    # The steps follow each other, within the request.
    times = [time for span in trace[1:] for time in _times(span)]
    assert times == sorted(times)
    begin, end = _times(request)
    assert begin <= times[0] <= times[-1] <= end


def _times(span: ReceivedSpan) -> tuple[int, int]:
    return span.sent.start_time_unix_nano, span.sent.end_time_unix_nano


def test_a_denial_is_an_outcome_but_not_a_fault(
    traced: Traced, collector: TraceCollector, world: World
) -> None:
    with traced().running() as service:
        assert issue(service, world, "stranger") == 404
    [request] = collector.traced_requests()
    decide = collector.trace(request.trace_id)[-1]
    assert (decide.name, request.attributes["http.response.status_code"]) == ("decide", 404)
    for span in (decide, request):
        assert span.attributes["clustercert.outcome"] == "NotFound"
        assert span.sent.status.code == Status.STATUS_CODE_UNSET


async def test_a_fault_is_marked_and_its_message_is_not_sent(collector: TraceCollector) -> None:
    tracer = OtlpTracer(collector.url, 1)
    with pytest.raises(ValueError, match="of alice"), tracing.job(tracer, "prune credentials"):
        raise ValueError("the token of alice")
    await tracer.close()
    await asyncio.to_thread(wait_for_flush)
    [span] = collector.spans
    assert span.name == "job prune credentials"
    assert span.attributes == {"clustercert.job": "prune credentials", "clustercert.outcome": "ValueError"}
    assert span.sent.status == Status(code=Status.STATUS_CODE_ERROR)
    assert not span.sent.events
    assert b"alice" not in span.sent.SerializeToString()


@pytest.mark.parametrize(("status", "outcome"), [(200, "sent"), (400, "failed")])
async def test_batches_are_counted_by_whether_the_collector_took_them(
    collector: TraceCollector, status: int, outcome: str
) -> None:
    collector.status = status
    before = {each: batches(each) for each in ("sent", "failed")}
    tracer = OtlpTracer(collector.url, 1)
    with tracing.job(tracer, "prune credentials"):
        pass
    await tracer.close()
    await asyncio.to_thread(wait_for_flush)
    assert {each: batches(each) - before[each] for each in before} == {
        each: float(each == outcome) for each in before
    }


def batches(outcome: str) -> float:
    return REGISTRY.get_sample_value("clustercert_trace_batches_total", {"outcome": outcome}) or 0


def test_probes_metrics_and_webhooks_are_not_traced(
    traced: Traced, collector: TraceCollector, world: World
) -> None:
    token = asyncio.run(webhook_token(world))
    webhook = f"/clustercert/v1/kubernetes/clusters/{world.clusters['plain'].id}"
    with traced().running() as service:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert service.client.get(path).status_code == 200
        for path in ("authorize", "audit-events"):
            sent = {"Authorization": f"Bearer {token}"}
            assert service.client.post(f"{webhook}/{path}", json={}, headers=sent).status_code == 400
        assert service.client.get("/v3").status_code == 200
    assert [span.name for span in collector.traced_requests()] == ["GET /v3"]


@pytest.mark.parametrize("ratio", [0, 1])
def test_a_trusted_proxys_trace_is_continued(
    traced: Traced, collector: TraceCollector, world: World, ratio: int
) -> None:
    proxied = traced(ratio, server={"trusted_proxies": ["127.0.0.1"]})
    with proxied.running() as service:
        # The last two hex digits say whether the proxy records the trace.
        for flags in ("01", "00"):
            sent = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}", "tracestate": "user=alice"}
            assert issue(service, world, **sent) == 200
    [request] = collector.traced_requests()
    assert (request.trace_id, request.sent.parent_span_id.hex()) == (TRACE, PARENT)
    assert {span.name for span in collector.trace(TRACE)} == {request.name, *STEPS}
    assert {span.sent.trace_state for span in collector.spans} == {""}


def test_nobody_else_continues_a_trace(traced: Traced, collector: TraceCollector, world: World) -> None:
    with traced(server={"trusted_proxies": ["192.0.2.0/24"]}).running() as service:
        assert issue(service, world, traceparent=f"00-{TRACE}-{PARENT}-01") == 200
    [request] = collector.traced_requests()
    assert request.trace_id != TRACE
    assert not request.sent.parent_span_id


@pytest.mark.parametrize(
    "sent",
    [
        ["nonsense"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"],
        [f"cc-{TRACE}-{PARENT}-01-{'x' * 100}"],
        ["\xff" * 55],
    ],
)
def test_a_malformed_trace_of_a_proxy_is_ignored(
    traced: Traced, collector: TraceCollector, sent: list[str]
) -> None:
    with traced(server={"trusted_proxies": ["127.0.0.1"]}).running() as service:
        headers = [(b"host", b"test"), *((b"traceparent", each.encode("latin-1")) for each in sent)]
        service.send_raw("GET", "/v3", headers)
    [request] = collector.traced_requests()
    assert request.trace_id != TRACE
    assert not request.sent.parent_span_id


def test_without_the_setting_nothing_of_the_library_is_loaded(tmp_path: Path) -> None:
    """Also if the environment asks the framework for traces of its own, which contain messages of errors."""
    environment = {
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    }
    done = programs.run("untraced_service", tmp_path, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in loaded if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))] == []


def test_nothing_is_sent_if_no_trace_is_sampled(
    traced: Traced, collector: TraceCollector, world: World
) -> None:
    with traced(0).running() as service:
        assert issue(service, world) == 200
    wait_for_flush()
    assert not collector.requests


@pytest.fixture(scope="module")
def spans_of_all_routes(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[ReceivedSpan]]:
    """The spans of requests to all operations of the API by all kinds of callers, and of pages and unknown paths."""
    world = worlds.make(tmp_path_factory.mktemp("traced"))
    token = asyncio.run(webhook_token(world))
    tokens = dict.fromkeys(API_SERVERS[2:], token)
    with trace_collector() as collector:
        settings = world.settings(
            metrics={},
            policy=OFFERED_TO_ALL,
            console={"enabled": True},
            tracing={"endpoint": collector.url, "sample_ratio": 1},
        )
        with Service(settings).running() as service:
            place = CellRequests(world, service.client, tokens)
            for cell in cells("People", PEOPLE):
                place.ask(cell)
            for person in world.people.values():
                service.client.get(f"/console/{person.user.id}")
                service.client.get(f"/{person.token}")
                service.client.request(person.user.name.upper(), "/v3")
                form = {"user": person.user.name, "domain": "tests", "password": person.password}
                service.client.post("/console/login", data=form)
        wait_for_flush()
        return world, list(collector.spans)


@pytest.mark.full
def test_spans_contain_only_what_the_documentation_lists(
    spans_of_all_routes: tuple[World, list[ReceivedSpan]],
) -> None:
    world, spans = spans_of_all_routes
    app = new_app(console=True)
    routes = {str(getattr(route, "path", "")) for route in app.routes} | {OTHER}
    methods = METHODS | {OTHER}
    allowed: dict[str, set[object]] = {
        "http.route": set(routes),
        "http.request.method": set(methods),
        "http.response.status_code": set(range(100, 600)),
        "clustercert.outcome": {"done", *(error.__name__ for error in _errors(ClustercertError))},
        "clustercert.signer": {"local"},
        "clustercert.key_type": {*KEY_TYPES.values(), "rsa-2048", "rsa-3072", "rsa-4096", "ed25519"},
        "clustercert.job": asyncio.run(_jobs(world)),
    }
    names = {*STEPS, *(f"{method} {route}" for method in methods for route in routes)}
    names |= {f"job {name}" for name in allowed["clustercert.job"]}
    for span in spans:
        assert span.name in names
        for name, value in span.attributes.items():
            assert value in allowed[name], (span.name, name)
        sent = span.sent
        assert not [*sent.events, *sent.links, *sent.trace_state, *sent.status.message]
        assert span.resource.keys() == {
            *("service.name", "service.version", "service.instance.id"),
            *("telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version"),
        }
    documented = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text(encoding="utf-8")
    assert allowed.keys() == set(re.findall(r"^\| `([a-z_.]+)` \|", documented, re.MULTILINE))
    # Each operation was there.
    operations = {cell.operation.split(" ")[0] for cell in cells("People", PEOPLE)}
    assert len({span.name for span in spans}) > len(operations)


@pytest.mark.full
def test_no_name_id_or_token_is_in_a_span(spans_of_all_routes: tuple[World, list[ReceivedSpan]]) -> None:
    world, spans = spans_of_all_routes
    known = [world.project.id, world.other_project.id, world.project.name, world.other_project.name]
    known += [value for each in world.people.values() for value in (each.user.id, each.token, each.password)]
    known += [each.id for each in world.clusters.values()] + list(world.access_key)
    everything = b"\n".join(span.sent.SerializeToString() for span in spans)
    assert len(spans) > 500
    assert [value for value in known if value.encode() in everything] == []
    # These words are also parts of routes.
    words = {each.user.name for each in world.people.values()} | world.clusters.keys()
    for span in spans:
        assert not words & {span.name, *map(str, span.attributes.values())}


def _errors(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from _errors(derived)


async def _jobs(world: World) -> set[object]:
    async with open_components(world.settings(audit={"retention": "90d"})) as components:
        return {work.name for job in leader_jobs(components, None) for work in job._work}

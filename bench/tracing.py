"""Measures what traces cost: off, on, and on while no collector answers. Also draws one trace."""

import contextlib
import random
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

import httpx2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bench import processes, traffic, world
from bench.traffic import Who
from bench.world import Served

CONNECTIONS = 64
SAMPLED = "0.01"
WARM_UP_SECONDS = 2
# The trace in the picture is the one whose duration is the median of this number.
TRACES = 101


def measure(folder: Path, seconds: float, rounds: int) -> list[dict[str, object]]:
    """Return a row for each way to serve a store on SQLite. The first one has no traces.

    The ways take turns in an order by chance, so that other work on the machine affects all of them. The processor time
    is that of all turns, with what is sent to the collector between them.
    """
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(_collector())
        silent, refusing = stack.enter_context(_silent()), stack.enter_context(_refusing())
        ways = {
            "off": {},
            "1 % of the requests": _variables(collector.url, SAMPLED),
            "1 %, the collector does not answer": _variables(silent, SAMPLED),
            "1 %, the collector refuses connections": _variables(refusing, SAMPLED),
            "all requests": _variables(collector.url, "1"),
        }
        peers = {}
        for number, (name, variables) in enumerate(ways.items()):
            store = world.prepare(folder / str(number))
            served = stack.enter_context(world.served(store, variables=variables))
            peers[name] = served.taking(traffic.with_token(served.who))
            peers[name].load(CONNECTIONS, WARM_UP_SECONDS)
        before = {name: processes.cpu_seconds(peer.roots[0]) for name, peer in peers.items()}
        loads = [
            (name, peers[name].load(CONNECTIONS, seconds))
            for _ in range(rounds)
            for name in random.sample(list(peers), len(peers))
        ]
        used = {name: processes.cpu_seconds(peer.roots[0]) - before[name] for name, peer in peers.items()}
    rows = []
    for name in ways:
        own = [load for way, load in loads if way == name]
        answers = sum(load.rate * load.seconds for load in own)
        rows.append(
            {
                "traces": name,
                "rate": answers / sum(load.seconds for load in own),
                "p99_ms": statistics.median(load.p99_ms for load in own),
                "cpu_us": used[name] / answers * 1e6,
                "errors": sum(load.errors for load in own),
            }
        )
    return rows


def _variables(collector: str, sample_ratio: str) -> dict[str, str]:
    return {
        "CLUSTERCERT_TRACING__ENDPOINT": collector,
        "CLUSTERCERT_TRACING__SAMPLE_RATIO": sample_ratio,
    }


class _Collector(ThreadingHTTPServer):
    """A collector on a free port of loopback, which keeps the batches as they arrive."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.batches: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def traces(self) -> list[list[Span]]:
        """Return the spans of each trace, the first to begin first."""
        found: dict[bytes, list[Span]] = {}
        for batch in self.batches:
            for sent in ExportTraceServiceRequest.FromString(batch).resource_spans:
                for scope in sent.scope_spans:
                    for span in scope.spans:
                        found.setdefault(span.trace_id, []).append(span)
        return [sorted(trace, key=lambda span: span.start_time_unix_nano) for trace in found.values()]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Collector

    def do_POST(self) -> None:
        self.server.batches.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def _collector() -> Iterator[_Collector]:
    with _Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextlib.contextmanager
def _silent() -> Iterator[str]:
    """Yield the URL of a port that accepts connections, and whose requests nobody answers."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        port.listen(128)
        yield f"http://127.0.0.1:{port.getsockname()[1]}"


@contextlib.contextmanager
def _refusing() -> Iterator[str]:
    """Yield the URL of a port that refuses connections."""
    with processes.reserved_port() as port:
        yield f"http://127.0.0.1:{port}"


def example(folder: Path) -> str:
    """Issue certificates one after the other, and return a drawing of the trace with the median duration."""
    with _collector() as collector:
        store = world.prepare(folder)
        with world.served(store, workers=1, variables=_variables(collector.url, "1")) as served:
            _issue(served, served.who, TRACES)
        traces = [trace for trace in collector.traces() if len(trace) == len(ROWS)]
    traces.sort(key=lambda trace: trace[0].end_time_unix_nano - trace[0].start_time_unix_nano)
    return draw(traces[len(traces) // 2])


def _issue(served: Served, who: Who, count: int) -> None:
    with httpx2.Client(base_url=served.url, timeout=60, trust_env=False) as client:
        for _ in range(count):
            headers = {"X-Auth-Token": who.token}
            client.post(who.path(), headers=headers, json={"duration": 1}).raise_for_status()
            # The trace of a busy machine would show how long threads wait for each other.
            time.sleep(0.02)


ROWS = ("POST …/clustercert", "authenticate", "decide", "sign", "record")
_LEFT, _WIDTH, _ROW = 190, 900, 34
_STYLE = """
text { font: 14px sans-serif; fill: #1b2733; }
.note { fill: #5b6b7a; font-size: 12px; }
.request { fill: #e8f0f7; stroke: #7d9bb5; }
.step { fill: #fdf3dc; stroke: #c29b3f; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .note { fill: #9fb0bf; }
  .request { fill: #22313f; stroke: #5d7d99; } .step { fill: #3d3318; stroke: #a88940; }
}
"""


def draw(trace: list[Span]) -> str:
    """Draw the spans of a request for a certificate as bars. The picture has a light and a dark form."""
    begin = trace[0].start_time_unix_nano
    scale = (_WIDTH - _LEFT - 110) / (trace[0].end_time_unix_nano - begin)
    lines, spoken = [], []
    for row, (name, span) in enumerate(zip(ROWS, trace, strict=True)):
        milliseconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        left = _LEFT + (span.start_time_unix_nano - begin) * scale
        width = max(1.5, milliseconds * 1e6 * scale)
        top = 12 + row * _ROW
        attributes = {each.key: each.value.string_value for each in span.attributes}
        signer = attributes.get("clustercert.signer", "")
        note = f"{milliseconds:.2f} ms{f', signer {signer}' if signer else ''}"
        spoken.append(f"{name} {milliseconds:.2f} ms")
        kind = "step" if row else "request"
        lines += [
            f'<text x="{30 if row else 12}" y="{top + 17}">{escape(name)}</text>',
            f'<rect class="{kind}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="24" rx="3"/>',
            f'<text class="note" x="{left + width + 8:.1f}" y="{top + 16}">{escape(note)}</text>',
        ]
    label = f"The five spans of a request for a certificate: {', '.join(spoken)}."
    size = f"0 0 {_WIDTH} {len(ROWS) * _ROW + 12}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img" aria-label="{escape(label)}">'
    )
    return "\n".join([head, f"<style>{_STYLE}</style>", *lines, "</svg>", ""])

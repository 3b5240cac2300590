"""An OpenTelemetry collector on loopback, which parses the spans that it receives."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from clustercert.observability.otlp import FLUSH
from support.wait import eventually


@dataclass(frozen=True)
class ReceivedSpan:
    """A span, with the attributes of the process that sent it."""

    sent: Span
    resource: dict[str, object]

    @property
    def name(self) -> str:
        return self.sent.name

    @property
    def trace_id(self) -> str:
        return self.sent.trace_id.hex()

    @property
    def attributes(self) -> dict[str, object]:
        return _values(self.sent.attributes)


@dataclass
class TraceCollector:
    """What arrived.

    Attributes:
        requests: path and header fields of each request.
        status: of the answers. A library that gets 400 does not try again.
    """

    url: str = ""
    status: int = 200
    spans: list[ReceivedSpan] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def traced_requests(self) -> list[ReceivedSpan]:
        """The spans of requests, once this process has sent all spans of the services that ended."""
        wait_for_flush()
        return [span for span in self.spans if span.sent.kind == Span.SPAN_KIND_SERVER]

    def take(self, body: bytes) -> None:
        for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _values(sent.resource.attributes)
            self.spans += [ReceivedSpan(span, resource) for scope in sent.scope_spans for span in scope.spans]

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of a trace, the first to begin first."""
        found = [span for span in self.spans if span.trace_id == trace_id]
        return sorted(found, key=lambda span: span.sent.start_time_unix_nano)


def wait_for_flush() -> None:
    """Wait until services that ended in this process have sent their spans, also on a slow machine."""
    eventually(lambda: all(thread.name != FLUSH for thread in threading.enumerate()))


def _values(attributes: Iterable[KeyValue]) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in attributes}


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Print nothing: a sender was killed."""


@contextmanager
def trace_collector() -> Iterator[TraceCollector]:
    collector = TraceCollector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.requests.append((self.path, dict(self.headers.items())))
            collector.take(body)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with _Listener(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()

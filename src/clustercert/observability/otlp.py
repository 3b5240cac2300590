"""Sends traces to an OpenTelemetry collector. Only imported if the settings turn traces on.

Headers, certificates, time limits, compression and the size of the queue come from OpenTelemetry's own environment
variables, such as OTEL_EXPORTER_OTLP_HEADERS.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from clustercert import __version__
from clustercert.observability import metrics

# A process that ends waits this long for the collector to take the last spans.
FLUSH_SECONDS = 2.0
# Name of the thread that sends them.
FLUSH = "flush traces"

_NO_PARENT = Context()
_PROPAGATOR = TraceContextTextMapPropagator()


class OtlpTracer:
    """Begins traces, and sends the sampled ones in the background. Create it in the process that uses it.

    If the collector does not take the spans, up to 2,048 spans wait, and then the oldest are dropped.

    Args:
        endpoint: the URL of the collector, without `/v1/traces`.
        sample_ratio: the part of the traces to record, 0 to 1. A trace that a proxy began is recorded if the proxy
            records it.
    """

    def __init__(self, endpoint: str, sample_ratio: float) -> None:
        # Each failed batch is reported once, after its last attempt.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
        named = {SERVICE_NAME: "clustercert", SERVICE_VERSION: __version__}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource.create(named).merge(OTELResourceDetector().detect()),
            # The library would wait up to 30 seconds for the collector.
            shutdown_on_exit=False,
        )
        exporter = _CountingExporter(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("clustercert", __version__)

    def request_span(self, traceparent: str | None) -> "OtlpSpan | None":
        parent = _NO_PARENT
        if traceparent is not None:
            # Only this header is read: the header tracestate may contain anything.
            parent = _PROPAGATOR.extract({"traceparent": traceparent}, _NO_PARENT)
        return self._begun("request", parent, trace.SpanKind.SERVER)

    def job_span(self, name: str) -> "OtlpSpan | None":
        return self._begun(name, _NO_PARENT, trace.SpanKind.INTERNAL)

    def _begun(self, name: str, parent: Context, kind: trace.SpanKind) -> "OtlpSpan | None":
        span = self._tracer.start_span(name, parent, kind)
        return OtlpSpan(self._tracer, span) if span.is_recording() else None

    async def close(self) -> None:
        """Send the spans that wait, for at most FLUSH_SECONDS."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            # After the time limit, the loop may be closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        # Unlike the threads of an executor, a daemon thread does not keep the process from ending.
        threading.Thread(target=shut_down, name=FLUSH, daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await done.wait()


class OtlpSpan:
    """A span that is recorded, and sent once it has ended."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def trace_id(self) -> str:
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def child(self, name: str) -> "OtlpSpan":
        parent = trace.set_span_in_context(self._span, _NO_PARENT)
        return OtlpSpan(self._tracer, self._tracer.start_span(name, parent))

    def describe(
        self, attributes: Mapping[str, str | int], *, name: str | None = None, failed: bool = False
    ) -> None:
        self._span.set_attributes(attributes)
        if name is not None:
            self._span.update_name(name)
        if failed:
            self._span.set_status(trace.StatusCode.ERROR)

    def end(self) -> None:
        self._span.end()


class _CountingExporter(SpanExporter):
    """Counts the batches that the collector took, and those that it did not take."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        metrics.TRACE_BATCHES.labels("sent" if result is SpanExportResult.SUCCESS else "failed").inc()
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)

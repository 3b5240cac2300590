"""Traces of requests and jobs: spans for the steps whose time matters.

Without a setting that turns traces on, nothing of OpenTelemetry's SDK is imported, and `span` does nothing. The
parameters of these functions are all that a span contains. None of them may name a user, a group, a project, a cluster,
a credential or a certificate, and no span contains the message of an error.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Literal, Protocol

from clustercert.observability import log

Step = Literal["authenticate", "decide", "sign", "record"]
Attributes = Mapping[str, str | int]

# Names of attributes. Those that begin with `http.` are OpenTelemetry's.
ROUTE = "http.route"
METHOD = "http.request.method"
STATUS = "http.response.status_code"
OUTCOME = "clustercert.outcome"
SIGNER = "clustercert.signer"
KEY_TYPE = "clustercert.key_type"
JOB = "clustercert.job"

# The outcome of a request, a step or a job without an error. Otherwise, the outcome is the name of the error.
DONE = "done"
ABORTED = "aborted"
SERVER_ERRORS = 500


class Span(Protocol):
    """A span that is recorded.

    Attributes:
        trace_id: 32 hex digits.
    """

    @property
    def trace_id(self) -> str: ...

    def child(self, name: str) -> "Span":
        """Begin a span within this one."""

    def describe(self, attributes: Attributes, *, name: str | None = None, failed: bool = False) -> None:
        """Add attributes. `failed`: whether the service, or something that it needs, failed."""

    def end(self) -> None: ...


class Tracer(Protocol):
    """Begins traces. Returns None for a trace that is not sampled."""

    def request_span(self, traceparent: str | None) -> Span | None:
        """Begin a trace with a request, or continue the trace that `traceparent` names (W3C Trace Context)."""

    def job_span(self, name: str) -> Span | None:
        """Begin a trace with a run of a job."""


_current: ContextVar[Span | None] = ContextVar("span", default=None)
_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


def span(
    step: Step, *, signer: str | None = None, key_type: str | None = None
) -> contextlib.AbstractContextManager[None]:
    """Record the `with` block as a step of the current request, if this request is recorded."""
    current = _current.get()
    if current is None:
        return _NOTHING
    attributes = {SIGNER: signer, KEY_TYPE: key_type}
    known = {name: value for name, value in attributes.items() if value is not None}
    return _with_outcome(current.child(step), known)


def request(tracer: Tracer, traceparent: str | None) -> contextlib.AbstractContextManager[None]:
    """Record the `with` block as a request, if it is sampled."""
    begun = tracer.request_span(traceparent)
    return _NOTHING if begun is None else _running(begun)


def job(tracer: Tracer | None, name: str) -> contextlib.AbstractContextManager[None]:
    """Record the `with` block as a run of a job, if it is sampled."""
    begun = tracer.job_span(f"job {name}") if tracer is not None else None
    return _NOTHING if begun is None else _with_outcome(begun, {JOB: name})


def describe_request(route: str, method: str, status: int, failure: Exception | None) -> None:
    """Set the attributes of the current request's span, if it is recorded. `status`: 0 if there was no response."""
    current = _current.get()
    if current is None:
        return
    outcome = DONE if status else ABORTED
    current.describe(
        {
            ROUTE: route,
            METHOD: method,
            STATUS: status,
            OUTCOME: outcome if failure is None else type(failure).__name__,
        },
        name=f"{method} {route}",
        failed=status >= SERVER_ERRORS,
    )


@contextlib.contextmanager
def _running(begun: Span) -> Iterator[None]:
    """Make a span the current one. All lines of the log that are written in the block have the id of the trace."""
    before = _current.set(begun), log.trace_id.set(begun.trace_id)
    try:
        yield
    finally:
        _current.reset(before[0])
        log.trace_id.reset(before[1])
        begun.end()


@contextlib.contextmanager
def _with_outcome(begun: Span, attributes: Attributes) -> Iterator[None]:
    with _running(begun):
        try:
            yield
        except BaseException as failure:
            # Errors of requests have a status. Any other error is a fault.
            failed = getattr(failure, "status", SERVER_ERRORS) >= SERVER_ERRORS
            begun.describe({**attributes, OUTCOME: type(failure).__name__}, failed=failed)
            raise
        begun.describe({**attributes, OUTCOME: DONE})

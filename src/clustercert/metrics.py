"""What is counted, for Prometheus. No label names a cluster, a user or a project.

Workers are processes: where `PROMETHEUS_MULTIPROC_DIR` names a folder, the counts of all of them add up in it.
"""

import contextlib
import functools
import time
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    values,
)

REQUESTS = Counter("clustercert_requests", "HTTP requests answered", ["route", "method", "status"])
REQUEST_SECONDS = Histogram(
    "clustercert_request_seconds",
    "Seconds from the request's arrival to its answer",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
ISSUANCES = Counter("clustercert_issuances", "Certificates issued or not, by what came of it", ["outcome"])
ISSUANCE_SECONDS = Histogram(
    "clustercert_issuance_seconds",
    "Seconds that issuing a certificate took, recording included",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
EXPIRING = Gauge(
    "clustercert_certificates_expiring",
    "Certificates that are valid now and expire within the window",
    ["window"],
    multiprocess_mode="mostrecent",
)
LIVE = Gauge(
    "clustercert_certificates_live", "Certificates that are valid now", multiprocess_mode="mostrecent"
)


def request(route: str, method: str, status: int, seconds: float) -> None:
    """Count one HTTP request."""
    count, latency = _of_request(route, method, status)
    count.inc()
    latency.observe(seconds)


# Finding a labelled series takes longer than counting in it, and there are only so many.
@functools.lru_cache(maxsize=1024)
def _of_request(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(route, method, status), REQUEST_SECONDS.labels(route)


@contextlib.contextmanager
def issuance() -> Iterator[None]:
    """Count one issuance by its outcome: `issued`, or the name of the error."""
    started = time.perf_counter()
    try:
        yield
    except Exception as error:
        ISSUANCES.labels(type(error).__name__).inc()
        raise
    ISSUANCE_SECONDS.observe(time.perf_counter() - started)
    ISSUANCES.labels("issued").inc()


def exposition() -> bytes:
    """Everything counted by all workers, in Prometheus's text format."""
    if values.ValueClass.__name__ == "MmapedValue":
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # untyped upstream
        return generate_latest(registry)
    return generate_latest()

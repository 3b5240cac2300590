"""What is counted, for Prometheus. No label names a cluster, a user or a project.

Workers are processes: where `PROMETHEUS_MULTIPROC_DIR` names a folder, the counts of all of them add up in it.
"""

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
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
REVOCATIONS = Counter(
    "clustercert_revocations",
    "Revocations, by what they are about: certificate, holder (a certificate, by its key), user, cluster, everywhere",
    ["kind"],
)
CHECKPOINTS = Counter(
    "clustercert_audit_checkpoints",
    "Checkpoints of the audit log handed on to a target, by what came of it",
    ["outcome"],
)
MISMATCHES = Counter(
    "clustercert_certificate_mismatches", "Stored certificates that are not what their row or their CA says"
)
CHECKED = Counter("clustercert_certificates_checked", "Stored certificates that the self-checker looked at")
EXPIRING = Gauge(
    "clustercert_certificates_expiring",
    "Certificates as counted by clustercert_certificates_live that expire within the window",
    ["window"],
    multiprocess_mode="mostrecent",
)
# Counting reads one range of an index, whatever the ledger's size; asking of each one whether it falls under a
# revocation of many would not.
LIVE = Gauge(
    "clustercert_certificates_live",
    "Certificates that are valid now and not revoked one by one; those of a user or cluster revoked as a whole still"
    " count, until they end",
    multiprocess_mode="mostrecent",
)

WEBHOOK_DECISIONS = Counter(
    "clustercert_webhook_decisions", "SubjectAccessReviews answered, by what the answer was", ["outcome"]
)
FEED_SECONDS = Histogram(
    "clustercert_webhook_feed_seconds",
    "Seconds between two readings of the revocations by a worker; over 2, it answers nothing from memory",
    buckets=(0.1, 0.3, 0.5, 1, 2, 5, 10, 60),
)
UNKNOWN_CREDENTIALS = Counter(
    "clustercert_unknown_credentials",
    "Users with client certificates that an API server saw and the ledger doesn't know, each user name and set of"
    " groups once for its cluster",
)
ALTERED_CREDENTIALS = Counter(
    "clustercert_altered_credentials",
    "Certificates of which an API server saw an altered copy, each at most once an hour",
)
MASTERS_CREDENTIALS = Counter(
    "clustercert_masters_credentials",
    "Users with client certificates in system:masters that the operator hasn't listed, each once for its cluster",
)

AuditBatchRefusal = Literal["malformed", "cut_off", "unreadable_events", "unavailable"]
AUDIT_BATCHES_REFUSED = Counter(
    "clustercert_audit_batches_refused",
    "Batches of audit events that were not read whole: malformed, cut off, or with unreadable events in them",
    ["reason"],
)
# From zero on, or an alert would miss the first one.
for _refusal in get_args(AuditBatchRefusal):
    AUDIT_BATCHES_REFUSED.labels(_refusal)

ENFORCEMENTS = Counter(
    "clustercert_enforcements",
    "Work on the API servers of clusters, by what it was (bind, unbind, bindings, admission) and what came of it",
    ["what", "outcome"],
)
ENFORCEMENT_SECONDS = Histogram(
    "clustercert_enforcement_seconds",
    "Seconds from seeing that a cluster has to be brought up to date until it was, failures included",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
)
ENFORCEMENT_FAILING = Gauge(
    "clustercert_enforcement_failing",
    "Clusters whose API server could not be brought up to date at the last try",
    multiprocess_mode="livemostrecent",
)
ENFORCEMENT_LEFT_OUT = Gauge(
    "clustercert_enforcement_left_out",
    "Revoked ids that don't fit into the ConfigMaps of their clusters",
    multiprocess_mode="livemostrecent",
)

SEALED = Gauge(
    "clustercert_audit_log_size",
    "Events that have their place in the audit log",
    multiprocess_mode="mostrecent",
)
SEALING_FAILURES = Counter(
    "clustercert_audit_sealing_failures",
    "Times that events were not sealed into the audit log when they should",
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
def enforcing(what: str) -> Iterator[None]:
    """Count one piece of work on a cluster's API server by its outcome: `done`, or the name of the error."""
    try:
        yield
    except Exception as error:
        ENFORCEMENTS.labels(what, type(error).__name__).inc()
        raise
    ENFORCEMENTS.labels(what, "done").inc()


def issuance(started: float, outcome: str = "issued") -> None:
    """Count one issuance that began at a `time.perf_counter()`, by its outcome: `issued`, or the name of the error."""
    ISSUANCES.labels(outcome).inc()
    if outcome == "issued":
        ISSUANCE_SECONDS.observe(time.perf_counter() - started)


def exposition() -> bytes:
    """Everything counted by all workers, in Prometheus's text format."""
    # Set before the workers start; the library chooses by it where its numbers are.
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # untyped upstream
    return generate_latest(registry)

"""Prometheus metrics. Labels never identify a cluster, a user or a project.

Each worker process writes its counts to the folder named by `PROMETHEUS_MULTIPROC_DIR`; a scrape returns the sums.
The metrics table in docs/metrics.md is generated from the descriptions: run `make docs` after a change.
"""

import contextlib
import functools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)
from prometheus_client.registry import Collector

from clustercert import __version__

# Otherwise each counter and histogram would have a series with the time of its creation, which nobody uses.
disable_created_metrics()  # type: ignore[no-untyped-call] # untyped upstream

BUILD_INFO = Gauge(
    "clustercert_build_info",
    "1; the label has the version of the program",
    ["version"],
    multiprocess_mode="mostrecent",
)
BUILD_INFO.labels(__version__).set(1)
WORKERS_REPLACED = Counter(
    "clustercert_workers_replaced",
    "Workers that died or did not respond, and were replaced by the supervisor",
)

REQUESTS = Counter("clustercert_requests", "HTTP requests answered", ["route", "method", "status"])
REQUEST_SECONDS = Histogram(
    "clustercert_request_seconds",
    "Time from the arrival of a request to its response",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
ISSUANCES = Counter(
    "clustercert_issuances", "Requests for a certificate: issued, or the name of the error", ["outcome"]
)
ISSUANCE_SECONDS = Histogram(
    "clustercert_issuance_seconds",
    "Time to issue and record a certificate",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
REVOCATIONS = Counter(
    "clustercert_revocations",
    "Revocations: certificate, holder (with the certificate's key), user (in one cluster), cluster, or everywhere"
    " (a user in all clusters)",
    ["kind"],
)
CHECKPOINTS = Counter(
    "clustercert_audit_checkpoints",
    "Checkpoints of the audit log sent to a target: published or failed",
    ["outcome"],
)
for _published in ("published", "failed"):
    CHECKPOINTS.labels(_published)
MISMATCHES = Counter(
    "clustercert_certificate_mismatches",
    "Stored certificates that do not match their database row or their CA; each counted once until it is repaired",
)
CHECKED = Counter("clustercert_certificates_checked", "Stored certificates checked in the background")
LIMITED = Counter(
    "clustercert_limited",
    "Requests refused by a limit: failures (failed authentications from one address), caller, project, source,"
    " quota, tokens, temporary_keys, passwords, sessions, revocations or project_revocations",
    ["limit"],
)
ACCOUNTS_WITH_FAILURES = Counter(
    "clustercert_accounts_with_failures",
    "Users and access keys with 10 failed authentications within 10 minutes in one worker, from any addresses; each"
    " counted once in 10 minutes",
)
FORWARDING_IGNORED = Counter(
    "clustercert_forwarding_ignored",
    "Requests with X-Forwarded-For from a peer that is not in server.trusted_proxies",
)
CONNECTIONS_CLOSED = Counter(
    "clustercert_connections_closed",
    "Connections closed because a worker reached a limit, the oldest first: connections (waiting for a request),"
    " handshakes (unfinished TLS handshakes) or unread (the client does not read the response)",
    ["limit"],
)
for _bound in ("connections", "handshakes", "unread"):
    CONNECTIONS_CLOSED.labels(_bound)
ISSUER_FETCHES = Counter(
    "clustercert_issuer_fetches",
    "Attempts to fetch the keys of an OIDC issuer: done or failed",
    ["issuer", "outcome"],
)
KEYSTONE_REQUESTS = Counter(
    "clustercert_keystone_requests",
    "Requests to Keystone: done, unusable (an error or a malformed response) or failed (no response)",
    ["outcome"],
)
TOKEN_REVIEWS = Counter(
    "clustercert_token_reviews",
    "TokenReviews of service account tokens by API servers: accepted, refused or failed",
    ["issuer", "outcome"],
)
EXPIRING = Gauge(
    "clustercert_certificates_expiring",
    "Live certificates that expire within 1h, 24h, 7d or 30d",
    ["window"],
    multiprocess_mode="mostrecent",
)
# Includes the certificates of revoked users and clusters, because a query that excludes these certificates would read
# more than one index range.
LIVE = Gauge(
    "clustercert_certificates_live",
    "Certificates that are valid and not revoked individually; revocations of a whole user or cluster do not count",
    multiprocess_mode="mostrecent",
)

WEBHOOK_DECISIONS = Counter(
    "clustercert_webhook_decisions",
    "SubjectAccessReviews answered: no_opinion, or the reason for a denial",
    ["outcome"],
)
FEED_SECONDS = Histogram(
    "clustercert_webhook_feed_seconds",
    "Time between two reads of the revocations by a worker; above 1 s, every SubjectAccessReview reads the database",
    buckets=(0.1, 0.3, 0.5, 1, 2, 5, 10, 60),
)
UNKNOWN_CREDENTIALS = Counter(
    "clustercert_unknown_credentials",
    "Client certificates reported by API servers but missing from the ledger, counted once for each cluster, user"
    " name and set of groups; beyond the limits of audit events, once for each report",
)
ALTERED_CREDENTIALS = Counter(
    "clustercert_altered_credentials",
    "Certificates for which an API server reported an altered copy, an attempt to evade revocation; each counted"
    " at most once an hour. Not counted: certificates of `clustercert kubernetes verify`",
)
EXEMPT_CREDENTIALS = Counter(
    "clustercert_exempt_credentials",
    "New client certificates with names that a cluster in mode known-only exempts, reported by API servers; counted"
    " at most once an hour for each user name and set of groups; beyond the limits of audit events, once for each"
    " report",
)
REVOKED_CREDENTIALS_USED = Counter(
    "clustercert_revoked_credentials_used",
    "Revoked certificates with which an API server allowed requests; each counted at most once an hour",
)
WITHOUT_REVIEWS = Gauge(
    "clustercert_clusters_without_reviews",
    "Clusters whose API servers had not called the authorization webhook for 10 minutes at the last use of a"
    " certificate that audit events reported, and have not called it since: revocations have no effect there",
    multiprocess_mode="mostrecent",
)
UNVERIFIED = Gauge(
    "clustercert_clusters_unverified",
    "Clusters that `clustercert kubernetes verify` last found without fault more than 7d, 30d or 90d ago, or never",
    ["since"],
    multiprocess_mode="mostrecent",
)
MASTERS_CREDENTIALS = Counter(
    "clustercert_masters_credentials",
    "Client certificates in system:masters that API servers reported and no operator has listed, counted once for"
    " each cluster; beyond the limits of audit events, once for each report",
)

AuditBatchRefusal = Literal["malformed", "cut_off", "unreadable_events", "unavailable"]
AUDIT_BATCHES_REFUSED = Counter(
    "clustercert_audit_batches_refused",
    "Batches of audit events not processed completely: malformed, cut_off, unreadable_events or unavailable",
    ["reason"],
)
# Create the series of each reason with the value 0, or else an alert on an increase would miss the first count.
for _refusal in get_args(AuditBatchRefusal):
    AUDIT_BATCHES_REFUSED.labels(_refusal)

ENFORCEMENTS = Counter(
    "clustercert_enforcements",
    "Operations on API servers (bind, unbind, bindings, admission or tokens): done, or the name of the error",
    ["what", "outcome"],
)
ENFORCEMENT_SECONDS = Histogram(
    "clustercert_enforcement_seconds",
    "Time until a change was enforced on a cluster, failed attempts included",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
)
ENFORCEMENT_FAILING = Gauge(
    "clustercert_enforcement_failing",
    "Clusters where the last enforcement attempt failed: revoked certificates may still work there",
    multiprocess_mode="livemostrecent",
)
ENFORCEMENT_LEFT_OUT = Gauge(
    "clustercert_enforcement_left_out",
    "Ids of revoked certificates that do not fit into the ConfigMaps of their clusters",
    multiprocess_mode="livemostrecent",
)
SIGNER_ACCESS_NOT_AFTER = Gauge(
    "clustercert_signer_access_not_after_timestamp_seconds",
    "The earliest expiry of the tokens with which signers log in to clusters; 0 without such tokens",
    multiprocess_mode="livemostrecent",
)
SIGNER_ACCESS_OVERDUE = Gauge(
    "clustercert_signer_access_overdue",
    "Clusters whose signer could not log in at its last attempt, or has not renewed its token after half of the"
    " token's lifetime",
    multiprocess_mode="livemostrecent",
)
TOKEN_CLUSTERS_STOPPED = Gauge(
    "clustercert_token_clusters_stopped",
    "Clusters that get no tokens because a check of the cluster found a problem; `cluster_tokens.stopped` names it",
    multiprocess_mode="livemostrecent",
)
TOKEN_OBJECTS_FOREIGN = Gauge(
    "clustercert_token_objects_foreign",
    "Objects that the service did not create, but that affect the accounts of credentials; at most 100 for a cluster",
    multiprocess_mode="livemostrecent",
)
TOKENS_UNKNOWN = Gauge(
    "clustercert_tokens_unknown",
    "Credentials in clusters that are not in the ledger, and that wait for an operator to confirm their deletion",
    multiprocess_mode="livemostrecent",
)

CA_ROTATIONS = Gauge(
    "clustercert_client_ca_rotations",
    "Running rotations of client CAs: planned, distributed, issuing or draining",
    ["state"],
    multiprocess_mode="mostrecent",
)
CA_ROTATIONS_FAILING = Gauge(
    "clustercert_client_ca_rotations_failing",
    "Running rotations of client CAs whose last step failed, for example because an API server is not reached",
    multiprocess_mode="mostrecent",
)
CA_ROTATION_SECONDS = Gauge(
    "clustercert_client_ca_rotation_oldest_seconds",
    "Age of the oldest running rotation of a client CA; 0 if none is running",
    multiprocess_mode="mostrecent",
)
CA_KEYS_DISCARDED = Gauge(
    "clustercert_client_ca_keys_discarded",
    "Keys of client CAs that are not needed any more, and that their signers have not deleted yet",
    multiprocess_mode="mostrecent",
)
CA_NOT_AFTER = Gauge(
    "clustercert_client_ca_not_after_timestamp_seconds",
    "When the first of all client CAs that sign certificates expires; 0 without clusters",
    multiprocess_mode="mostrecent",
)

ACCESS_REQUESTS = Gauge(
    "clustercert_access_requests",
    "Open access requests: pending, approved (not used yet) or active",
    ["state"],
    multiprocess_mode="mostrecent",
)
ACCESS_REQUEST_SECONDS = Gauge(
    "clustercert_access_request_oldest_seconds",
    "Age of the oldest access request that waits for approvals; 0 if none waits",
    multiprocess_mode="mostrecent",
)
ACCESS_REQUESTS_CLOSED = Counter(
    "clustercert_access_requests_closed",
    "Closed access requests: denied, expired (not approved or not used in time), ended (early) or finished",
    ["outcome"],
)
for _closed in ("denied", "expired", "ended", "finished"):
    ACCESS_REQUESTS_CLOSED.labels(_closed)
ACCESS_BEFORE_APPROVAL = Counter(
    "clustercert_access_before_approval",
    "Access requests whose access was used before the approval (break-glass)",
)
EARLY_USES = Gauge(
    "clustercert_access_unapproved_uses",
    "The largest number of uses of access before its approval by one user within 24 hours, in all clusters, without"
    " an approval",
    multiprocess_mode="mostrecent",
)
NOTIFICATIONS = Counter(
    "clustercert_access_request_notifications",
    "Messages about access requests to the receiver in [requests]: sent, failed (an attempt) or given_up (after a"
    " day)",
    ["outcome"],
)
for _sent in ("sent", "failed", "given_up"):
    NOTIFICATIONS.labels(_sent)

SEALED = Gauge(
    "clustercert_audit_log_size",
    "Events sealed into the audit log",
    multiprocess_mode="mostrecent",
)
SEALING_FAILURES = Counter(
    "clustercert_audit_sealing_failures",
    "Failed attempts to seal events into the audit log: unavailable (the database did not answer), or other",
    ["reason"],
)
for _reason in ("unavailable", "other"):
    SEALING_FAILURES.labels(_reason)
UNSEALED_SECONDS = Gauge(
    "clustercert_audit_unsealed_seconds",
    "Age of the oldest event that is not sealed into the audit log; 0 if all events are sealed",
    multiprocess_mode="mostrecent",
)

TLS_NOT_AFTER = Gauge(
    "clustercert_tls_not_after_timestamp_seconds",
    "When the first certificate in the service's own TLS chain expires; absent with plain HTTP",
    ["file"],
    multiprocess_mode="livemin",
)
TLS_LIFETIME = Gauge(
    "clustercert_tls_lifetime_seconds",
    "Length of the period in which all certificates in the service's own TLS chain are valid; absent with plain HTTP",
    ["file"],
    multiprocess_mode="livemin",
)

CLOCK_OFFSET = Gauge(
    "clustercert_clock_offset_seconds",
    "How far this machine's clock is ahead of the database server's; 0 with SQLite",
    multiprocess_mode="mostrecent",
)
RELOADS = Counter(
    "clustercert_reloads",
    "Reloads of TLS files or settings (what: tls, settings), counted for each worker: done or failed",
    ["what", "outcome"],
)
for _what in ("tls", "settings"):
    for _outcome in ("done", "failed"):
        RELOADS.labels(_what, _outcome)
BACKGROUND_FAILURES = Counter(
    "clustercert_background_failures",
    "Failures of background work, which is tried again; `work` is as in the log",
    ["work"],
)
RATE_READ_FAILURES = Counter(
    "clustercert_rate_read_failures",
    "Failed reads of the certificates that other processes issued, for the rate limits; also unreadable events",
)
DISK_FREE = Gauge(
    "clustercert_disk_free_bytes",
    "Free space on the disk of the SQLite file; absent with PostgreSQL",
    ["disk"],
    multiprocess_mode="livemostrecent",
)
DISK_RESERVE = Gauge(
    "clustercert_disk_reserve_bytes",
    "The setting issuing.disk_reserve_mib: with less free space, no certificates are issued; absent with PostgreSQL",
    ["disk"],
    multiprocess_mode="livemostrecent",
)
KEK_USABLE = Gauge(
    "clustercert_key_encryption_key_usable",
    "1 if the first key-encryption key of the source can wrap and unwrap data keys, 0 if not, checked once a minute",
    ["source"],
    multiprocess_mode="livemin",
)
TRACE_BATCHES = Counter(
    "clustercert_trace_batches",
    "Batches of spans for the collector in [tracing]: sent, or failed (dropped after several attempts)",
    ["outcome"],
)
for _delivered in ("sent", "failed"):
    TRACE_BATCHES.labels(_delivered)


def request(route: str, method: str, status: int, seconds: float) -> None:
    """Count one HTTP request."""
    count, latency = _of_request(route, method, status)
    count.inc()
    latency.observe(seconds)


# Cached, because looking up a labelled series takes longer than incrementing it.
@functools.lru_cache(maxsize=1024)
def _of_request(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(route, method, status), REQUEST_SECONDS.labels(route)


@contextlib.contextmanager
def enforcing(what: str) -> Iterator[None]:
    """Count the operation in the `with` block as `done`, or under the name of the error that it raises."""
    try:
        yield
    except Exception as error:
        ENFORCEMENTS.labels(what, type(error).__name__).inc()
        raise
    ENFORCEMENTS.labels(what, "done").inc()


def issuance(started: float, outcome: str = "issued") -> None:
    """Count one request for a certificate. `started`: when the request started, from `time.perf_counter()`."""
    ISSUANCES.labels(outcome).inc()
    if outcome == "issued":
        ISSUANCE_SECONDS.observe(time.perf_counter() - started)


def worker_replaced(pid: int) -> None:
    """Count a worker that was replaced by this one, and forget the gauges that are about living workers."""
    WORKERS_REPLACED.inc()
    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call] # untyped upstream


class _Workers(Collector):
    """The sums of what all workers counted."""

    def collect(self) -> Iterable[Metric]:
        """Read the files of all workers, except those that a starting worker has created and not filled yet."""
        # MultiProcessCollector fails at an empty file.
        files = [
            str(each) for each in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db") if _size(each)
        ]
        merged: Iterable[Metric] = multiprocess.MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call] # untyped upstream
        return merged


def _size(path: Path) -> int:
    # `worker_replaced` deletes files.
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


class _Processes(Collector):
    """Memory, processor time, start and open files of the supervisor and its workers, with the label `pid`."""

    def collect(self) -> Iterable[Metric]:
        """Read the files of all processes in /proc. Other systems have no such files, and get no metrics."""
        families: dict[str, Metric] = {}
        for pid in _supervisor_and_workers():
            for each in ProcessCollector(pid=functools.partial(int, pid), registry=None).collect():
                family = families.setdefault(each.name, Metric(each.name, each.documentation, each.type))
                for sample in each.samples:
                    family.add_sample(sample.name, {"pid": str(pid)}, sample.value)
        return families.values()


def _supervisor_and_workers() -> Iterator[int]:
    supervisor = os.getppid()
    yield supervisor
    # Source: proc_pid_task(5). The supervisor's main thread starts all workers.
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text(encoding="ascii")
        yield from map(int, children.split())


def exposition() -> bytes:
    """Return the metrics of all workers in Prometheus's text format."""
    # Without the variable PROMETHEUS_MULTIPROC_DIR, the service has only one process.
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    registry.register(_Workers())
    registry.register(_Processes())
    return generate_latest(registry)

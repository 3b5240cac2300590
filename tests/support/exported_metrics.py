"""The series that the service can export to Prometheus."""

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from clustercert.observability import metrics


def labels_of_series() -> dict[str, set[str]]:
    """The labels of each series, by the series' name."""
    found: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            registry = CollectorRegistry()
            registry.register(metric)
            [family] = registry.collect()
            labels = set(metric._labelnames)
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
            for suffix in suffixes.get(family.type, [""]):
                found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found | {name: {"pid"} for name in ("process_resident_memory_bytes", "process_cpu_seconds_total")}

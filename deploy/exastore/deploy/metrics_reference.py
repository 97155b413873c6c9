"""The metrics of every process as a page, made from the code that counts them.

`make docs` writes it to docs/metrics.md; a tidy test compares.
"""

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from exastore.deploy.process import new_registry
from exastore.deploy.sim_metrics import SimMetrics
from exastore.gateway.metrics import GatewayMetrics
from exastore.gateway.s3.metrics import S3Metrics
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.storage.metrics import DeviceSample, StorageMetrics

HEAD = """\
# Metrics

Every process serves Prometheus metrics over HTTP; `cluster.json` and the ready files name the
addresses. This page is made by `make docs` from the code. A counter ends with `_total`; a histogram
has `_bucket`, `_sum` and `_count`.
"""


class _Recorder(CollectorRegistry):
    """A registry that remembers who registered, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        self.collectors.append(collector)


def _rows(registry: _Recorder) -> list[str]:
    rows: list[str] = []
    for collector in registry.collectors:
        # There is no public way to ask a metric without samples for its labels.
        labels: tuple[str, ...] = getattr(collector, "_labelnames", ())
        for family in collector.collect():
            found = family.samples[0].labels if family.samples else {}
            seen = labels or tuple(label for label in found if label != "le")
            name = family.name + ("_total" if family.type == "counter" else "")
            text = family.documentation.rstrip(".")
            rows.append(f"| `{name}` | {family.type} | {', '.join(seen)} | {text} |")
    return sorted(rows)


def metrics_reference() -> str:
    """The page, in Markdown."""
    metadata, storage, gateway, sim = _Recorder(), _Recorder(), _Recorder(), _Recorder()
    SimMetrics(sim, lambda: 0.0).tell("", "", 0.0, 0.0)
    MetadataMetrics(metadata)
    device = DeviceSample(
        "disk", capacity_bytes=0, used_bytes=0, chunk_bytes=0, chunk_count=0, fenced=False
    )
    StorageMetrics(storage).watch_devices(lambda: [device])
    GatewayMetrics(gateway)
    S3Metrics(gateway)
    page = [HEAD]
    for title, registry in (
        ("Metadata servers", metadata),
        ("Storage nodes", storage),
        ("Gateways", gateway),
        ("Simulations", sim),
    ):
        page.append(f"\n## {title}\n\n| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n")
        page.append("".join(f"{row}\n" for row in _rows(registry)))
    shared = sorted(family.name for family in new_registry("node").collect())
    page.append(f"\n## Every process\n\n{', '.join(f'`{name}`' for name in shared)}.\n")
    return "".join(page)


if __name__ == "__main__":
    print(metrics_reference(), end="")

"""The metrics of the data path."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class GatewayMetrics:
    """Registered once per registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.bytes = Counter(
            "exastore_gateway_object_bytes_total",
            "Object bytes written to and read from the cluster.",
            ["direction"],
            registry=registry,
        )
        self.chunks = Counter(
            "exastore_gateway_chunk_requests_total",
            "Chunk requests to storage nodes, by operation and result.",
            ["operation", "result"],
            registry=registry,
        )
        self.chunk_bytes = Counter(
            "exastore_gateway_chunk_bytes_total",
            "Chunk bytes sent to and received from storage nodes.",
            ["operation"],
            registry=registry,
        )
        self.degraded_reads = Counter(
            "exastore_gateway_degraded_reads_total",
            "Extents that were decoded because a data chunk could not be read.",
            registry=registry,
        )
        self.hedged_reads = Counter(
            "exastore_gateway_hedged_reads_total",
            "Extents of which more chunks were read because one was slow.",
            registry=registry,
        )
        self.partial_writes = Counter(
            "exastore_gateway_partial_writes_total",
            "Extents committed with chunks missing, to be rebuilt.",
            registry=registry,
        )
        self.write_retries = Counter(
            "exastore_gateway_extent_write_retries_total",
            "Extents that were sent to another placement group, by cause.",
            ["cause"],
            registry=registry,
        )
        self.extent_seconds = Histogram(
            "exastore_gateway_extent_seconds",
            "Time to write or read one extent, in seconds.",
            ["operation"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.map_epoch = Gauge(
            "exastore_gateway_map_epoch",
            "Epoch of the cluster map in use; 0 while there is none.",
            registry=registry,
        )

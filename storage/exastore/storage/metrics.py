"""What a storage node tells Prometheus."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LATENCY_BUCKETS_S = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip


class DeviceSample:
    """State of one device at the time of a scrape."""

    __slots__ = ("capacity_bytes", "chunk_bytes", "chunk_count", "fenced", "path", "used_bytes")

    def __init__(
        self,
        path: str,
        *,
        capacity_bytes: int,
        used_bytes: int,
        chunk_bytes: int,
        chunk_count: int,
        fenced: bool,
    ) -> None:
        self.path = path
        self.capacity_bytes = capacity_bytes
        self.used_bytes = used_bytes
        self.chunk_bytes = chunk_bytes
        self.chunk_count = chunk_count
        self.fenced = fenced


class _DeviceCollector(Collector):
    _FIELDS = (
        ("capacity_bytes", "Bytes that the device may take"),
        ("used_bytes", "Bytes that the segments of the device take, deleted chunks included"),
        ("chunk_bytes", "Bytes of data in the chunks of the device"),
        ("chunk_count", "Chunks on the device"),
        ("fenced", "1 after an I/O error: the device takes no more writes"),
    )

    def __init__(self, sample: Callable[[], Iterable[DeviceSample]]) -> None:
        self._sample = sample

    def collect(self) -> Iterable[Metric]:
        samples = list(self._sample())
        for field, text in self._FIELDS:
            family = GaugeMetricFamily(f"exastore_storage_device_{field}", text, labels=["device"])
            for sample in samples:
                family.add_metric([sample.path], float(getattr(sample, field)))
            yield family


class StorageMetrics:
    """The counters, on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.written_chunks = Counter(
            "exastore_storage_written_chunks", "Chunk writes answered", ["status"],
            registry=registry,
        )  # fmt: skip
        self.written_bytes = Counter(
            "exastore_storage_written_bytes", "Data of chunks made durable", registry=registry
        )
        self.read_chunks = Counter(
            "exastore_storage_read_chunks", "Chunk reads answered", ["status"], registry=registry
        )
        self.read_bytes = Counter(
            "exastore_storage_read_bytes", "Data of chunks read", registry=registry
        )
        self.bulk_connections = Gauge(
            "exastore_storage_bulk_connections",
            "Connections that carry chunks without gRPC",
            registry=registry,
        )
        self.bulk_refusals = Counter(
            "exastore_storage_bulk_refusals",
            "Connections of the bulk port that were closed for what they sent, or for their number",
            ["reason"],
            registry=registry,
        )
        self.deleted_chunks = Counter(
            "exastore_storage_deleted_chunks", "Chunks deleted", registry=registry
        )
        self.write_seconds = Histogram(
            "exastore_storage_write_seconds", "From a chunk received to the chunk durable",
            buckets=_LATENCY_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.read_seconds = Histogram(
            "exastore_storage_read_seconds", "From a request to the chunk verified",
            buckets=_LATENCY_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.syncs = Counter("exastore_storage_syncs", "Calls of fdatasync", registry=registry)
        self.sync_seconds = Counter(
            "exastore_storage_sync_seconds", "Seconds spent in fdatasync", registry=registry
        )
        self.compacted_segments = Counter(
            "exastore_storage_compacted_segments",
            "Segments deleted by compaction",
            registry=registry,
        )
        self.compaction_moved_bytes = Counter(
            "exastore_storage_compaction_moved_bytes",
            "Bytes of live records that compaction wrote again",
            registry=registry,
        )
        self.compaction_freed_bytes = Counter(
            "exastore_storage_compaction_freed_bytes",
            "Bytes that compaction gave back",
            registry=registry,
        )
        self.synced_records = Counter(
            "exastore_storage_synced_records", "Records made durable by them", registry=registry
        )
        self.fences = Counter(
            "exastore_storage_fences", "Devices fenced after an I/O error", registry=registry
        )
        self.corrupt_chunks = Counter(
            "exastore_storage_corrupt_chunks", "Stored chunks that failed their checks",
            registry=registry,
        )  # fmt: skip
        self.corrupt_transfers = Counter(
            "exastore_storage_corrupt_transfers", "Received chunks that failed their checksum",
            registry=registry,
        )  # fmt: skip
        self.damaged_stretches = Counter(
            "exastore_storage_damaged_stretches", "Damage of logs found at start",
            registry=registry,
        )  # fmt: skip
        self.torn_stretches = Counter(
            "exastore_storage_torn_stretches", "Unacknowledged writes cut off by a crash",
            registry=registry,
        )  # fmt: skip
        self.packed_stripes = Counter(
            "exastore_storage_packed_stripes", "Stripes made of small objects", registry=registry
        )
        self.packed_objects = Counter(
            "exastore_storage_packed_objects", "Small objects packed into stripes",
            registry=registry,
        )  # fmt: skip
        self.rebuilt_chunks = Counter(
            "exastore_storage_rebuilt_chunks", "Chunks rebuilt, read back and verified",
            registry=registry,
        )  # fmt: skip
        self.rebuilt_bytes = Counter(
            "exastore_storage_rebuilt_bytes", "Data of rebuilt chunks", registry=registry
        )
        self.rebuild_read_bytes = Counter(
            "exastore_storage_rebuild_read_bytes", "Data pulled from other nodes for rebuilds",
            registry=registry,
        )  # fmt: skip
        self.rebuild_failures = Counter(
            "exastore_storage_rebuild_failures", "Chunks that could not be rebuilt",
            registry=registry,
        )  # fmt: skip
        self.scrubbed_chunks = Counter(
            "exastore_storage_scrubbed_chunks", "Chunks read by scrubs", registry=registry
        )
        self.scrubbed_bytes = Counter(
            "exastore_storage_scrubbed_bytes", "Data of chunks read by scrubs", registry=registry
        )
        self.heartbeat_failures = Counter(
            "exastore_storage_heartbeat_failures", "Heartbeats that were not answered",
            ["metadata"], registry=registry,
        )  # fmt: skip
        self.background_limit = Gauge(
            "exastore_storage_background_limit_bytes_per_second",
            "What background work may use now of a device, the node each way, the rack; 0: no "
            "limit, or no share of the rack",
            ["of"], registry=registry,
        )  # fmt: skip
        self.background_waits = Counter(
            "exastore_storage_background_wait_seconds",
            "Seconds that background work waited for budgets, by what was short",
            ["of"], registry=registry,
        )  # fmt: skip
        self.foreground_p99 = Gauge(
            "exastore_storage_foreground_p99_seconds",
            "What 99 % of the chunk requests of clients took at most, lately; 0: there were none",
            registry=registry,
        )
        self.map_epoch = Gauge(
            "exastore_storage_map_epoch", "Epoch of the cluster map of this node",
            registry=registry,
        )  # fmt: skip
        self._devices: _DeviceCollector | None = None

    def watch_devices(self, sample: Callable[[], Iterable[DeviceSample]]) -> None:
        """Show the devices at every scrape, until `forget_devices`."""
        self._devices = _DeviceCollector(sample)
        self._registry.register(self._devices)

    def forget_devices(self) -> None:
        if self._devices is not None:
            self._registry.unregister(self._devices)
            self._devices = None

    # StoreObserver

    def synced(self, chunk_count: int, duration_s: float) -> None:
        self.syncs.inc()
        self.sync_seconds.inc(duration_s)
        self.synced_records.inc(chunk_count)

    def fenced(self, reason: str) -> None:
        self.fences.inc()

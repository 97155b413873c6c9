"""What a metadata server tells Prometheus."""

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from exastore.proto.v1 import upkeep_pb2

_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class MetadataMetrics:
    """The metrics of one server, on the registry it is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "exastore_metadata_requests",
            "Calls served, by method and result: ok, or the reason of the failure.",
            ("method", "result"),
            registry=registry,
        )
        self._latency = Histogram(
            "exastore_metadata_request_seconds",
            "Time to serve a call, by method; streams are not timed.",
            ("method",),
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        #: Looking labels up takes longer than counting.
        self._by_call: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._connections = Gauge(
            "exastore_metadata_bulk_connections",
            "Connections that carry calls without gRPC.",
            registry=registry,
        )
        self._refusals = Counter(
            "exastore_metadata_bulk_refusals",
            "Connections of the bulk port closed for what they sent, or for their number.",
            ("reason",),
            registry=registry,
        )
        self._epoch = Gauge(
            "exastore_metadata_map_epoch", "Epoch of the cluster map; 0: none.", registry=registry
        )
        self._devices = Gauge(
            "exastore_metadata_devices", "Devices by state.", ("state",), registry=registry
        )
        self._nodes = Gauge(
            "exastore_metadata_nodes",
            "Nodes by state: the best state of any of their devices.",
            ("state",),
            registry=registry,
        )
        self._pgs = Gauge(
            "exastore_metadata_pgs",
            "Placement groups by the number of slots that cannot be read now.",
            ("missing",),
            registry=registry,
        )
        self._lease_held = Gauge(
            "exastore_metadata_lease_held",
            "1 while this server does the background work.",
            registry=registry,
        )
        self._repair_tasks = Gauge(
            "exastore_metadata_repair_tasks",
            "Slots of the current repair, by state: waiting, running.",
            ("state",),
            registry=registry,
        )
        self._repair_results = Counter(
            "exastore_metadata_repair_results",
            "Rebuilds that ended, by result: ok or failed.",
            ("result",),
            registry=registry,
        )
        self._repair_bytes = Counter(
            "exastore_metadata_repair_chunk_bytes",
            "Bytes of chunks rebuilt, read back and verified.",
            registry=registry,
        )
        self._repair_read_bytes = Counter(
            "exastore_metadata_repair_read_bytes",
            "Bytes pulled from other slots for rebuilding.",
            registry=registry,
        )
        self._repair_eta = Gauge(
            "exastore_metadata_repair_eta_seconds",
            "Time until the repair is done; negative: not known.",
            registry=registry,
        )
        self._pace = Gauge(
            "exastore_metadata_background_pace_bytes_per_second",
            "What repair and moves may use of a node's network now, each way; 0: no limit.",
            ("node",),
            registry=registry,
        )
        self._foreground = Gauge(
            "exastore_metadata_foreground_p99_seconds",
            "What 99 % of clients' chunk requests to a node took at most, as it or gateways see.",
            ("node",),
            registry=registry,
        )
        self._repair_oldest = Gauge(
            "exastore_metadata_repair_age_seconds",
            "Time since the current repair began; 0: none.",
            registry=registry,
        )
        self._degraded = Gauge(
            "exastore_metadata_degraded_stripes",
            "Stripes committed with chunks missing that are not rebuilt yet.",
            registry=registry,
        )
        self._trash_entries = Gauge(
            "exastore_metadata_trash_entries", "Entries in the trash.", registry=registry
        )
        self._trash_extents = Gauge(
            "exastore_metadata_trash_extents", "Extents in the trash.", registry=registry
        )
        self._trash_oldest = Gauge(
            "exastore_metadata_trash_oldest_age_seconds",
            "Age of the oldest entry in the trash; 0: empty.",
            registry=registry,
        )
        self._trash_chunks = Counter(
            "exastore_metadata_trash_deleted_chunks",
            "Chunks that storage nodes deleted for the trash collection.",
            registry=registry,
        )
        self._unpacked_objects = Gauge(
            "exastore_metadata_unpacked_objects",
            "Small objects that wait to be packed.",
            registry=registry,
        )
        self._unpacked_bytes = Gauge(
            "exastore_metadata_unpacked_bytes",
            "Bytes of small objects that wait to be packed.",
            registry=registry,
        )
        self._packed_stripes = Gauge(
            "exastore_metadata_packed_stripes",
            "Stripes that small objects share.",
            registry=registry,
        )
        self._packed_live = Gauge(
            "exastore_metadata_packed_live_ratio",
            "Share of the bytes packed into them that is still referred to; 1: there are none.",
            registry=registry,
        )
        self._packed_objects = Counter(
            "exastore_metadata_packed_objects",
            "Small objects that were packed.",
            registry=registry,
        )
        self._packed_bytes = Counter(
            "exastore_metadata_packed_bytes",
            "Bytes of small objects that were packed.",
            registry=registry,
        )
        self._orphan_chunks = Gauge(
            "exastore_metadata_orphan_chunks",
            "Chunks that nothing refers to, found and not deleted yet.",
            registry=registry,
        )
        self._orphan_bytes = Gauge(
            "exastore_metadata_orphan_bytes",
            "Bytes of chunks that nothing refers to, found and not deleted yet.",
            registry=registry,
        )
        self._orphans_deleted = Counter(
            "exastore_metadata_orphan_deleted_chunks",
            "Chunks deleted because nothing referred to them.",
            registry=registry,
        )
        self._scrub_found = Counter(
            "exastore_metadata_scrub_found_chunks",
            "Bad chunks that scrubs found: corrupt, or missing.",
            ("kind",),
            registry=registry,
        )
        self._suspects = Gauge(
            "exastore_metadata_suspect_chunks",
            "Chunks found bad, or read around, that are not repaired yet.",
            registry=registry,
        )
        self._healed = Counter(
            "exastore_metadata_healed_chunks",
            "Suspect chunks that are in place, read back and verified.",
            registry=registry,
        )
        self._lifecycle_done = Counter(
            "exastore_metadata_lifecycle_actions",
            "Rows that lifecycle acted on: expired, noncurrent, upload, or indexed anew.",
            ("action",),
            registry=registry,
        )
        self._lifecycle_oldest = Gauge(
            "exastore_metadata_lifecycle_oldest_overdue_seconds",
            "How long the oldest row that lifecycle should have acted on is overdue; 0: none.",
            registry=registry,
        )
        self._background_errors = Counter(
            "exastore_metadata_background_errors",
            "Failures of background work, by what it did.",
            ("work",),
            registry=registry,
        )

    def scrub_found(self, kind: str, count: int) -> None:
        """A scrub found bad chunks; `kind` is corrupt or missing."""
        self._scrub_found.labels(kind).inc(count)

    def suspects(self, count: int) -> None:
        """So many chunks wait to be looked at."""
        self._suspects.set(count)

    def healed(self, count: int) -> None:
        """Suspects are as they should be."""
        self._healed.inc(count)

    def connections(self, count: int) -> None:
        """So many are open at the bulk port."""
        self._connections.set(count)

    def refused(self, reason: str) -> None:
        """The bulk port closed a connection."""
        self._refusals.labels(reason).inc()

    def request(self, method: str, result: str, duration_s: float | None) -> None:
        """A call ended."""
        found = self._by_call.get((method, result))
        if found is None:
            found = self._requests.labels(method, result), self._latency.labels(method)
            self._by_call[method, result] = found
        found[0].inc()
        if duration_s is not None:
            found[1].observe(duration_s)

    def map(
        self,
        epoch: int,
        devices_by_state: Mapping[str, int],
        nodes_by_state: Mapping[str, int],
        pgs_by_missing: Sequence[int],
    ) -> None:
        """The map as it is now."""
        self._epoch.set(epoch)
        for state, count in devices_by_state.items():
            self._devices.labels(state).set(count)
        for state, count in nodes_by_state.items():
            self._nodes.labels(state).set(count)
        for missing, count in enumerate(pgs_by_missing):
            self._pgs.labels(str(missing)).set(count)

    def lease(self, held: bool) -> None:
        """Whether this server does the background work."""
        self._lease_held.set(held)

    def repair(self, waiting: int, running: int, eta_s: float, age_s: float) -> None:
        """The repair as it is now."""
        self._repair_tasks.labels("waiting").set(waiting)
        self._repair_tasks.labels("running").set(running)
        self._repair_eta.set(eta_s)
        self._repair_oldest.set(age_s)

    def paced(self, node: str, rate_bytes_per_s: float, p99_s: float) -> None:
        """A node was told its pace."""
        self._pace.labels(node).set(rate_bytes_per_s)
        self._foreground.labels(node).set(p99_s)

    def rebuilt(self, chunk_bytes: int, read_bytes: int) -> None:
        """A rebuild made progress."""
        self._repair_bytes.inc(chunk_bytes)
        self._repair_read_bytes.inc(read_bytes)

    def rebuild_ended(self, ok: bool) -> None:
        """A rebuild ended."""
        self._repair_results.labels("ok" if ok else "failed").inc()

    def degraded(self, stripe_count: int) -> None:
        """Stripes with missing chunks."""
        self._degraded.set(stripe_count)

    def trash(self, entry_count: int, extent_count: int, oldest_age_s: float) -> None:
        """The trash as it is now."""
        self._trash_entries.set(entry_count)
        self._trash_extents.set(extent_count)
        self._trash_oldest.set(oldest_age_s)

    def chunks_deleted(self, count: int) -> None:
        """Storage nodes deleted chunks."""
        self._trash_chunks.inc(count)

    def packing(self, status: upkeep_pb2.PackingStatus) -> None:
        """What waits to be packed, and what is packed."""
        self._unpacked_objects.set(status.unpacked_object_count)
        self._unpacked_bytes.set(status.unpacked_bytes)
        self._packed_stripes.set(status.stripe_count)
        packed_bytes = status.packed_bytes
        self._packed_live.set(status.live_bytes / packed_bytes if packed_bytes else 1.0)

    def packed(self, object_count: int, size_bytes: int) -> None:
        """A stripe of small objects was written."""
        self._packed_objects.inc(object_count)
        self._packed_bytes.inc(size_bytes)

    def orphans(self, chunk_count: int, size_bytes: int) -> None:
        """Orphans that the last search left."""
        self._orphan_chunks.set(chunk_count)
        self._orphan_bytes.set(size_bytes)

    def orphans_deleted(self, chunk_count: int) -> None:
        """Orphans were deleted."""
        self._orphans_deleted.inc(chunk_count)

    def lifecycle_done(self, action: str, count: int) -> None:
        """Lifecycle acted on rows."""
        self._lifecycle_done.labels(action).inc(count)

    def lifecycle_oldest(self, overdue_s: float) -> None:
        """How long the oldest row is overdue."""
        self._lifecycle_oldest.set(overdue_s)

    def background_error(self, work: str) -> None:
        """A round of background work failed."""
        self._background_errors.labels(work).inc()

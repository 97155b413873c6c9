"""What the S3 front counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_BOUNDS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip


class S3Metrics:
    """The metrics of one gateway; names start with exastore_gateway_s3_."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "exastore_gateway_s3_requests",
            "S3 requests answered, by operation and HTTP status.",
            ("operation", "status"),
            registry=registry,
        )
        self.latency_s = Histogram(
            "exastore_gateway_s3_request_duration_seconds",
            "Time from the head of a request to the end of its response.",
            ("operation",),
            buckets=_LATENCY_BOUNDS_S,
            registry=registry,
        )
        self.received_bytes = Counter(
            "exastore_gateway_s3_received_bytes",
            "Bytes of request bodies received, framing included.",
            registry=registry,
        )
        self.sent_bytes = Counter(
            "exastore_gateway_s3_sent_bytes",
            "Bytes of response bodies sent.",
            registry=registry,
        )
        #: Children of the labelled metrics, since to look them up takes a lock and a copy.
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.in_flight = Gauge(
            "exastore_gateway_s3_requests_in_flight",
            "S3 requests whose response is not over.",
            registry=registry,
        )

    def count(self, operation: str, status: int, duration_s: float, sent_bytes: int) -> None:
        """Count a request whose response is over."""
        children = self._children.get((operation, status))
        if children is None:
            children = (
                self.requests.labels(operation, str(status)),
                self.latency_s.labels(operation),
            )
            self._children[operation, status] = children
        children[0].inc()
        children[1].observe(duration_s)
        self.sent_bytes.inc(sent_bytes)
        self.in_flight.dec()

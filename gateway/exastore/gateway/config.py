"""The configuration of a gateway."""

from dataclasses import dataclass

#: As in `exastore.proto.links`, which brings gRPC.
CHUNK_TRANSPORTS = ("local", "tcp", "grpc")


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What one gateway process is told; read from TOML by `exastore.deploy`."""

    address: str = "127.0.0.1:0"
    """host:port of the S3 endpoint; port 0 takes a free one."""
    share_port: bool = False
    """Whether other gateways on this machine listen at the same address: the kernel deals out
    connections (SO_REUSEPORT)."""
    metadata: tuple[str, ...] = ()
    """host:port of every metadata server."""
    access_key: str = ""
    """The access key id that S3 clients sign with."""
    secret_key: str = ""
    """Its secret."""
    master_key_file: str = ""
    """File of the master key, under which the secrets of users are sealed; empty: no users."""
    key_ttl_s: float = 5.0
    """How long a user's key is trusted before it is looked up again: what disabling may take."""
    bucket_ttl_s: float = 1.0
    """How long a gateway trusts what it knows of a bucket's owner and policy, in seconds."""
    traffic_flush_s: float = 10.0
    """Seconds between two batches of traffic counts; a gateway that dies loses the last one."""
    inventory_day_s: float = 86_400.0
    """Seconds of the day of inventories; 0: this gateway writes none."""
    region: str = "us-east-1"
    """The region that GetBucketLocation reports."""
    check_region: bool = False
    """Whether signatures of other regions are refused, as S3 does."""
    domain: str = ""
    """With "s3.example.org", bucket.s3.example.org is a bucket; empty: path style only."""
    website_domain: str = ""
    """With "web.example.org", bucket.web.example.org is the bucket as a website; empty: none."""
    tls_certificate: str = ""
    """PEM file of the certificate chain of the S3 endpoint; empty: plain HTTP."""
    tls_key: str = ""
    """PEM file of the certificate's key."""
    inline_bytes: int = 4096
    """Objects of at most so many bytes are stored within their metadata."""
    packed_bytes: int = 64 << 10
    """Larger objects of at most so many bytes are written as copies, which are packed into shared
    stripes later; 0: each object has stripes of its own."""
    chunk_bytes: int = 1 << 20
    """The most bytes of one chunk."""
    write_quorum_extra: int = 1
    """Losses that the durable chunks of a write must survive before it is acknowledged, whichever
    chunks are lost; fewer if the code has no more to give."""
    max_in_flight_bytes: int = 32 << 20
    """Bytes of extents that one request reads ahead or writes behind; two extents at least."""
    max_write_bytes: int = 20 << 20
    """Bytes of extents that all requests together write behind, one extent at least. Beside these,
    each request has the extent that it fills."""
    max_read_ahead_bytes: int = 16 << 20
    """Bytes of extents that all requests together read ahead. Beside these, each request has the
    extent that it sends."""
    max_node_in_flight_bytes: int = 64 << 20
    """The most bytes of chunks under way to or from one storage node, per direction."""
    chunk_transport: str = "local"
    """How chunks reach storage nodes, and calls metadata servers: "local" (a Unix socket where the
    other is on this machine, else TCP), "tcp", or "grpc" alone. What cannot be had falls back to
    gRPC."""
    chunk_timeout_s: float = 15.0
    """How long a storage node may take to write or read one chunk, in seconds."""
    straggler_wait_s: float = 5.0
    """How long a write that has its quorum waits for the chunks still under way, in seconds."""
    hedge_after_s: float = 0.5
    """After so many seconds a slow chunk is also sought through the other chunks of its stripe;
    after fewer when nodes typically answer much faster."""
    hedge_least_s: float = 0.1
    """But not before so many seconds."""
    suspect_s: float = 3.0
    """How long a node or device that failed is avoided, in seconds."""
    write_attempt_count: int = 4
    """How many placement groups one extent tries before the write fails."""
    metadata_call_timeout_s: float = 5.0
    """How long one call of a metadata server may take, in seconds."""
    metadata_deadline_s: float = 15.0
    """How long a metadata request is retried over all servers before it fails, in seconds."""
    backoff_min_s: float = 0.05
    """The first pause before a server or node is tried again, in seconds; doubles each time."""
    backoff_max_s: float = 2.0
    """The longest such pause, in seconds."""

    def __post_init__(self) -> None:
        if self.chunk_bytes < 64 or self.chunk_bytes % 64 or self.chunk_bytes > 4 << 20:
            raise ValueError(
                f"chunk_bytes is {self.chunk_bytes}; it must be a multiple of 64 up to 4 MiB"
            )
        if self.chunk_transport not in CHUNK_TRANSPORTS:
            known = ", ".join(CHUNK_TRANSPORTS)
            raise ValueError(f"chunk_transport is {self.chunk_transport!r}; there are {known}")
        if not 0 <= self.packed_bytes <= 1 << 20:
            raise ValueError(f"packed_bytes is {self.packed_bytes}; 0 to 1 MiB are possible")
        if not self.metadata:
            return
        for address in self.metadata:
            if ":" not in address:
                raise ValueError(f"metadata address {address!r} is not host:port")

"""The configuration of a gateway."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What one gateway process is told; read from TOML by `exastore.deploy`."""

    address: str = "127.0.0.1:0"
    """host:port of the S3 endpoint; port 0 takes a free one."""
    metadata: tuple[str, ...] = ()
    """host:port of every metadata server."""
    access_key: str = ""
    """The access key id that S3 clients sign with."""
    secret_key: str = ""
    """Its secret."""
    region: str = "us-east-1"
    """The region that GetBucketLocation reports; signatures of any region are accepted."""
    domain: str = ""
    """With "s3.example.org", the Host bucket.s3.example.org names a bucket; empty: path style only."""
    inline_bytes: int = 4096
    """Objects of at most so many bytes are stored within their metadata."""
    chunk_bytes: int = 1 << 20
    """The most bytes of one chunk."""

"""Configuration of a storage node."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """What a storage node needs to know.

    Attributes:
        node_id: Name of the node, chosen by the operator, stable over restarts.
        devices: Folders, one per device; empty ones are formatted.
        metadata: Addresses (host:port) of all metadata servers.
        address: host:port to listen on; port 0 takes a free one.
        bulk_port: Port at the same host that carries chunks without gRPC; 0 takes a free one, -1
            leaves them to gRPC.
        advertise: host:port under which others reach this node; empty: the address it listens on.
        rack: Name of the rack, a failure domain.
        zone: Name of the zone, a failure domain.
        region: Name of the region, a failure domain.
        device_class: What kind of devices these are, for example "ssd"; pools may ask for it.
        heartbeat_s: Seconds between heartbeats to each metadata server.
        capacity_bytes: Bytes that each device may take; 0: the size of its file system.
        reserve_bytes: Bytes of each device that chunks must leave free; 0: one hundredth of the
            capacity, at most 1 GiB.
        segment_bytes: Bytes at which a segment file is sealed.
        allocate_bytes: Step in bytes in which disk space is reserved.
        stream_bytes: Bytes of chunks in flight per stream before the sender has to wait.
        rebuild_parallelism: Stripes that one rebuild works on at once; each takes k chunks of
            memory.
        read_threads: Threads that read chunks from the devices of the node.
    """

    node_id: str
    devices: tuple[Path | str, ...]
    metadata: tuple[str, ...]
    address: str = "127.0.0.1:0"
    bulk_port: int = 0
    advertise: str = ""
    rack: str = "rack-0"
    zone: str = "zone-0"
    region: str = "region-0"
    device_class: str = ""
    heartbeat_s: float = 0.5
    capacity_bytes: int = 0
    reserve_bytes: int = 0
    segment_bytes: int = 256 << 20
    allocate_bytes: int = 16 << 20
    stream_bytes: int = 16 << 20
    rebuild_parallelism: int = 8
    read_threads: int = 4

    def __post_init__(self) -> None:
        if not self.node_id:
            raise ValueError("node_id: a storage node needs a name")
        if not self.devices:
            raise ValueError("devices: a storage node needs at least one device folder")
        if not -1 <= self.bulk_port < 1 << 16:
            raise ValueError(f"bulk_port: a port, 0 or -1, not {self.bulk_port}")
        if self.heartbeat_s <= 0:
            raise ValueError(f"heartbeat_s: must be positive, not {self.heartbeat_s}")
        if self.segment_bytes < 1 << 16:
            raise ValueError(f"segment_bytes: at least 65536, not {self.segment_bytes}")

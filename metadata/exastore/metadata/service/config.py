"""The configuration of a metadata server."""

from dataclasses import dataclass

from exastore.erasure import Codec, UnknownCode, codec
from exastore.metadata.core.pools import DEFAULT_POOL
from exastore.metadata.core.topology import DomainLevel, PlacementRule
from exastore.proto.v1 import pool_pb2


def cluster_code(name: str) -> Codec:
    """The codec of a cluster: any that `exastore.erasure` knows.

    Raises:
        ValueError: There is no such code.
    """
    try:
        return codec(name)
    except UnknownCode as error:
        raise ValueError(f"code: {error}") from error


def parsed_partition(item: str) -> tuple[str, str]:
    """(name, URL) of "name=engine URL". Raises ValueError."""
    name, sign, url = item.partition("=")
    if not sign or not name.replace("-", "").isalnum() or not url:
        raise ValueError(f"partition {item!r}: name=engine URL is expected")
    return name, url


def parsed_pool(item: str, level: DomainLevel) -> pool_pb2.Pool:
    """The pool that "NAME:key=value,..." describes, without its first PG.

    Keys: pgs (how many; needed); region and class (names that may hold the data, with + between
    them); per_device, per_node, per_rack, per_zone, per_region (the most chunks of a stripe there;
    if none is given, one for each domain of `level`).

    Raises:
        ValueError: It describes none.
    """
    name, sign, text = item.partition(":")
    if not sign or not name.replace("-", "").replace("_", "").isalnum() or name == DEFAULT_POOL:
        raise ValueError(
            f"pool {item!r}: NAME:key=value,... is expected; {DEFAULT_POOL!r} is taken"
        )
    pool = pool_pb2.Pool(name=name)
    limits: dict[DomainLevel, int] = {}
    for part in text.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        limited = key.removeprefix("per_").upper()
        if key == "region" and value:
            pool.regions.extend(value.split("+"))
        elif key == "class" and value:
            pool.device_classes.extend(value.split("+"))
        elif key == "pgs" and value.isdecimal() and int(value):
            pool.pg_count = int(value)
        elif key.startswith("per_") and limited in DomainLevel.__members__ and value.isdecimal():
            limits[DomainLevel[limited]] = int(value)
        else:
            raise ValueError(
                f"pool {name!r}: {part.strip()!r} is not understood: known are pgs=32, "
                "region=a+b, class=ssd, per_node=1, per_rack=2, per_zone=2, per_region=4"
            )
    if not pool.pg_count:
        raise ValueError(f"pool {name!r}: pgs=NUMBER is needed")
    for limited_level, most in sorted((limits or {level: 1}).items()):
        if most < 1:
            raise ValueError(f"pool {name!r}: per_{limited_level.name.lower()} is at least 1")
        pool.limits.add(level=limited_level, max_chunks=most)
    return pool


@dataclass(frozen=True, slots=True)
class MetadataConfig:
    """What one metadata server is told. Raises ValueError, in words, for what cannot work."""

    address: str = "127.0.0.1:0"
    """host:port to serve at; port 0 takes any free one."""
    bulk_port: int = 0
    """Port at the same host that takes gateways' calls without gRPC, which costs less; 0 takes a
    free one, -1: gRPC alone."""
    engine: str = "memory:"
    """Where metadata is kept: "sqlite:///absolute/path", or "memory:", which forgets."""
    cluster_id: str = "exastore"
    """Name of the cluster, part of its map."""
    code: str = "rs-4-2"
    """Codec of every stripe, fixed when the cluster is formed."""
    pg_count: int = 64
    """Placement groups, fixed when the cluster is formed; with pools, those of the default one."""
    pools: tuple[str, ...] = ()
    """Further pools, each "NAME:pgs=32,region=eu+uk,class=ssd,per_node=1,per_rack=2"."""
    bootstrap_device_count: int = 8
    """Devices that must have joined before the first map is made."""
    domain: str = "node"
    """Failure domain that holds at most one chunk of a stripe: device, node, rack, zone, region."""
    down_after_s: float = 3.0
    """Seconds without a heartbeat after which a node's devices are DOWN."""
    out_after_s: float = 900.0
    """Seconds without a heartbeat after which a node's devices are OUT and repair starts."""
    max_out_fraction: float = 0.5
    """Share of the devices' weight, 0 to 1, that silence may take OUT at once; others stay DOWN."""
    tick_s: float = 0.25
    """Seconds between two rounds of background work."""
    lease_s: float = 3.0
    """Seconds for which one server holds the background work without renewing."""
    repair_concurrency: int = 4
    """Slots rebuilt at the same time."""
    repair_bandwidth_bytes_per_s: int = 0
    """Bytes per second that all rebuilding together may write; 0: no limit."""
    device_budget_bytes_per_s: int = 0
    """Bytes per second that repair and moves may use of each device; 0: no limit. Like the next
    four, until an operator sets something else (`exastore cluster budget`)."""
    node_budget_bytes_per_s: int = 0
    """Bytes per second of repair and moves through each node's network, each way; 0: no limit."""
    rack_budget_bytes_per_s: int = 0
    """Bytes per second of repair and moves between each rack and the others, each way; 0: none."""
    foreground_p99_s: float = 0.1
    """Seconds within which 99 % of clients' chunk requests shall be done while repair runs; 0:
    repair heeds nobody."""
    budget_floor_bytes_per_s: int = 4 << 20
    """Bytes per second that a node may use for repair and moves however slow clients are."""
    repair_retry_s: float = 1.0
    """Seconds before a failed rebuild is tried again; doubles up to 30 s."""
    move_concurrency: int = 4
    """Slots that are copied at the same time when devices are drained or balanced."""
    moves_per_device: int = 2
    """Slots that are copied from or to one device at the same time."""
    move_bandwidth_bytes_per_s: int = 0
    """Bytes per second that all moves together may write; 0: no limit."""
    max_misplaced_fraction: float = 0.05
    """Share of all slots, 0 to 1, that may be on their way at once; one slot always may."""
    rebuild_idle_timeout_s: float = 30.0
    """Seconds without progress after which a rebuild is given up and tried again."""
    trash_grace_s: float = 60.0
    """Seconds between deleting an object and deleting its chunks."""
    packed_chunk_bytes: int = 1 << 20
    """The most bytes of a chunk of a stripe that small objects share, and of an object in it."""
    pack_wait_s: float = 300.0
    """Seconds for which small objects wait for others to fill a stripe before they make do."""
    pack_concurrency: int = 2
    """Stripes of small objects written at the same time."""
    orphan_grace_s: float = 86_400.0
    """Seconds from beginning a stripe to its commit, at most; then its chunks are orphans."""
    orphan_interval_s: float = 21_600.0
    """Seconds between two searches for orphans; 0: only when an operator asks."""
    scrub_period_s: float = 1_209_600.0
    """Seconds within which every chunk is read and checked; 0: only when an operator asks."""
    scrub_bandwidth_bytes_per_s: int = 1 << 20
    """Bytes per second that a scrub reads of each device, or more where the period asks for it."""
    min_part_bytes: int = 5 << 20
    """Least bytes of every part of a multipart upload but the last; S3 has 5 MiB."""
    partitions: tuple[str, ...] = ()
    """Further engines that buckets are spread over, each "name=engine URL"; `engine` is "main"."""
    lifecycle_day_s: float = 86400.0
    """Seconds of a day of lifecycle rules; less than a real day only for tests."""
    audit_file: str = ""
    """JSON lines of administrative acts are appended to this file; empty: they are not kept."""
    request_ttl_s: float = 600.0
    """Seconds for which a request's answer is kept after its object was replaced or deleted."""

    def __post_init__(self) -> None:
        if not -1 <= self.bulk_port < 1 << 16:
            raise ValueError(f"bulk_port: a port, 0 or -1, not {self.bulk_port}")
        n = cluster_code(self.code).n
        if self.domain.upper() not in DomainLevel.__members__:
            names = ", ".join(level.name.lower() for level in DomainLevel)
            raise ValueError(f"domain {self.domain!r} is unknown: use one of {names}")
        if self.bootstrap_device_count < n:
            raise ValueError(
                f"{self.code} needs {n} devices for a stripe, but the cluster forms with "
                f"{self.bootstrap_device_count}: start more nodes (bootstrap_device_count) or "
                "choose a code with fewer chunks"
            )
        if not 1 <= self.pg_count <= 1 << 20:
            raise ValueError(f"pg_count is {self.pg_count}; 1 to {1 << 20} are possible")
        pool_names = [pool.name for pool in self.pool_messages]
        if len(set(pool_names)) < len(pool_names):
            raise ValueError("pools: names must differ")
        if not 0 < self.down_after_s <= self.out_after_s:
            raise ValueError("down_after_s must be above 0 and at most out_after_s")
        if not 0 <= self.max_out_fraction <= 1:
            raise ValueError("max_out_fraction must be 0 to 1")
        if self.down_after_s < 4 * self.tick_s:
            # Rounds further apart than half of down_after_s look like a stall of the server itself,
            # after which it listens again before it declares anyone dead.
            raise ValueError("down_after_s must be at least four times tick_s")
        if self.tick_s <= 0 or self.lease_s < 2 * self.tick_s:
            raise ValueError("tick_s must be above 0 and lease_s at least twice tick_s")
        if self.repair_concurrency < 1 or self.repair_bandwidth_bytes_per_s < 0:
            raise ValueError(
                "repair_concurrency must be at least 1, repair_bandwidth_bytes_per_s at least 0"
            )
        budgets = (
            self.device_budget_bytes_per_s,
            self.node_budget_bytes_per_s,
            self.rack_budget_bytes_per_s,
            self.foreground_p99_s,
        )
        if min(budgets) < 0 or self.budget_floor_bytes_per_s < 1:
            raise ValueError("budgets must be at least 0, budget_floor_bytes_per_s at least 1")
        if not 4096 <= self.packed_chunk_bytes <= 4 << 20:
            raise ValueError("packed_chunk_bytes must be 4 KiB to 4 MiB")
        if self.pack_wait_s < 0 or self.pack_concurrency < 1:
            raise ValueError("pack_wait_s must be at least 0, pack_concurrency at least 1")
        if self.orphan_grace_s < 1 or self.orphan_interval_s < 0:
            raise ValueError("orphan_grace_s must be at least 1, orphan_interval_s at least 0")
        if self.scrub_period_s < 0 or self.scrub_bandwidth_bytes_per_s < 1:
            raise ValueError(
                "scrub_period_s must be at least 0, scrub_bandwidth_bytes_per_s at least 1"
            )
        if self.lifecycle_day_s <= 0 or self.request_ttl_s <= 0:
            raise ValueError("lifecycle_day_s and request_ttl_s must be above 0")
        partition_names = [parsed_partition(item)[0] for item in self.partitions]
        if len({*partition_names, "main"}) <= len(partition_names):
            raise ValueError('partitions: names must differ, from each other and from "main"')
        if min(self.move_concurrency, self.moves_per_device) < 1:
            raise ValueError("move_concurrency and moves_per_device must be at least 1")
        if self.move_bandwidth_bytes_per_s < 0 or not 0 <= self.max_misplaced_fraction <= 1:
            raise ValueError(
                "move_bandwidth_bytes_per_s must be at least 0, max_misplaced_fraction 0 to 1"
            )
        if not self.cluster_id:
            raise ValueError("cluster_id is empty")

    @property
    def rule(self) -> PlacementRule:
        """What placement must keep."""
        return PlacementRule(level=DomainLevel[self.domain.upper()])

    @property
    def pool_messages(self) -> list[pool_pb2.Pool]:
        """The pools of the first map, which cover all its PGs; empty: it needs none."""
        if not self.pools:
            return []
        level = DomainLevel[self.domain.upper()]
        default = pool_pb2.Pool(name=DEFAULT_POOL, pg_count=self.pg_count)
        default.limits.add(level=level, max_chunks=1)
        found = [default, *(parsed_pool(item, level) for item in self.pools)]
        first_pg = 0
        for pool in found:
            pool.first_pg = first_pg
            first_pg += pool.pg_count
        return found

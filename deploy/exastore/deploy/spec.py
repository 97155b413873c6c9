"""What a local cluster is: the choices that outlive its processes, kept in DIR/spec.toml."""

import secrets
import shutil
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from exastore.deploy.config import read_config, render_table
from exastore.deploy.errors import BadInput, EnvironmentUnfit
from exastore.deploy.files import write_atomically
from exastore.deploy.layout import is_gateway, is_metadata, is_node, process_names

#: A start with less than this free would fail in the middle of something.
MIN_FREE_BYTES = 512 * 2**20
LOOPBACK = "127.0.0.1"
#: First and last port of outgoing connections, of Linux.
_OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_QUIET_PORT = 12_000
_PORT_TRIES = 100
#: Engines that several metadata servers can use at once.
SHARED_ENGINES = ("postgresql://", "etcd://")


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A local cluster."""

    cluster_id: str
    """Chosen at random when the cluster was made."""
    access_key: str
    """Of the S3 user that may do everything."""
    secret_key: str
    """Belongs to `access_key`."""
    nodes: int = 8
    """Storage nodes, each a process with one device."""
    code: str = "rs-4-2"
    """Erasure code of every object."""
    pg_count: int = 64
    """Placement groups; fixed for the cluster's life."""
    s3_port: int = 0
    """Port of the S3 endpoint; 0 takes a free one."""
    heartbeat_s: float = 0.5
    """Seconds between two heartbeats of a node."""
    down_after_s: float = 3.0
    """Seconds without a heartbeat until a node's devices count as down."""
    out_after_s: float = 900.0
    """Seconds without a heartbeat until a node is given up and its chunks are rebuilt elsewhere."""
    capacity_bytes: int = 0
    """Bytes that each device may use; 0: what its file system has."""
    trash_grace_s: float = 60.0
    """Seconds until the chunks of deleted objects are removed, so that running reads can finish."""
    repair_bandwidth_bytes_per_s: int = 0
    """Bytes per second that all rebuilding together may write; 0: no limit."""
    move_bandwidth_bytes_per_s: int = 0
    """Bytes per second that draining and balancing together may write; 0: no limit."""
    gateways: int = 1
    """Gateway processes; they share the S3 port, and the kernel deals out connections."""
    metadata_servers: int = 1
    """Metadata servers; more than one need an engine that several processes can share."""
    engine: str = ""
    """URL of the metadata engine; empty: SQLite in the cluster's directory."""
    partitions: tuple[str, ...] = ()
    """Further engines that buckets are spread over, each "name=engine URL", or a bare name for
    SQLite in the cluster's directory."""
    pools: tuple[str, ...] = ()
    """Further pools of placement groups, each "NAME:pgs=32,region=eu,per_node=1"."""
    website_domain: str = ""
    """With "web.example.org", gateways serve bucket.web.example.org as a website; empty: none."""
    lifecycle_day_s: float = 86400.0
    """Seconds of a day of lifecycle rules; fewer make their effects visible in tests."""
    racks: tuple[str, ...] = ()
    """Racks that the nodes are put in, in turn; none: one for all."""
    regions: tuple[str, ...] = ()
    """Regions that the nodes are in, in turn, the first node in the first; empty: all in one."""
    removed: tuple[int, ...] = ()
    """Numbers of the nodes that were removed; they are not used again."""

    @property
    def process_names(self) -> list[str]:
        """Every process, in the order they start."""
        return process_names(
            self.nodes,
            metadata_count=self.metadata_servers,
            gateway_count=self.gateways,
            removed=self.removed,
        )

    @property
    def node_names(self) -> list[str]:
        """The storage nodes that are part of the cluster."""
        return [name for name in self.process_names if is_node(name)]

    @property
    def gateway_names(self) -> list[str]:
        """The gateways; the first one chooses the port."""
        return [name for name in self.process_names if is_gateway(name)]

    @property
    def metadata_names(self) -> list[str]:
        """The metadata servers."""
        return [name for name in self.process_names if is_metadata(name)]


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What the command line asks for; None: as it is, or the default of a new cluster."""

    nodes: int | None = None
    code: str | None = None
    pg_count: int | None = None
    s3_port: int | None = None
    heartbeat_s: float | None = None
    down_after_s: float | None = None
    out_after_s: float | None = None
    capacity_bytes: int | None = None
    trash_grace_s: float | None = None
    repair_bandwidth_bytes_per_s: int | None = None
    move_bandwidth_bytes_per_s: int | None = None
    gateways: int | None = None
    metadata_servers: int | None = None
    engine: str | None = None
    partitions: tuple[str, ...] | None = None
    pools: tuple[str, ...] | None = None
    website_domain: str | None = None
    lifecycle_day_s: float | None = None
    racks: tuple[str, ...] | None = None
    regions: tuple[str, ...] | None = None

    def given(self) -> dict[str, object]:
        """The options that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


#: Options that say what the cluster is; they cannot change once it exists.
IDENTITY = ("nodes", "code", "pg_count", "engine", "pools", "racks", "regions")
#: Options that may be repeated are called by one of what they name.
REPEATED = {
    "partitions": "--partition",
    "pools": "--pool",
    "racks": "--rack",
    "regions": "--region",
}


def new_spec(options: ClusterOptions) -> ClusterSpec:
    """A new cluster with fresh keys.

    Raises:
        BadInput: The options do not describe a cluster that can exist.
    """
    spec = ClusterSpec(
        cluster_id=secrets.token_hex(8),
        access_key="EXA" + secrets.token_hex(8).upper(),
        secret_key=secrets.token_urlsafe(30),
    )
    spec = replace(spec, **options.given())  # type: ignore[arg-type]  # same names and types
    check_spec(spec)
    return spec


def changed_spec(spec: ClusterSpec, options: ClusterOptions, *, running: bool) -> ClusterSpec:
    """An existing cluster under new options.

    Raises:
        BadInput: An option cannot change, or not while the cluster runs.
    """
    stored = asdict(spec)
    changes = {name: new for name, new in options.given().items() if stored[name] != new}
    for name, new in changes.items():
        option = REPEATED.get(name, "--" + name.replace("_", "-"))
        if name == "partitions" and not set(spec.partitions) <= set(options.partitions or ()):
            raise BadInput(
                f"this directory holds a cluster with {option} {' '.join(spec.partitions)}: "
                "partitions can be added, not left out",
            )
        if name in IDENTITY:
            raise BadInput(
                f"this directory holds a cluster with {option} {stored[name]}, not {new}",
                hint=f"leave {option} out, or give another --dir for a new cluster"
                + ("; nodes are added with: exastore cluster add" if name == "nodes" else ""),
            )
        if running:
            raise BadInput(
                f"the cluster runs with {option} {stored[name]}, not {new}",
                hint="stop it first: exastore cluster down",
            )
    spec = replace(spec, **changes)  # type: ignore[arg-type]  # same names and types
    check_spec(spec)
    return spec


def check_spec(spec: ClusterSpec) -> None:
    """Whether such a cluster can exist.

    Raises:
        BadInput: It cannot, and why.
    """
    # Imported here: it brings numba, which commands that start nothing need not wait for.
    from exastore.metadata.core.topology import DomainLevel
    from exastore.metadata.service.config import cluster_code, parsed_pool

    try:
        code = cluster_code(spec.code)
    except ValueError as error:
        raise BadInput(str(error)) from error
    for item in spec.pools:
        try:
            pool = parsed_pool(item, DomainLevel.NODE)
        except ValueError as error:
            raise BadInput(f"--pool: {error}") from error
        unknown = [name for name in pool.regions if name not in spec.regions]
        if unknown:
            raise BadInput(
                f"--pool {pool.name}: no node is in region {unknown[0]}",
                hint=f"add --region {unknown[0]}: nodes are put in the regions in turn",
            )
    if code.n > spec.nodes:
        smaller = spec.nodes - code.m
        advice = f"use --nodes {code.n} or more"
        if smaller >= 1:
            advice += f", or a smaller code such as rs-{smaller}-{code.m}"
        elif spec.nodes >= 2:
            advice += f", or a smaller code such as rs-{spec.nodes - 1}-1"
        raise BadInput(
            f"{spec.code} needs {code.n} nodes, you asked for {spec.nodes}: {advice}",
        )
    for name in ("heartbeat_s", "down_after_s", "out_after_s", "lifecycle_day_s"):
        if getattr(spec, name) <= 0:
            raise BadInput(f"--{name.replace('_', '-')} must be more than 0")
    if spec.down_after_s <= spec.heartbeat_s:
        raise BadInput(
            f"--down-after-s {spec.down_after_s:g} must be more than the heartbeat "
            f"of {spec.heartbeat_s:g} s"
        )
    if spec.out_after_s < spec.down_after_s:
        raise BadInput(
            f"--out-after-s {spec.out_after_s:g} must be at least "
            f"--down-after-s {spec.down_after_s:g}"
        )
    if spec.gateways < 1:
        raise BadInput("--gateways must be at least 1")
    if spec.metadata_servers < 1:
        raise BadInput("--metadata-servers must be at least 1")
    if spec.metadata_servers > 1 and not spec.engine.startswith(SHARED_ENGINES):
        kind = spec.engine.partition(":")[0] or "sqlite"
        raise BadInput(
            f"--metadata-servers {spec.metadata_servers} need an engine that several processes "
            f"can share; {kind} belongs to one",
            hint="add --engine postgresql://user@host:port/database or "
            "--engine etcd://host:port,host:port,host:port/prefix",
        )
    for item in spec.partitions:
        if spec.metadata_servers > 1 and not item.partition("=")[2].startswith(SHARED_ENGINES):
            raise BadInput(
                f"--partition {item}: several metadata servers need engines that they can share"
            )
    if spec.pg_count < 1:
        raise BadInput("--pg-count must be at least 1")
    if not 0 <= spec.s3_port <= 65535:
        raise BadInput(f"--s3-port {spec.s3_port} is not a port: 0 to 65535")


def read_spec(path: Path) -> ClusterSpec | None:
    """The stored cluster; None where there is none."""
    return read_config(path, "cluster", ClusterSpec)[0] if path.exists() else None


def write_spec(path: Path, spec: ClusterSpec) -> None:
    """Store a cluster, readable by its owner alone: it holds the secret key."""
    write_atomically(path, render_table("cluster", asdict(spec)), mode=0o600)


def check_directory(directory: Path) -> None:
    """Make the directory if need be, and see that a cluster can live in it.

    Raises:
        EnvironmentUnfit: It is not writable, or its disk is nearly full.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise EnvironmentUnfit(
            f"cannot write in {directory}: {error.strerror}", hint="choose another --dir"
        ) from error
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < MIN_FREE_BYTES:
        raise EnvironmentUnfit(
            f"the disk of {directory} is nearly full: {free_bytes // 2**20} MiB free, "
            f"at least {MIN_FREE_BYTES // 2**20} MiB needed",
            hint="free some space, or choose a --dir on another disk",
        )


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def quiet_port() -> int:
    """A free port to be kept: not one that outgoing connections are given, as those of :0 are.

    While its server is away, any connection of this machine might get such a port, even one that
    looks for the server.

    Returns:
        0, any port, where the system does not tell which ports those are.
    """
    try:
        first = int(_OUTGOING_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
    for _ in range(_PORT_TRIES if first > _FIRST_QUIET_PORT else 0):
        port = _FIRST_QUIET_PORT + secrets.randbelow(first - _FIRST_QUIET_PORT)
        if port_is_free(port):
            return port
    return 0

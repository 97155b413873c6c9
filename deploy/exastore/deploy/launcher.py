"""A local cluster of real processes: metadata servers, storage nodes, one gateway.

Theory of operation: `up` makes the directory true. What runs is left alone, what does not is
started: the metadata servers, then nodes and gateway, each waited for by its ready file; then the
cluster map and the S3 endpoint are waited for, and cluster.json is written. If anything fails, what
this call started is stopped again. The processes run in sessions of their own and outlive the
command. Ports are chosen at the first start and kept, so that a restarted cluster is found at its
old endpoint.
"""

import fcntl
import http.client
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from exastore.deploy.children import Child, recorded, spawn, stop
from exastore.deploy.clock import SystemClock
from exastore.deploy.config import render_table
from exastore.deploy.errors import BadInput, ClusterUnhealthy, EnvironmentUnfit, StartFailed
from exastore.deploy.files import read_json_object, tail, write_atomically, write_json
from exastore.deploy.layout import (
    GATEWAY,
    METADATA,
    ClusterFile,
    ClusterPaths,
    ServerEntry,
    is_gateway,
    is_metadata,
    is_node,
    node_name,
)
from exastore.deploy.spec import (
    LOOPBACK,
    ClusterOptions,
    ClusterSpec,
    changed_spec,
    check_directory,
    new_spec,
    port_is_free,
    quiet_port,
    read_spec,
    write_spec,
)
from exastore.deploy.status import fetch_status
from exastore.gateway.master_key import new_key_line

START_TIMEOUT_S = 120.0
STOP_GRACE_S = 10.0
#: A gateway ends the requests in flight first, which may be long ones.
RESTART_GRACE_S = 60.0
POLL_S = 0.05
#: For a port that is to be kept: a connection of another program may have it for a while.
PORT_WAIT_S = 30.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ready:
    """What a process says in its ready file."""

    pid: int
    address: str
    metrics: str


@dataclass(frozen=True, slots=True)
class Started:
    """The outcome of `up`."""

    cluster: ClusterFile
    started: list[str]
    """Processes that this call started; empty when all ran already."""


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """The cluster under a directory, running or not."""

    paths: ClusterPaths
    clock: SystemClock = field(default_factory=SystemClock)

    @classmethod
    def at(cls, directory: Path) -> "LocalCluster":
        return cls(ClusterPaths(directory.absolute()))

    def spec(self) -> ClusterSpec:
        """What this cluster is.

        Raises:
            BadInput: No cluster was ever made here.
        """
        spec = read_spec(self.paths.spec)
        if spec is None:
            raise BadInput(
                f"there is no cluster in {self.paths.root}",
                hint=f"make one: exastore cluster up --dir {self.paths.root}",
            )
        return spec

    def children(self) -> dict[str, Child]:
        """The processes of this cluster that live now, by name."""
        pids = sorted((self.paths.root / "run").glob("*.pid"))
        children = (recorded(self.paths, path.stem) for path in pids)
        return {child.name: child for child in children if child is not None and child.alive}

    def up(self, options: ClusterOptions, progress: Progress) -> Started:
        """Start whatever of the cluster does not run, and wait until it serves.

        Raises:
            BadInput: The options are wrong, or contradict the cluster that is here.
            EnvironmentUnfit: The directory or a port cannot be used.
            StartFailed: A process died or did not get ready; what was started is stopped again.
        """
        spec = read_spec(self.paths.spec)
        if spec is None:
            # Wrong options are told before anything is made.
            spec = new_spec(options)
        check_directory(self.paths.root)
        with self._locked():
            running = self.children()
            spec = changed_spec(read_spec(self.paths.spec) or spec, options, running=bool(running))
            if not any(is_gateway(name) for name in running):
                self.check_s3_port(spec)
            self.paths.make()
            write_spec(self.paths.spec, spec)
            if not self.paths.master_key.exists():
                write_atomically(self.paths.master_key, new_key_line(), mode=0o600)
            started: list[Child] = []
            try:
                self._start_missing(spec, running, started, progress)
                self._wait_until_serving(spec, running, progress)
            except BaseException:
                progress("stopping what was started")
                # By their records, not by `started`: an interrupt may come before it is told.
                now = self.children().items()
                self._stop([child for name, child in now if name not in running])
                raise
            cluster = self._describe(spec)
            write_json(self.paths.cluster_json, cluster, mode=0o600)
            return Started(cluster, [child.name for child in started])

    def add_nodes(self, count: int, progress: Progress) -> Started:
        """Make the cluster larger by some nodes, and start them.

        Raises:
            As `up` does.
        """
        self.spec()
        with self._locked():
            spec = self.spec()
            write_spec(self.paths.spec, replace(spec, nodes=spec.nodes + count))
        return self.up(ClusterOptions(), progress)

    def forget_node(self, name: str) -> None:
        """Stop a node that was taken out of the cluster, and do not start it again."""
        with self._locked():
            spec = self.spec()
            number = int(name.removeprefix(node_name(0)[:-1]))
            write_spec(self.paths.spec, replace(spec, removed=(*spec.removed, number)))
            child = self.children().get(name)
            if child is not None:
                self._stop([child])
            self.paths.ready(name).unlink(missing_ok=True)
            self.paths.pid(name).unlink(missing_ok=True)
            cluster = self._describe(self.spec())
            write_json(self.paths.cluster_json, cluster, mode=0o600)

    def down(self, *, grace_s: float = STOP_GRACE_S) -> tuple[list[str], list[str]]:
        """Stop the cluster: gateway, then nodes, then metadata servers. Its data stays.

        Returns:
            Names of the processes that were stopped, and of those among them that had to be killed.
        """
        self.spec()
        with self._locked():
            running = self.children()
            killed: list[str] = []
            for belongs in (is_gateway, is_node, is_metadata):
                group = [child for name, child in running.items() if belongs(name)]
                killed += self._stop(group, grace_s=grace_s)
            for folder in ("*.pid", "*.json"):
                for path in (self.paths.root / "run").glob(folder):
                    path.unlink(missing_ok=True)
            self.paths.cluster_json.unlink(missing_ok=True)
            return sorted(running), killed

    def restart(self, name: str, progress: Progress) -> None:
        """Stop one process, which finishes what is in flight, and start it again.

        Raises:
            BadInput: No process of that name runs.
            As `up` does.
        """
        with self._locked():
            child = self.children().get(name)
            if child is None:
                raise BadInput(f"{name} does not run", hint="exastore cluster up starts it")
            progress(f"{name}: stopping")
            self._stop([child], grace_s=RESTART_GRACE_S)
        self.up(ClusterOptions(), lambda text: progress(f"{name}: {text}"))

    def _stop(self, children: list[Child], *, grace_s: float = STOP_GRACE_S) -> list[str]:
        clock = self.clock
        return stop(children, grace_s=grace_s, now_s=clock.monotonic_s, sleep=clock.sleep_blocking)

    @contextmanager
    def _locked(self) -> Generator[None]:
        """One `up` or `down` at a time."""
        with self.paths.lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise EnvironmentUnfit(
                    f"another command is starting or stopping the cluster in {self.paths.root}",
                    hint="wait for it, or stop it",
                ) from error
            yield

    def _start_missing(
        self,
        spec: ClusterSpec,
        running: Mapping[str, Child],
        started: list[Child],
        progress: Progress,
    ) -> None:
        """Start what does not run, and wait for the ready files."""
        names = spec.process_names
        # The gateways behind the first one are told its port.
        others = [
            name for name in names if not is_metadata(name) and name not in spec.gateway_names[1:]
        ]
        for group in (spec.metadata_names, others, spec.gateway_names[1:]):
            missing = [name for name in group if name not in running]
            if missing:
                progress(f"starting {missing[0]}" + (f" … {missing[-1]}" if missing[1:] else ""))
            children: list[Child] = []
            for name in missing:
                self._write_config(spec, name, others_run=bool(running))
                child = spawn(self.paths, name)
                children.append(child)
                started.append(child)
            for child in children:
                self._wait_until_ready(child, children)
        addresses = {name: ready.address for name in names if (ready := self.ready(name))}
        write_json(self.paths.addresses, addresses)

    def _write_config(self, spec: ClusterSpec, name: str, *, others_run: bool) -> None:
        process = {"ready_file": str(self.paths.ready(name)), "metrics_address": f"{LOOPBACK}:0"}
        if is_metadata(name):
            values = self._metadata_values(spec, name, others_run=others_run)
            table = render_table("metadata", values)
        elif is_gateway(name):
            table = render_table("gateway", self._gateway_values(spec, name))
        else:
            table = render_table("node", self._node_values(spec, name))
        text = f"{render_table('process', process)}\n{table}"
        # The gateway's holds the secret key.
        write_atomically(self.paths.config(name), text, mode=0o600)

    def _metadata_values(
        self, spec: ClusterSpec, name: str, *, others_run: bool
    ) -> dict[str, object]:
        self.paths.data(METADATA).mkdir(exist_ok=True)
        own_engine = f"sqlite://{quote(str(self.paths.data(METADATA) / 'meta.db'))}"
        partitions = [
            item
            if "=" in item
            else f"{item}=sqlite://{quote(str(self.paths.data(METADATA) / f'{item}.db'))}"
            for item in spec.partitions
        ]
        return {
            "address": self.address_for(name, must_keep=others_run),
            "engine": spec.engine or own_engine,
            "partitions": partitions,
            "pools": spec.pools,
            "audit_file": str(self.paths.audit(name)),
            "cluster_id": spec.cluster_id,
            "code": spec.code,
            "pg_count": spec.pg_count,
            "bootstrap_device_count": spec.nodes,
            "down_after_s": spec.down_after_s,
            "out_after_s": spec.out_after_s,
            "trash_grace_s": spec.trash_grace_s,
            "lifecycle_day_s": spec.lifecycle_day_s,
            "repair_bandwidth_bytes_per_s": spec.repair_bandwidth_bytes_per_s,
            "move_bandwidth_bytes_per_s": spec.move_bandwidth_bytes_per_s,
        }

    def _node_values(self, spec: ClusterSpec, name: str) -> dict[str, object]:
        device = self.paths.data(name)
        device.mkdir(exist_ok=True)
        number = int(name.rpartition("-")[2])
        rack = spec.racks[(number - 1) % len(spec.racks)] if spec.racks else ""
        region = spec.regions[(number - 1) % len(spec.regions)] if spec.regions else ""
        return {
            "address": self.address_for(name),
            "node_id": name,
            "devices": [str(device)],
            "metadata": self._metadata_addresses(spec),
            "heartbeat_s": spec.heartbeat_s,
            "capacity_bytes": spec.capacity_bytes,
            **({"rack": rack} if rack else {}),
            **({"region": region} if region else {}),
        }

    def _gateway_values(self, spec: ClusterSpec, name: str) -> dict[str, object]:
        servers = self._metadata_addresses(spec)
        # A gateway asks the first one that answers: each begins with another.
        first = spec.gateway_names.index(name) % max(1, len(servers))
        shared = [
            child
            for name, child in self.children().items()
            if is_gateway(name) and spec.gateways > 1
        ]
        found = [self.ready(child.name) for child in shared]
        serving = [ready.address for ready in found if ready is not None]
        if serving:
            address = serving[0]
        else:
            address = f"{LOOPBACK}:{spec.s3_port}" if spec.s3_port else self.address_for(GATEWAY)
        return {
            "address": address,
            "share_port": spec.gateways > 1,
            "metadata": servers[first:] + servers[:first],
            "access_key": spec.access_key,
            "secret_key": spec.secret_key,
            "master_key_file": str(self.paths.master_key),
            "website_domain": spec.website_domain,
            "inventory_day_s": spec.lifecycle_day_s,
        }

    def address_for(self, name: str, *, must_keep: bool = False) -> str:
        """Where the process served last; any port when another has taken that one for good.

        With `must_keep` the old port is the only right one: others were told it.
        """
        # Nodes tell the others where they serve; of the rest the ports are told once.
        is_told_once = not is_node(name)
        match (read_json_object(self.paths.addresses) or {}).get(name):
            case str(address):
                port = int(address.rpartition(":")[2])
                if self._gets_free(port, PORT_WAIT_S if is_told_once else 0.0):
                    return address
                if must_keep:
                    raise EnvironmentUnfit(
                        f"the {name} server's port {port} was taken while it was away",
                        hint="stop and start the whole cluster: exastore cluster down, then up",
                    )
            case _:
                pass
        return f"{LOOPBACK}:{quiet_port() if is_told_once else 0}"

    def check_s3_port(self, spec: ClusterSpec) -> None:
        """Refuse a port that is taken; one at which the cluster served is waited for."""
        within_s = PORT_WAIT_S if self.paths.addresses.exists() else 0.0
        if spec.s3_port and not self._gets_free(spec.s3_port, within_s):
            raise EnvironmentUnfit(
                f"port {spec.s3_port} is in use by another process",
                hint="choose another --s3-port, or --s3-port 0 for any free one",
            )

    def _gets_free(self, port: int, within_s: float) -> bool:
        """Wait for a port that somebody else may be about to let go."""
        deadline_s = self.clock.monotonic_s() + within_s
        while not (is_free := port_is_free(port)):
            if self.clock.monotonic_s() >= deadline_s:
                break
            self.clock.sleep_blocking(POLL_S)
        return is_free

    def _metadata_addresses(self, spec: ClusterSpec) -> list[str]:
        """Where the metadata servers serve; they are started first."""
        found = [self.ready(name) for name in spec.metadata_names]
        return [ready.address for ready in found if ready is not None]

    def ready(self, name: str) -> Ready | None:
        """The ready file of a process, if it was written."""
        match read_json_object(self.paths.ready(name)):
            case {"pid": int(pid), "address": str(address), "metrics": str(metrics)}:
                return Ready(pid, address, metrics)
            case _:
                return None

    def _wait_until_ready(self, child: Child, siblings: list[Child]) -> None:
        deadline_s = self.clock.monotonic_s() + START_TIMEOUT_S
        while True:
            ready = self.ready(child.name)
            if ready is not None and ready.pid == child.pid:
                return
            for other in siblings:
                self._check_alive(other)
            if self.clock.monotonic_s() > deadline_s:
                raise self._failed(child.name, f"was not ready after {START_TIMEOUT_S:.0f} s")
            self.clock.sleep_blocking(POLL_S)

    def _check_alive(self, child: Child) -> None:
        if not child.alive:
            raise self._failed(child.name, "ended while it started")

    def _failed(self, name: str, what: str) -> StartFailed:
        log = self.paths.log(name)
        return StartFailed(
            f"{name} {what}", process=name, log_tail=tail(log), hint=f"its log is {log}"
        )

    def _wait_until_serving(
        self, spec: ClusterSpec, running: Mapping[str, Child], progress: Progress
    ) -> None:
        """Wait for the cluster map, for every device to be up, and for S3 to answer."""
        progress("waiting for the cluster map")
        names = spec.process_names
        deadline_s = self.clock.monotonic_s() + START_TIMEOUT_S
        addresses = self._metadata_addresses(spec)
        problem = "no answer"
        while self.clock.monotonic_s() < deadline_s:
            for name in names:
                child = recorded(self.paths, name)
                if child is None or not child.alive:
                    raise self._failed(name, "ended while the cluster started")
            try:
                status = fetch_status(addresses, timeout_s=5.0)
                problem = status.problem_of_start(len(spec.node_names))
            except ClusterUnhealthy as error:
                problem = error.message
            if not problem:
                break
            self.clock.sleep_blocking(POLL_S)
        else:
            raise self._failed(METADATA, f"has no working cluster: {problem}")
        progress("waiting for the S3 endpoint")
        gateway = self.ready(GATEWAY)
        while gateway is None or not s3_answers(gateway.address):
            if self.clock.monotonic_s() > deadline_s:
                raise self._failed(GATEWAY, "does not answer S3 requests")
            self.clock.sleep_blocking(POLL_S)
            gateway = self.ready(GATEWAY)

    def _describe(self, spec: ClusterSpec) -> ClusterFile:
        """cluster.json, from the ready files."""
        entries: dict[str, Ready] = {}
        for name in spec.process_names:
            ready = self.ready(name)
            if ready is None:
                raise self._failed(name, "ended after it had started")
            entries[name] = ready
        gateway = entries[GATEWAY]
        return {
            "s3": {
                "endpoint": f"http://{gateway.address}",
                "access_key": spec.access_key,
                "secret_key": spec.secret_key,
            },
            "metadata": [_server_entry(entries[name]) for name in spec.metadata_names],
            "nodes": [
                {
                    "id": name,
                    "address": entries[name].address,
                    "pid": entries[name].pid,
                    "data_dir": str(self.paths.data(name)),
                    "metrics": metrics_url(entries[name].metrics),
                }
                for name in spec.node_names
            ],
            "gateways": [_server_entry(entries[name]) for name in spec.gateway_names],
        }


def _server_entry(ready: Ready) -> ServerEntry:
    return {
        "address": ready.address,
        "pid": ready.pid,
        "metrics": metrics_url(ready.metrics),
    }


def metrics_url(address: str) -> str:
    """Where Prometheus scrapes a process."""
    return f"http://{address}/metrics"


def s3_answers(address: str) -> bool:
    """Whether an HTTP server answers there; any status will do."""
    connection = http.client.HTTPConnection(address, timeout=2.0)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

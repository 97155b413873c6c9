"""Where a local cluster keeps what, under its directory.

spec.toml           what the cluster is (owner alone: it holds the secret key)
cluster.json        where it serves now (owner alone); there while it is up
addresses.json      where it served last, so that a restart serves there again
conf/NAME.toml      one config per process
conf/master.key     seals the secrets of users (owner alone): without it, their keys are lost
run/NAME.json       ready file, written by the process;  run/NAME.pid: who we started
logs/NAME.log       what it logged
logs/NAME-audit.jsonl   administrative acts, by metadata server
data/NAME/          its data
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from exastore.deploy.errors import ClusterUnhealthy

METADATA = "metadata"
GATEWAY = "gateway"


class S3Entry(TypedDict):
    """How to reach the S3 endpoint."""

    endpoint: str
    access_key: str
    secret_key: str


class ServerEntry(TypedDict):
    """A metadata server or a gateway. `metrics` is a URL."""

    address: str
    pid: int
    metrics: str


class NodeEntry(TypedDict):
    """A storage node. `metrics` is a URL."""

    id: str
    address: str
    pid: int
    data_dir: str
    metrics: str


class ClusterFile(TypedDict):
    """cluster.json."""

    s3: S3Entry
    metadata: list[ServerEntry]
    nodes: list[NodeEntry]
    gateways: list[ServerEntry]


@dataclass(frozen=True, slots=True)
class ClusterPaths:
    """Paths under `root`, which is absolute."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.toml"

    @property
    def cluster_json(self) -> Path:
        return self.root / "cluster.json"

    @property
    def addresses(self) -> Path:
        return self.root / "addresses.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def master_key(self) -> Path:
        return self.root / "conf" / "master.key"

    def audit(self, name: str) -> Path:
        return self.root / "logs" / f"{name}-audit.jsonl"

    def config(self, name: str) -> Path:
        return self.root / "conf" / f"{name}.toml"

    def ready(self, name: str) -> Path:
        return self.root / "run" / f"{name}.json"

    def pid(self, name: str) -> Path:
        return self.root / "run" / f"{name}.pid"

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def data(self, name: str) -> Path:
        return self.root / "data" / name

    def make(self) -> None:
        """Make the folders."""
        for folder in ("conf", "run", "logs", "data"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)


def node_name(number: int) -> str:
    """Id of the storage node `number`, from 1."""
    return f"node-{number}"


def metadata_name(number: int) -> str:
    """Name of the metadata server `number`, from 1."""
    return METADATA if number == 1 else f"{METADATA}-{number}"


def gateway_name(number: int) -> str:
    """Name of the gateway `number`, from 1."""
    return GATEWAY if number == 1 else f"{GATEWAY}-{number}"


def process_names(
    node_count: int,
    *,
    metadata_count: int = 1,
    gateway_count: int = 1,
    removed: Collection[int] = (),
) -> list[str]:
    """Every process of a cluster, in the order they start; `removed` nodes have none."""
    numbers = [number for number in range(1, node_count + 1) if number not in removed]
    return [
        *(metadata_name(number) for number in range(1, metadata_count + 1)),
        *map(node_name, numbers),
        *(gateway_name(number) for number in range(1, gateway_count + 1)),
    ]


def is_gateway(name: str) -> bool:
    """Whether a process is a gateway."""
    return name == GATEWAY or name.startswith(f"{GATEWAY}-")


def is_node(name: str) -> bool:
    """Whether a process is a storage node."""
    return name.startswith("node-")


def is_metadata(name: str) -> bool:
    """Whether a process is a metadata server."""
    return name.partition("-")[0] == METADATA


def read_cluster_file(directory: Path) -> ClusterFile:
    """Read DIR/cluster.json.

    Raises:
        ClusterUnhealthy: There is none, so no cluster is up here.
    """
    path = directory / "cluster.json"
    hint = f"start one: exastore cluster up --dir {directory}"
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        for key in ("s3", "metadata", "nodes", "gateways"):
            value[key]
    except FileNotFoundError as error:
        raise ClusterUnhealthy(f"no cluster is up in {directory}", hint=hint) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterUnhealthy(f"{path} cannot be used: {error}", hint=hint) from error
    return cast(ClusterFile, value)


def metadata_addresses(cluster: ClusterFile) -> list[str]:
    """Where the metadata servers serve."""
    return [item["address"] for item in cluster["metadata"]]

"""Ceph's `crushtool`: the same tree, weights and rule in its form, to compare with."""

import re
import subprocess
from pathlib import Path
from typing import Final

import numpy as np

from exastore.metadata.core.columns import INDEX_BITS, PlacementColumns, placement_columns
from exastore.metadata.core.straw2 import with_child_ids
from exastore.metadata.core.topology import NO_DEVICE, Int32Array, PlacementRule, Topology

#: The tunables of Ceph since its release Jewel, which no cluster changes any more.
_TUNABLES: Final = {
    "choose_local_tries": 0,
    "choose_local_fallback_tries": 0,
    "choose_total_tries": 50,
    "chooseleaf_descend_once": 1,
    "chooseleaf_vary_r": 1,
    "chooseleaf_stable": 1,
    "straw_calc_version": 1,
    "allowed_bucket_algs": 54,
}
_TYPES: Final = ("osd", "node", "rack", "zone", "region", "root")
#: How CRUSH writes the slot of a row that stays empty.
_CRUSH_ITEM_NONE: Final = 2147483647


def _first_ids(topology: Topology) -> list[int]:
    """CRUSH identifier of the first bucket of each type; those of a type count down from it."""
    region_count = int(topology.zone_region.max(initial=-1)) + 1
    counts = [len(topology.node_rack), len(topology.rack_zone), len(topology.zone_region)]
    counts.append(region_count)
    return [0, *(-1 - int(total) for total in np.cumsum([0, *counts]))]


def columns_like_crush(topology: Topology, rule: PlacementRule) -> PlacementColumns:
    """Columns whose buckets are named as in `map_text`."""
    columns = placement_columns(topology, rule)
    ids = columns.tree.child_id.astype(np.int64)
    level, index = ids >> INDEX_BITS, ids & ((1 << INDEX_BITS) - 1)
    first = np.array(_first_ids(topology))
    ceph = np.where(level == 0, index, first[level] - index)
    named = with_child_ids(columns.tree, (ceph & 0xFFFFFFFF).astype(np.uint32))
    return columns._replace(tree=named)


def map_text(topology: Topology, rule: PlacementRule) -> str:
    """The map in CRUSH's text form. Rule 0 is `firstn`, rule 1 is `indep`.

    Weights must be multiples of 1/65536, which CRUSH computes with.
    """
    lines = [f"tunable {name} {value}" for name, value in _TUNABLES.items()]
    lines += [f"device {index} osd.{index}" for index in range(topology.device_count)]
    lines += [f"type {number} {name}" for number, name in enumerate(_TYPES)]
    region_count = int(topology.zone_region.max(initial=-1)) + 1
    parents = (
        topology.device_node,
        topology.node_rack,
        topology.rack_zone,
        topology.zone_region,
        np.zeros(region_count, dtype=np.int32),
    )
    first = _first_ids(topology)
    weight = topology.device_weight
    for level, parent in enumerate(parents):
        bucket_count = len(parents[level + 1]) if level < 4 else 1
        children = np.argsort(parent, kind="stable")
        bounds = np.searchsorted(parent[children], np.arange(bucket_count + 1))
        for bucket in range(bucket_count):
            lines.append(f"{_TYPES[level + 1]} {_name(level + 1, bucket)} {{")
            lines.append(f" id {first[level + 1] - bucket}\n alg straw2\n hash 0")
            lines += [
                f" item {_name(level, child)} weight {weight[child]:.16f}"
                for child in children[bounds[bucket] : bounds[bucket + 1]].tolist()
            ]
            lines.append("}")
        weight = np.bincount(parent, weight, bucket_count).astype(np.float64)
    step = "choose" if rule.level == 0 else "chooseleaf"
    for number, mode in enumerate(("firstn", "indep")):
        kind = "replicated" if mode == "firstn" else "erasure"
        lines.append(f"rule {mode} {{\n id {number}\n type {kind}\n min_size 1\n max_size 30")
        lines.append(f" step take {_name(5, 0)}")
        lines.append(f" step {step} {mode} 0 type {_TYPES[rule.level]}\n step emit\n}}")
    return "\n".join(lines) + "\n"


def _name(level: int, index: int) -> str:
    return f"osd.{index}" if level == 0 else f"{_TYPES[level]}{index}"


class Crushtool:
    """A compiled map to ask."""

    def __init__(self, tool: str, folder: Path, topology: Topology, rule: PlacementRule) -> None:
        self._tool = tool
        self._map = folder / "crush.map"
        text = folder / "crush.txt"
        text.write_text(map_text(topology, rule))
        command = [tool, "-c", str(text), "-o", str(self._map)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def rows(self, first_x: int, count: int, width: int, *, rule_number: int = 1) -> Int32Array:
        """Shape (count, width): what CRUSH chooses for the inputs from `first_x` on."""
        command = [self._tool, "-i", str(self._map), "--test", "--show-mappings"]
        command += ["--rule", str(rule_number), "--num-rep", str(width)]
        command += ["--min-x", str(first_x), "--max-x", str(first_x + count - 1)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows = np.full((count, width), NO_DEVICE, dtype=np.int32)
        for line in done.stdout.splitlines():
            if line.startswith("CRUSH rule"):
                # "CRUSH rule 1 x 17 [3,1,2]"
                head, _, items = line.partition("[")
                found = [int(item) for item in items.rstrip("]").split(",") if item]
                row = [NO_DEVICE if item == _CRUSH_ITEM_NONE else item for item in found]
                rows[int(head.split()[4]) - first_x, : len(row)] = row
        return rows

    def map_inputs(self, count: int, width: int) -> None:
        """Maps the inputs from 0 on with `indep`, and prints nothing: for timing."""
        command = [self._tool, "-i", str(self._map), "--test", "--rule", "1"]
        command += ["--num-rep", str(width), "--min-x", "0", "--max-x", str(count - 1)]
        subprocess.run(command, check=True, capture_output=True)

    def version(self) -> str:
        """For example "ceph version 16.2.15"."""
        done = subprocess.run([self._tool, "-v"], check=False, capture_output=True, text=True)
        found = re.search(r"ceph version [0-9.]+", done.stdout + done.stderr)
        return found[0] if found else "crushtool"

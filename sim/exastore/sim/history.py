"""Capacity and fill over time, noted once a quarter between two events."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from exastore.metadata.core.topology import Int32Array
from exastore.sim.fleet import generations_of
from exastore.sim.results import Table
from exastore.sim.scenario import Scenario
from exastore.sim.state import Records, State
from exastore.sim.units import YEAR_S

#: Bins of the histogram of fill: this wide, the last one open.
FILL_STEP = 0.05
FILL_BINS = 25


class History:
    """What the tables `capacity` and `fill` hold of one trial."""

    def __init__(self, scenario: Scenario, generation_of_node: Int32Array) -> None:
        self._generations = generations_of(scenario)
        self._of_node = generation_of_node
        self._per_node = scenario.cluster.devices_per_node
        self._capacity: list[dict[str, Any]] = []
        self._fill: list[dict[str, Any]] = []

    def keep(self) -> dict[str, Any]:
        """What was noted so far, for `restore`."""
        return {"history": np.asarray(json.dumps([self._capacity, self._fill]))}

    def restore(self, kept: dict[str, Any]) -> None:
        """Goes on from what `keep` gave."""
        self._capacity, self._fill = json.loads(kept["history"].item())

    def note(self, state: State, model: Records, now: float) -> None:
        """Adds what is there now."""
        slot_bytes = float(model["slot_bytes"])
        is_here = state.nodes["absent"] == 0
        held = state.devices["slot_count"].reshape(-1, self._per_node)
        for number, generation in enumerate(self._generations):
            mine = is_here & (self._of_node == number)
            if not mine.any():
                continue
            slots = held if mine.all() else held[mine]
            stored, most = int(slots.sum()), int(slots.max())
            years = now / YEAR_S
            self._capacity.append(
                {
                    "years": years,
                    "generation": number,
                    "name": generation.name,
                    "devices": slots.size,
                    "capacity_bytes": float(slots.size) * generation.capacity_bytes,
                    "stored_bytes": stored * slot_bytes,
                    "fill_max": most * slot_bytes / generation.capacity_bytes,
                }
            )
            per_slot = slot_bytes / generation.capacity_bytes
            # Of few numbers of slots, not of each device: that is what is cheap at any size.
            bins = np.minimum(
                (np.arange(most + 1) * per_slot / FILL_STEP).astype(int), FILL_BINS - 1
            )
            devices = np.bincount(bins, np.bincount(slots.ravel(), minlength=most + 1))
            self._fill += [
                {
                    "years": years,
                    "generation": number,
                    "fill_from": step * FILL_STEP,
                    "devices": int(count),
                }
                for step, count in enumerate(devices)
                if count
            ]

    def devices_by_month(self) -> list[int]:
        """Devices that are there in each month, as of the last quarter noted before it."""
        by_time: dict[float, int] = {}
        for row in self._capacity:
            by_time[row["years"]] = by_time.get(row["years"], 0) + row["devices"]
        times = np.array(sorted(by_time))
        months = int(np.ceil(times[-1] * 12 - 1e-9))
        at = np.searchsorted(times, np.arange(months) / 12 + 1e-9) - 1
        return [by_time[time] for time in times[at].tolist()]

    def capacity_table(self, trial: int) -> Table:
        """One row per quarter and generation that is there."""
        return _table(trial, self._capacity)

    def fill_table(self, trial: int) -> Table:
        """One row per quarter, generation and bin with devices in it."""
        return _table(trial, self._fill)


def _table(trial: int, rows: list[dict[str, Any]]) -> Table:
    return pa.Table.from_pylist([{"trial": trial, **row} for row in rows])

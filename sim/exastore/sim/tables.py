"""The rows that one trial adds to every table; `docs/results.md` says what they mean."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from exastore.metadata.core.balance import BalanceStats
from exastore.metadata.core.topology import Int64Array, Topology
from exastore.sim.fleet import generation_of_node, generations_of, user_bytes_at
from exastore.sim.foreground import Service, service_of
from exastore.sim.objects import objects_lost
from exastore.sim.results import Table
from exastore.sim.scenario import Scenario
from exastore.sim.state import (
    CHUNK_RUNS_LOST,
    CHUNK_RUNS_REBUILT,
    CHUNK_RUNS_RETURNED,
    EVENTS,
    HISTOGRAM,
    HISTOGRAM_BINS,
    LOSS_COUNT,
    PG_BITS,
    SPARE_WAIT_S,
    SPARE_WAITS,
    TIMELINE_COLUMNS,
    State,
)
from exastore.sim.units import YEAR_S

#: Clusters of more devices have a row per node in the table of placement.
DEVICE_ROWS_MAX = 200_000


def _table(trial: int, **columns: Any) -> Table:
    length = len(next(iter(columns.values())))
    return pa.table({"trial": np.full(length, trial, np.int64), **columns})


def trial_table(
    scenario: Scenario,
    state: State,
    trial: int,
    balance: BalanceStats,
    violations: Mapping[str, int],
) -> Table:
    """One row: the totals of a trial.

    Args:
        scenario: What was simulated.
        state: At the trial's end.
        trial: Its number.
        balance: Of the devices, at the end.
        violations: PGs that break the domain rule, by the name of the column.
    """
    timeline: dict[str, Any] = dict(zip(TIMELINE_COLUMNS, state.timeline.T, strict=True))
    lost = int(state.counter[CHUNK_RUNS_LOST])
    sums = ("device_failures", "node_outages", "node_outs", "rebuilds", "pgs_lost", "moved_runs")
    row: dict[str, Any] = {name: [int(timeline[name].sum())] for name in sums}
    for name in ("unavailable_episodes", "latent_errors", "stripes_lost"):
        row[name] = [int(timeline[name].sum())]
    for name in ("rebuilt_bytes", "read_bytes", "abandoned_bytes", "moved_bytes"):
        row[name] = [float(timeline[name].sum())]
    for name in ("degraded", "unreadable", "unavailable"):
        row[f"{name}_pg_hours"] = [float(timeline[f"{name}_pg_s"].sum()) / 3600.0]
    missing_s = float(timeline["missing_slot_s"].sum())
    of_objects = objects_lost(scenario, timeline["pgs_lost"], timeline["stripes_lost"])
    pg_bytes = [
        user_bytes_at(scenario, month / 12) / scenario.placement.pg_count
        for month in range(len(state.timeline))
    ]
    row |= {
        "max_missing": [int(timeline["max_missing"].max())],
        "max_unreadable": [int(timeline["max_unreadable"].max())],
        "chunk_runs_lost": [lost],
        "chunk_runs_rebuilt": [int(state.counter[CHUNK_RUNS_REBUILT])],
        "chunk_runs_returned": [int(state.counter[CHUNK_RUNS_RETURNED])],
        "mean_missing_s": [missing_s / lost if lost else 0.0],
        "loss_times": [len(np.unique(state.losses["time_s"][: int(state.counter[LOSS_COUNT])]))],
        "user_bytes_lost": [
            float(timeline["pgs_lost"] @ pg_bytes)
            + float(timeline["stripes_lost"].sum()) * scenario.stripe_bytes
        ],
        "objects_lost": [of_objects.objects],
        "object_bytes_lost": [of_objects.object_bytes],
        "unavailable_byte_hours": [float(timeline["unavailable_pg_s"] @ pg_bytes) / 3600.0],
        "slots_mean": [balance.mean],
        "slots_stddev": [balance.stddev],
        "slots_min": [balance.minimum],
        "slots_max": [balance.maximum],
        **{name: [count] for name, count in violations.items()},
        "spare_waits": [int(state.counter[SPARE_WAITS])],
        "spare_wait_hours": [float(state.counter[SPARE_WAIT_S]) / 3600.0],
        "stuck_slot_hours": [float(timeline["stuck_slot_s"].sum()) / 3600.0],
        "events": [int(state.counter[EVENTS])],
    }
    return _table(trial, **row)


def timeline_table(trial: int, state: State) -> Table:
    """A row per month."""
    columns: dict[str, Any] = {"month": np.arange(len(state.timeline))}
    for name, values in zip(TIMELINE_COLUMNS, state.timeline.T, strict=True):
        if name.endswith("_s"):
            columns[f"{name[:-2]}_hours"] = values / 3600.0
        elif name.endswith("_bytes"):
            columns[name] = values.copy()
        else:
            columns[name] = values.astype(np.int64)
    return _table(trial, **columns)


def foreground_table(scenario: Scenario, trial: int, timeline: Table, devices: list[int]) -> Table:
    """A row per month: how requests fare; no rows without requests.

    Args:
        scenario: What was simulated.
        trial: Its number.
        timeline: Of this trial.
        devices: How many there are in each month.
    """
    found: list[Service] = []
    month_h = YEAR_S / 12 / 3600
    slots = scenario.placement.pg_count * scenario.n
    months = timeline.to_pylist() if scenario.foreground.is_on else []
    for count, row in zip(devices, months, strict=False):
        hours = min(month_h, scenario.run.years * YEAR_S / 3600 - month_h * row["month"])
        moved = row["rebuilt_bytes"] + row["read_bytes"] + 2 * row["moved_bytes"]
        per_s = moved / (hours * 3600) / count
        found.append(service_of(scenario, row["unreadable_pg_hours"] / hours / slots, per_s))
    columns = {
        item.name: np.array([getattr(its, item.name) for its in found], np.float64)
        for item in fields(Service)
    }
    return _table(trial, month=np.arange(len(found)), **columns)


@cache
def _bin_edges_s() -> tuple[float, ...]:
    return (0.0, *(60.0 * 2.0 ** (i / 2) for i in range(1, HISTOGRAM_BINS)))


def degraded_table(trial: int, state: State) -> Table:
    """The histogram of degraded times."""
    edges = _bin_edges_s()
    return _table(
        trial,
        from_s=np.array(edges),
        to_s=np.array([*edges[1:], np.inf]),
        pg_episodes=state.counter[HISTOGRAM : HISTOGRAM + HISTOGRAM_BINS].copy(),
    )


def redundancy_table(trial: int, state: State) -> Table:
    """PG-hours by missing chunks."""
    n = len(state.missing_s) - 1
    return _table(trial, missing_chunks=np.arange(1, n + 1), pg_hours=state.missing_s[1:] / 3600.0)


def loss_table(trial: int, state: State) -> Table:
    """The first losses, one by one."""
    losses = state.losses[: int(state.counter[LOSS_COUNT])]
    pg, stripes = losses["code"] & ((1 << PG_BITS) - 1), losses["code"] >> PG_BITS
    return _table(trial, time_s=losses["time_s"].copy(), pg=pg, stripes=stripes)


def incident_table(scenario: Scenario, trial: int, state: State) -> Table:
    """How often each incident befell any of its domains."""
    incidents = scenario.incidents
    domains = [scenario.incident_domains(incident) for incident in incidents]
    # Each domain has drawn one more, which would come after the end.
    past = np.maximum(state.incident_draw.astype(np.int64) - 1, 0)
    ends = np.cumsum(domains)
    assert ends[-1] == len(past)
    return _table(
        trial,
        incident=np.arange(len(incidents)),
        name=[incident.name for incident in incidents],
        level=[incident.level for incident in incidents],
        domains=domains,
        occurrences=[int(part.sum()) for part in np.split(past, ends[:-1])],
    )


def balance_table(trial: int, per_device: Int64Array) -> Table:
    """How many devices hold how many slots; `per_device` has shape (D,)."""
    slots, devices = np.unique(per_device, return_counts=True)
    return _table(trial, slots=slots, devices=devices)


def row_slots(topology: Topology, per_device: Int64Array) -> Int64Array:
    """Slots of each row of the table of placement, devices or nodes; `per_device`: shape (D,)."""
    if topology.device_count <= DEVICE_ROWS_MAX:
        return per_device
    nodes = len(topology.node_rack)
    return np.bincount(topology.device_node, per_device, nodes).astype(np.int64)


def placement_table(
    scenario: Scenario,
    topology: Topology,
    state: State,
    start: Int64Array,
    end: Int64Array,
    slot_bytes_end: float,
) -> Table:
    """Where the slots lie at the start and at the end of a trial; both are `row_slots`."""
    is_by_device = len(start) == topology.device_count
    first = state.nodes["first_device"]
    device = np.arange(topology.device_count) if is_by_device else first
    node = topology.device_node[device]
    rack = topology.node_rack[node]
    zone = topology.rack_zone[rack]
    devices = np.ones(len(start)) if is_by_device else state.nodes["end_device"] - first
    generation = generation_of_node(scenario)[node]
    capacity = np.array([its.capacity_bytes for its in generations_of(scenario)])[generation]
    per_slot_start = scenario.slot_bytes / capacity / devices
    per_slot_end = slot_bytes_end / capacity / devices
    columns = {
        "region": topology.zone_region[zone],
        "zone": zone,
        "rack": rack,
        "node": node,
        "device": device if is_by_device else np.full(len(start), -1),
        "model": state.devices["law"][device],
        "generation": generation,
        "slots_start": start,
        "slots_end": end,
    }
    return pa.table(
        {name: np.asarray(values, np.int64) for name, values in columns.items()}
        | {"fill_start": start * per_slot_start, "fill_end": end * per_slot_end}
    )

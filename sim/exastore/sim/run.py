"""Runs: placement once, then trials, side by side on threads.

The kernel of a trial releases the interpreter's lock, so threads use all cores and share the
placement without copies or child processes. Every trial addresses its random numbers by its own
number, so tables are the same bits for any number of workers.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from exastore.metadata.core.balance import balance_of, row_violations, slots_per_device
from exastore.metadata.core.balancer import (
    BalanceReport,
    apply_balance_to_rows,
    plan_balance_of_rows,
    report_balance,
)
from exastore.metadata.core.placement import (
    PlacementColumns,
    all_up,
    place_with_columns,
    placement_columns,
)
from exastore.metadata.core.policy import Copysets, PlacementPolicy, RandomDeclustered
from exastore.metadata.core.topology import NO_DEVICE, Int32Array, Int64Array, Topology
from exastore.sim.build import build_model, build_state, check_memory, with_more_room
from exastore.sim.codes import engine_code
from exastore.sim.engine import NEEDS_ROOM, NO_LIMIT, run_until
from exastore.sim.errors import Problem, ScenarioError
from exastore.sim.physics import build_physics
from exastore.sim.provenance import provenance
from exastore.sim.results import Results, Table
from exastore.sim.scenario import Scenario
from exastore.sim.state import (
    CHUNK_RUNS_LOST,
    CHUNK_RUNS_REBUILT,
    EVENTS,
    HISTOGRAM,
    HISTOGRAM_BINS,
    LOSS_COUNT,
    TIMELINE_COLUMNS,
    State,
)
from exastore.sim.units import YEAR_S

#: Called with (what is being done, how much of it is done, how much there is).
Progress = Callable[[str, float, float], None]
#: Placement is done in blocks of so many PGs, so that progress shows.
_PLACEMENT_BLOCK = 16_384
#: Slots of a block of a policy that deals.
_DEAL_SLOTS = 2**22
#: Rows that one thread checks at a time.
_CHECK_BLOCK = 2**18


@dataclass(frozen=True, slots=True)
class Placement:
    """A healthy cluster: what every trial starts from.

    Attributes:
        topology: The failure domains.
        columns: Placement's columns of it.
        pg_devices: Shape (P, n). The PG table.
        violations: How many PGs break the domain rule.
        balancing: What the balancer did to the table; None if the scenario is not balanced.
    """

    topology: Topology
    columns: PlacementColumns
    pg_devices: Int32Array
    violations: int
    balancing: BalanceReport | None = None


def _silent(what: str, done: float, total: float) -> None:
    del what, done, total


def place(scenario: Scenario, *, seed: int = 0, progress: Progress | None = None) -> Placement:
    """Place the scenario's PGs with the cluster's own placement and balancer.

    Raises:
        ScenarioError: Some slot finds no device that keeps the rule.
    """
    report = progress or _silent
    topology = scenario.topology()
    columns = placement_columns(topology, scenario.placement.rule)
    pg_count = scenario.placement.pg_count
    if scenario.placement.policy == "straw2":
        table = _draw(scenario, columns, seed, report)
    else:
        table = _deal(scenario, columns, seed, report)
    if pg_count and int(table.min()) < 0:
        text = "placement finds no device for some chunk that keeps the rule"
        raise ScenarioError(scenario.name, [Problem("placement.domain", text)])
    balancing = None
    if scenario.placement.balanced:
        report("balancing", 0.0, 1.0)
        plan = plan_balance_of_rows(columns, table, seed=seed)
        balancing = report_balance(columns, table, plan)
        table = apply_balance_to_rows(table, plan)
        report("balancing", 1.0, 1.0)
    broken = _violation_count(columns, table)
    return Placement(topology, columns, table, broken, balancing)


def _draw(scenario: Scenario, columns: PlacementColumns, seed: int, report: Progress) -> Int32Array:
    """The table by straw2, in blocks, so that progress shows."""
    pg_count = scenario.placement.pg_count
    table = np.empty((pg_count, scenario.n), np.int32)
    for first in range(0, pg_count, _PLACEMENT_BLOCK):
        report("placing", float(first), float(pg_count))
        count = min(_PLACEMENT_BLOCK, pg_count - first)
        table[first : first + count] = place_with_columns(
            columns, count, scenario.n, seed=seed, first_pg=first
        )
    report("placing", float(pg_count), float(pg_count))
    return table


def _deal(scenario: Scenario, columns: PlacementColumns, seed: int, report: Progress) -> Int32Array:
    """The table by a policy, in blocks in which every device is as often as its share.

    A block is a deck of about one slot of each device, or of `_DEAL_SLOTS`: decks of 10^9 cards
    take more memory than the table. Blocks are independent, so threads deal them side by side.
    """
    placement, n = scenario.placement, scenario.n
    pg_count = placement.pg_count
    state = all_up(scenario.cluster.device_count)
    policy: PlacementPolicy = RandomDeclustered()
    per_block = max(_DEAL_SLOTS, scenario.cluster.device_count) // n
    if placement.policy == "copyset":
        policy, per_block = Copysets(placement.scatter_width), pg_count
    table = np.full((pg_count, n), NO_DEVICE, np.int32)
    firsts = range(0, pg_count, per_block)

    def deal(number: int) -> None:
        rows = table[firsts[number] : firsts[number] + per_block]
        policy.fill(columns, state, (seed + number * 0x9E3779B1) & 0xFFFFFFFF, rows)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for number, _ in enumerate(pool.map(deal, range(len(firsts)))):
            report("placing", float(min(pg_count, (number + 1) * per_block)), float(pg_count))
    return table


def _violation_count(columns: PlacementColumns, table: Int32Array) -> int:
    """How many rows break the rule: all are looked at, side by side."""
    firsts = range(0, len(table), _CHECK_BLOCK)

    def count(first: int) -> int:
        return int(row_violations(table[first : first + _CHECK_BLOCK], columns).sum())

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return sum(pool.map(count, firsts))


def run(
    scenario: Scenario,
    *,
    trials: int | None = None,
    seed: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    monotonic_s: Callable[[], float] | None = None,
) -> Results:
    """Simulate.

    Args:
        scenario: What to simulate.
        trials: How many independent trials; by default the scenario's.
        seed: Of placement and of all trials; by default the scenario's.
        workers: Threads; the tables do not depend on it. Each needs a trial's memory.
        progress: Called from time to time, always from the calling thread, as
            `progress(what, done, total)`: PGs while "placing", trial-years while "simulating".
        monotonic_s: A clock, to state how long things took; None leaves those fields 0.

    Raises:
        ScenarioError: The placement rule cannot be kept.
        ValueError: `trials` or `workers` is below 1.
    """
    trials = scenario.run.trials if trials is None else trials
    seed = scenario.run.seed if seed is None else seed
    if trials < 1 or workers < 1:
        raise ValueError(f"trials and workers are at least 1, not {trials} and {workers}")
    clock = monotonic_s or (lambda: 0.0)
    report = progress or _silent
    started_s = clock()
    check_memory(scenario, workers=min(workers, trials))
    placement = place(scenario, seed=seed, progress=progress)
    placed_s = clock()
    initial = _balance_table(-1, placement.pg_devices, placement.topology.device_count)
    finished = _run_trials(scenario, placement, trials, seed, workers, report)
    tables = {
        name: pa.concat_tables([one[name] for one in finished])
        for name in ("trials", "timeline", "degraded_time", "redundancy", "losses")
    }
    return Results(
        scenario=scenario,
        provenance=provenance(
            scenario,
            seed=seed,
            trials=trials,
            placement_s=placed_s - started_s,
            trials_s=clock() - placed_s,
        ),
        balance=pa.concat_tables([initial, *(one["balance"] for one in finished)]),
        **tables,
    )


def _run_trials(
    scenario: Scenario,
    placement: Placement,
    trials: int,
    seed: int,
    workers: int,
    report: Progress,
) -> list[dict[str, Table]]:
    """The tables of each trial, in the order of trials."""
    years = scenario.run.years
    total = trials * years
    report("simulating", 0.0, total)
    engine_code(scenario.code)  # made here, once for all workers
    finished: dict[int, dict[str, Table]] = {}
    if workers == 1 or trials == 1:
        for trial in range(trials):

            def tell(year: float, trial: int = trial) -> None:
                report("simulating", trial * years + year, total)

            finished[trial] = run_trial(
                scenario,
                placement,
                seed=seed,
                trial=trial,
                takes_table=trials == 1,
                on_year=tell,
            )
    else:
        with ThreadPoolExecutor(workers) as pool:
            waiting = {
                pool.submit(run_trial, scenario, placement, seed=seed, trial=trial): trial
                for trial in range(trials)
            }
            try:
                for future in as_completed(waiting):
                    finished[waiting[future]] = future.result()
                    report("simulating", len(finished) * years, total)
            except BaseException:
                # Ctrl-C ends the run after the trials under way, not after all.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [finished[trial] for trial in range(trials)]


def simulate(
    scenario: Scenario,
    placement: Placement,
    *,
    seed: int,
    trial: int,
    log_events: int = 0,
    takes_table: bool = False,
    on_year: Callable[[float], None] | None = None,
) -> State:
    """The state at the end of one trial; `takes_table`: the placement's table is not kept."""
    physics = build_physics(scenario)
    model = build_model(scenario, physics, seed=seed, trial=trial)
    state = build_state(
        model,
        physics,
        placement.topology,
        placement.pg_devices,
        log_events=log_events,
        takes_table=takes_table,
    )
    code = engine_code(scenario.code)
    horizon_s = float(model["horizon_s"])
    until_s = 0.0
    while until_s < horizon_s:
        until_s = min(until_s + YEAR_S / 4, horizon_s)
        while (
            run_until(placement.columns, code, physics, model, state, until_s, NO_LIMIT)
            == NEEDS_ROOM
        ):
            state = with_more_room(model, state)
        if on_year:
            on_year(until_s / YEAR_S)
    return state


def run_trial(
    scenario: Scenario,
    placement: Placement,
    *,
    seed: int,
    trial: int,
    takes_table: bool = False,
    on_year: Callable[[float], None] | None = None,
) -> dict[str, Table]:
    """One trial, as its rows of every table."""
    state = simulate(
        scenario, placement, seed=seed, trial=trial, takes_table=takes_table, on_year=on_year
    )
    topology = placement.topology
    return {
        "trials": _trial_row(scenario, placement, state, trial),
        "timeline": _timeline_table(trial, state),
        "degraded_time": _degraded_table(trial, state),
        "redundancy": _table(
            trial,
            missing_chunks=np.arange(1, scenario.n + 1),
            pg_hours=state.missing_s[1:] / 3600.0,
        ),
        "losses": _loss_table(trial, state),
        "balance": _balance_table(trial, state.pg_devices, topology.device_count),
    }


def _table(trial: int, **columns: Any) -> Table:
    length = len(next(iter(columns.values())))
    return pa.table({"trial": np.full(length, trial, np.int64), **columns})


def _trial_row(scenario: Scenario, placement: Placement, state: State, trial: int) -> Table:
    timeline: dict[str, Any] = dict(zip(TIMELINE_COLUMNS, state.timeline.T, strict=True))
    topology = placement.topology
    balance = balance_of(state.pg_devices, topology.device_weight)
    lost = int(state.counter[CHUNK_RUNS_LOST])
    sums = ("device_failures", "node_outages", "node_outs", "rebuilds", "pgs_lost")
    row: dict[str, Any] = {name: [int(timeline[name].sum())] for name in sums}
    row["unavailable_episodes"] = [int(timeline["unavailable_episodes"].sum())]
    for name in ("rebuilt_bytes", "read_bytes", "abandoned_bytes"):
        row[name] = [float(timeline[name].sum())]
    for name in ("degraded", "unreadable", "unavailable"):
        row[f"{name}_pg_hours"] = [float(timeline[f"{name}_pg_s"].sum()) / 3600.0]
    missing_s = float(timeline["missing_slot_s"].sum())
    row |= {
        "max_missing": [int(timeline["max_missing"].max())],
        "max_unreadable": [int(timeline["max_unreadable"].max())],
        "chunk_runs_lost": [lost],
        "chunk_runs_rebuilt": [int(state.counter[CHUNK_RUNS_REBUILT])],
        "mean_missing_s": [missing_s / lost if lost else 0.0],
        "loss_times": [len(np.unique(state.losses["time_s"][: int(state.counter[LOSS_COUNT])]))],
        "user_bytes_lost": [
            float(timeline["pgs_lost"].sum())
            * scenario.data.user_bytes
            / scenario.placement.pg_count
        ],
        "slots_mean": [balance.mean],
        "slots_stddev": [balance.stddev],
        "slots_min": [balance.minimum],
        "slots_max": [balance.maximum],
        "violations": [_violation_count(placement.columns, state.pg_devices)],
        "violations_at_start": [placement.violations],
        "events": [int(state.counter[EVENTS])],
    }
    return _table(trial, **row)


def _timeline_table(trial: int, state: State) -> Table:
    columns: dict[str, Any] = {"month": np.arange(len(state.timeline))}
    for name, values in zip(TIMELINE_COLUMNS, state.timeline.T, strict=True):
        if name.endswith("_s"):
            columns[f"{name[:-2]}_hours"] = values / 3600.0
        elif name.endswith("_bytes"):
            columns[name] = values.copy()
        else:
            columns[name] = values.astype(np.int64)
    return _table(trial, **columns)


@cache
def _bin_edges_s() -> tuple[float, ...]:
    return (0.0, *(60.0 * 2.0 ** (i / 2) for i in range(1, HISTOGRAM_BINS)))


def _degraded_table(trial: int, state: State) -> Table:
    edges = _bin_edges_s()
    return _table(
        trial,
        from_s=np.array(edges),
        to_s=np.array([*edges[1:], np.inf]),
        pg_episodes=state.counter[HISTOGRAM : HISTOGRAM + HISTOGRAM_BINS].copy(),
    )


def _loss_table(trial: int, state: State) -> Table:
    losses = state.losses[: int(state.counter[LOSS_COUNT])]
    return _table(trial, time_s=losses["time_s"].copy(), pg=losses["code"].copy())


def _balance_table(trial: int, pg_devices: Int32Array, device_count: int) -> Table:
    per_device: Int64Array = slots_per_device(pg_devices, device_count)
    slots, devices = np.unique(per_device, return_counts=True)
    return _table(trial, slots=slots, devices=devices)

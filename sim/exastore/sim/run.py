"""Runs: placement once, then trials, side by side on threads.

The kernel of a trial releases the interpreter's lock, so threads use all cores and share the
placement without copies or child processes. Every trial addresses its random numbers by its own
number, so tables are the same bits for any number of workers.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from exastore.metadata.core.balance import balance_of_counts, row_violations
from exastore.metadata.core.balancer import (
    BalanceReport,
    apply_balance_to_rows,
    plan_balance_of_rows,
    report_balance,
)
from exastore.metadata.core.errors import PolicyBrokeRule
from exastore.metadata.core.placement import (
    PlacementColumns,
    all_up,
    place_with_columns,
    placement_columns,
)
from exastore.metadata.core.policy import (
    Copysets,
    Custom,
    PlacementPolicy,
    RandomDeclustered,
    place_by_policy,
)
from exastore.metadata.core.topology import NO_DEVICE, DeviceState, Int32Array, Topology
from exastore.sim.build import (
    build_model,
    build_state,
    check_memory,
    side_by_side_slots,
    validate_state,
    with_more_room,
)
from exastore.sim.change import Change
from exastore.sim.checkpoint import Checkpoints
from exastore.sim.codes import engine_code
from exastore.sim.engine import DONE, NEEDS_ROOM, NO_LIMIT, PAUSED, run_until
from exastore.sim.errors import Problem, ScenarioError
from exastore.sim.history import History
from exastore.sim.physics import build_physics
from exastore.sim.provenance import provenance
from exastore.sim.results import TABLES, Results, ResultsWriter, Table
from exastore.sim.scenario import Scenario
from exastore.sim.state import EVENTS, Records, State
from exastore.sim.tables import (
    balance_table,
    degraded_table,
    foreground_table,
    incident_table,
    loss_table,
    placement_table,
    redundancy_table,
    row_slots,
    timeline_table,
    trial_table,
)
from exastore.sim.trace import trace_events
from exastore.sim.units import YEAR_S
from exastore.sim.user import POLICY_ARGUMENTS, check_functions, load_function

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
    elif scenario.placement.policy == "custom":
        table = _ask(scenario, columns, seed)
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


def _ask(scenario: Scenario, columns: PlacementColumns, seed: int) -> Int32Array:
    """The table by a user's own policy, which is checked."""
    spec, key = scenario.placement.policy_function, "placement.policy_function"
    policy = Custom(spec, load_function(spec, key, POLICY_ARGUMENTS))
    state = all_up(scenario.tree.device_count)
    state[columns.device_weight == 0] = DeviceState.OUT  # those that join later
    try:
        return place_by_policy(
            policy, columns, scenario.placement.pg_count, scenario.n, seed=seed, device_state=state
        )
    except PolicyBrokeRule as error:
        raise ScenarioError(scenario.name, [Problem(key, str(error))]) from error


def _deal(scenario: Scenario, columns: PlacementColumns, seed: int, report: Progress) -> Int32Array:
    """The table by a policy, in blocks in which every device is as often as its share.

    A block is a deck of about one slot of each device, or of `_DEAL_SLOTS`: decks of 10^9 cards
    take more memory than the table. Blocks are independent, so threads deal them side by side.
    """
    placement, n = scenario.placement, scenario.n
    pg_count = placement.pg_count
    state = all_up(scenario.tree.device_count)
    policy: PlacementPolicy = RandomDeclustered()
    per_block = max(_DEAL_SLOTS, scenario.tree.device_count) // n
    if placement.policy == "copyset":
        policy, per_block = Copysets(placement.scatter_width), pg_count
    table = np.empty((pg_count, n), np.int32)
    firsts = range(0, pg_count, per_block)

    def deal(number: int) -> None:
        rows = table[firsts[number] : firsts[number] + per_block]
        rows[:] = NO_DEVICE  # by the threads, as they are the first to touch the memory
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
    out: str | Path | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every_years: float = 1.0,
    resume: bool = False,
    checked: bool = False,
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
        out: Folder that takes the rows of each trial as it ends, so that memory does not grow
            with the trials; its files appear when all is done. None: all is kept in memory.
        checkpoint: Folder that takes what a stopped run needs to go on; empty again at the end.
        checkpoint_every_years: How much of a trial a stop may cost.
        resume: Go on from what `checkpoint` holds, to the same tables; else it is removed.
        checked: Check all invariants after every event, to the same tables: for small clusters,
            as an event then takes milliseconds instead of microseconds.

    Raises:
        ScenarioError: The placement rule cannot be kept.
        ResultsError: The checkpoints are of another run.
        ValueError: `trials` or `workers` is below 1.
        OSError: `out` cannot be written.
        AssertionError: The engine is wrong (`checked`); a note says after which event.
    """
    trials = scenario.run.trials if trials is None else trials
    seed = scenario.run.seed if seed is None else seed
    if trials < 1 or workers < 1:
        raise ValueError(f"trials and workers are at least 1, not {trials} and {workers}")
    clock = monotonic_s or (lambda: 0.0)
    report = progress or _silent
    started_s = clock()
    check_functions(scenario)
    if scenario.device.trace:
        trace_events(scenario)  # refused now, not after the placement
    check_memory(scenario, workers=min(workers, trials))
    kept = None
    if checkpoint is not None:
        every, at = checkpoint_every_years, Path(checkpoint)
        kept = Checkpoints(at, scenario, seed=seed, every_years=every, resume=resume)
    finished: list[dict[str, Table]] = []
    with nullcontext() if out is None else ResultsWriter(out) as writer:
        placement = place(scenario, seed=seed, progress=progress)
        placed_s = clock()
        add = finished.append if writer is None else writer.add
        for tables in _run_trials(
            scenario, placement, trials, seed, workers, report, kept, checked
        ):
            add(tables)
        made = provenance(
            scenario,
            seed=seed,
            trials=trials,
            placement_s=placed_s - started_s,
            trials_s=clock() - placed_s,
        )
        if writer is not None:
            writer.finish(made)
    if kept is not None:
        kept.clear()
    if out is not None:
        return Results.read(out)
    joined = {
        name: pa.concat_tables([one[name] for one in finished if name in one]) for name in TABLES
    }
    return Results(scenario=scenario, provenance=made, **joined)


def _run_trials(
    scenario: Scenario,
    placement: Placement,
    trials: int,
    seed: int,
    workers: int,
    report: Progress,
    kept: Checkpoints | None,
    checked: bool,
) -> Iterator[dict[str, Table]]:
    """The tables of each trial, in the order of trials, each as soon as it and all before end."""
    years = scenario.run.years
    total = trials * years
    report("simulating", 0.0, total)
    engine_code(scenario.code)  # made here, once for all workers
    if workers == 1 or trials == 1:
        for trial in range(trials):

            def tell(year: float, trial: int = trial) -> None:
                report("simulating", trial * years + year, total)

            yield run_trial(
                scenario,
                placement,
                seed=seed,
                trial=trial,
                takes_table=trials == 1,
                on_year=tell,
                kept=kept,
                checked=checked,
            )
        return
    with ThreadPoolExecutor(workers) as pool:
        # What has ended waits for the trials before it; few at a time keep memory flat.
        waiting = deque[Future[dict[str, Table]]]()
        try:
            for trial in range(trials + 2 * workers):
                if trial < trials:
                    waiting.append(
                        pool.submit(
                            run_trial,
                            scenario,
                            placement,
                            seed=seed,
                            trial=trial,
                            kept=kept,
                            checked=checked,
                        )
                    )
                if trial >= 2 * workers:
                    yield waiting.popleft().result()
                    report("simulating", (trial - 2 * workers + 1) * years, total)
        except BaseException:
            # Ctrl-C ends the run after the trials under way, not after all.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def simulate(
    scenario: Scenario,
    placement: Placement,
    *,
    seed: int,
    trial: int,
    log_events: int = 0,
    takes_table: bool = False,
    on_year: Callable[[float], None] | None = None,
    kept: Checkpoints | None = None,
    checked: bool = False,
) -> tuple[State, Change, History]:
    """One trial: the state at its end, what changed by the calendar, and the fill over time.

    Args:
        scenario: What to simulate.
        placement: What the trial starts from.
        seed: Of all trials.
        trial: Its number.
        log_events: How many events to keep in the log.
        takes_table: The placement's table becomes the trial's, and is not kept.
        on_year: Told the years that are done, every quarter.
        kept: Where checkpoints go and come from.
        checked: Check all invariants after every event.
    """
    physics = build_physics(scenario)
    model = build_model(scenario, physics, seed=seed, trial=trial)
    code = engine_code(scenario.code)
    change = Change(scenario, placement.topology, placement.columns, model, physics)
    history = History(scenario, change.generation_of_node)
    found = None if kept is None else kept.state(trial)
    if found is None:
        state = build_state(
            model,
            physics,
            placement.topology,
            placement.pg_devices,
            log_events=log_events,
            takes_table=takes_table,
        )
        change.prepare(state)
        history.note(state, model, 0.0)
    else:
        state, more = found
        change.restore(more)
        history.restore(more)
    horizon_s = float(model["horizon_s"])
    until_s = kept_s = float(state.clock[0])  # the end of a quarter, if it was kept
    quarter_s = until_s + YEAR_S / 4
    limit = 1 if checked else NO_LIMIT
    while until_s < horizon_s:
        until_s = min(quarter_s, change.next_s, horizon_s)
        done = PAUSED
        while done != DONE:
            done = run_until(change.columns, code, physics, model, state, until_s, limit)
            state = _after(done, model, state, scenario.code if checked else "")
        if until_s == change.next_s:
            state = change.happen(state)
        if until_s in (quarter_s, horizon_s):
            quarter_s = until_s + YEAR_S / 4
            history.note(state, model, until_s)
            if on_year:
                on_year(until_s / YEAR_S)
            if kept is not None and kept.every_years * YEAR_S <= until_s - kept_s:
                kept.keep_state(trial, state, change.keep() | history.keep())
                kept_s = until_s
    return state, change, history


def _after(done: int, model: Records, state: State, code: str) -> State:
    """The state with the room that it lacks; it is checked if a code is given."""
    if done == NEEDS_ROOM:
        return with_more_room(model, state)
    if code:
        try:
            validate_state(model, state, code)
        except AssertionError as error:
            event = int(state.counter[EVENTS])
            at = f"event {event:,} of trial {model['trial']}, seed {model['seed']}"
            error.add_note(f"after {at}, at {float(state.clock[0])} s; please report it")
            raise
    return state


def run_trial(
    scenario: Scenario,
    placement: Placement,
    *,
    seed: int,
    trial: int,
    takes_table: bool = False,
    on_year: Callable[[float], None] | None = None,
    kept: Checkpoints | None = None,
    checked: bool = False,
) -> dict[str, Table]:
    """One trial, as its rows of every table; the first one also has those of the start."""
    ended = None if kept is None else kept.tables(trial)
    if ended is not None:
        return ended
    topology = placement.topology
    tables: dict[str, Table] = {}
    balances: list[Table] = []
    at_start = None
    if trial == 0:  # what all trials start from, before the state may take the table over
        slots = side_by_side_slots(placement.pg_devices, topology.device_count)
        balances.append(balance_table(-1, slots[topology.device_weight > 0]))
        at_start = row_slots(topology, slots)
    state, change, history = simulate(
        scenario,
        placement,
        seed=seed,
        trial=trial,
        takes_table=takes_table,
        on_year=on_year,
        kept=kept,
        checked=checked,
    )
    topology = change.topology
    slots = side_by_side_slots(state.pg_devices, topology.device_count)
    balances.append(balance_table(trial, slots[topology.device_weight > 0]))
    if at_start is not None:
        at_end = row_slots(topology, slots)
        tables["placement"] = placement_table(
            scenario, topology, state, at_start, at_end, change.slot_bytes
        )
    violations = {
        "violations": _violation_count(placement.columns, state.pg_devices),
        "violations_at_start": placement.violations,
    }
    timeline = timeline_table(trial, state)
    balance = balance_of_counts(slots, topology.device_weight)
    tables |= {
        "trials": trial_table(scenario, state, trial, balance, violations),
        "timeline": timeline,
        "degraded_time": degraded_table(trial, state),
        "redundancy": redundancy_table(trial, state),
        "losses": loss_table(trial, state),
        "incidents": incident_table(scenario, trial, state),
        "capacity": history.capacity_table(trial),
        "fill": history.fill_table(trial),
        "foreground": foreground_table(scenario, trial, timeline, history.devices_by_month()),
        "balance": pa.concat_tables(balances),
    }
    if kept is not None:
        kept.keep_tables(trial, tables)
    return tables

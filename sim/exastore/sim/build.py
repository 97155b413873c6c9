"""Makes the columns of a trial, widens, checks and keeps them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from exastore.erasure.jit import njit
from exastore.metadata.core.balance import slots_per_device
from exastore.metadata.core.placement import DRAW_ROWS, DRAWS_MAX
from exastore.metadata.core.policy import begin_after_each_other
from exastore.metadata.core.redundancy import remaining_of_rows
from exastore.metadata.core.topology import DeviceState, Int32Array, Int64Array, Topology
from exastore.sim.checks import validate_repairs
from exastore.sim.codes import code_shape
from exastore.sim.degraded import grown, new_table
from exastore.sim.errors import Problem, ScenarioError
from exastore.sim.foreground import repair_budgets
from exastore.sim.physics import Physics, draw_laws
from exastore.sim.scenario import Scenario
from exastore.sim.state import (
    DEGRADED_ENTRIES,
    DEGRADED_PGS,
    DEVICE,
    EVENT,
    FREE_RUN,
    LOSS_LOG,
    MISSING_PGS,
    MISSING_SLOTS,
    MODEL,
    NODE,
    NONE,
    OUT_OF_REACH,
    RUN,
    RUN_COUNT,
    SLOT_COUNT_MAX,
    TIMELINE_COLUMNS,
    TOUCHED_MAX,
    TOUCHED_SHARED,
    UNAVAILABLE_PGS,
    UNREADABLE_PGS,
    WAITING_HEAD,
    WAITING_TAIL,
    Records,
    State,
)
from exastore.sim.units import YEAR_S
from exastore.sim.user import priority_address

#: Devices of a range: their counts and the ends of their lists fit a second-level cache.
_RANGE_BITS = 12
#: Slots that are sorted at a time: so many for each device, at least so many.
_SORTED_PER_DEVICE = 8
_SORT_SLOTS_MIN = 2**22


def build_model(scenario: Scenario, physics: Physics, *, seed: int, trial: int) -> Records:
    """The constants of one trial: a record of MODEL."""
    model = np.zeros(1, MODEL)[0]
    code, repair = code_shape(scenario.code), scenario.repair
    model["k"], model["m"] = code.k, code.m
    model["source_count"] = code.k if code.any_k else code.n - 1
    model["limit"] = code.m if code.is_counted else OUT_OF_REACH
    model["shift"] = max(1, (scenario.n - 1).bit_length())
    model["is_shared"] = scenario.placement.pg_count > TOUCHED_MAX
    model["touched_mask"] = (TOUCHED_SHARED if model["is_shared"] else TOUCHED_MAX) - 1
    model["seed"] = seed
    model["trial"] = trial
    model["horizon_s"] = scenario.run.years * YEAR_S
    model["is_trace"] = len(physics.traced) > 0
    hits = np.maximum(
        np.where(physics.incidents["burst_max"] > 0, 0, physics.incidents["nodes_per_domain"]),
        physics.incidents["burst_max"],
    )
    model["hit_max"] = hits.max(initial=0)
    model["replacement_delay_s"] = scenario.device.replacement_delay_s
    model["detection_delay_s"] = repair.detection_delay_s
    model["out_after_s"] = repair.out_after_s
    model["slot_bytes"] = scenario.slot_bytes
    budgets = repair_budgets(scenario)
    model["write_bytes_per_s"] = budgets.write_bytes_per_s
    model["read_bytes_per_s"] = budgets.read_bytes_per_s
    if repair.priority:
        model["priority_address"] = priority_address(repair.priority, "repair.priority")
    latent = scenario.latent
    model["has_latent"] = latent.onset_per_year > 0 or latent.read_error_per_bit > 0
    model["latent_onset_per_s"] = latent.onset_per_year / YEAR_S
    model["latent_per_byte_s"] = latent.errors_per_year / YEAR_S / scenario.device.capacity_bytes
    model["read_errors_per_byte"] = 8 * latent.read_error_per_bit
    model["scrub_period_s"] = latent.scrub_period_s
    for name in ("node", "rack", "zone"):
        budget = getattr(budgets, f"{name}_bytes_per_s")
        model[f"{name}_bytes_per_s"] = budget
        model["has_links"] |= budget < np.inf
    model["is_pipelined"] = repair.transfer == "pipelined"
    model["lazy_redundancy"] = code.m if repair.lazy_redundancy < 0 else repair.lazy_redundancy
    spares = scenario.spares
    model["spare_count"], model["reorder_s"] = spares.per_zone, spares.reorder_s
    model["fill_limit_bytes"] = np.inf
    if repair.fill_limit > 0:
        model["fill_limit_bytes"] = repair.fill_limit * scenario.device.capacity_bytes
    model["bucket_s"] = YEAR_S / 12
    return model


@njit
def _part_slots(
    pg_devices: Int32Array, first_pg: int, shift: int, ends: Int64Array, pairs: Int64Array
) -> None:
    """Pairs of device and slot by ranges of devices; ends[v]: of those of the v-th range."""
    ends[:] = 0
    for pg in range(pg_devices.shape[0]):
        for index in range(pg_devices.shape[1]):
            if pg_devices[pg, index] >= 0:
                ends[pg_devices[pg, index] >> _RANGE_BITS] += 1
    begin_after_each_other(ends)
    for pg in range(pg_devices.shape[0]):
        for index in range(pg_devices.shape[1]):
            device = np.int64(pg_devices[pg, index])
            if device >= 0:
                place = device >> _RANGE_BITS
                pairs[ends[place]] = (device << 32) | ((first_pg + pg) << shift) | index
                ends[place] += 1


@njit
def _fill_lists(
    first: int, end: int, ends: Int64Array, pairs: Int64Array, slots: Int32Array, count: Int32Array
) -> None:
    """Puts the slots of some ranges of devices into their lists, those of both halves in order."""
    for value in range(first, end):
        for half in range(2):
            begin = ends[half, value - 1] if value > 0 else 0
            for pair in pairs[half, begin : ends[half, value]]:
                device = pair >> 32
                slots[device, count[device]] = np.int32(pair & 0xFFFFFFFF)
                count[device] += 1


def device_lists(
    pg_devices: Int32Array, device_count: int, shift: int
) -> tuple[Int32Array, Int32Array]:
    """Slots by device, as (slots, slot_count), with room for half as many again as the most.

    Two threads sort so much of the table at a time by ranges of devices that each list then takes
    half a cache line: 12 ns for each slot, where a miss for each takes 46.
    """
    per_device = side_by_side_slots(pg_devices, device_count)
    room = min(len(pg_devices), int(per_device.max(initial=0)) * 3 // 2 + 8)
    slots = np.empty((device_count, room), dtype=np.int32)
    slot_count = np.zeros(device_count, np.int32)
    n = max(pg_devices.shape[1], 1)
    half = max(_SORT_SLOTS_MIN, _SORTED_PER_DEVICE * device_count) // (2 * n)
    half = min(half, -(-len(pg_devices) // 2))
    ranges = -(-device_count >> _RANGE_BITS)
    ends, pairs = np.zeros((2, ranges), np.int64), np.empty((2, half * n), np.int64)
    middle = ranges // 2
    with ThreadPoolExecutor(2) as pool:
        for first in range(0, len(pg_devices), max(2 * half, 1)):
            firsts = [first, first + half]
            tables = [pg_devices[at : at + half] for at in firsts]
            list(pool.map(_part_slots, tables, firsts, [shift] * 2, ends, pairs))
            list(
                pool.map(
                    _fill_lists,
                    [0, middle],
                    [middle, ranges],
                    *([its] * 2 for its in (ends, pairs, slots, slot_count)),
                )
            )
    return slots, slot_count


def side_by_side_slots(pg_devices: Int32Array, device_count: int) -> Int64Array:
    """As `slots_per_device`, by two threads."""
    halves = np.array_split(pg_devices, 2)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(slots_per_device, halves, [device_count] * 2)
    return first + second


def _free_runs(count: int, first: int) -> Records:
    """Free records, linked from the first on; they stand at `first` of the whole array."""
    runs = np.full(count, NONE, np.int32).view(np.int32)
    records = np.zeros(count, RUN)
    for name in ("slot", "target", "home"):
        records[name] = runs
    records["next"] = np.arange(first + 1, first + count + 1)
    records["next"][-1] = NONE
    return records


def build_state(
    model: Records,
    physics: Physics,
    topology: Topology,
    pg_devices: Int32Array,
    *,
    log_events: int = 0,
    takes_table: bool = False,
) -> State:
    """A healthy cluster at time 0.

    Args:
        model: The constants.
        physics: The laws of life, for the models of the devices.
        topology: The failure domains, devices in the order of their nodes, nodes of equal size.
        pg_devices: Shape (P, n). The placement; every slot must have a device.
        log_events: How many events to keep in the log.
        takes_table: Whether the state may change `pg_devices` itself instead of a copy.
    """
    assert int(pg_devices.min(initial=0)) >= 0, "placement left a slot without a device"
    assert (np.diff(topology.device_node) >= 0).all(), "devices are not in the order of their nodes"
    n = pg_devices.shape[1]
    device_count, node_count = topology.device_count, len(topology.node_rack)
    slots, slot_count = device_lists(pg_devices, device_count, int(model["shift"]))
    counter = np.zeros(MISSING_PGS + n + 1, np.int64)
    counter[WAITING_HEAD] = counter[WAITING_TAIL] = NONE
    counter[SLOT_COUNT_MAX] = slot_count.max(initial=0)
    devices = np.zeros(device_count, DEVICE)
    devices["node"] = topology.device_node
    devices["slot_count"] = slot_count
    devices["law"] = draw_laws(
        physics, topology, seed=int(model["seed"]), trial=int(model["trial"])
    )
    for name in ("queue_head", "queue_tail", "active"):
        devices[name] = NONE
    nodes = np.zeros(node_count, NODE)
    bounds = np.searchsorted(topology.device_node, np.arange(node_count + 1))
    nodes["first_device"], nodes["end_device"] = bounds[:-1], bounds[1:]
    nodes["rack"] = topology.node_rack
    nodes["zone"] = topology.rack_zone[topology.node_rack]
    domain_count = int(physics.incidents["domain_count"].sum())
    link_count = 2 * (node_count + len(topology.rack_zone) + len(topology.zone_region))
    buckets = int(np.ceil(model["horizon_s"] / model["bucket_s"] - 1e-9))
    return State(
        clock=np.zeros(1 + len(topology.zone_region) * (int(model["spare_count"]) + 1)),
        near=np.zeros(1024, EVENT),
        # At the start every device and domain may add an event; untouched pages cost nothing.
        far=np.zeros(device_count + domain_count + len(physics.traced) + 1024, EVENT),
        counter=counter,
        devices=devices,
        nodes=nodes,
        degraded=new_table(1024),
        runs=_free_runs(1024, 0),
        touched=np.zeros(int(model["touched_mask"]) + 1, np.uint16),
        pg_devices=pg_devices if takes_table else pg_devices.copy(),
        device_state=np.full(device_count, DeviceState.UP, np.uint8),
        streams=np.zeros(device_count, np.uint16),
        links=np.zeros(link_count, np.int32),
        slots=slots,
        sources=np.full((1024, int(model["source_count"])), NONE, np.int32),
        incident_draw=np.zeros(domain_count, np.int32),
        timeline=np.zeros((buckets, len(TIMELINE_COLUMNS))),
        missing_s=np.zeros(n + 1),
        room=np.zeros((2, n), np.bool_),
        draws=np.zeros((DRAW_ROWS + 1, DRAWS_MAX), np.int32),
        losses=np.zeros(LOSS_LOG, EVENT),
        log=np.zeros(log_events, EVENT),
    )


def with_more_room(model: Records, state: State) -> State:
    """The same state with more room in the first column that lacks it."""
    from exastore.sim.engine import lacks_room

    what = lacks_room(model, state)
    if what == 1:
        device_count, room = state.slots.shape
        slots = np.empty((device_count, min(len(state.pg_devices), room * 9 // 8 + 8)), np.int32)
        slots[:, :room] = state.slots
        return state._replace(slots=slots)
    if what == 2:
        return state._replace(near=np.concatenate([state.near, np.zeros_like(state.near)]))
    if what == 3:
        return state._replace(far=np.concatenate([state.far, np.zeros_like(state.far)]))
    if what == 4:
        return state._replace(degraded=grown(state.degraded))
    more = _free_runs(len(state.runs), len(state.runs))
    more["next"][-1] = state.counter[FREE_RUN]
    state.counter[FREE_RUN] = len(state.runs)
    return state._replace(
        runs=np.concatenate([state.runs, more]),
        sources=np.concatenate([state.sources, np.full_like(state.sources, NONE)]),
    )


def memory_bytes(scenario: Scenario, *, workers: int) -> int:
    """What a run holds at most: the table, and of each trial its own, its inverse and devices.

    One trial alone takes over the table. See `state` for the parts.
    """
    slots = scenario.placement.pg_count * scenario.n
    trial = 6 * slots + 150 * scenario.tree.device_count
    tables = 1 if workers == 1 else 1 + workers
    return 4 * slots * tables + trial * workers + 200 * 2**20


def check_memory(scenario: Scenario, *, workers: int) -> None:
    """Refuses a run that does not fit, before any work.

    Raises:
        ScenarioError: It needs more than this machine has to give now.
    """
    needed = memory_bytes(scenario, workers=workers)
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return  # another system: let it try
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if needed > free:
        text = (
            f"{scenario.placement.pg_count} PGs of {scenario.n} take {needed / 2**30:.1f} GiB with"
            f" {workers} worker(s), but {free / 2**30:.1f} GiB are free; use fewer PGs, fewer"
            " workers or a machine with more memory"
        )
        raise ScenarioError(scenario.name, [Problem("placement.pg_count", text)])


def save_state(state: State, path: Path, **more: Any) -> None:
    """Write a checkpoint: the columns as numpy's .npz. Going on from it gives the same bits.

    `more` is kept beside the columns.
    """
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **state._asdict(), **more)
    partial.replace(path)


def load_state(path: Path) -> State:
    """Read what `save_state` wrote."""
    with np.load(path, allow_pickle=False) as columns:
        return State(**{name: columns[name] for name in State._fields})


def validate_state(model: Records, state: State, code: str) -> None:
    """Check the invariants of `state` in plain numpy; `code` is the scenario's."""
    pg_count, n = state.pg_devices.shape
    shift = int(model["shift"])
    table = state.degraded[state.degraded["pg"] != NONE]
    assert len(table) == state.counter[DEGRADED_ENTRIES]
    assert len(np.unique(table["pg"])) == len(table)
    assert ((table["missing"] != 0) | (table["unavailable"] != 0)).all()
    assert (table["gone"] & ~table["missing"] == 0).all()
    missing = np.zeros((pg_count, n), np.bool_)
    missing[table["pg"]] = (table["missing"][:, None] >> np.arange(n)) & 1 == 1
    node = state.devices["node"][state.pg_devices]
    away = (state.nodes["up_at_s"] > 0)[node] & ~missing
    assert (state.device_state[state.pg_devices][~missing & ~away] == DeviceState.UP).all()
    unreadable = (missing | away).sum(axis=1)
    touched = np.bincount(
        np.arange(pg_count) & int(model["touched_mask"]), unreadable, len(state.touched)
    )
    assert (touched == state.touched).all()
    assert int(missing.sum()) == state.counter[MISSING_SLOTS]
    assert int(missing.any(axis=1).sum()) == state.counter[DEGRADED_PGS]
    seen = unreadable.sum() if model["is_shared"] else (unreadable > 0).sum()
    assert int(seen) == state.counter[UNREADABLE_PGS]
    if code_shape(code).is_counted:
        unavailable = unreadable > model["limit"]
    else:
        unavailable = remaining_of_rows(code, missing | away, code_shape(code).m) < 0
    flagged = np.zeros(pg_count, np.bool_)
    flagged[table["pg"]] = table["unavailable"] == 1
    assert (unavailable == flagged).all()
    assert int(unavailable.sum()) == state.counter[UNAVAILABLE_PGS]
    _validate_lists(state, shift, missing)
    validate_repairs(model, state, code)


def _validate_lists(state: State, shift: int, missing: np.ndarray) -> None:
    pg_count, n = missing.shape
    listed = np.zeros((pg_count, n), np.int64)
    for device, count in enumerate(state.devices["slot_count"]):
        mine = state.slots[device, :count]
        pg, slot = mine >> shift, mine & ((1 << shift) - 1)
        assert (state.pg_devices[pg, slot] == device).all()
        assert state.devices["dead"][device] == 1 or not missing[pg, slot].any()
        if state.devices["dead"][device] == 0:
            listed[pg, slot] += 1
    assert (listed[~missing] == 1).all() and not listed[missing].any()
    used = state.runs[state.runs["slot"] != NONE]
    assert len(used) <= state.counter[RUN_COUNT]
    assert missing[used["slot"] >> shift, used["slot"] & ((1 << shift) - 1)].all()
    sources = state.sources[state.sources != NONE]
    assert (np.bincount(sources, minlength=len(state.streams)) == state.streams).all()

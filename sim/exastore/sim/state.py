"""The columns of one trial: what the engine reads and writes.

Invariants, checked by `validate_state`:
1. A chunk run (one slot of a PG) is intact on `pg_devices[pg, slot]` and then in exactly one list
   `slots[device, :slot_count[device]]`; or it is missing (`link` not INTACT) and in none.
2. `pgs[pg].missing` counts the missing slots; `pg_unreadable[pg]` counts those and the intact ones
   on devices whose node is away. `pgs[pg].unavailable` says whether the data cannot be decoded from
   the others, of codes for which it matters which ones they are; it is 0 of other codes.
3. A missing slot is in at most one place: the queue of its target, the target's `active`, the
   waiting list (no device to be had), or, before detection, its dead device.
A slot is coded as `pg << shift | index`.
"""

from typing import Any, NamedTuple

import numpy as np

from exastore.erasure.jit import njit
from exastore.metadata.core.balance import slots_per_device
from exastore.metadata.core.redundancy import remaining_of_rows
from exastore.metadata.core.topology import (
    DeviceState,
    Float64Array,
    Int32Array,
    Int64Array,
    Topology,
    Uint8Array,
)
from exastore.sim.codes import code_shape
from exastore.sim.scenario import YEAR_S, Scenario

#: Rows of `State.counter`.
HEAP_SIZE = 0
CHOICES = 1
WAITING_HEAD = 2
WAITING_TAIL = 3
SLOT_COUNT_MAX = 4
MISSING_SLOTS = 5
DEGRADED_PGS = 6
UNREADABLE_PGS = 7
UNAVAILABLE_PGS = 8
LOG_COUNT = 9
LOSS_COUNT = 10
CHUNK_RUNS_LOST = 11
CHUNK_RUNS_REBUILT = 12
EVENTS = 13
STARTED = 14
PLAN_NOW = 15
#: First of the histogram of degraded times, then the PGs by missing slots.
HISTOGRAM = 16

#: Columns of `State.timeline`, one row per bucket; names as in the table of results.
TIMELINE_COLUMNS = (
    "device_failures",
    "node_outages",
    "node_outs",
    "rebuilds",
    "rebuilt_bytes",
    "read_bytes",
    "abandoned_bytes",
    "degraded_pg_s",
    "unreadable_pg_s",
    "unavailable_pg_s",
    "missing_slot_s",
    "max_missing",
    "max_unreadable",
    "pgs_lost",
    "unavailable_episodes",
    "chunk_runs_lost",
)
#: Degraded-time histogram: bin b holds times from 60 * 2**(b/2) s on; bin 0 all shorter ones.
HISTOGRAM_BINS = 44
#: `State.counter[MISSING_PGS + i]`: PGs with i missing slots; entry 0 unused.
MISSING_PGS = 60
#: How many losses are kept one by one; all are counted.
LOSS_LOG = 10_000
#: Marks the end of a linked list, and no slot.
NONE = -1
#: The link of a slot that is not missing.
INTACT = -2
#: `limit` of a code for which it matters which slots are unreadable, not only how many.
OUT_OF_REACH = 256


#: One row of a record array, or the array: fields by name, in kernels too; numpy cannot type it.
Records = Any

#: What does not change during a trial; times in seconds. `life_scale_s` is inf for devices that
#: never fail, `uptime_mean_s` for nodes that never go away; `bucket_s` is one row of the timeline.
#: `limit`: with more unreadable slots a PG is unavailable; out of reach if counting cannot tell.
#: `source_count`: how many chunks a rebuild reads at most.
MODEL = np.dtype(
    [
        ("k", "i8"),
        ("m", "i8"),
        ("limit", "i8"),
        ("source_count", "i8"),
        ("shift", "i8"),
        ("seed", "i8"),
        ("trial", "i8"),
        ("horizon_s", "f8"),
        ("life_scale_s", "f8"),
        ("life_shape", "f8"),
        ("replacement_delay_s", "f8"),
        ("uptime_mean_s", "f8"),
        ("outage_mean_s", "f8"),
        ("detection_delay_s", "f8"),
        ("out_after_s", "f8"),
        ("slot_bytes", "f8"),
        ("write_bytes_per_s", "f8"),
        ("read_bytes_per_s", "f8"),
        ("bucket_s", "f8"),
    ]
)
#: `dead`: 0 alive, 1 failed and unnoticed, 2 failed and known. `streams`: rebuilds that read here.
#: `queue_head`, `queue_tail`: list of slots to rebuild here; `active`: the one in work, which reads
#: `read_parts` of m parts of a chunk run from each of its sources, by a plan of the code.
DEVICE = np.dtype(
    [
        ("active_done_s", "f8"),
        ("node", "i4"),
        ("slot_count", "i4"),
        ("queue_head", "i4"),
        ("queue_tail", "i4"),
        ("active", "i4"),
        ("streams", "i4"),
        ("draw", "i4"),
        ("dead", "u1"),
        ("retrying", "u1"),
        ("read_parts", "u1"),
    ],
    align=True,
)
#: `up_at_s`: when the node returns, 0 while it is up. `let_go`: its outage passed the out-timer
#: with nothing planned. Its devices are `first_device` up to but without `end_device`.
NODE = np.dtype(
    [
        ("up_at_s", "f8"),
        ("first_device", "i4"),
        ("end_device", "i4"),
        ("draw", "i4"),
        ("let_go", "u1"),
    ],
    align=True,
)
#: `since_s`: when the PG lost the first of the slots that it now misses. `lost`: it lost data.
PG = np.dtype(
    [("since_s", "f8"), ("missing", "u1"), ("lost", "u1"), ("unavailable", "u1")], align=True
)
#: An event of the heap or of the log, or the loss of a PG, whose index is then the code.
EVENT = np.dtype([("time_s", "f8"), ("code", "i8")], align=True)


class State(NamedTuple):
    """What changes. See the module's invariants. Few arrays: each costs compile time.

    Attributes:
        clock: Shape (1,). Time of the last event.
        heap: Records of EVENT: a four-way heap ordered by time and code.
        counter: Shape (MISSING_PGS + n + 1,). Rows named above, the histogram of degraded times,
            and from MISSING_PGS on the number of PGs by missing slots.
        devices: Shape (D,). Records of DEVICE.
        nodes: Shape (N,). Records of NODE.
        pgs: Shape (P,). Records of PG.
        pg_unreadable: Shape (P,). Slots that cannot be read now.
        pg_devices: Shape (P, n). The PG table; NONE for a slot that waits for a device.
        device_state: Shape (D,). What the cluster takes each device for, a DeviceState.
        slots: Shape (D, room). Intact slots of each device.
        link: Shape (P << shift,). INTACT, or the next slot in the list of this missing slot.
        sources: Shape (D, source_count). From which devices the rebuild in work reads, then NONE.
        timeline: Shape (buckets, columns).
        missing_s: Shape (n + 1,). PG-seconds with so many slots missing; entry 0 unused.
        losses: Records of EVENT: the first losses.
        log: Records of EVENT: the first events; empty to keep none.
    """

    clock: Float64Array
    heap: Records
    counter: Int64Array
    devices: Records
    nodes: Records
    pgs: Records
    pg_unreadable: Uint8Array
    pg_devices: Int32Array
    device_state: Uint8Array
    slots: Int32Array
    link: Int32Array
    sources: Int32Array
    timeline: Float64Array
    missing_s: Float64Array
    losses: Records
    log: Records


def life_scale_s(scenario: Scenario) -> float:
    """Scale of the law of device life, such that survival to the horizon H is (1 - AFR)**H."""
    afr, shape = scenario.device.afr_per_year, scenario.device.life_shape
    if afr == 0:
        return float("inf")
    horizon = scenario.device.afr_horizon_years if shape != 1.0 else 1.0
    return float(horizon / (-horizon * np.log1p(-afr)) ** (1.0 / shape) * YEAR_S)


def build_model(scenario: Scenario, *, seed: int, trial: int) -> Records:
    """The constants of one trial: a record of MODEL."""
    outages = scenario.node.outages_per_year
    model = np.zeros(1, MODEL)[0]
    code = code_shape(scenario.code)
    model["k"], model["m"] = code.k, code.m
    model["source_count"] = code.k if code.any_k else code.n - 1
    model["limit"] = code.m if code.is_counted else OUT_OF_REACH
    model["shift"] = max(1, (scenario.n - 1).bit_length())
    model["seed"] = seed
    model["trial"] = trial
    model["horizon_s"] = scenario.run.years * YEAR_S
    model["life_scale_s"] = life_scale_s(scenario)
    model["life_shape"] = scenario.device.life_shape
    model["replacement_delay_s"] = scenario.device.replacement_delay_s
    model["uptime_mean_s"] = YEAR_S / outages if outages else np.inf
    model["outage_mean_s"] = scenario.node.outage_mean_s
    model["detection_delay_s"] = scenario.repair.detection_delay_s
    model["out_after_s"] = scenario.repair.out_after_s
    model["slot_bytes"] = scenario.slot_bytes
    model["write_bytes_per_s"] = scenario.repair.write_bandwidth_bytes_per_s
    model["read_bytes_per_s"] = scenario.repair.read_bandwidth_bytes_per_s
    model["bucket_s"] = YEAR_S / 12
    return model


@njit
def _fill_lists(pg_devices: Int32Array, shift: int, slots: Int32Array, count: Int32Array) -> None:
    for pg in range(pg_devices.shape[0]):
        for index in range(pg_devices.shape[1]):
            device = pg_devices[pg, index]
            if device >= 0:
                slots[device, count[device]] = (pg << shift) | index
                count[device] += 1


def device_lists(
    pg_devices: Int32Array, device_count: int, shift: int
) -> tuple[Int32Array, Int32Array]:
    """Slots by device, as (slots, slot_count), with room for a quarter more than the most."""
    most = int(slots_per_device(pg_devices, device_count).max(initial=0))
    room = min(len(pg_devices), most * 5 // 4 + 8)
    slots = np.full((device_count, room), NONE, dtype=np.int32)
    count = np.zeros(device_count, dtype=np.int32)
    _fill_lists(pg_devices, shift, slots, count)
    return slots, count


def build_state(
    model: Records,
    topology: Topology,
    pg_devices: Int32Array,
    slots: Int32Array,
    slot_count: Int32Array,
    *,
    log_events: int = 0,
) -> State:
    """A healthy cluster at time 0; copies what it is given.

    Args:
        model: The constants.
        topology: The failure domains, devices in the order of their nodes.
        pg_devices: Shape (P, n). The placement; every slot must have a device.
        slots: From `device_lists`.
        slot_count: From `device_lists`.
        log_events: How many events to keep in the log.
    """
    assert int(pg_devices.min(initial=0)) >= 0, "placement left a slot without a device"
    assert (np.diff(topology.device_node) >= 0).all(), "devices are not in the order of their nodes"
    pg_count, n = pg_devices.shape
    device_count, node_count = topology.device_count, len(topology.node_rack)
    counter = np.zeros(MISSING_PGS + n + 1, np.int64)
    counter[WAITING_HEAD] = counter[WAITING_TAIL] = NONE
    counter[SLOT_COUNT_MAX] = slot_count.max(initial=0)
    devices = np.zeros(device_count, DEVICE)
    devices["node"] = topology.device_node
    devices["slot_count"] = slot_count
    for name in ("queue_head", "queue_tail", "active"):
        devices[name] = NONE
    nodes = np.zeros(node_count, NODE)
    bounds = np.searchsorted(topology.device_node, np.arange(node_count + 1))
    nodes["first_device"], nodes["end_device"] = bounds[:-1], bounds[1:]
    buckets = int(np.ceil(model["horizon_s"] / model["bucket_s"] - 1e-9))
    return State(
        clock=np.zeros(1),
        heap=np.zeros(6 * device_count + 8 * node_count + 1024, EVENT),
        counter=counter,
        devices=devices,
        nodes=nodes,
        pgs=np.zeros(pg_count, PG),
        pg_unreadable=np.zeros(pg_count, np.uint8),
        pg_devices=pg_devices.copy(),
        device_state=np.full(device_count, DeviceState.UP, np.uint8),
        slots=slots.copy(),
        link=np.full(pg_count << int(model["shift"]), INTACT, np.int32),
        sources=np.full((device_count, int(model["source_count"])), NONE, np.int32),
        timeline=np.zeros((buckets, len(TIMELINE_COLUMNS))),
        missing_s=np.zeros(n + 1),
        losses=np.zeros(LOSS_LOG, EVENT),
        log=np.zeros(log_events, EVENT),
    )


def with_more_room(state: State) -> State:
    """The same state with twice the room for slots per device and for events."""
    room = min(2 * state.slots.shape[1], len(state.pgs))
    slots = np.full((state.slots.shape[0], room), NONE, np.int32)
    slots[:, : state.slots.shape[1]] = state.slots
    heap = np.concatenate([state.heap, np.zeros_like(state.heap)])
    return state._replace(slots=slots, heap=heap)


def validate_state(model: Records, state: State, code: str) -> None:
    """Check the invariants of this module in plain numpy; `code` is the scenario's."""
    pg_count, n = state.pg_devices.shape
    shift = int(model["shift"])
    address = (np.arange(pg_count)[:, None] << shift) | np.arange(n)
    missing = state.link[address] != INTACT
    assert (missing.sum(axis=1) == state.pgs["missing"]).all()
    away = (state.nodes["up_at_s"] > 0)[state.devices["node"][state.pg_devices]] & ~missing
    assert ((missing | away).sum(axis=1) == state.pg_unreadable).all()
    assert int(missing.sum()) == state.counter[MISSING_SLOTS]
    assert int((state.pgs["missing"] > 0).sum()) == state.counter[DEGRADED_PGS]
    assert int((state.pg_unreadable > 0).sum()) == state.counter[UNREADABLE_PGS]
    if not code_shape(code).is_counted:
        unavailable = remaining_of_rows(code, missing | away, code_shape(code).m) < 0
        assert (unavailable == (state.pgs["unavailable"] == 1)).all()
    else:
        unavailable = state.pg_unreadable > model["limit"]
    assert int(unavailable.sum()) == state.counter[UNAVAILABLE_PGS]
    listed = np.zeros(pg_count << shift, np.int64)
    for device, count in enumerate(state.devices["slot_count"]):
        mine = state.slots[device, :count]
        intact = mine[state.link[mine] == INTACT]
        listed[intact] += 1
        pg, slot = intact >> shift, intact & ((1 << shift) - 1)
        assert (state.pg_devices[pg, slot] == device).all()
    assert (listed[address[~missing]] == 1).all()
    assert (state.devices["streams"] >= 0).all()

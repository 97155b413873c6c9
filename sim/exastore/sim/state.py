"""The columns of one trial: what the engine reads and writes.

Bytes, for D devices and P PGs of n slots. At 100 EiB, D = 10 million, P n = 10^9:

    pg_devices       4 P n             4.0 GB   the PG table
    slots            4 D room          6.0 GB   its inverse, with room for half as many again
    devices          48 D              0.5 GB
    streams, state   3 D               0.03 GB  apart from the records: looked at for every source
    far heap         16 per life       0.03 GB  only lives that end before the horizon are in it
    touched          2 * 2^19          1 MB     instead of a counter for each PG
    degraded, runs   some thousands    1 MB     instead of records for each PG and each slot

What an event touches: of an outage, a row of `slots` for each device of the node, in order, and for
each slot one counter of `touched`, which fits the second-level cache whatever P is. Of a rebuild,
one row of `pg_devices`, n states and k counters of devices, one record each of `degraded` and
`runs`, and the top of the near heap. None of this grows with the cluster but the cost of a miss.

Invariants, checked by `validate_state`:
1. A chunk run (one slot of a PG) is intact on `pg_devices[pg, slot]` and then in exactly one list
   `slots[device, :slot_count[device]]`; or its bit in `degraded[pg].missing` is set and it is in
   none, but for the time until the failure of its device is noticed.
2. `touched[pg & touched_mask]` counts the unreadable slots of the PGs that share it: those missing
   and those intact on devices whose node is away. Of up to `TOUCHED_MAX` PGs none share. What is
   unreadable of one PG is always worked out from its row; this only says when to look.
3. A missing slot whose loss was noticed has one record of `runs`: in the queue of its target, in
   work there, or on the waiting list (no device to be had).
4. `degraded` has a record for each PG that misses a slot or is unavailable, and for no other.
A slot is coded as `pg << shift | index`.
"""

from typing import Any, NamedTuple

import numpy as np

from exastore.metadata.core.redundancy_kernels import BoolArray
from exastore.metadata.core.topology import Float64Array, Int32Array, Int64Array, Uint8Array
from exastore.sim.streams import Uint16Array

#: Rows of `State.counter`.
NEAR_SIZE = 0
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
#: First of the histogram of degraded times; the PGs by missing slots follow it.
HISTOGRAM = 16
FAR_SIZE = 60
DEGRADED_ENTRIES = 61
RUN_COUNT = 62
FREE_RUN = 63
CHUNK_RUNS_RETURNED = 64
#: 1 once a run could not go home, so that old copies lie on devices of nodes that are up.
STRAYS = 65
#: Runs for which the last planning found no device; replacements that waited for a spare, and how
#: long in all, in whole seconds.
STUCK_RUNS = 66
SPARE_WAITS = 67
SPARE_WAIT_S = 68

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
    "moved_runs",
    "moved_bytes",
    "latent_errors",
    "stripes_lost",
    "stuck_slot_s",
)
#: Degraded-time histogram: bin b holds times from 60 * 2**(b/2) s on; bin 0 all shorter ones.
HISTOGRAM_BINS = 44
#: `State.counter[MISSING_PGS + i]`: PGs with i missing slots; entry 0 unused.
MISSING_PGS = 70
#: How many losses are kept one by one; all are counted.
LOSS_LOG = 10_000
#: In the code of a loss the PG has so many bits; above are the stripes, 0 for all of the PG.
PG_BITS = 32
#: Marks the end of a linked list, and no slot.
NONE = -1
#: `target` of a run whose rebuild is put off (lazy repair).
PUT_OFF = -2
#: `limit` of a code for which it matters which slots are unreadable, not only how many.
OUT_OF_REACH = 256
#: Up to so many PGs have a counter each in `touched`; more share this many.
TOUCHED_MAX = 2**20
TOUCHED_SHARED = 2**19


#: One row of a record array, or the array: fields by name, in kernels too; numpy cannot type it.
Records = Any

#: What does not change during a trial; times in seconds. `bucket_s` is one row of the timeline.
#: `limit`: with more unreadable slots a PG is unavailable; out of reach if counting cannot tell.
#: `source_count`: how many chunks a rebuild reads at most. `touched_mask`: see the invariants;
#: `is_shared`: whether PGs share counters. `has_links`: whether the network limits anything; its
#: budgets are of one node, one rack's uplink and one zone's. `hit_max`: nodes that one incident
#: takes away at most. `has_latent`: whether reads may meet latent errors; see `latent`.
#: `priority_address`: of a user's order of repair; 0: the cluster's.
#: `is_pipelined`: see `links`. `lazy_redundancy`: m, if no repair is put off; it, `spare_count` (of
#: a zone), `reorder_s` and `fill_limit_bytes` (of a device): see `limits`.
MODEL = np.dtype(
    [
        ("k", "i8"),
        ("m", "i8"),
        ("limit", "i8"),
        ("source_count", "i8"),
        ("shift", "i8"),
        ("touched_mask", "i8"),
        ("is_shared", "i8"),
        ("has_links", "i8"),
        ("is_trace", "i8"),
        ("hit_max", "i8"),
        ("has_latent", "i8"),
        ("priority_address", "i8"),
        ("is_pipelined", "i8"),
        ("lazy_redundancy", "i8"),
        ("spare_count", "i8"),
        ("reorder_s", "f8"),
        ("fill_limit_bytes", "f8"),
        ("seed", "i8"),
        ("trial", "i8"),
        ("horizon_s", "f8"),
        ("replacement_delay_s", "f8"),
        ("detection_delay_s", "f8"),
        ("out_after_s", "f8"),
        ("slot_bytes", "f8"),
        ("write_bytes_per_s", "f8"),
        ("read_bytes_per_s", "f8"),
        ("node_bytes_per_s", "f8"),
        ("rack_bytes_per_s", "f8"),
        ("zone_bytes_per_s", "f8"),
        ("latent_onset_per_s", "f8"),
        ("latent_per_byte_s", "f8"),
        ("read_errors_per_byte", "f8"),
        ("scrub_period_s", "f8"),
        ("bucket_s", "f8"),
    ]
)
#: `dead`: 0 alive, 1 failed and unnoticed, 2 failed and known. `draw`: lives drawn so far.
#: `fails_at_s`: when this life ends; an event at another time is of a life that ended otherwise.
#: `queue_head`, `queue_tail`: list of runs to rebuild here; `active`: the one in work.
#: `latent_from_s`: from when on this life has latent errors.
DEVICE = np.dtype(
    [
        ("active_done_s", "f8"),
        ("fails_at_s", "f8"),
        ("node", "i4"),
        ("slot_count", "i4"),
        ("queue_head", "i4"),
        ("queue_tail", "i4"),
        ("active", "i4"),
        ("latent_from_s", "f4"),
        ("draw", "i2"),
        ("law", "u1"),
        ("dead", "u1"),
        ("retrying", "u1"),
    ],
    align=True,
)
#: `up_at_s`: when the node returns, 0 while it is up; `down_at_s`: since when it is away. `out`:
#: 1 if its outage passed the out-timer with nothing planned, 2 if it was evacuated. `pending_...`:
#: what incidents of this moment do to it. Its devices are `first_device` up to `end_device`.
#: `absent`: it has not joined yet, or it has left; nothing befalls it.
NODE = np.dtype(
    [
        ("up_at_s", "f8"),
        ("down_at_s", "f8"),
        ("pending_up_s", "f8"),
        ("first_device", "i4"),
        ("end_device", "i4"),
        ("rack", "i4"),
        ("zone", "i4"),
        ("out", "u1"),
        ("gives_up", "u1"),
        ("pending_gives_up", "u1"),
        ("pending_dies", "u1"),
        ("absent", "u1"),
    ],
    align=True,
)
#: `since_s`: when the PG lost the first of the slots that it now misses. `missing`: a bit for each
#: slot that is not intact. `gone`: those of them of which no device keeps the data any more; the
#: others are on nodes that were given up. `lost`: it lost data. `put_off`: first of
#: its runs whose rebuilds are put off.
DEGRADED = np.dtype(
    [
        ("since_s", "f8"),
        ("missing", "i8"),
        ("gone", "i8"),
        ("pg", "i4"),
        ("put_off", "i4"),
        ("lost", "u1"),
        ("unavailable", "u1"),
    ],
    align=True,
)
#: A missing run on its way. `slot` is NONE once it is void, for it went home. `home`: the device
#: that was given up with it, whose `home_life`-th life it was, or NONE. `target`: where it is to be
#: rebuilt, or NONE. Of each of its sources it reads `read_parts` of m parts of a chunk run.
RUN = np.dtype(
    [
        ("slot", "i4"),
        ("next", "i4"),
        ("target", "i4"),
        ("home", "i4"),
        ("home_life", "i4"),
        ("read_parts", "i4"),
    ]
)
#: An event of a heap or of the log, or the loss of a PG, whose index is then the code.
EVENT = np.dtype([("time_s", "f8"), ("code", "i8")], align=True)


class State(NamedTuple):
    """What changes. See the module's invariants. Few arrays: each costs compile time.

    Attributes:
        clock: Time of the last event. If spares are counted then, for each zone, how many were
            taken, and when those ordered last come.
        near, far: Records of EVENT: four-way heaps ordered by time and code.
        counter: Shape (MISSING_PGS + n + 1,). Rows named above, the histogram of degraded times,
            and from MISSING_PGS on the number of PGs by missing slots.
        devices: Shape (D,). Records of DEVICE.
        nodes: Shape (N,). Records of NODE.
        degraded: Records of DEGRADED: a hash table, at most half full.
        runs: Records of RUN; free ones are linked from `counter[FREE_RUN]`.
        touched: Unreadable slots by PG, or by PGs that share a counter.
        pg_devices: Shape (P, n). The PG table; NONE for a slot that waits for a device.
        device_state: Shape (D,). What the cluster takes each device for, a DeviceState.
        streams: Shape (D,). Rebuilds that read from the device.
        links: Shape (2 (N + R + Z),). Rebuilds that go out of and into each node, rack and zone.
        slots: Shape (D, room). Intact slots of each device.
        sources: Shape (len(runs), source_count). From which devices a run in work reads, then NONE.
        incident_draw: How often each incident befell each of its domains.
        timeline: Shape (buckets, columns).
        missing_s: Shape (n + 1,). PG-seconds with so many slots missing; entry 0 unused.
        room: Shape (2, n). What kernels write down a pattern of slots in.
        draws: Shape (DRAW_ROWS + 1, DRAWS_MAX). What plans are made in; the last row: runs.
        losses: Records of EVENT: the first losses.
        log: Records of EVENT: the first events; empty to keep none.
    """

    clock: Float64Array
    near: Records
    far: Records
    counter: Int64Array
    devices: Records
    nodes: Records
    degraded: Records
    runs: Records
    touched: Uint16Array
    pg_devices: Int32Array
    device_state: Uint8Array
    streams: Uint16Array
    links: Int32Array
    slots: Int32Array
    sources: Int32Array
    incident_draw: Int32Array
    timeline: Float64Array
    missing_s: Float64Array
    room: BoolArray
    draws: Int32Array
    losses: Records
    log: Records

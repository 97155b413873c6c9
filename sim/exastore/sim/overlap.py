"""The overlap engine: many trials of device failures, in which only overlaps cost time.

The event engine knows what every group and device does; this one knows what is missing at the
moment, and nothing else. A failure that finds the cluster whole is two random numbers and a
comparison. Groups are looked at when failures overlap: the sorted lists of what the failed devices
hold are intersected. It answers one question, whether and when data is lost, for millions of
trials.

The model:

- Devices fail by the laws of the scenario (`superposed`), independently of each other. Each holds
  the chunk runs that placement gave it. What is rebuilt is counted at the place that it was lost
  from, so that the table of placement does not change; a device is in place again once all its runs
  are rebuilt.
- A run that is missing is noticed after the detection delay. From then on it is rebuilt at the
  rate that `share_rates` gives it: the runs of the groups with the least remaining redundancy
  first, each at most at the rate of one target, all together at most at what all devices and links
  give. The clocks "device" and "group" know no such limit: each run takes a fixed time, and with
  "group" every failure in a group starts the rebuilds of the group anew.
- A group whose missing chunks the code cannot decode has lost data, once, and is restored from
  outside at repair speed. The trial goes on.
- With unlimited chunks there is no table: each device is taken to have a stripe with any others,
  one chunk in each domain, so any failure hits the stripes that miss most. A device that fails adds
  to each class of stripes, by how many chunks they miss, the share of its chunks that a random
  stripe has in that class. This is the bound that other simulators compute.

What is missing is a list of entries, some of the runs of one device each: one of all its runs in
groups that miss nothing else, and one for each other group. Entries that are rebuilt stay until all
of their device are.

`_overlap_reference` is the same model in plain Python, run by run, group by group; a test holds the
two equal, failure for failure and loss for loss.
"""

from math import inf
from typing import NamedTuple

import numpy as np

from exastore.erasure.jit import inner_njit
from exastore.metadata.core.redundancy_kernels import BoolArray, CodeColumns, remaining_redundancy
from exastore.metadata.core.topology import Float64Array, Int32Array, Int64Array, Uint8Array
from exastore.sim.state import Records
from exastore.sim.streams import wide

#: Rows of `Missing.counter`, and columns of the totals of a block of trials.
SIZE = 0
FAILURES = 1
OVERLAPS = 2
SHARED_GROUPS = 3
GROUPS_LOST = 4
LOSSES = 5
YEARS_WITH_LOSS = 6
TRIALS_WITH_LOSS = 7
COUNTERS = 8
#: What a block of trials returned.
DONE = 0
NEEDS_ROOM = 1
#: `Entry.slot` of the runs of a device in groups that miss nothing else.
ALONE = -1

#: Constants of a run. A group decodes with any `sure` chunks missing; `runs_per_s`: of one run, at
#: most; `device_runs_per_s`: of all runs, what one device that is in place gives to it, and
#: `link_runs_per_s`: what all links do. `restarts`: whether a failure starts the rebuilds of its
#: groups anew. `unlimited`: whether devices have unlimited chunks; then `domain_devices` are in one
#: of `domain_count` domains, and each holds `runs_per_device` runs.
RULES = np.dtype(
    [
        ("n", "i8"),
        ("sure", "i8"),
        ("shift", "i8"),
        ("device_count", "i8"),
        ("restarts", "i8"),
        ("unlimited", "i8"),
        ("domain_count", "i8"),
        ("domain_devices", "i8"),
        ("runs_per_device", "f8"),
        ("horizon_s", "f8"),
        ("period_s", "f8"),
        ("detection_s", "f8"),
        ("runs_per_s", "f8"),
        ("device_runs_per_s", "f8"),
        ("link_runs_per_s", "f8"),
    ]
)
#: Missing runs of one device. `slot`: `group << shift | index`, or ALONE. `count` runs have each
#: the share `work` left to rebuild, at `rate` runs per second; 0: they are rebuilt. `redundancy`:
#: of their group. `lost`: whether it has lost data.
ENTRY = np.dtype(
    [
        ("count", "f8"),
        ("work", "f8"),
        ("rate", "f8"),
        ("noticed_s", "f8"),
        ("slot", "i4"),
        ("device", "i4"),
        ("redundancy", "i4"),
        ("lost", "i4"),
    ],
    align=True,
)
#: A loss: the group, or -1 of unlimited chunks, and how many of its chunks were missing.
LOSS = np.dtype([("trial", "i8"), ("time_s", "f8"), ("group", "i8"), ("missing", "i8")])


class Layout(NamedTuple):
    """What the devices hold; does not change.

    Attributes:
        slots: Shape (D, room). Runs of each device as `group << shift | index`, ascending.
        slot_count: Shape (D,).
        law: Shape (D,). The law of life of each device.
        code: Decides what is lost.
    """

    slots: Int32Array
    slot_count: Int32Array
    law: Uint8Array
    code: CodeColumns


class Missing(NamedTuple):
    """What is missing at the moment; each worker has its own.

    Attributes:
        now: Shape (1,). Time up to which the entries are worked off.
        counter: Shape (COUNTERS,).
        entries: Records of ENTRY, the first `counter[SIZE]`.
        lost: Shape (n,). Room for a pattern of missing chunks.
        shares: Shape (n + 2, n + 2). Room to count stripes by missing chunks.
    """

    now: Float64Array
    counter: Int64Array
    entries: Records
    lost: BoolArray
    shares: Float64Array


@inner_njit
def share_rates(rules: Records, missing: Missing) -> None:
    """Gives every noticed run its rate, the least remaining redundancy first."""
    entries, size, now = missing.entries, missing.counter[SIZE], missing.now[0]
    down = 0
    for i in range(size):
        entries[i].rate = 0.0
        down += entries[i].slot == ALONE
    left = min(rules.device_runs_per_s * (rules.device_count - down), float(rules.link_runs_per_s))
    above = np.int64(-1_000_000)
    while True:
        redundancy, count = np.int64(1_000_000), 0.0
        for i in range(size):
            entry = entries[i]
            if entry.work > 0.0 and entry.noticed_s <= now and above < entry.redundancy:
                if entry.redundancy < redundancy:
                    redundancy, count = np.int64(entry.redundancy), 0.0
                if entry.redundancy == redundancy:
                    count += entry.count
        if count == 0.0:
            return
        rate = min(rules.runs_per_s, left / count)
        for i in range(size):
            if (
                entries[i].redundancy == redundancy
                and entries[i].work > 0.0
                and entries[i].noticed_s <= now
            ):
                entries[i].rate = rate
        if left < inf:
            left = max(0.0, left - rate * count)
        above = redundancy


@inner_njit
def judge(rules: Records, layout: Layout, missing: Missing, group: int) -> int:
    """Works out the remaining redundancy of a group, for all its entries, and returns it."""
    entries, size, lost = missing.entries, missing.counter[SIZE], missing.lost
    lost[:] = False
    mask = (1 << rules.shift) - 1
    for i in range(size):
        slot = wide(entries[i].slot)
        if slot >= 0 and slot >> rules.shift == group and entries[i].work > 0.0:
            lost[slot & mask] = True
    redundancy = np.int64(remaining_redundancy(layout.code, lost))
    for i in range(size):
        slot = wide(entries[i].slot)
        if slot >= 0 and slot >> rules.shift == group:
            entries[i].redundancy = redundancy
    return int(redundancy)


@inner_njit
def _drop_whole(missing: Missing) -> None:
    """Takes out the entries of devices of which nothing is missing any more."""
    entries, size = missing.entries, missing.counter[SIZE]
    kept = 0
    for i in range(size):
        is_missing = entries[i].work > 0.0
        device = entries[i].device
        for j in range(size):
            if entries[j].device == device and entries[j].work > 0.0:
                is_missing = True
        entries[i].rate = 1.0 if is_missing else 0.0
    for i in range(size):
        if entries[i].rate > 0.0:
            if kept < i:
                entries[kept] = entries[i]
            kept += 1
    missing.counter[SIZE] = kept


@inner_njit
def advance(rules: Records, layout: Layout, missing: Missing, until_s: float) -> None:
    """Works off what is missing up to a time."""
    entries = missing.entries
    while missing.counter[SIZE] > 0 and missing.now[0] < until_s:
        now, next_s = missing.now[0], until_s
        share_rates(rules, missing)
        for i in range(missing.counter[SIZE]):
            if entries[i].rate > 0.0:
                next_s = min(next_s, now + entries[i].work / entries[i].rate)
            elif entries[i].noticed_s > now:
                next_s = min(next_s, entries[i].noticed_s)
        ended = False
        for i in range(missing.counter[SIZE]):
            if entries[i].rate > 0.0:
                if now + entries[i].work / entries[i].rate <= next_s:
                    entries[i].work, ended = 0.0, True
                else:
                    entries[i].work -= entries[i].rate * (next_s - now)
        missing.now[0] = next_s
        if ended:
            for i in range(missing.counter[SIZE]):
                if entries[i].work == 0.0 and entries[i].slot >= 0:
                    judge(rules, layout, missing, wide(entries[i].slot) >> rules.shift)
            _drop_whole(missing)
    missing.now[0] = until_s


@inner_njit
def add_entry(
    rules: Records, missing: Missing, device: int, slot: int, count: float, redundancy: int
) -> None:
    at = missing.counter[SIZE]
    missing.counter[SIZE] = at + 1
    entry = missing.entries[at]
    entry.count, entry.work, entry.rate = count, 1.0, 0.0
    entry.noticed_s = missing.now[0] + rules.detection_s
    entry.slot, entry.device, entry.redundancy, entry.lost = slot, device, redundancy, 0


@inner_njit
def _find(missing: Missing, device: int, slot: int) -> int:
    for i in range(missing.counter[SIZE]):
        if missing.entries[i].device == device and missing.entries[i].slot == slot:
            return i
    return -1


@inner_njit
def _share(
    rules: Records, missing: Missing, device: int, slot: int, alone: int, other: int
) -> None:
    """A group misses one more chunk: `slot` of `device`, and had missed `other` of the device of
    entry `alone`, unless that is rebuilt."""
    entries = missing.entries
    known = _find(missing, entries[alone].device, other)
    if known < 0:
        if entries[alone].work == 0.0:
            return
        known = missing.counter[SIZE]
        add_entry(rules, missing, entries[alone].device, other, 1.0, 0)
        entries[known].work = entries[alone].work
        entries[known].noticed_s = entries[alone].noticed_s
        entries[alone].count -= 1.0
        if entries[alone].count == 0.0:
            entries[alone].work = 0.0
    if entries[known].work == 0.0:
        return
    if _find(missing, device, slot) < 0:
        add_entry(rules, missing, device, slot, 1.0, 0)


@inner_njit
def is_down(missing: Missing, device: int) -> bool:
    """Whether something of the device is missing."""
    for i in range(missing.counter[SIZE]):
        if missing.entries[i].device == device:
            return True
    return False


@inner_njit
def fail_device(rules: Records, layout: Layout, missing: Missing, device: int) -> bool:
    """The runs of a device are missing; False if there is no room for them."""
    held, entries = layout.slots[device], missing.entries
    held_count = wide(layout.slot_count[device])
    before = missing.counter[SIZE]
    if held_count == 0:
        return True
    for alone in range(before):
        if entries[alone].slot != ALONE:
            continue
        other = layout.slots[entries[alone].device]
        other_count = wide(layout.slot_count[entries[alone].device])
        i = j = 0
        while i < held_count and j < other_count:
            ours, theirs = held[i] >> rules.shift, other[j] >> rules.shift
            if ours == theirs:
                if missing.counter[SIZE] + 3 > len(entries):
                    return False
                _share(rules, missing, device, wide(held[i]), alone, wide(other[j]))
            i += ours <= theirs
            j += theirs <= ours
    shared = 0
    for i in range(before, missing.counter[SIZE]):
        shared += entries[i].device == device
    if missing.counter[SIZE] + 1 > len(entries):
        return False
    add_entry(rules, missing, device, ALONE, float(held_count - shared), rules.sure - 1)
    if shared == held_count:
        entries[missing.counter[SIZE] - 1].work = 0.0
    missing.counter[SHARED_GROUPS] += shared
    return True


@inner_njit
def lose_groups(
    rules: Records, layout: Layout, missing: Missing, device: int, trial: int, log: Records
) -> int:
    """Judges the groups that a device shares with others that miss something; how many are lost."""
    entries, size = missing.entries, missing.counter[SIZE]
    found = 0
    for i in range(size):
        slot = wide(entries[i].slot)
        if entries[i].device != device or slot < 0:
            continue
        group = slot >> rules.shift
        redundancy = judge(rules, layout, missing, group)
        was_lost = count = 0
        for j in range(size):
            other = wide(entries[j].slot)
            if other >= 0 and other >> rules.shift == group and entries[j].work > 0.0:
                was_lost |= entries[j].lost
                count += 1
                if rules.restarts == 1:
                    entries[j].work = 1.0
                    entries[j].noticed_s = missing.now[0] + rules.detection_s
        is_lost = redundancy < 0 or was_lost == 1
        for j in range(size):
            other = wide(entries[j].slot)
            if other >= 0 and other >> rules.shift == group:
                entries[j].lost = is_lost
        if redundancy < 0 and was_lost == 0:
            at = missing.counter[GROUPS_LOST]
            if at < len(log):
                log[at].trial, log[at].time_s = trial, missing.now[0]
                log[at].group, log[at].missing = group, count
            missing.counter[GROUPS_LOST] = at + 1
            found += 1
    return found

"""How evenly a PG table loads the devices, and which rows break the domain rule.

Load is slots per device, scaled by weight: `count * mean weight / weight`, so that it equals the
slot count where all weights are equal, and a perfect placement has the same load on every device.
Devices without weight are left out. Hashing alone gives stddev = sqrt(mean * (1 - 1/D)).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.jit import njit
from exastore.metadata.core.placement import PlacementColumns
from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    Float64Array,
    Int32Array,
    Int64Array,
    PlacementRule,
    Topology,
)

#: Whether a row had a domain before is asked of a table of its last bits, which a first-level cache
#: holds: of 14 domains two have them in common in 2 % of the rows.
SEEN_BITS = 12


@dataclass(frozen=True, slots=True)
class BalanceStats:
    """Load over the devices that have weight, in slots of a device of mean weight.

    Attributes:
        device_count: Devices with weight.
        slot_count: Slots that have a device.
        mean: Mean load.
        stddev: Standard deviation of the load (population).
        minimum: Least load.
        maximum: Greatest load: the device that fills first.
    """

    device_count: int
    slot_count: int
    mean: float
    stddev: float
    minimum: float
    maximum: float

    @property
    def relative_stddev(self) -> float:
        """stddev / mean; 0 for an empty table."""
        return self.stddev / self.mean if self.mean else 0.0

    @property
    def fill_limit(self) -> float:
        """mean / maximum: the share of the raw capacity in use when the first device is full."""
        return self.mean / self.maximum if self.maximum else 1.0


def slots_per_device(pg_devices: Int32Array, device_count: int) -> Int64Array:
    """Shape (D,): how many slots name each device."""
    counts = np.zeros(device_count, np.int64)
    _count_slots(np.ascontiguousarray(pg_devices).reshape(-1), counts)
    return counts


@njit
def _count_slots(devices: Int32Array, counts: Int64Array) -> None:
    """As `np.bincount`, which makes copies of three times the table first."""
    for device in devices:
        if device >= 0:
            counts[device] += 1


def balance_of(pg_devices: Int32Array, device_weight: Float64Array) -> BalanceStats:
    """Balance of a PG table of shape (P, n) over devices of these weights."""
    return balance_of_counts(slots_per_device(pg_devices, len(device_weight)), device_weight)


def balance_of_counts(counts: Int64Array, device_weight: Float64Array) -> BalanceStats:
    """As `balance_of`, of what `slots_per_device` counted."""
    weighted = device_weight > 0
    if not weighted.any():
        return BalanceStats(0, int(counts.sum()), 0.0, 0.0, 0.0, 0.0)
    weight = device_weight[weighted]
    load = counts[weighted] * (weight.mean() / weight)
    return BalanceStats(
        device_count=len(weight),
        slot_count=int(counts.sum()),
        mean=float(load.mean()),
        stddev=float(load.std()),
        minimum=float(load.min()),
        maximum=float(load.max()),
    )


def balance(cluster_map: ClusterMap) -> BalanceStats:
    """Balance of a map's PG table; OUT devices count, as they still have weight."""
    return balance_of(cluster_map.pg_devices, cluster_map.topology.device_weight)


@njit
def _row_breaks_limit(row: Int32Array, domains: Int32Array, most: int) -> bool:
    for i in range(len(row)):
        if row[i] < 0:
            continue
        in_domain, is_twice = 1, False
        for j in range(i):
            is_twice |= row[j] == row[i]
            in_domain += domains[j] == domains[i]
        if is_twice or in_domain > most:
            return True
    return False


@njit
def _violations(
    rows: Int32Array, domain_of_device: Int32Array, most: int, out: NDArray[np.bool_]
) -> None:
    """Most rows have no two domains with the same last bits, and then break nothing."""
    domains = np.empty(rows.shape[1], np.int32)
    last_row = np.full(1 << SEEN_BITS, -1, np.int32)
    for p in range(rows.shape[0]):
        row, is_suspect = rows[p], most < 1
        for device in row:
            if device >= 0:
                seen = domain_of_device[device] & ((1 << SEEN_BITS) - 1)
                is_suspect |= last_row[seen] == p
                last_row[seen] = p
        if is_suspect:
            for i in range(len(row)):
                domains[i] = domain_of_device[row[i]] if row[i] >= 0 else NO_DEVICE
            out[p] |= _row_breaks_limit(row, domains, most)


def rule_violations(
    topology: Topology, rule: PlacementRule, pg_devices: Int32Array
) -> NDArray[np.bool_]:
    """Shape (P,): rows that break the rule; empty slots break nothing.

    A row breaks it by naming a device twice, by overfilling a domain of any level, or by a device
    that residency or class do not allow.
    """
    out = np.zeros(len(pg_devices), dtype=np.bool_)
    for level, most in rule.limits:
        _violations(pg_devices, topology.domain_of_device(level), most, out)
    if rule.regions is not None or rule.device_classes is not None:
        # One more at the end, so that NO_DEVICE (-1) is allowed.
        allowed = np.append(rule.allowed(topology), True)
        out |= ~allowed[pg_devices].all(axis=1)
    return out


def row_violations(pg_devices: Int32Array, columns: PlacementColumns) -> NDArray[np.bool_]:
    """As `rule_violations` for columns that are at hand, but for residency and class."""
    out = np.zeros(len(pg_devices), dtype=np.bool_)
    _violations(pg_devices, columns.domain_of_device, columns.max_per_domain, out)
    for domain, most in zip(columns.limit_domain, columns.limit_max.tolist(), strict=True):
        _violations(pg_devices, domain, most, out)
    return out


def unplaced_slots(cluster_map: ClusterMap) -> int:
    """How many slots have no device."""
    return int((cluster_map.pg_devices == NO_DEVICE).sum())


@dataclass(frozen=True, slots=True)
class RecoverySpread:
    """Who reads for whom: how evenly the other devices share the slots of one that fails.

    Attributes:
        sampled_count: Devices looked at.
        peer_count_mean: Devices that share at least one PG with such a device.
        shared_mean: PGs shared with one of these peers.
        busiest_mean: PGs shared with the busiest peer, on average over the devices.
        shared_max: PGs shared with the busiest peer, the largest of all.
    """

    sampled_count: int
    peer_count_mean: float
    shared_mean: float
    busiest_mean: float
    shared_max: int

    @property
    def max_over_mean(self) -> float:
        """Work of the busiest peer of all against that of a mean one; 1 is even."""
        return self.shared_max / self.shared_mean if self.shared_mean else 1.0


def recovery_spread(
    rows: Int32Array, device_count: int, *, sample_count: int = 256
) -> RecoverySpread:
    """Measures the load on peers, for devices spread evenly over the indexes."""
    sample_count = min(sample_count, device_count)
    if not sample_count:
        return RecoverySpread(0, 0.0, 0.0, 0.0, 0)
    sample = (np.arange(sample_count) * device_count) // sample_count
    flat = rows.ravel()
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(device_count + 1))
    found = np.zeros((sample_count, 3), dtype=np.int64)
    _count_peers(rows, order // rows.shape[1], bounds, sample, found)
    peers, shared, busiest = found.T
    return RecoverySpread(
        sampled_count=sample_count,
        peer_count_mean=float(peers.mean()),
        shared_mean=float(shared.sum() / peers.sum()) if peers.any() else 0.0,
        busiest_mean=float(busiest.mean()),
        shared_max=int(busiest.max()),
    )


@njit
def _count_peers(
    rows: Int32Array, pgs: Int64Array, bounds: Int64Array, sample: Int64Array, found: Int64Array
) -> None:
    """found[i] = peers of a device, slots on them, slots on the busiest of them."""
    shared = np.zeros(len(bounds) - 1, dtype=np.int64)
    for i in range(len(sample)):
        for sign in (1, 0):
            for at in range(bounds[sample[i]], bounds[sample[i] + 1]):
                for j in range(rows.shape[1]):
                    peer = rows[pgs[at], j]
                    if peer >= 0 and peer != sample[i]:
                        found[i, 0] += sign and shared[peer] == 0
                        shared[peer] = (shared[peer] + 1) * sign
                        found[i, 1] += sign
                        found[i, 2] = max(found[i, 2], shared[peer])

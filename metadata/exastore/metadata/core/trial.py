"""One trial of placement: which device a draw gives, and whether it may take the slot."""

import numpy as np

from exastore.erasure.jit import inner_njit, njit
from exastore.metadata.core.columns import PlacementColumns
from exastore.metadata.core.straw2 import ROOT_LEVEL, Uint32Array, descend, hash3
from exastore.metadata.core.topology import NO_DEVICE, Float64Array, Int32Array, Uint8Array

#: Rounds of draws before the exact scan, as Ceph's choose_total_tries + 1.
TRIES = 51
#: DeviceState.UP as a plain integer, which kernels may read.
UP = 1


@njit
def in_row(row: Int32Array, device: int) -> bool:
    for i in range(len(row)):
        if row[i] == device:
            return True
    return False


@njit
def _domain_has_room(
    domain_of_device: Int32Array, max_per_domain: int, row: Int32Array, slot: int, domain: int
) -> bool:
    """Whether the slots of `row` other than `slot` leave room in `domain`."""
    used = 0
    for i in range(len(row)):
        device = row[i]
        if i != slot and device >= 0 and domain_of_device[device] == domain:
            used += 1
    return used < max_per_domain


@njit
def keeps_other_limits(
    limit_max: Int32Array, limit_domain: Int32Array, row: Int32Array, slot: int, device: int
) -> bool:
    """Whether the limits at other levels than the rule's let `device` take `slot` of `row`."""
    for i in range(len(limit_max)):
        domain = limit_domain[i, device]
        if not _domain_has_room(limit_domain[i], limit_max[i], row, slot, domain):
            return False
    return True


# The next two take their arrays one by one: to pass all columns costs 50 times what it does.


@njit
def _is_eligible(
    device_weight: Float64Array,
    limit_max: Int32Array,
    limit_domain: Int32Array,
    device_state: Uint8Array,
    row: Int32Array,
    slot: int,
    device: int,
) -> bool:
    """Whether the device may take `slot`, given that its domain of the rule's level has room."""
    if device_state[device] != UP or device_weight[device] <= 0.0 or in_row(row, device):
        return False
    return len(limit_max) == 0 or keeps_other_limits(limit_max, limit_domain, row, slot, device)


@inner_njit
def may_take(
    domain_of_device: Int32Array,
    max_per_domain: int,
    device_weight: Float64Array,
    limit_max: Int32Array,
    limit_domain: Int32Array,
    device_state: Uint8Array,
    row: Int32Array,
    slot: int,
    device: int,
) -> bool:
    """Whether a device that was drawn, or NO_DEVICE, may take `slot` of `row`."""
    if device < 0 or device_state[device] != UP or device_weight[device] <= 0.0:
        return False
    domain, used, is_in_row = domain_of_device[device], 0, False
    for i in range(len(row)):
        other = row[i]
        is_in_row |= other == device
        used += other >= 0 and i != slot and domain_of_device[other] == domain
    if is_in_row or used >= max_per_domain:
        return False
    return len(limit_max) == 0 or keeps_other_limits(limit_max, limit_domain, row, slot, device)


@njit
def keeps_rule(columns: PlacementColumns, row: Int32Array, slot: int, device: int) -> bool:
    """Whether `device` in `slot` keeps the rule with the row's other slots. Callable from kernels.

    Asks nothing about the device's state: a device that is to take back what it holds already may
    be one that takes no new placement.
    """
    for i in range(len(row)):
        if i != slot and row[i] == device:
            return False
    return bool(
        _domain_has_room(
            columns.domain_of_device,
            columns.max_per_domain,
            row,
            slot,
            columns.domain_of_device[device],
        )
        and keeps_other_limits(columns.limit_max, columns.limit_domain, row, slot, device)
    )


@njit
def try_once(
    columns: PlacementColumns,
    device_state: Uint8Array,
    row: Int32Array,
    slot: int,
    x: np.uint32,
    r: np.uint32,
    scratch: Uint32Array,
) -> int:
    """One trial: a domain, then a device in it (CRUSH's chooseleaf). NO_DEVICE if it is no use."""
    level = columns.level
    tree = columns.tree
    root = len(tree.bucket) - 1
    device = descend(tree, root, ROOT_LEVEL - level, x, r, scratch)
    if device < 0:
        return NO_DEVICE
    domain = device - columns.domain_bucket[0] if level > 0 else device
    if not _domain_has_room(columns.domain_of_device, columns.max_per_domain, row, slot, domain):
        return NO_DEVICE
    if level > 0:
        device = descend(tree, device, level, x, np.uint32(slot + r), scratch)
    if device >= 0 and _is_eligible(
        columns.device_weight,
        columns.limit_max,
        columns.limit_domain,
        device_state,
        row,
        slot,
        device,
    ):
        return device
    return NO_DEVICE


@njit
def scan(
    columns: PlacementColumns,
    device_state: Uint8Array,
    row: Int32Array,
    slot: int,
    x: np.uint32,
    r: np.uint32,
) -> int:
    """straw2 over every domain that has room and an eligible device, then over its devices.

    Cost: the number of domains and the devices of one, unless many domains are dead.
    """
    weight, limit_max, limit_domain = (
        columns.device_weight,
        columns.limit_max,
        columns.limit_domain,
    )
    best_domain, best_draw = -1, -np.inf
    for domain in range(len(columns.domain_weight)):
        if not _domain_has_room(
            columns.domain_of_device, columns.max_per_domain, row, slot, domain
        ):
            continue
        is_live = False
        for j in range(
            columns.domain_device_start[domain], columns.domain_device_start[domain + 1]
        ):
            device = columns.domain_device[j]
            if _is_eligible(weight, limit_max, limit_domain, device_state, row, slot, device):
                is_live = True
                break
        if is_live:
            u = hash3(x, columns.domain_id[domain], r) & np.uint32(65535)
            draw = columns.tree.log_draw[u] * (1.0 / columns.domain_weight[domain])
            if draw > best_draw:
                best_domain, best_draw = domain, draw
    if best_domain < 0:
        return NO_DEVICE
    best_device, best_draw = NO_DEVICE, -np.inf
    for j in range(
        columns.domain_device_start[best_domain], columns.domain_device_start[best_domain + 1]
    ):
        device = columns.domain_device[j]
        if _is_eligible(weight, limit_max, limit_domain, device_state, row, slot, device):
            u = hash3(x, np.uint32(device), np.uint32(slot + r)) & np.uint32(65535)
            draw = columns.tree.log_draw[u] * (1.0 / columns.device_weight[device])
            if draw > best_draw:
                best_device, best_draw = device, draw
    return int(best_device)

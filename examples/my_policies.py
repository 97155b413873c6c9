"""Functions of a user's own for the simulator; `own_functions.toml` names them.

exastore sim run examples/own_functions.toml --out out/own
"""

import math

import numpy as np
import pyarrow.compute as pc

from exastore.sim import Decision
from exastore.sim.user import uniform


def lognormal_life(params, stream, age_s):
    """Seconds left to a device of this age: log-normal, by drawing until it outlives its age.

    params: median in seconds, sigma. The numbers of `stream` are this life's own.
    """
    for draw in range(1000):
        radius = math.sqrt(-2.0 * math.log(uniform(stream, 2 * draw)))
        normal = radius * math.cos(2.0 * math.pi * uniform(stream, 2 * draw + 1))
        life = params[0] * math.exp(params[1] * normal)
        if life > age_s:
            return life - age_s
    return 0.0


def oldest_groups_first(remaining_redundancy, pg, slot):
    """Order of repair, the smallest first: by group, unless a group is about to be lost."""
    if remaining_redundancy <= 0:
        return pg
    return 2**40 + pg


def round_robin(columns, device_state, seed, rows):
    """Placement: group p in consecutive racks from p on, on a device that turns with p."""
    racks = len(columns.domain_device_start) - 1
    for pg in range(rows.shape[0]):
        for slot in range(rows.shape[1]):
            rack = (pg + slot) % racks
            first, end = columns.domain_device_start[rack : rack + 2]
            rows[pg, slot] = columns.domain_device[first + (pg // racks + seed) % (end - first)]


def faster_when_behind(devices, facts):
    """Once a day: repair may take more of the devices while many runs are missing."""
    empty = pc.sum(pc.equal(devices["slots"], 0)).as_py()
    is_behind = facts.missing_runs > 50 or empty > 3
    bandwidth = np.where(is_behind, 100e6, 25e6).item()
    return Decision(
        write_bandwidth_bytes_per_s=bandwidth,
        read_bandwidth_bytes_per_s=bandwidth,
        wants_plan=empty > 0,
    )

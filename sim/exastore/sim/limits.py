"""What runs out: spare devices and room on devices; and repair that is put off. Kernels.

Spares. A zone keeps a stock of spares; each one taken is ordered anew and comes `reorder_s` later
(a base-stock policy). So the i-th failure waits for what was ordered at the one `stock` before it:
a ring of dates, and no event.

Room. A device takes no rebuild that would fill it beyond the limit: what it holds and what is
on its way to it count. A run for which so many draws of placement in a row give full devices
waits, as if there were no device, until the cluster changes.

Lazy repair. The rebuilds of a PG that still has more redundancy than the threshold, counted over
what is missing and not over what is away, are put off: linked from its record of `degraded`, until
it misses more. Then all of them begin.
"""

from exastore.erasure.jit import inner_njit
from exastore.metadata.core.redundancy_kernels import CodeColumns, remaining_redundancy
from exastore.sim.degraded import find
from exastore.sim.rebuild import wait
from exastore.sim.state import NONE, PUT_OFF, SPARE_WAIT_S, SPARE_WAITS, Records, State
from exastore.sim.streams import wide


@inner_njit
def spare_at_s(model: Records, state: State, device: int, now: float) -> float:
    """When there is a spare for a failed device, which is taken and ordered anew."""
    if model.reorder_s == 0.0:
        return now
    stock = wide(model.spare_count)
    if stock == 0:
        at_s = now + float(model.reorder_s)
    else:
        first = 1 + wide(state.nodes[state.devices[device].node].zone) * (stock + 1)
        taken = int(state.clock[first])
        at_s = max(now, float(state.clock[first + 1 + taken % stock]))
        state.clock[first] = taken + 1
        state.clock[first + 1 + taken % stock] = now + model.reorder_s
    if at_s > now:
        state.counter[SPARE_WAITS] += 1
        state.counter[SPARE_WAIT_S] += int(at_s - now)
    return at_s


@inner_njit
def _missing_redundancy(code: CodeColumns | None, model: Records, state: State, at: int) -> int:
    lost = state.room[0]
    count = 0
    for index in range(len(lost)):
        lost[index] = (state.degraded[at].missing >> index) & 1 == 1
        count += lost[index]
    if code is None:
        return int(model.m) - count
    return remaining_redundancy(code, lost)


@inner_njit
def wait_or_put_off(code: CodeColumns | None, model: Records, state: State, run: int) -> None:
    """A run is missing from now on: it waits for a device, or until its PG misses more."""
    if model.lazy_redundancy >= model.m:
        wait(state, run)
        return
    slot = wide(state.runs[run].slot)
    pg, index = slot >> model.shift, slot & ((1 << model.shift) - 1)
    at = find(state.degraded, pg)
    if _missing_redundancy(code, model, state, at) > model.lazy_redundancy:
        state.pg_devices[pg, index] = NONE
        state.runs[run].next = state.degraded[at].put_off
        state.runs[run].target = PUT_OFF
        state.degraded[at].put_off = run
        return
    wait(state, run)
    following = wide(state.degraded[at].put_off)
    state.degraded[at].put_off = NONE
    while following != NONE:
        run = following
        following = wide(state.runs[run].next)
        wait(state, run)

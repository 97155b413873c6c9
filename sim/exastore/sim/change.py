"""What changes by the calendar: data grows, racks join and leave, the balancer moves runs.

All of it happens between two events: the engine runs up to the next date, then this module plans
with `exastore.metadata.core` and changes the columns. The loop knows nothing of it, and a scenario
without change has no dates.

Law: moves are planned by the cluster's balancer and never break the rule. A move is a copy, so it
takes no redundancy away; the run changes its place at the end of the period that copied it.
"""

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pyarrow as pa

from exastore.metadata.core.balancer import plan_balance_of_rows
from exastore.metadata.core.placement import PlacementColumns, placement_columns
from exastore.metadata.core.topology import (
    DeviceState,
    Float64Array,
    Int32Array,
    Int64Array,
    SlotState,
    Topology,
    Uint8Array,
    frozen,
)
from exastore.sim.fleet import generation_of_node, generations_of, user_bytes_at, weights_of
from exastore.sim.moves import carry_out, join_node, may_leave
from exastore.sim.physics import Physics
from exastore.sim.scenario import Scenario
from exastore.sim.state import (
    DEGRADED_PGS,
    FAR_SIZE,
    MISSING_SLOTS,
    NONE,
    WAITING_HEAD,
    Records,
    State,
)
from exastore.sim.units import YEAR_S
from exastore.sim.user import (
    DECISION_ARGUMENTS,
    Facts,
    Function,
    Table,
    decide,
    load_function,
    move_rows,
)

#: How a device is named that is neither there nor expected.
ABSENT_DEAD = 2
#: What of the model data that grows and decisions change.
_KEPT_OF_MODEL = ("slot_bytes", "write_bytes_per_s", "read_bytes_per_s")
#: Attributes of `Change` that change.
_KEPT = (
    "serves",
    "_is_here",
    "_planned_s",
    "_plan_count",
    "_period",
    "_months",
    "_wants_plan",
    "_plan",
    "_free_s",
    "_last_period",
    "next_s",
    "_decisions",
)


class Change:
    """The calendar of one trial, and what it does.

    Attributes:
        columns: Placement's columns, with weight for the devices that take data now.
        topology: The same as a topology.
        serves: Shape (G,). Which generations take data.
    """

    def __init__(
        self,
        scenario: Scenario,
        topology: Topology,
        columns: PlacementColumns,
        model: Records,
        physics: Physics,
    ) -> None:
        self._scenario, self._model, self._physics = scenario, model, physics
        self.topology, self.columns = topology, columns
        self._generations = generations_of(scenario)
        self.generation_of_node = generation_of_node(scenario)
        self.serves = np.array([generation.serves(0.0) for generation in self._generations])
        self._is_here = self.serves.copy()
        self._balance = scenario.balance
        self._planned_s, self._plan_count, self._period, self._months = 0.0, 0, 0, 0
        self._wants_plan = False
        self._decisions = 0
        self._decide: Function | None = None
        if scenario.decisions.function:
            spec = scenario.decisions.function
            self._decide = load_function(spec, "decisions.function", DECISION_ARGUMENTS)
        self._plan: Int32Array = np.zeros((0, 4), np.int32)
        self._free_s: Float64Array = np.zeros((2, 0))
        self._last_period: Int32Array = np.zeros(0, np.int32)
        self.next_s = self._next_date(0.0)

    def prepare(self, state: State) -> None:
        """Before the first event: who is absent, and who is of which model."""
        if len(self._generations) == 1:
            return
        of_device = self._of_device(state)
        for number, generation in enumerate(self._generations):
            mine = of_device == number
            if generation.model >= 0:
                state.devices["law"][mine] = generation.model
            if not self.serves[number]:
                state.nodes["absent"][self.generation_of_node == number] = 1
                state.devices["dead"][mine] = ABSENT_DEAD
                state.device_state[mine] = DeviceState.OUT

    def keep(self) -> dict[str, Any]:
        """What has changed so far, for `restore`."""
        kept = {f"change.{name}": np.asarray(getattr(self, name)) for name in _KEPT}
        return kept | {f"change.{name}": np.asarray(self._model[name]) for name in _KEPT_OF_MODEL}

    def restore(self, kept: dict[str, Any]) -> None:
        """Goes on from what `keep` gave."""
        if (kept["change.serves"] != self.serves).any():
            self.serves = kept["change.serves"]
            self._reweigh()
        for name in _KEPT:
            value = kept[f"change.{name}"]
            setattr(self, name, value if value.ndim else value.item())
        for name in _KEPT_OF_MODEL:
            self._model[name] = kept[f"change.{name}"].item()

    @property
    def slot_bytes(self) -> float:
        """Bytes of one chunk run now."""
        return float(self._model["slot_bytes"])

    def _of_device(self, state: State) -> Int32Array:
        nodes: Int32Array = state.devices["node"]
        return self.generation_of_node[nodes]

    def _dates(self) -> list[float]:
        times = [generation.joins_years for generation in self._generations]
        times += [generation.leaves_years for generation in self._generations]
        return [years * YEAR_S for years in times if years > 0]

    def _next_date(self, now: float) -> float:
        """The first date after now; inf if there is none."""
        dates = [date for date in self._dates() if date > now]
        if self._balance.every_s > 0:
            dates.append((self._period + 1) * self._balance.every_s)
        if self._scenario.data.growth_per_year > 0:
            dates.append((self._months + 1) * YEAR_S / 12)
        if self._decide is not None:
            dates.append((self._decisions + 1) * self._scenario.decisions.every_s)
        return min(dates, default=inf)

    def happen(self, state: State) -> State:
        """Does what is due at `next_s`, up to which all events have happened."""
        now = self.next_s
        if self._scenario.data.growth_per_year > 0 and now == (self._months + 1) * YEAR_S / 12:
            self._months += 1
            user_bytes = user_bytes_at(self._scenario, self._months / 12)
            self._model["slot_bytes"] = user_bytes / (
                self._scenario.placement.pg_count * self._scenario.k
            )
        for number, generation in enumerate(self._generations):
            if generation.joins_years > 0 and generation.joins_years * YEAR_S == now:
                state = self._join(state, number, now)
            if generation.leaves_years > 0 and generation.leaves_years * YEAR_S == now:
                self.serves[number] = False
                self._reweigh()
        if self._balance.every_s > 0 and now == (self._period + 1) * self._balance.every_s:
            self._period += 1
            state = self._move(state, now)
            self._remove_empty(state)
        due = self._balance.every_s > 0 and now - self._planned_s >= self._balance.replan_every_s
        if due or self._wants_plan:
            self._make_plan(state, now)
        if self._decide and now == (self._decisions + 1) * self._scenario.decisions.every_s:
            self._decisions += 1
            self._ask(self._decide, state, now)
        self.next_s = self._next_date(now)
        return state

    def _join(self, state: State, number: int, now: float) -> State:
        nodes = np.flatnonzero(self.generation_of_node == number)
        devices = len(nodes) * self._scenario.cluster.devices_per_node
        short = int(state.counter[FAR_SIZE]) + devices + 64 - len(state.far)
        if short > 0:
            state = state._replace(
                far=np.concatenate([state.far, np.zeros(short, state.far.dtype)])
            )
        for node in nodes.tolist():
            join_node(self._physics, self._model, state, node, now)
        self.serves[number] = self._is_here[number] = True
        self._reweigh()
        return state

    def _reweigh(self) -> None:
        """Placement's columns for the generations that serve now."""
        weight = frozen(weights_of(self._scenario, self.serves))
        self.topology = replace(self.topology, device_weight=weight)
        self.columns = placement_columns(self.topology, self._scenario.placement.rule)
        self._wants_plan = self._balance.every_s > 0

    def _ask(self, function: Function, state: State, now: float) -> None:
        """Asks a user's function, and does as it says."""
        devices = device_table(
            self.topology,
            self._of_device(state),
            self._capacity,
            state.device_state,
            state.devices["slot_count"],
            self.slot_bytes,
        )
        run, waiting = int(state.counter[WAITING_HEAD]), 0
        while run != NONE:
            waiting += int(state.runs["slot"][run] != NONE)
            run = int(state.runs["next"][run])
        facts = Facts(
            trial=int(self._model["trial"]),
            time_s=now,
            slot_bytes=self.slot_bytes,
            missing_runs=int(state.counter[MISSING_SLOTS]),
            degraded_pgs=int(state.counter[DEGRADED_PGS]),
            waiting_runs=waiting,
        )
        decision = decide(function, devices, facts, can_move=self._balance.every_s > 0)
        if decision.write_bandwidth_bytes_per_s is not None:
            self._model["write_bytes_per_s"] = decision.write_bandwidth_bytes_per_s
        if decision.read_bandwidth_bytes_per_s is not None:
            self._model["read_bytes_per_s"] = decision.read_bandwidth_bytes_per_s
        if decision.wants_plan:
            self._make_plan(state, now)
        if decision.moves is not None:
            rows = move_rows(decision.moves, state.pg_devices)
            self._plan = np.concatenate([rows[rows[:, 3] < len(state.devices)], self._plan])

    @property
    def _capacity(self) -> Int64Array:
        """Shape (G,): of one device of each generation."""
        return np.array([generation.capacity_bytes for generation in self._generations], np.int64)

    def _make_plan(self, state: State, now: float) -> None:
        """Asks the cluster's balancer."""
        self._wants_plan, self._planned_s = False, now
        self._plan_count += 1
        seed = (int(self._model["seed"]) ^ int(self._model["trial"])) + self._plan_count
        plan = plan_balance_of_rows(
            self.columns,
            state.pg_devices,
            device_state=state.device_state,
            slot_state=slot_states(state),
            seed=seed & 0xFFFFFFFF,
        )
        columns = (plan.pg, plan.slot, plan.source_device, plan.target_device)
        self._plan = np.stack(columns, axis=1).astype(np.int32)

    def _move(self, state: State, now: float) -> State:
        """Carries out what one period can of the plan."""
        if not len(self._plan):
            return state
        if not len(self._last_period):
            self._last_period = np.zeros(len(state.pg_devices), np.int32)
            self._free_s = np.zeros((2, len(state.devices)))
        slot_bytes = float(self._model["slot_bytes"])
        cost_s = slot_bytes / self._balance.bandwidth_bytes_per_s
        held = state.devices["slot_count"].astype(np.int64)
        most_held = int((held + np.bincount(self._plan[:, 3], minlength=len(held))).max())
        if most_held >= state.slots.shape[1]:
            slots = np.empty((len(held), most_held + 8), np.int32)
            slots[:, : state.slots.shape[1]] = state.slots
            state = state._replace(slots=slots)
        room = (self._capacity // slot_bytes).astype(np.int64)[self._of_device(state)]
        left = carry_out(
            self.columns,
            self._model,
            state,
            self._plan,
            self._free_s,
            room,
            self._last_period,
            self._period,
            max(self._planned_s, now - max(self._balance.every_s, cost_s)),
            now,
            cost_s,
            max(1, int(self._balance.max_misplaced_share * state.pg_devices.size)),
        )
        self._plan = self._plan[:left].copy()
        return state

    def _remove_empty(self, state: State) -> None:
        """Nodes of leaving generations that nothing needs any more go."""
        for number in np.flatnonzero(self._is_here & ~self.serves).tolist():
            nodes = np.flatnonzero(self.generation_of_node == number)
            left = nodes[state.nodes["absent"][nodes] == 0]
            per_node = self._scenario.cluster.devices_per_node
            held = state.devices["slot_count"].reshape(-1, per_node).sum(axis=1)
            for node in left[held[left] == 0].tolist():
                if may_leave(state, node):
                    state.nodes["absent"][node] = 1
                    devices = slice(node * per_node, (node + 1) * per_node)
                    state.devices["dead"][devices] = ABSENT_DEAD
                    state.device_state[devices] = DeviceState.OUT
            if state.nodes["absent"][nodes].all():
                self._is_here[number] = False


def device_table(
    topology: Topology,
    generation: Int32Array,
    capacity_bytes: Int64Array,
    device_state: Uint8Array,
    slots: Int32Array,
    slot_bytes: float,
) -> Table:
    """What a decision sees of the devices: one row of each; `generation` and others: shape (D,)."""
    node = topology.device_node
    rack = topology.node_rack[node]
    zone = topology.rack_zone[rack]
    capacity = capacity_bytes[generation]
    return pa.table(
        {
            "device": np.arange(len(node), dtype=np.int32),
            "node": node,
            "rack": rack,
            "zone": zone,
            "region": topology.zone_region[zone],
            "generation": generation,
            "capacity_bytes": capacity,
            "weight": topology.device_weight,
            "state": np.array(device_state, np.uint8),
            "slots": np.array(slots, np.int32),
            "fill": slots * slot_bytes / capacity,
        }
    )


def slot_states(state: State) -> Uint8Array | None:
    """Shape (P, n): REBUILDING where a run is missing; None if all are CLEAN."""
    if state.counter[MISSING_SLOTS] == 0:
        return None
    found: Uint8Array = np.full(state.pg_devices.shape, SlotState.CLEAN, np.uint8)
    table = state.degraded[state.degraded["pg"] != NONE]
    missing = (table["missing"][:, None] >> np.arange(found.shape[1])) & 1 == 1
    found[table["pg"]] = np.where(missing, np.uint8(SlotState.REBUILDING), found[table["pg"]])
    return found

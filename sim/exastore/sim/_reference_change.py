"""What changes by the calendar, for the plain twin: written anew, but for the cluster's planner."""

from dataclasses import replace
from math import floor, inf
from typing import TYPE_CHECKING

import numpy as np

from exastore.metadata.core.balancer import plan_balance_of_rows
from exastore.metadata.core.placement import keeps_rule, placement_columns
from exastore.metadata.core.topology import DeviceState, SlotState, Topology
from exastore.sim._reference_draws import YEAR_S
from exastore.sim.change import device_table
from exastore.sim.user import DECISION_ARGUMENTS, Facts, decide, load_function

if TYPE_CHECKING:
    from exastore.sim._reference import ReferenceTrial


class ReferenceChange:
    """The calendar of a `ReferenceTrial`."""

    def __init__(self, trial: "ReferenceTrial", topology: Topology) -> None:
        self.trial, self.topology = trial, topology
        scenario = trial.scenario
        first = scenario.cluster
        #: By generation: racks in each zone, capacity, when it joins and leaves, its model.
        self.makes = [
            (first.racks_per_zone, scenario.device.capacity_bytes, 0.0, first.leaves_years, -1)
        ] + [
            (
                its.racks_per_zone,
                its.capacity_bytes or scenario.device.capacity_bytes,
                its.joins_years,
                its.leaves_years,
                its.model,
            )
            for its in scenario.generation
        ]
        zone = [number for number, make in enumerate(self.makes) for _ in range(make[0])]
        racks = zone * scenario.cluster.zone_count
        self.make_of_node = [racks[rack] for rack in trial.rack_of]
        self.serving = {number for number, make in enumerate(self.makes) if make[2] == 0.0}
        self.plan: list[tuple[int, int, int, int]] = []
        self.sends: dict[int, float] = {}
        self.takes: dict[int, float] = {}
        self.planned = 0.0
        self.plans, self.periods, self.months, self.decisions = 0, 0, 0, 0
        self.wants_plan = False

    def make_of(self, device: int) -> int:
        return self.make_of_node[self.trial.node_of[device]]

    @property
    def next_s(self) -> float:
        now = self.trial.now
        dates = [years * YEAR_S for make in self.makes for years in make[2:4]]
        dates = [date for date in dates if date > now]
        if self.trial.scenario.balance.every_s > 0:
            dates.append((self.periods + 1) * self.trial.scenario.balance.every_s)
        if self.trial.scenario.data.growth_per_year > 0:
            dates.append((self.months + 1) * YEAR_S / 12)
        if self.trial.scenario.decisions.function:
            dates.append((self.decisions + 1) * self.trial.scenario.decisions.every_s)
        return min(dates, default=inf)

    def happen(self, now: float) -> None:
        trial, scenario = self.trial, self.trial.scenario
        balance = scenario.balance
        if scenario.data.growth_per_year > 0 and now == (self.months + 1) * YEAR_S / 12:
            self.months += 1
            grown = (1 + scenario.data.growth_per_year) ** (self.months / 12)
            parts = scenario.placement.pg_count * scenario.k
            trial.model["slot_bytes"] = scenario.data.user_bytes * grown / parts
        for number, make in enumerate(self.makes):
            if make[2] > 0 and make[2] * YEAR_S == now:
                for node in [n for n, its in enumerate(self.make_of_node) if its == number]:
                    trial.absent.discard(node)
                    for device in trial.devices_of(node):
                        trial.appear(device)
                self.serving.add(number)
                self.reweigh()
            if make[3] > 0 and make[3] * YEAR_S == now:
                self.serving.discard(number)
                self.reweigh()
        if balance.every_s > 0 and now == (self.periods + 1) * balance.every_s:
            self.periods += 1
            self.move(now)
            for node, make_number in enumerate(self.make_of_node):
                has_left = 0.0 < self.makes[make_number][3] * YEAR_S <= now
                if has_left and node not in trial.absent and self.is_idle(node):
                    trial.absent.add(node)
                    for device in trial.devices_of(node):
                        trial.dead[device] = "known"
                        trial.state[device] = DeviceState.OUT
        is_due = balance.every_s > 0 and now - self.planned >= balance.replan_every_s
        if is_due or (self.wants_plan and balance.every_s > 0):
            self.make_plan(now)

        every = scenario.decisions.every_s
        if scenario.decisions.function and now == (self.decisions + 1) * every:
            self.decisions += 1
            self.ask(now)

    def ask(self, now: float) -> None:
        """A user's function decides."""
        trial, scenario = self.trial, self.trial.scenario
        model = trial.model
        weight = [
            self.makes[self.make_of(device)][1] / 2**40 * (self.make_of(device) in self.serving)
            for device in range(len(trial.node_of))
        ]
        devices = device_table(
            replace(self.topology, device_weight=np.array(weight)),
            np.array([self.make_of(device) for device in range(len(trial.node_of))], np.int32),
            np.array([make[1] for make in self.makes]),
            trial.state,
            np.array([len(held) for held in trial.held], np.int32),
            model["slot_bytes"],
        )
        facts = Facts(
            trial=model["trial"],
            time_s=now,
            slot_bytes=model["slot_bytes"],
            missing_runs=len(trial.missing),
            degraded_pgs=len({pg for pg, _ in trial.missing}),
            waiting_runs=len(trial.waiting),
        )
        spec = scenario.decisions.function
        function = load_function(spec, "decisions.function", DECISION_ARGUMENTS)
        decision = decide(function, devices, facts, can_move=scenario.balance.every_s > 0)
        model["write_bytes_per_s"] = (
            decision.write_bandwidth_bytes_per_s or model["write_bytes_per_s"]
        )
        model["read_bytes_per_s"] = decision.read_bandwidth_bytes_per_s or model["read_bytes_per_s"]
        if decision.wants_plan:
            self.make_plan(now)
        if decision.moves is not None:
            rows = decision.moves.to_pylist()
            self.plan = [
                (
                    row["pg"],
                    row["slot"],
                    int(trial.rows[row["pg"], row["slot"]]),
                    row["target_device"],
                )
                for row in rows
            ] + self.plan

    def reweigh(self) -> None:
        weight = [
            self.makes[self.make_of(device)][1] / 2**40
            if self.make_of(device) in self.serving
            else 0.0
            for device in range(len(self.trial.node_of))
        ]
        topology = replace(self.topology, device_weight=np.array(weight))
        self.trial.columns = placement_columns(topology, self.trial.scenario.placement.rule)
        self.wants_plan = True

    def make_plan(self, now: float) -> None:
        trial = self.trial
        self.wants_plan, self.planned = False, now
        self.plans += 1
        clean = np.full(trial.rows.shape, SlotState.CLEAN, np.uint8)
        for pg, index in trial.missing:
            clean[pg, index] = SlotState.REBUILDING
        seed = (trial.model["seed"] ^ trial.model["trial"]) + self.plans
        self.plan = list(
            plan_balance_of_rows(
                trial.columns,
                trial.rows,
                device_state=trial.state,
                slot_state=clean,
                seed=seed & 0xFFFFFFFF,
            )
        )

    def move(self, now: float) -> None:
        """One period's moves, each device one out and one in at a time."""
        trial, balance = self.trial, self.trial.scenario.balance
        slot_bytes = trial.model["slot_bytes"]
        cost = slot_bytes / balance.bandwidth_bytes_per_s
        earliest = max(self.planned, now - max(balance.every_s, cost))
        most = max(1, int(balance.max_misplaced_share * trial.rows.size))
        moved: set[int] = set()
        waiting: list[tuple[int, int, int, int]] = []
        for pg, index, source, target in self.plan:
            if trial.rows[pg, index] != source or self.make_of(target) not in self.serving:
                continue
            end = max(self.sends.get(source, 0.0), self.takes.get(target, 0.0), earliest) + cost
            room = floor(self.makes[self.make_of(target)][1] / slot_bytes)
            if (
                len(moved) < most
                and end <= now
                and pg not in moved
                and len(trial.held[target]) < room
                and trial.serves(target)
                and all(trial.serves(device) for device in trial.rows[pg].tolist())
                and not any((pg, i) in trial.missing for i in range(trial.rows.shape[1]))
                and keeps_rule(trial.columns, trial.rows[pg], index, target)
            ):
                trial.held[source].remove((pg, index))
                trial.held[target].append((pg, index))
                trial.rows[pg, index] = target
                self.sends[source] = self.takes[target] = end
                moved.add(pg)
                trial.totals["moved_runs"] += 1
                trial.totals["moved_bytes"] += slot_bytes
            else:
                waiting.append((pg, index, source, target))
        self.plan = waiting

    def is_idle(self, node: int) -> bool:
        """Whether nothing needs the node."""
        trial = self.trial
        if node in trial.away:
            return False
        wanted = {home for home, life in trial.homes.values() if trial.lives[home] == life}
        return all(
            trial.dead[device] == "alive"
            and not trial.held[device]
            and not trial.queue[device]
            and device not in trial.work
            and device not in wanted
            for device in trial.devices_of(node)
        )

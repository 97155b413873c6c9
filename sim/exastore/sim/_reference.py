"""The engine again, slow and plain: lists, dicts, sets and `heapq`. Kept for ever, for tests.

It shares with the engine what the cluster shares too, `choose_replacement`, `repair_priority` and,
uncompiled, what the core and the codec say of losses and repairs, and nothing else: random numbers,
queue, rules and sums are written anew. `exastore.sim.engine` describes the model.
"""

import heapq
from collections import Counter, defaultdict
from math import inf
from typing import Any

import numpy as np

from exastore.erasure import TooFewChunks, codec
from exastore.metadata.core.placement import PlacementColumns, choose_replacement
from exastore.metadata.core.redundancy import redundancy_of, repair_plan_for
from exastore.metadata.core.repair import repair_priority, returns_home
from exastore.metadata.core.topology import DeviceState, Int32Array, Topology
from exastore.sim._reference_change import ReferenceChange
from exastore.sim._reference_draws import AGE, DEATH, GAP, LAW, REPLACEMENT, YEAR_S, Draws
from exastore.sim._reference_latent import meet_errors, onset_s
from exastore.sim._reference_limits import begin_repair, is_full, links_of, spare_at_s
from exastore.sim.scenario import Scenario
from exastore.sim.state import Records
from exastore.sim.trace import trace_events
from exastore.sim.user import PRIORITY_ARGUMENTS, load_function

_KINDS = (
    "node_up",
    "replaced",
    "rebuilt",
    "retry",
    "detected",
    "node_out",
    "failed",
    "incident",
    "node_down",
)
#: A chunk run: (PG, index).
Slot = tuple[int, int]


class ReferenceTrial:
    """One trial; `events` and `totals` are for comparison."""

    def __init__(
        self,
        scenario: Scenario,
        model: Records,
        columns: PlacementColumns,
        topology: Topology,
        table: Int32Array,
    ) -> None:
        self.scenario = scenario
        self.code = codec(scenario.code)
        self.model: dict[str, Any] = {name: model[name].item() for name in model.dtype.names}
        self.columns = columns
        self.node_of = [int(node) for node in topology.device_node]
        self.rack_of = [int(rack) for rack in topology.node_rack]
        self.zone_of = [int(topology.rack_zone[rack]) for rack in self.rack_of]
        self.rows = table.copy()
        device_count, self.node_count = topology.device_count, len(topology.node_rack)
        self.draws = Draws(scenario, self.model["seed"], self.model["trial"])
        self.state = np.full(device_count, DeviceState.UP, np.uint8)
        self.dead = ["alive"] * device_count
        self.lives = [0] * device_count
        self.fails_at = [inf] * device_count
        self.latent_from = [inf] * device_count
        self.held: list[list[Slot]] = [[] for _ in range(device_count)]
        for pg, row in enumerate(table.tolist()):
            for index, device in enumerate(row):
                self.held[device].append((pg, index))
        self.queue: list[list[Slot]] = [[] for _ in range(device_count)]
        #: By target: the slot, when it is done, the sources, the share of a chunk that each reads.
        self.work: dict[int, tuple[Slot, float, list[int], float]] = {}
        self.retrying: set[int] = set()
        self.streams = Counter[int]()
        self.links = Counter[tuple[str, int]]()
        #: By node: when it returns, and since when it is away.
        self.away: dict[int, tuple[float, float]] = {}
        self.gives_up: set[int] = set()
        self.out: dict[int, str] = {}
        #: By node: until when, whether it is given up, whether it dies.
        self.pending: dict[int, tuple[float, bool, bool]] = {}
        self.waiting: list[Slot] = []
        #: By PG: its missing runs whose repair is put off, the last one first.
        self.put_off: defaultdict[int, list[Slot]] = defaultdict(list)
        #: By zone: when spares were ordered.
        self.orders: defaultdict[int, list[float]] = defaultdict(list)
        self.missing: set[Slot] = set()
        self.gone: set[Slot] = set()
        #: By slot: the device that was given up with it, and which life of it that was.
        self.homes: dict[Slot, tuple[int, int]] = {}
        self.lost_pgs: set[int] = set()
        self.befallen = Counter[int]()
        self.choices = 0
        self.plan_now = False
        self.heap: list[tuple[float, int, int]] = []
        self.events: list[tuple[float, int, int]] = []
        self.losses: list[tuple[float, int]] = []
        self.totals: defaultdict[str, float] = defaultdict(float)
        self.now = 0.0
        #: Nodes that have not joined yet, or have left.
        self.absent: set[int] = set()
        self.change = ReferenceChange(self, topology)
        self._begin(device_count)

    def _begin(self, device_count: int) -> None:
        models = self.scenario.models
        total = sum(model.share for model in models)
        self.law_of: list[int] = []
        for device in range(device_count):
            make = self.change.make_of(device)
            share = self.draws.uniform(LAW, self.node_of[device], 0)
            until, law = 0.0, 0
            for i, model in enumerate(models):
                until += model.share / total
                law = i
                if until >= share:
                    break
            if self.change.makes[make][4] >= 0:
                law = self.change.makes[make][4]
            self.law_of.append(law)
            if make not in self.change.serving:
                self.absent.add(self.node_of[device])
                self.dead[device], self.state[device] = "known", DeviceState.OUT
                continue
            model = models[law]
            low, high = model.age_min_years * YEAR_S, model.age_max_years * YEAR_S
            age = low + self.draws.uniform(AGE, device, 0) * (high - low) if high else 0.0
            self._schedule_failure(device, age)
        if self.scenario.device.trace:
            for time, device in trace_events(self.scenario):
                if time <= self.model["horizon_s"]:
                    self._push("failed", device, time)
        for number, incident in enumerate(self.scenario.incidents):
            for domain in range(self.scenario.incident_domains(incident)):
                self._schedule_incident(number, domain, 0.0)

    def run(self) -> None:
        """Run to the horizon, from one date of the calendar to the next."""
        until = 0.0
        while until < self.model["horizon_s"]:
            date = self.change.next_s
            until = min(date, self.model["horizon_s"])
            while self.heap and self.heap[0][0] <= until:
                time, kind, entity = heapq.heappop(self.heap)
                self._pass_time(time)
                self.events.append((time, kind, entity))
                getattr(self, f"_{_KINDS[kind]}")(entity)
                if self.plan_now and self.waiting:
                    self._plan()
            self._pass_time(until)
            if until == date:
                self.change.happen(until)

    def appear(self, device: int) -> None:
        """A new device joins."""
        self.dead[device], self.state[device] = "alive", DeviceState.UP
        self._schedule_failure(device, 0.0)
        self.plan_now = True

    def serves(self, device: int) -> bool:
        """Whether a device is there and up."""
        return (
            device >= 0
            and self.dead[device] == "alive"
            and bool(self.state[device] == DeviceState.UP)
        )

    def _pass_time(self, time: float) -> None:
        span = time - self.now
        self.totals["stuck_slot_s"] += len(self.waiting) * span
        self.totals["missing_slot_s"] += len(self.missing) * span
        self.totals["degraded_pg_s"] += len({pg for pg, _ in self.missing}) * span
        self.now = time

    def _push(self, kind: str, entity: int, time: float) -> None:
        heapq.heappush(self.heap, (time, _KINDS.index(kind), entity))

    def _schedule_failure(self, device: int, age: float) -> None:
        self.lives[device] += 1
        time = self.now + self.draws.life_s(
            device, self.law_of[device], self.lives[device] - 1, age
        )
        self.fails_at[device] = time
        self.latent_from[device] = onset_s(self, device, age)
        if time <= self.model["horizon_s"]:
            self._push("failed", device, time)

    def _schedule_incident(self, number: int, domain: int, after: float) -> None:
        incident = self.scenario.incidents[number]
        entity = number << 28 | domain
        draw = self.befallen[entity]
        self.befallen[entity] += 1
        if incident.every_years > 0:
            count = self.scenario.incident_domains(incident)
            time = incident.every_years * YEAR_S * (draw + domain / count)
        elif incident.per_year == 0:
            return
        else:
            time = after + YEAR_S / incident.per_year * self.draws.exponential(GAP, entity, draw)
        if time <= self.model["horizon_s"]:
            self._push("incident", entity, time)

    def _incident(self, entity: int) -> None:
        number, domain = entity >> 28, entity & ((1 << 28) - 1)
        incident = self.scenario.incidents[number]
        draw = self.befallen[entity] - 1
        up = self.now + self.draws.duration_s(number, entity, draw)
        for node in self.draws.hit_nodes(number, domain, draw):
            if node in self.absent:
                continue
            address = number << 28 | node
            dies = self.draws.uniform(DEATH, address, draw) < incident.death_share
            if node not in self.pending:
                self._push("node_down", node, self.now)
            until, gives_up, died = self.pending.get(node, (0.0, False, False))
            self.pending[node] = (max(until, up), gives_up or incident.gives_up, died or dies)
        self._schedule_incident(number, domain, up)

    def devices_of(self, node: int) -> list[int]:
        return [device for device, its in enumerate(self.node_of) if its == node]

    def _readable(self, pg: int) -> list[tuple[int, int]]:
        """(index, device) of the PG's readable runs."""
        return [
            (index, device)
            for index, device in enumerate(self.rows[pg].tolist())
            if (pg, index) not in self.missing and self.node_of[device] not in self.away
        ]

    def _unreadable(self, pg: int) -> set[int]:
        """The slots of the PG that cannot be read."""
        return set(range(self.code.n)) - {index for index, _ in self._readable(pg)}

    def _lose(self, slot: Slot) -> None:
        self.missing.add(slot)
        self.totals["chunk_runs_lost"] += 1

    def _destroy(self, slot: Slot) -> None:
        self.gone.add(slot)
        pg = slot[0]
        gone = [index for index in range(self.code.n) if (pg, index) in self.gone]
        if not self.code.decodable(gone) and pg not in self.lost_pgs:
            self.lost_pgs.add(pg)
            self.losses.append((self.now, pg))

    def _stop_work(self, device: int) -> None:
        if device in self.work:
            slot = self._release(device)
            self.queue[device].append(slot)

    def _release(self, device: int) -> Slot:
        """Ends the reads of a rebuild; its slot."""
        slot, _, sources, _ = self.work.pop(device)
        self.streams.subtract(sources)
        self.links.subtract(self._links(device, sources))
        return slot

    def _links(self, target: int, sources: list[int]) -> list[tuple[str, int]]:
        """The links that a rebuild counts in, those into the target once."""
        used = links_of(self, target, sources)
        if self.model["is_pipelined"]:
            return used
        into = {link for link in used if link[0].endswith("in")}
        return [link for link in used if link not in into] + sorted(into)

    def _evacuate(self, device: int) -> None:
        for slot in self.held[device]:
            if slot not in self.missing:
                self._lose(slot)
                self.homes[slot] = (device, self.lives[device])
        for slot in self.held[device]:
            begin_repair(self, slot)
        self._stop_work(device)
        self.waiting += self.queue[device]
        self.held[device], self.queue[device] = [], []
        self.plan_now = True

    def _plan(self) -> None:
        todo, self.waiting, self.plan_now = self.waiting, [], False
        for pg, index in todo:
            row = self.rows[pg]
            row[index] = -1
            address = (pg << self.model["shift"]) | index
            first = self.draws.bits(REPLACEMENT, address, self.choices) >> 32
            self.choices += 1
            target = int(choose_replacement(self.columns, self.state, row, index, pg, first))
            for again in range(1, 17):
                if target < 0 or not is_full(self, target):
                    break
                seed = self.draws.bits(REPLACEMENT, address, again << 32 | first) >> 32
                target = int(choose_replacement(self.columns, self.state, row, index, pg, seed))
            else:
                target = -1
            if target < 0:
                self.waiting.append((pg, index))
                continue
            row[index] = target
            self.queue[target].append((pg, index))
            self._start(target)

    def _start(self, device: int) -> None:
        busy = device in self.work or device in self.retrying
        unfit = self.dead[device] != "alive" or self.state[device] != DeviceState.UP
        if busy or unfit or not self.queue[device]:
            return
        redundancy = redundancy_of(self.code.name)
        own = self.scenario.repair.priority
        first: Any = repair_priority
        if own:
            first = load_function(own, "repair.priority", PRIORITY_ARGUMENTS)
        slot = min(
            self.queue[device],
            key=lambda slot: (first(redundancy.of(self._unreadable(slot[0])), *slot), slot),
        )
        self.queue[device].remove(slot)
        rate = self.model["write_bytes_per_s"]
        sources: list[int] = []
        share = 1.0
        if slot[0] not in self.lost_pgs:
            try:
                plan = repair_plan_for(self.code, [slot[1]], self._unreadable(slot[0]))
            except TooFewChunks:
                self.queue[device].append(slot)
                self.retrying.add(device)
                self._push("retry", device, self.now + 60.0)
                return
            sources = [int(self.rows[slot[0], index]) for index in plan.reads]
            share = next(iter(plan.reads.values()))
            budgets = [
                self.model["read_bytes_per_s"] / (self.streams[source] + 1) / share
                for source in sources
            ]
            rate = min(rate, *budgets)
            self.streams.update(sources)
            self.links.update(self._links(device, sources))
            crossing = Counter(links_of(self, device, sources))
            for link, times in crossing.items() if self.model["has_links"] else ():
                budget = self.model[f"{link[0].split()[0]}_bytes_per_s"]
                is_sum = self.model["is_pipelined"] or not link[0].endswith("in")
                rate = min(
                    rate,
                    budget / share / (self.links[link] if is_sum else self.links[link] * times),
                )
        done = self.now + self.model["slot_bytes"] / rate
        self.work[device] = (slot, done, sources, share)
        self._push("rebuilt", device, done)

    def _failed(self, device: int) -> None:
        played = bool(self.scenario.device.trace)
        if self.dead[device] == "alive" and (played or self.fails_at[device] == self.now):
            self._kill(device)

    def _kill(self, device: int) -> None:
        self.totals["device_failures"] += 1
        self.dead[device] = "unnoticed"
        for slot in self.held[device]:
            self._lose(slot)
        for slot in self.held[device]:
            self._destroy(slot)
        for slot, home in sorted(self.homes.items()):
            if home == (device, self.lives[device]):
                self._destroy(slot)
        self._stop_work(device)
        self._push("detected", device, self.now + self.model["detection_delay_s"])

    def _detected(self, device: int) -> None:
        self._evacuate(device)
        self.dead[device] = "known"
        self.state[device] = DeviceState.OUT
        at = spare_at_s(self, device)
        self._push("replaced", device, at + self.model["replacement_delay_s"])

    def _replaced(self, device: int) -> None:
        self.dead[device] = "alive"
        self._schedule_failure(device, 0.0)
        if self.node_of[device] in self.away:
            self.state[device] = DeviceState.DOWN
            return
        self.state[device] = DeviceState.UP
        self.plan_now = True

    def _node_down(self, node: int) -> None:
        self.totals["node_outages"] += 1
        up, gives_up, dies = self.pending.pop(node)
        before = self.away[node][0] if node in self.away else 0.0
        if node not in self.away:
            self.away[node] = (up, self.now)
            self.gives_up.discard(node)
            for device in self.devices_of(node):
                if self.dead[device] != "known":
                    self.state[device] = DeviceState.DOWN
        if gives_up:
            self.gives_up.add(node)
        down = self.away[node][1]
        if up > before:
            self.away[node] = (up, down)
            self._push("node_up", node, up)
        out = down + self.model["out_after_s"]
        if node in self.gives_up and self.out.get(node) != "evacuated" and max(up, before) > out:
            self._push("node_out", node, max(self.now, out))
        if dies:
            for device in self.devices_of(node):
                if self.dead[device] == "alive":
                    self._kill(device)

    def _node_out(self, node: int) -> None:
        if node not in self.away or self.out.get(node) == "evacuated":
            return
        up, down = self.away[node]
        if self.now < down + self.model["out_after_s"]:
            return
        alive = [device for device in self.devices_of(node) if self.dead[device] == "alive"]
        if node not in self.out:
            self.totals["node_outs"] += 1
            for device in alive:
                self.state[device] = DeviceState.OUT
        rate = min(self.model["write_bytes_per_s"], self.model["read_bytes_per_s"])
        self.out[node] = "let go"
        if self.now + self.model["slot_bytes"] / rate <= up:
            self.out[node] = "evacuated"
            for device in alive:
                self._evacuate(device)

    def _node_up(self, node: int) -> None:
        if node not in self.away or self.away[node][0] != self.now:
            return
        del self.away[node]
        for device in self.devices_of(node):
            if self.dead[device] != "known":
                self.state[device] = DeviceState.UP
        if self.out.pop(node, "") == "evacuated":
            self._come_home(node)
        for device in self.devices_of(node):
            self._start(device)
        self.plan_now = True

    def _come_home(self, node: int) -> None:
        targets: list[int] = []
        for slot, (home, life) in sorted(self.homes.items()):
            there = self.dead[home] == "alive" and self.lives[home] == life
            pg, index = slot
            if self.node_of[home] != node or not there:
                continue
            if not returns_home(self.columns, self.state, self.rows[pg], index, home):
                continue
            target = int(self.rows[pg, index])
            self.rows[pg, index] = home
            if target >= 0:
                targets.append(target)
                if target in self.work and self.work[target][0] == slot:
                    self._release(target)
                else:
                    self.queue[target].remove(slot)
            elif slot in self.put_off[pg]:
                self.put_off[pg].remove(slot)
            else:
                self.waiting.remove(slot)
            self._regain(slot, home)
        for target in targets:
            self._start(target)

    def _regain(self, slot: Slot, device: int) -> None:
        self.held[device].append(slot)
        self.missing.discard(slot)
        self.gone.discard(slot)
        self.homes.pop(slot, None)
        pg = slot[0]
        if not any((pg, index) in self.missing for index in range(self.rows.shape[1])):
            self.lost_pgs.discard(pg)

    def _rebuilt(self, device: int) -> None:
        slot, done, sources, share = self.work.get(device, ((0, 0), -1.0, [], 0.0))
        if done != self.now:
            return
        if self.state[device] != DeviceState.UP:
            again = self.away[self.node_of[device]][0]
            self.work[device] = (slot, again, sources, share)
            self._push("rebuilt", device, again)
            return
        meet_errors(self, slot, sources, share)
        self._release(device)
        self.totals["rebuilds"] += 1
        self.totals["read_bytes"] += len(sources) * share * self.model["slot_bytes"]
        self._regain(slot, device)
        self._start(device)

    def _retry(self, device: int) -> None:
        self.retrying.discard(device)
        self._start(device)

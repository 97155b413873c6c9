"""The engine again, slow and plain: lists, dicts, sets and `heapq`. Kept for ever, for tests.

It shares with the engine what the cluster shares too, `choose_replacement`, `repair_priority` and,
uncompiled, what the core and the codec say of losses and repairs, and nothing else: random numbers,
queue, rules and sums are written anew. `exastore.sim.engine` describes the model.
"""

import heapq
from collections import Counter, defaultdict
from math import inf, log
from typing import Any

import numpy as np

from exastore.erasure import TooFewChunks, codec
from exastore.metadata.core.placement import PlacementColumns, choose_replacement
from exastore.metadata.core.redundancy import redundancy_of, repair_plan_for
from exastore.metadata.core.repair import repair_priority
from exastore.metadata.core.topology import DeviceState, Int32Array, Topology
from exastore.sim.state import Records

_WORD = 2**64 - 1
_KINDS = ("node_up", "replaced", "rebuilt", "retry", "detected", "node_out", "failed", "node_down")
_LIFE, _UPTIME, _OUTAGE, _REPLACEMENT = 1, 2, 3, 4

#: A chunk run: (PG, index).
Slot = tuple[int, int]


def mix64(x: int) -> int:
    """splitmix64 on Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


class ReferenceTrial:
    """One trial; `events` and `totals` are for comparison."""

    def __init__(
        self,
        model: Records,
        columns: PlacementColumns,
        topology: Topology,
        table: Int32Array,
        code: str,
    ) -> None:
        self.code = codec(code)
        self.model: dict[str, Any] = {name: model[name].item() for name in model.dtype.names}
        self.columns = columns
        self.node_of = [int(node) for node in topology.device_node]
        self.rows = table.copy()
        device_count, node_count = topology.device_count, len(topology.node_rack)
        self.key = mix64(mix64(self.model["seed"]) ^ self.model["trial"])
        self.state = np.full(device_count, DeviceState.UP, np.uint8)
        self.dead = ["alive"] * device_count
        self.held: list[list[Slot]] = [[] for _ in range(device_count)]
        for pg, row in enumerate(table.tolist()):
            for index, device in enumerate(row):
                self.held[device].append((pg, index))
        self.queue: list[list[Slot]] = [[] for _ in range(device_count)]
        #: By target: the slot, when it is done, the sources, the share of a chunk that each reads.
        self.work: dict[int, tuple[Slot, float, list[int], float]] = {}
        self.retrying: set[int] = set()
        self.streams = Counter[int]()
        self.away: dict[int, float] = {}
        self.let_go: set[int] = set()
        self.waiting: list[Slot] = []
        self.missing: set[Slot] = set()
        self.lost_pgs: set[int] = set()
        self.draws = Counter[tuple[int, int]]()
        self.choices = 0
        self.plan_now = False
        self.heap: list[tuple[float, int, int]] = []
        self.events: list[tuple[float, int, int]] = []
        self.losses: list[tuple[float, int]] = []
        self.totals: defaultdict[str, float] = defaultdict(float)
        self.now = 0.0
        for device in range(device_count):
            self._schedule_failure(device)
        for node in range(node_count):
            self._schedule_outage(node)

    def run(self) -> None:
        """Run to the horizon."""
        while self.heap and self.heap[0][0] <= self.model["horizon_s"]:
            time, kind, entity = heapq.heappop(self.heap)
            self._pass_time(time)
            self.events.append((time, kind, entity))
            getattr(self, f"_{_KINDS[kind]}")(entity)
            if self.plan_now and self.waiting:
                self._plan()
        self._pass_time(self.model["horizon_s"])

    def _pass_time(self, time: float) -> None:
        span = time - self.now
        self.totals["missing_slot_s"] += len(self.missing) * span
        self.totals["degraded_pg_s"] += len({pg for pg, _ in self.missing}) * span
        self.now = time

    def _push(self, kind: str, entity: int, time: float) -> None:
        heapq.heappush(self.heap, (time, _KINDS.index(kind), entity))

    def _bits(self, stream: int, entity: int, draw: int) -> int:
        return mix64(mix64(self.key ^ (stream << 56 | entity)) ^ draw)

    def _weibull(self, stream: int, entity: int, draw: int, scale: float, shape: float) -> float:
        x = -log(((self._bits(stream, entity, draw) >> 11) + 0.5) * 2.0**-53)
        return scale * x if shape == 1.0 else scale * x ** (1.0 / shape)

    def _next_draw(self, stream: int, entity: int) -> int:
        self.draws[stream, entity] += 1
        return self.draws[stream, entity] - 1

    def _schedule_failure(self, device: int) -> None:
        scale, shape = self.model["life_scale_s"], self.model["life_shape"]
        if scale == inf:
            return
        draw = self._next_draw(_LIFE, device)
        time = self.now + self._weibull(_LIFE, device, draw, scale, shape)
        if time <= self.model["horizon_s"]:
            self._push("failed", device, time)

    def _schedule_outage(self, node: int) -> None:
        mean = self.model["uptime_mean_s"]
        if mean == inf:
            return
        draw = self._next_draw(_UPTIME, node)
        time = self.now + self._weibull(_UPTIME, node, draw, mean, 1.0)
        if time <= self.model["horizon_s"]:
            self._push("node_down", node, time)

    def _outage_s(self, node: int) -> float:
        draw = self.draws[_UPTIME, node] - 1
        return self._weibull(_OUTAGE, node, draw, self.model["outage_mean_s"], 1.0)

    def _devices(self, node: int) -> list[int]:
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
        pg = slot[0]
        gone = [index for index in range(self.code.n) if (pg, index) in self.missing]
        if not self.code.decodable(gone) and pg not in self.lost_pgs:
            self.lost_pgs.add(pg)
            self.losses.append((self.now, pg))

    def _stop_work(self, device: int) -> None:
        if device in self.work:
            slot, _, sources, _ = self.work.pop(device)
            self.streams.subtract(sources)
            self.queue[device].append(slot)

    def _evacuate(self, device: int) -> None:
        for slot in self.held[device]:
            if slot not in self.missing:
                self._lose(slot)
        self._stop_work(device)
        self.waiting += self.held[device] + self.queue[device]
        self.held[device], self.queue[device] = [], []
        self.plan_now = True

    def _plan(self) -> None:
        todo, self.waiting, self.plan_now = self.waiting, [], False
        for pg, index in todo:
            row = self.rows[pg]
            row[index] = -1
            address = (pg << self.model["shift"]) | index
            seed = self._bits(_REPLACEMENT, address, self.choices) >> 32
            self.choices += 1
            target = int(choose_replacement(self.columns, self.state, row, index, pg, seed))
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
        slot = min(
            self.queue[device],
            key=lambda slot: repair_priority(redundancy.of(self._unreadable(slot[0])), *slot),
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
        done = self.now + self.model["slot_bytes"] / rate
        self.work[device] = (slot, done, sources, share)
        self._push("rebuilt", device, done)

    def _failed(self, device: int) -> None:
        self.totals["device_failures"] += 1
        self.dead[device] = "unnoticed"
        for slot in self.held[device]:
            self._lose(slot)
        self._stop_work(device)
        self._push("detected", device, self.now + self.model["detection_delay_s"])

    def _detected(self, device: int) -> None:
        self.dead[device] = "known"
        self.state[device] = DeviceState.OUT
        self._evacuate(device)
        self._push("replaced", device, self.now + self.model["replacement_delay_s"])

    def _replaced(self, device: int) -> None:
        self.dead[device] = "alive"
        self._schedule_failure(device)
        if self.node_of[device] in self.away:
            self.state[device] = DeviceState.DOWN
            return
        self.state[device] = DeviceState.UP
        self.plan_now = True

    def _node_down(self, node: int) -> None:
        self.totals["node_outages"] += 1
        outage_s = self._outage_s(node)
        self.away[node] = self.now + outage_s
        for device in self._devices(node):
            if self.dead[device] != "known":
                self.state[device] = DeviceState.DOWN
        self._push("node_up", node, self.now + outage_s)
        if outage_s > self.model["out_after_s"]:
            self._push("node_out", node, self.now + self.model["out_after_s"])

    def _node_out(self, node: int) -> None:
        self.totals["node_outs"] += 1
        rate = min(self.model["write_bytes_per_s"], self.model["read_bytes_per_s"])
        alive = [device for device in self._devices(node) if self.dead[device] == "alive"]
        for device in alive:
            self.state[device] = DeviceState.OUT
        if self.now + self.model["slot_bytes"] / rate > self.away[node]:
            self.let_go.add(node)
            return
        for device in alive:
            self._evacuate(device)

    def _node_up(self, node: int) -> None:
        del self.away[node]
        for device in self._devices(node):
            if self.dead[device] != "known":
                self.state[device] = DeviceState.UP
        self.let_go.discard(node)
        self._schedule_outage(node)
        for device in self._devices(node):
            self._start(device)
        self.plan_now = True

    def _rebuilt(self, device: int) -> None:
        slot, done, sources, share = self.work.get(device, ((0, 0), -1.0, [], 0.0))
        if done != self.now:
            return
        if self.state[device] != DeviceState.UP:
            again = self.away[self.node_of[device]]
            self.work[device] = (slot, again, sources, share)
            self._push("rebuilt", device, again)
            return
        del self.work[device]
        self.streams.subtract(sources)
        self.totals["rebuilds"] += 1
        self.totals["read_bytes"] += len(sources) * share * self.model["slot_bytes"]
        self.held[device].append(slot)
        self.missing.discard(slot)
        pg = slot[0]
        if not any((pg, index) in self.missing for index in range(self.rows.shape[1])):
            self.lost_pgs.discard(pg)
        self._start(device)

    def _retry(self, device: int) -> None:
        self.retrying.discard(device)
        self._start(device)

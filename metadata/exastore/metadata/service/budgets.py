"""Budgets of background traffic: what each node may use of devices, networks and racks now.

Laws:
1. Only the holder of the background lease grants, in its answers to heartbeats.
2. Each node is paced by the latency of clients that it and the gateways see at it, see `core.pace`;
   but not while some data would be lost with one more device: safety comes before speed.
3. A rack's rate is shared out by leases, see `core.rate_leases`; a new holder waits until those of
   the old one have run out.
4. What an operator sets is a row: it holds for every server, and from the next heartbeats on.

Rows: (B, budgets) is a serialised Budgets; without it the configuration holds.
"""

import logging
from dataclasses import dataclass

from exastore.metadata.core.clock import Clock
from exastore.metadata.core.pace import Pace, PaceOptions, PaceSample, next_pace
from exastore.metadata.core.rate_leases import Demand, RateLedger
from exastore.metadata.core.repair import classify
from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.keys import pack
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.lease import Lease
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.membership import rack_name
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.proto.v1 import budget_pb2, common_pb2, metadata_pb2

log = logging.getLogger(__name__)

_KEY = pack("B", "budgets")
#: For which a share of a rack holds; several heartbeats may be lost.
_LEASE_S = 5.0
#: Rates are measured over at least this; more often would be noise.
_SAMPLE_S = 0.4
#: What a gateway saw of a node counts for so long.
_REPORT_S = 3.0


@dataclass(slots=True)
class _Node:
    """What is known of one node."""

    rack: str
    load: budget_pb2.BackgroundLoad
    seen_s: float
    pace: Pace
    #: Bytes per second, of the last sample: the busier way; between racks, the busier way.
    used: float = 0.0
    rack_used: float = 0.0
    is_held_up: bool = False
    p99_s: float = 0.0
    foreground_count: int = 0


@dataclass(frozen=True, slots=True)
class _Report:
    """What a gateway saw of a node."""

    p99_s: float
    count: int
    seen_s: float


class Budgets:
    """Lives on the event loop of a metadata server."""

    def __init__(
        self,
        config: MetadataConfig,
        engine: Engine,
        maps: MapStore,
        lease: Lease,
        clock: Clock,
        metrics: MetadataMetrics,
    ) -> None:
        self._configured = budget_pb2.Budgets(
            device_bytes_per_s=config.device_budget_bytes_per_s,
            node_bytes_per_s=config.node_budget_bytes_per_s,
            rack_bytes_per_s=config.rack_budget_bytes_per_s,
            foreground_p99_s=config.foreground_p99_s,
            floor_bytes_per_s=config.budget_floor_bytes_per_s,
        )
        self._engine = engine
        self._lease = lease
        self._clock = clock
        self._metrics = metrics
        self._maps = maps
        #: Whether clients are not heeded, by the map of this epoch.
        self._urgency = (False, 0)
        self._budgets = self._configured
        #: Under which lease the following was learned; another begins anew.
        self._token = 0
        #: By id.
        self._nodes: dict[str, _Node] = {}
        #: By rack.
        self._ledgers: dict[str, RateLedger] = {}
        #: By address of the node.
        self._reports: dict[str, _Report] = {}

    @property
    def leads(self) -> bool:
        """Whether this server grants."""
        return self._lease.is_held

    @property
    def budgets(self) -> budget_pb2.Budgets:
        """Those in force."""
        return self._budgets

    async def run_round(self) -> None:
        """Learn what operators have set."""
        stored = await self._engine.read(lambda txn: txn.get(_KEY))
        budgets = self._configured if stored is None else budget_pb2.Budgets.FromString(stored)
        if budgets != self._budgets:
            log.info("budgets of repair and moves: %s", str(budgets).replace("\n", " "))
            self._budgets = budgets

    async def set(self, request: budget_pb2.SetBudgetsRequest) -> budget_pb2.Budgets:
        """Raises InvalidArgument."""
        budgets = request.budgets
        if not 0 <= budgets.foreground_p99_s < 3600 or not budgets.floor_bytes_per_s:
            raise InvalidArgument("the target must be 0 to 3600 s, and the floor above 0")
        value = budgets.SerializeToString()

        def store(txn: Transaction) -> None:
            txn.put(_KEY, value)

        await self._engine.transact(store)
        await self.run_round()
        return self._budgets

    def report(self, request: budget_pb2.ReportLatencyRequest) -> None:
        """A gateway told how fast nodes answer it."""
        now = self._clock.monotonic_s()
        for node in request.nodes:
            known = self._reports.get(node.address)
            if known is None or known.p99_s <= node.p99_s or now - known.seen_s > _REPORT_S:
                self._reports[node.address] = _Report(node.p99_s, node.count, now)
        # Addresses that no node has any more go, too.
        fresh = {a: r for a, r in self._reports.items() if now - r.seen_s <= _REPORT_S}
        self._reports = fresh

    def grant(self, request: metadata_pb2.HeartbeatRequest) -> budget_pb2.BackgroundGrant | None:
        """What the node may use from now on; None: this server has no say."""
        if not self._lease.is_held or not request.HasField("load"):
            return None
        now = self._clock.monotonic_s()
        if self._token != self._lease.token:
            self._token = self._lease.token
            self._nodes.clear()
            self._ledgers.clear()
        node = self._hear(request.node, request.load, now)
        budgets = self._budgets
        rate = node.pace.rate_bytes_per_s
        self._metrics.paced(request.node.id, rate, node.p99_s)
        grant = budget_pb2.BackgroundGrant(
            device_bytes_per_s=budgets.device_bytes_per_s,
            node_bytes_per_s=max(1, round(rate)) if rate else 0,
        )
        if budgets.rack_bytes_per_s:
            ledger = self._ledgers.setdefault(node.rack, RateLedger(_LEASE_S, now))
            demand = Demand(node.rack_used, node.is_held_up)
            grant.rack_share_bytes_per_s = ledger.grant(
                request.node.id, request.load.rack_share_bytes_per_s, demand,
                float(budgets.rack_bytes_per_s), now,
            )  # fmt: skip
            grant.has_rack_limit = True
            grant.lease_s = _LEASE_S
        return grant

    def status(self) -> budget_pb2.BudgetStatus:
        """What holds now, and what it leads to."""
        now = self._clock.monotonic_s()
        status = budget_pb2.BudgetStatus(budgets=self._budgets, is_urgent=self._is_urgent())
        racks: dict[str, float] = {}
        for name, node in sorted(self._nodes.items()):
            if now - node.seen_s > 2 * _LEASE_S:
                continue
            status.nodes.add(
                node_id=name,
                rate_bytes_per_s=node.pace.rate_bytes_per_s,
                background_bytes_per_s=node.used,
                foreground_p99_s=node.p99_s,
                foreground_count=node.foreground_count,
            )
            racks[node.rack] = racks.get(node.rack, 0.0) + node.rack_used
        for rack, used in sorted(racks.items()):
            ledger = self._ledgers.get(rack)
            leased = sum(ledger.held(now).values()) if ledger else 0.0
            status.racks.add(rack=rack, used_bytes_per_s=used, leased_bytes_per_s=leased)
        return status

    # ---- inside ----

    def _hear(self, told: common_pb2.Node, load: budget_pb2.BackgroundLoad, now: float) -> _Node:
        """Take what a node told, and pace it."""
        ceiling = float(self._budgets.node_bytes_per_s)
        node = self._nodes.get(told.id)
        if node is None or load.sent_bytes < node.load.sent_bytes or node.rack != rack_name(told):
            node = _Node(rack_name(told), _copy(load), now, Pace(ceiling, now))
            self._nodes[told.id] = node
            return node
        elapsed_s = now - node.seen_s
        if elapsed_s < _SAMPLE_S:
            return node
        before, node.load, node.seen_s = node.load, _copy(load), now
        sent = load.sent_bytes - before.sent_bytes
        received = load.received_bytes - before.received_bytes
        scrubbed = load.scrubbed_bytes - before.scrubbed_bytes
        node.used = max(sent, received, scrubbed) / elapsed_s
        sent = load.rack_sent_bytes - before.rack_sent_bytes
        received = load.rack_received_bytes - before.rack_received_bytes
        node.rack_used = max(sent, received) / elapsed_s
        node.is_held_up = load.rack_wait_count > before.rack_wait_count
        node.p99_s, node.foreground_count = self._foreground(told.address, load, now)
        options = PaceOptions(
            0.0 if self._is_urgent() else self._budgets.foreground_p99_s,
            float(self._budgets.floor_bytes_per_s),
            ceiling,
        )
        sample = PaceSample(node.p99_s, node.foreground_count, node.used)
        node.pace = next_pace(node.pace, sample, options, now)
        return node

    def _is_urgent(self) -> bool:
        """Whether some data would be lost with one more device."""
        columns = self._maps.columns
        if columns is not None and self._urgency[1] != columns.epoch:
            remaining = classify(columns).remaining_redundancy
            self._urgency = (bool((remaining == 0).any()), columns.epoch)
        return self._urgency[0]

    def _foreground(
        self, address: str, load: budget_pb2.BackgroundLoad, now: float
    ) -> tuple[float, int]:
        """The worse of what the node itself and the gateways see: (seconds, requests)."""
        p99_s, count = load.foreground_p99_s, load.foreground_count
        report = self._reports.get(address)
        if report is not None and now - report.seen_s <= _REPORT_S:
            p99_s, count = max(p99_s, report.p99_s), max(count, report.count)
        return p99_s, count


def _copy(load: budget_pb2.BackgroundLoad) -> budget_pb2.BackgroundLoad:
    copied = budget_pb2.BackgroundLoad()
    copied.CopyFrom(load)
    return copied

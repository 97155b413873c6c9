"""Budgets of background work on this node: each device, the network each way, the rack's uplink.

Laws:
1. Whoever moves bytes for repair, a move or packing, or reads them for a scrub, waits until every
   bucket that they pass is free of debt, and then takes from all of them at once; so no bucket is
   paid for waiting at another.
2. A request of another node that would have to wait longer than `PATIENCE_S` is refused as busy,
   and that node asks again: it holds neither memory nor a place in a stream meanwhile.
3. The share of the rack's uplink is a lease: when it has run out, nothing passes the uplink until
   there is a new one.
4. Clients' requests are never held up here; their latency is only noted.
5. A node that no metadata server has granted anything yet keeps to `UNGRANTED_BYTES_PER_S`.

The last grant holds until the next one, but for the rack's lease: without metadata servers nobody
begins anything, and what is under way ends at the pace that it had.
"""

import math

from exastore.metadata.core.budget import TokenBucket
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.latency import RecentLatency
from exastore.proto.v1 import budget_pb2
from exastore.storage.metrics import StorageMetrics

#: How long a read of another node may wait here before it is told to come again, which it does at
#: least so often: meanwhile there may be another grant.
PATIENCE_S = 1.0
#: Of each device, each way of the network and each way of the uplink, before the first grant. Slow
#: enough for any disk and network beside clients, fast enough to mend a cluster with.
UNGRANTED_BYTES_PER_S = 16 << 20
#: After a pause, this many seconds' worth of bytes pass at once.
_BURST_S = 0.25
#: How long to wait before looking again: meanwhile there may be another grant.
_LOOK_S = 0.5


class _Bucket:
    """A token bucket with a name and, for a share of a rack, an end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._tokens = TokenBucket(0.0, 0.0)
        #: Whether 0 means nothing, not no limit.
        self._is_leased = False
        self._until_s = math.inf
        self.wait_count = 0

    @property
    def rate_bytes_per_s(self) -> float:
        return self._tokens.rate_bytes_per_s

    def set_rate(self, rate: float, now: float) -> None:
        """So many bytes per second from now on; 0: no limit."""
        self._is_leased, self._until_s = False, math.inf
        self._tokens.set_rate(rate, rate * _BURST_S, now)

    def lease(self, rate: float, now: float, until_s: float) -> None:
        """So many bytes per second until then; 0: nothing."""
        self.set_rate(rate, now)
        self._is_leased, self._until_s = True, until_s

    def leased(self, now: float) -> float:
        """The rate of the lease in force; 0: none."""
        return self.rate_bytes_per_s if self._is_leased and now < self._until_s else 0.0

    def ready_in(self, now: float) -> float:
        if self._is_leased and not self.leased(now):
            return _LOOK_S
        return self._tokens.ready_in(now)

    def take(self, byte_count: int, now: float) -> None:
        self._tokens.take(byte_count, now)


class BackgroundBudget:
    """The buckets of one node; lives on the event loop."""

    def __init__(self, rack: str, clock: Clock, metrics: StorageMetrics) -> None:
        #: Of this node; with zone and region: two racks of one name in two zones are two.
        self.rack = rack
        self._clock = clock
        self._metrics = metrics
        self._device_rate = float(UNGRANTED_BYTES_PER_S)
        #: By the device's index in the map.
        self._devices: dict[int, _Bucket] = {}
        self._sent, self._received = _Bucket("sent"), _Bucket("received")
        self._rack_sent, self._rack_received = _Bucket("rack_sent"), _Bucket("rack_received")
        #: Paced as the network is: what scrubs read is sent nowhere, but clients wait behind it.
        self._scrubbed = _Bucket("scrubbed")
        self._load = budget_pb2.BackgroundLoad()
        self._foreground = RecentLatency()
        now = clock.monotonic_s()
        for bucket in (*self._paced, self._rack_sent, self._rack_received):
            bucket.set_rate(float(UNGRANTED_BYTES_PER_S), now)
        for what in ("device", "node", "rack"):
            metrics.background_limit.labels(what).set(UNGRANTED_BYTES_PER_S)

    @property
    def _paced(self) -> tuple[_Bucket, ...]:
        return self._sent, self._received, self._scrubbed

    def take_grant(self, grant: budget_pb2.BackgroundGrant) -> None:
        """A metadata server said what may be used from now on."""
        now = self._clock.monotonic_s()
        self._device_rate = float(grant.device_bytes_per_s)
        for bucket in self._devices.values():
            bucket.set_rate(self._device_rate, now)
        for bucket in self._paced:
            bucket.set_rate(float(grant.node_bytes_per_s), now)
        for bucket in (self._rack_sent, self._rack_received):
            if grant.has_rack_limit:
                bucket.lease(grant.rack_share_bytes_per_s, now, now + grant.lease_s)
            else:
                bucket.set_rate(0.0, now)
        self._metrics.background_limit.labels("device").set(grant.device_bytes_per_s)
        self._metrics.background_limit.labels("node").set(grant.node_bytes_per_s)
        self._metrics.background_limit.labels("rack").set(grant.rack_share_bytes_per_s)

    def load(self) -> budget_pb2.BackgroundLoad:
        """What to tell the metadata servers."""
        now = self._clock.monotonic_s()
        load = self._load
        load.rack_share_bytes_per_s = self._rack_sent.leased(now)
        load.rack_wait_count = self._rack_sent.wait_count + self._rack_received.wait_count
        load.foreground_p99_s, load.foreground_count = self._foreground.p99(now)
        self._metrics.foreground_p99.set(load.foreground_p99_s)
        return load

    def note_foreground(self, duration_s: float) -> None:
        """A chunk request of a client took so long."""
        self._foreground.note(duration_s, self._clock.monotonic_s())

    async def receive(self, byte_count: int, rack: str) -> None:
        """Wait until so many bytes may come from a node in that rack."""
        buckets = [self._received]
        self._load.received_bytes += byte_count
        if rack != self.rack:
            buckets.append(self._rack_received)
            self._load.rack_received_bytes += byte_count
        await self._pass(buckets, byte_count, math.inf)

    async def push(self, byte_count: int, rack: str) -> None:
        """Wait until so many bytes may be sent to be written on a node in that rack."""
        buckets = [self._sent]
        if rack != self.rack:
            buckets.append(self._rack_sent)
        self._note_sent(byte_count, rack)
        await self._pass(buckets, byte_count, math.inf)

    async def accept(self, device_index: int, byte_count: int, rack: str) -> float:
        """Wait until so many bytes that a node in that rack has sent may be written.

        Returns:
            As `send`.
        """
        buckets = [self._device(device_index), self._received]
        if rack != self.rack:
            buckets.append(self._rack_received)
        retry_after_s = await self._pass(buckets, byte_count, PATIENCE_S)
        if not retry_after_s:
            self._load.received_bytes += byte_count
            if rack != self.rack:
                self._load.rack_received_bytes += byte_count
        return retry_after_s

    async def scrub(self, device_index: int, byte_count: int) -> None:
        """Wait until so many bytes may be read from a device and checked."""
        self._load.scrubbed_bytes += byte_count
        await self._pass([self._device(device_index), self._scrubbed], byte_count, math.inf)

    async def write(self, device_index: int, byte_count: int) -> None:
        """Wait until so many bytes may be written to a device."""
        await self._pass([self._device(device_index)], byte_count, math.inf)

    async def send(self, device_index: int, byte_count: int, rack: str) -> float:
        """Wait until so many bytes may be read and sent to a node in that rack.

        Returns:
            0, or, when that would take too long, after how many seconds to ask again.
        """
        buckets = self._on_the_way_out(device_index, rack)
        retry_after_s = await self._pass(buckets, byte_count, PATIENCE_S)
        if not retry_after_s:
            self._note_sent(byte_count, rack)
        return retry_after_s

    def send_now(self, device_index: int, byte_count: int, rack: str) -> bool:
        """Whether so many bytes may be read and sent without waiting; they count then."""
        buckets = self._on_the_way_out(device_index, rack)
        now = self._clock.monotonic_s()
        if any(bucket.ready_in(now) for bucket in buckets):
            return False
        for bucket in buckets:
            bucket.take(byte_count, now)
        self._note_sent(byte_count, rack)
        return True

    def _on_the_way_out(self, device_index: int, rack: str) -> list[_Bucket]:
        buckets = [self._device(device_index), self._sent]
        return buckets if rack == self.rack else [*buckets, self._rack_sent]

    def _note_sent(self, byte_count: int, rack: str) -> None:
        self._load.sent_bytes += byte_count
        if rack != self.rack:
            self._load.rack_sent_bytes += byte_count

    async def _pass(self, buckets: list[_Bucket], byte_count: int, patience_s: float) -> float:
        begun_s = now = self._clock.monotonic_s()
        while True:
            slowest = max(buckets, key=lambda bucket: bucket.ready_in(now))
            wait_s = slowest.ready_in(now)
            if not wait_s:
                break
            slowest.wait_count += 1
            if now + wait_s - begun_s > patience_s:
                return min(wait_s, PATIENCE_S)
            wait_s = min(wait_s, _LOOK_S)
            self._metrics.background_waits.labels(slowest.name).inc(wait_s)
            await self._clock.sleep(wait_s)
            now = self._clock.monotonic_s()
        for bucket in buckets:
            bucket.take(byte_count, now)
        return 0.0

    def _device(self, device_index: int) -> _Bucket:
        bucket = self._devices.get(device_index)
        if bucket is None:
            bucket = self._devices[device_index] = _Bucket("device")
            bucket.set_rate(self._device_rate, self._clock.monotonic_s())
        return bucket


def rack_name(region: str, zone: str, rack: str) -> str:
    """A rack with where it is."""
    return f"{region}/{zone}/{rack}"

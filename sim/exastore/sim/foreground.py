"""Requests of clients: the load they are, what they leave to repair, and how long they take.

The mix is steady: reads, writes and deletes of objects of some sizes, at so many per second and
device. An object lies on c = min(k, ceil(size / chunk_bytes)) data chunks of size / c bytes, and a
write adds m parities. Each chunk is one operation of a device, positioning and then the transfer.

The estimate of latency: every device is an M/G/1 queue, first come, first served, with the mix of
operations of clients and of repair (in pieces of `REPAIR_IO_BYTES`). The mean wait is that of
Pollaczek and Khinchine, its law is taken as P(W > t) = rho exp(-t / theta) with the same mean,
which is exact for M/M/1 and for heavy load. A read of c chunks ends with the slowest: the largest
of c independent waits, plus the service of a chunk. With theta = E[W] / rho, its mean is

    theta sum over j = 1..c of (1 - (1 - rho)^j) / j.

Operations of one read arrive at once and share devices with those of others, which makes this an
upper estimate where devices are few: a test compares it with queues, request by request.
"""

from dataclasses import dataclass
from functools import cache
from math import ceil, inf, log
from typing import TYPE_CHECKING

import numpy as np

from exastore.erasure import codec
from exastore.metadata.core.redundancy import repair_plan_for

if TYPE_CHECKING:
    from exastore.sim.scenario import Scenario

#: Repair reads and writes in pieces of this size.
REPAIR_IO_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Operations:
    """Operations of one kind at one device.

    Attributes:
        per_s: How many.
        service_s: How long each takes.
    """

    per_s: float
    service_s: float


@dataclass(frozen=True, slots=True)
class Queue:
    """A device as an M/G/1 queue.

    Attributes:
        utilisation: Share of the time that it works.
        wait_s: Mean wait; inf if it cannot keep up.
    """

    utilisation: float
    wait_s: float

    @classmethod
    def of(cls, operations: list[Operations]) -> "Queue":
        """The queue that these operations make."""
        rho = sum(item.per_s * item.service_s for item in operations)
        if rho >= 1.0:
            return cls(rho, inf)
        second = sum(item.per_s * item.service_s**2 for item in operations)
        return cls(rho, second / (2.0 * (1.0 - rho)))

    def mean_of_slowest_s(self, count: int) -> float:
        """Mean of the largest of `count` waits."""
        if self.wait_s in (0.0, inf):
            return self.wait_s
        theta = self.wait_s / self.utilisation
        idle = 1.0 - self.utilisation
        return theta * sum((1.0 - idle**j) / j for j in range(1, count + 1))

    def share_within(self, count: int, wait_s: float) -> float:
        """P(the largest of `count` waits is at most `wait_s`)."""
        if self.wait_s == inf or wait_s < 0.0:
            return 0.0
        if self.wait_s == 0.0:
            return 1.0
        later = self.utilisation * np.exp(-wait_s * self.utilisation / self.wait_s)
        return float((1.0 - later) ** count)


@dataclass(frozen=True, slots=True)
class Class:
    """Objects of one size.

    Attributes:
        share: Of the requests.
        size_bytes: Of the object.
        chunks: Data chunks that it lies on.
        degraded_chunks: Chunks that a read needs if one of them cannot be read, on average.
    """

    share: float
    size_bytes: float
    chunks: int
    degraded_chunks: float

    @property
    def chunk_bytes(self) -> float:
        return self.size_bytes / self.chunks


@cache
def degraded_chunks(code: str, chunks: int) -> float:
    """Chunks that a read of `chunks` data chunks needs if one of them is unreadable.

    Those that are read anyway, and what the code's plan reads besides; the mean over which is
    unreadable and where the read begins.
    """
    its = codec(code)
    total = 0.0
    for lost in range(its.k):
        plan = repair_plan_for(its, [lost], {lost}).reads
        for offset in range(chunks):
            touched = {(lost - offset + i) % its.k for i in range(chunks)}
            besides = sum(share for index, share in plan.items() if index not in touched)
            if its.is_mds and its.sub_chunk_count == 1:
                besides = float(its.k - (chunks - 1))  # any k do
            total += chunks - 1 + besides
    return total / (its.k * chunks)


def classes_of(scenario: "Scenario") -> list[Class]:
    """The sizes of objects."""
    mix = scenario.foreground
    total = sum(mix.object_shares)
    found: list[Class] = []
    for size, share in zip(mix.object_bytes, mix.object_shares, strict=True):
        chunks = min(scenario.k, ceil(size / mix.chunk_bytes))
        found.append(Class(share / total, size, chunks, degraded_chunks(scenario.code, chunks)))
    return found


def client_operations(scenario: "Scenario", unreadable_share: float) -> list[Operations]:
    """What clients have one device do, if this share of all chunks cannot be read."""
    mix, m = scenario.foreground, scenario.m
    found: list[Operations] = []
    for its in classes_of(scenario):
        service_s = mix.positioning_s + its.chunk_bytes / mix.device_bandwidth_bytes_per_s
        degraded = 1.0 - (1.0 - unreadable_share) ** its.chunks
        read = its.chunks + degraded * (its.degraded_chunks - its.chunks)
        written = its.chunks + m
        found.append(
            Operations(its.share * (mix.reads_per_s * read + mix.writes_per_s * written), service_s)
        )
        found.append(Operations(its.share * mix.deletes_per_s * written, mix.positioning_s))
    return found


@dataclass(frozen=True, slots=True)
class Budgets:
    """What repair may take, of a device and of links; see `sections.RepairSection`."""

    write_bytes_per_s: float
    read_bytes_per_s: float
    node_bytes_per_s: float
    rack_bytes_per_s: float
    zone_bytes_per_s: float


def repair_budgets(scenario: "Scenario") -> Budgets:
    """The budgets of repair: as the scenario says, or what requests leave, if that is less.

    Of a device, requests leave (1 - utilisation) of its bandwidth; if that is less than what repair
    reads and writes at most, both get less in proportion. Of a link, they leave its size less the
    larger of what they send and what they take.
    """
    repair, mix, cluster = scenario.repair, scenario.foreground, scenario.cluster
    write, read = repair.write_bandwidth_bytes_per_s, repair.read_bandwidth_bytes_per_s
    node = repair.node_bandwidth_bytes_per_s or inf
    rack = repair.rack_bandwidth_bytes_per_s or inf
    if mix.is_on:
        utilisation = Queue.of(client_operations(scenario, 0.0)).utilisation
        left = (1.0 - utilisation) * mix.device_bandwidth_bytes_per_s
        part = min(1.0, left / (write + read))
        write, read = write * part, read * part
        per_node = link_load_bytes_per_s(scenario) * cluster.devices_per_node
        if mix.node_link_bytes_per_s:
            node = min(node, mix.node_link_bytes_per_s - per_node)
        if mix.rack_link_bytes_per_s:
            rack = min(rack, mix.rack_link_bytes_per_s - per_node * cluster.nodes_per_rack)
    return Budgets(write, read, node, rack, repair.zone_bandwidth_bytes_per_s or inf)


def link_load_bytes_per_s(scenario: "Scenario") -> float:
    """What requests send or take per device, whichever is more."""
    mix, m = scenario.foreground, scenario.m
    sent = sum(its.share * mix.reads_per_s * its.size_bytes for its in classes_of(scenario))
    taken = sum(
        its.share * mix.writes_per_s * its.size_bytes * (its.chunks + m) / its.chunks
        for its in classes_of(scenario)
    )
    return max(sent, taken)


@dataclass(frozen=True, slots=True)
class Service:
    """How requests fare for a while.

    Attributes:
        utilisation: Of a device, by clients and repair.
        degraded_read_share: Reads that meet an unreadable chunk.
        read_amplification: Bytes that devices read for each byte that clients get.
        read_mean_s, read_p99_s: How long a read takes; inf if the devices cannot keep up.
        degraded_mean_s, degraded_p99_s: The same of those that meet an unreadable chunk.
    """

    utilisation: float
    degraded_read_share: float
    read_amplification: float
    read_mean_s: float
    read_p99_s: float
    degraded_mean_s: float
    degraded_p99_s: float


def service_of(scenario: "Scenario", unreadable_share: float, repair_bytes_per_s: float) -> Service:
    """How requests fare.

    Args:
        scenario: With its mix.
        unreadable_share: Of all chunks.
        repair_bytes_per_s: What repair and moves read and write, per device.
    """
    mix = scenario.foreground
    bandwidth = mix.device_bandwidth_bytes_per_s
    piece_s = mix.positioning_s + REPAIR_IO_BYTES / bandwidth
    queue = Queue.of(
        [
            *client_operations(scenario, unreadable_share),
            Operations(repair_bytes_per_s / REPAIR_IO_BYTES, piece_s),
        ]
    )
    #: (share of reads, chunks, service) of whole and of degraded reads.
    whole: list[tuple[float, int, float]] = []
    degraded: list[tuple[float, int, float]] = []
    got = read = 0.0
    for its in classes_of(scenario):
        chance = 1.0 - (1.0 - unreadable_share) ** its.chunks
        service_s = mix.positioning_s + its.chunk_bytes / bandwidth
        whole.append((its.share * (1.0 - chance), its.chunks, service_s))
        degraded.append((its.share * its.chunks, ceil(its.degraded_chunks), service_s))
        got += its.share * its.size_bytes
        extra = chance * (its.degraded_chunks - its.chunks)
        read += its.share * (its.chunks + extra) * its.chunk_bytes
    share = 1.0 - sum(part for part, _, _ in whole)
    total = sum(part for part, _, _ in degraded)
    degraded = [(part / total, count, service_s) for part, count, service_s in degraded]
    mixed = [*whole, *((part * share, count, service_s) for part, count, service_s in degraded)]
    return Service(
        utilisation=queue.utilisation,
        degraded_read_share=share,
        read_amplification=read / got,
        read_mean_s=_mean_s(queue, mixed),
        read_p99_s=_quantile_s(queue, mixed, 0.99),
        degraded_mean_s=_mean_s(queue, degraded),
        degraded_p99_s=_quantile_s(queue, degraded, 0.99),
    )


def _mean_s(queue: Queue, reads: list[tuple[float, int, float]]) -> float:
    return sum(
        share * (queue.mean_of_slowest_s(count) + service_s)
        for share, count, service_s in reads
        if share > 0.0
    )


def _quantile_s(queue: Queue, reads: list[tuple[float, int, float]], quantile: float) -> float:
    """By bisection: within how much time this share of the reads ends."""
    if queue.wait_s == inf:
        return inf
    low = 0.0
    high = max(service_s for _, _, service_s in reads)
    if queue.wait_s > 0.0:
        most = max(count for _, count, _ in reads)
        high += queue.wait_s / queue.utilisation * log(1e4 * most)
    for _ in range(60):
        middle = (low + high) / 2
        within = sum(
            share * queue.share_within(count, middle - service_s)
            for share, count, service_s in reads
        )
        low, high = (middle, high) if within < quantile else (low, middle)
    return high


def foreground_problems(scenario: "Scenario") -> list[tuple[str, str]]:
    """What is wrong with the mix: (key, what)."""
    mix = scenario.foreground
    if not mix.is_on:
        return []
    if len(mix.object_bytes) != len(mix.object_shares) or not mix.object_bytes:
        text = (
            f"has {len(mix.object_shares)} shares for {len(mix.object_bytes)} sizes; give one for"
            " each, and at least one"
        )
        return [("foreground.object_shares", text)]
    busy = Queue.of(client_operations(scenario, 0.0)).utilisation
    if busy >= 1.0:
        text = (
            f"is {mix.reads_per_s}; with writes and deletes, devices would be busy {busy:.1%} of"
            " the time and never keep up; ask for less, or for faster devices"
        )
        return [("foreground.reads_per_s", text)]
    budgets = repair_budgets(scenario)
    for name, left in (("node", budgets.node_bytes_per_s), ("rack", budgets.rack_bytes_per_s)):
        if left <= 0:
            size = getattr(mix, f"{name}_link_bytes_per_s")
            text = (
                f"is {size}, less than the {size - left:.4g} B/s of requests; give a faster link, 0"
                " for no limit, or fewer requests"
            )
            return [(f"foreground.{name}_link_bytes_per_s", text)]
    return []

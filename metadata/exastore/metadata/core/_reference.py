"""Slow, plain twins of the placement kernels, and an oracle of the balancer, kept for ever.

Python integers and lists, one draw at a time, no padding, no shortcuts: every child of every bucket
is drawn with the logarithm, also where there is one child or all weights are equal.
"""

from decimal import ROUND_FLOOR, Decimal, localcontext
from functools import cache

from exastore.metadata.core.topology import NO_DEVICE, DeviceState, PlacementRule, Topology

MASK = 0xFFFFFFFF
TRIES = 51
#: One child of a bucket: (index at its level, hash identifier, weight).
Child = tuple[int, int, float]


def mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    """Jenkins' 32-bit mix."""
    for first, second, third in ((13, 8, 13), (12, 16, 5), (3, 10, 15)):
        a = ((a - b - c) & MASK) ^ (c >> first)
        b = ((b - c - a) & MASK) ^ ((a << second) & MASK)
        c = ((c - a - b) & MASK) ^ (b >> third)
    return a, b, c


def hash2(a: int, b: int) -> int:
    """CRUSH's hash of two words."""
    h, x, y = 1315423911 ^ a ^ b, 231232, 1232
    a, b, h = mix(a, b, h)
    x, a, h = mix(x, a, h)
    b, y, h = mix(b, y, h)
    return h


def hash3(a: int, b: int, c: int) -> int:
    """CRUSH's hash of three words."""
    h, x, y = 1315423911 ^ a ^ b ^ c, 231232, 1232
    a, b, h = mix(a, b, h)
    c, x, h = mix(c, x, h)
    y, a, h = mix(y, a, h)
    b, x, h = mix(b, x, h)
    y, c, h = mix(y, c, h)
    return h


@cache
def log_draw(u: int) -> int:
    """floor(2**44 * log2(u + 1)) - 2**48, from decimal logarithms of 40 digits."""
    value = u + 1
    if value & (value - 1) == 0:
        return (value.bit_length() - 1 - 16) * 2**44
    with localcontext() as context:
        context.prec = 40
        exact = Decimal(value).ln() / Decimal(2).ln() * 2**44
        return int(exact.to_integral_value(rounding=ROUND_FLOOR)) - 2**48


def straw2(children: list[Child], x: int, r: int) -> int:
    """Index of the child with the largest draw; ties keep the earlier. NO_DEVICE without any."""
    if not children:
        return NO_DEVICE
    best, best_draw = children[0][0], float("-inf")
    for index, identifier, weight in children:
        if weight > 0:
            draw = log_draw(hash3(x, identifier, r) & 0xFFFF) * (1.0 / weight)
            if draw > best_draw:
                best, best_draw = index, draw
    return best


class ReferencePlacement:
    """The same choices as `placement.place_pgs` and `placement.choose_replacement`."""

    def __init__(self, topology: Topology, rule: PlacementRule, device_state: list[int]) -> None:
        self.rule = rule
        self.device_state = device_state
        region_count = max(topology.zone_region.tolist(), default=-1) + 1
        parents = [
            topology.device_node.tolist(),
            topology.node_rack.tolist(),
            topology.rack_zone.tolist(),
            topology.zone_region.tolist(),
            [0] * region_count,
        ]
        allowed = rule.allowed(topology).tolist()
        weights: list[float] = [
            weight if may else 0.0
            for weight, may in zip(topology.device_weight.tolist(), allowed, strict=True)
        ]
        self.other_limits = [
            (topology.domain_of_device(level).tolist(), most) for level, most in rule.also
        ]
        self.device_weight = weights
        self.domain: list[int] = topology.domain_of_device(rule.level).tolist()
        self.domain_weight = weights
        #: children[level][bucket]: children of each bucket whose children are of `level`.
        self.children: list[list[list[Child]]] = []
        for level, parent in enumerate(parents):
            if level == rule.level:
                self.domain_weight = weights
            bucket_count = max(parent, default=-1) + 1
            if level < 4:
                bucket_count = len(parents[level + 1])
            buckets: list[list[Child]] = [[] for _ in range(bucket_count)]
            sums = [0.0] * bucket_count
            for index, bucket in enumerate(parent):
                buckets[bucket].append((index, index | level << 28, weights[index]))
                sums[bucket] += weights[index]
            self.children.append(buckets)
            weights = sums

    def place(self, pg: int, n: int, seed: int = 0) -> list[int]:
        """One row."""
        x = hash2(pg, seed) if seed else pg
        row = [NO_DEVICE] * n
        for trial in range(TRIES):
            for slot in range(n):
                if row[slot] == NO_DEVICE:
                    row[slot] = self._try(row, slot, x, slot + n * trial)
        for slot in range(n):
            if row[slot] == NO_DEVICE:
                row[slot] = self._scan(row, slot, x, slot + n * TRIES)
        return row

    def replacement(self, row: list[int], slot: int, pg: int, attempt_seed: int) -> int:
        """A new device for one slot."""
        x = hash2(pg, attempt_seed)
        for trial in range(TRIES):
            device = self._try(row, slot, x, slot + len(row) * trial)
            if device != NO_DEVICE:
                return device
        return self._scan(row, slot, x, slot + len(row) * TRIES)

    def _has_room(self, row: list[int], slot: int, domain: int) -> bool:
        others = [device for i, device in enumerate(row) if i != slot and device != NO_DEVICE]
        return sum(self.domain[d] == domain for d in others) < self.rule.max_per_domain

    def _is_eligible(self, row: list[int], slot: int, device: int) -> bool:
        if self.device_state[device] != DeviceState.UP or self.device_weight[device] <= 0:
            return False
        others = [other for i, other in enumerate(row) if i != slot and other != NO_DEVICE]
        return device not in row and all(
            sum(domain[other] == domain[device] for other in others) < most
            for domain, most in self.other_limits
        )

    def _try(self, row: list[int], slot: int, x: int, r: int) -> int:
        item = 0
        for level in range(4, self.rule.level - 1, -1):
            item = straw2(self.children[level][item], x, r)
            if item == NO_DEVICE:
                return NO_DEVICE
        if not self._has_room(row, slot, item):
            return NO_DEVICE
        for level in range(self.rule.level - 1, -1, -1):
            item = straw2(self.children[level][item], x, slot + r)
            if item == NO_DEVICE:
                return NO_DEVICE
        return item if self._is_eligible(row, slot, item) else NO_DEVICE

    def _scan(self, row: list[int], slot: int, x: int, r: int) -> int:
        devices = [d for d in range(len(self.domain)) if self._is_eligible(row, slot, d)]
        domains = sorted({self.domain[d] for d in devices})
        children = [
            (domain, domain | self.rule.level << 28, self.domain_weight[domain])
            for domain in domains
            if self._has_room(row, slot, domain)
        ]
        if not children:
            return NO_DEVICE
        domain = straw2(children, x, r)
        inside = [(d, d, self.device_weight[d]) for d in devices if self.domain[d] == domain]
        return straw2(inside, x, slot + r)


def can_balance(
    rows: list[list[int]],
    limits: list[tuple[list[int], int]],
    lower: dict[int, int],
    upper: dict[int, int],
) -> bool:
    """Whether any table that keeps the rule holds every device of `lower` within its bounds.

    The oracle of the balancer, by maximum flow: source -> PG -> (PG, domain), from the largest
    domains to the smallest -> device -> sink. Slots on other devices, and empty ones, stay as they
    are. First the lower bounds must be filled, then the rest must find room.

    Args:
        rows: The table.
        limits: Domain of each device and the most slots of a PG there, largest domains first.
        lower: The fewest slots of each device that takes part.
        upper: The most.
    """
    room: dict[tuple[object, object], int] = {}
    beside: dict[object, list[object]] = {}

    def edge(a: object, b: object, capacity: int) -> None:
        if (a, b) not in room:
            room[a, b], room[b, a] = capacity, 0
            beside.setdefault(a, []).append(b)
            beside.setdefault(b, []).append(a)

    total = 0
    for pg, row in enumerate(rows):
        movable = [device for device in row if device in lower]
        fixed = [device for device in row if device >= 0 and device not in lower]
        total += len(movable)
        edge("source", ("pg", pg), len(movable))
        for device in lower:
            above: object = ("pg", pg)
            for depth, (domain, most) in enumerate(limits):
                kept = sum(domain[other] == domain[device] for other in fixed)
                below = (pg, depth, domain[device])
                edge(above, below, max(most - kept, 0))
                above = below
            edge(above, ("device", device), 1)
    for device, bound in lower.items():
        edge(("device", device), "sink", bound)
    filled = _flow(room, beside)
    if filled < sum(lower.values()):
        return False
    for device, bound in lower.items():
        room[("device", device), "sink"] += upper[device] - bound
    return filled + _flow(room, beside) == total


def _flow(room: dict[tuple[object, object], int], beside: dict[object, list[object]]) -> int:
    """What more flows from "source" to "sink": one augmenting path after another."""
    flow = 0
    while True:
        came_from: dict[object, object] = {"source": None}
        queue: list[object] = ["source"]
        for node in queue:
            for other in beside.get(node, []):
                if other not in came_from and room[node, other] > 0:
                    came_from[other] = node
                    queue.append(other)
        if "sink" not in came_from:
            return flow
        node = "sink"
        while node != "source":
            before = came_from[node]
            room[before, node] -= 1
            room[node, before] += 1
            node = before
        flow += 1

"""Placement side by side with Ceph's `crushtool`, and what the balancer reaches.

One core, one process. Speed: in every round both map groups over the same tree with the same rule,
`chooseleaf indep 0 type rack`. What `crushtool --test` takes to start and to load its map is taken
out by running it over two ranges of inputs: the difference of the times is that of the difference
of the ranges. It prints nothing, and makes no statistics.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from exastore.deploy.bench.crush import Crushtool, columns_like_crush
from exastore.metadata.core.balance import (
    balance_of,
    recovery_spread,
    rule_violations,
)
from exastore.metadata.core.balancer import (
    apply_balance_to_rows,
    ideal_slots,
    plan_balance_of_rows,
)
from exastore.metadata.core.balancer_recovery import plan_even_recovery
from exastore.metadata.core.cluster_map import topology_with_devices, topology_with_node
from exastore.metadata.core.placement import (
    all_up,
    place_with_columns,
    placement_columns,
)
from exastore.metadata.core.policy import (
    Copysets,
    PlacementPolicy,
    RandomDeclustered,
    Straw2,
    distinct_copysets,
    loss_probability,
    place_by_policy,
)
from exastore.metadata.core.topology import (
    DomainLevel,
    Int32Array,
    PlacementRule,
    Topology,
    frozen,
)

#: 9,600 devices in 480 nodes and 24 racks.
TREE: Final = Topology.uniform(racks_per_zone=24, nodes_per_rack=20, devices_per_node=20)
#: 100,000 devices in 5,000 nodes and 50 racks.
LARGE: Final = Topology.uniform(racks_per_zone=50, nodes_per_rack=100, devices_per_node=20)
RULE: Final = PlacementRule(DomainLevel.RACK)
#: 100 slots on each of the 9,600 devices, 14 wide and 3 wide.
PG_COUNTS: Final = {14: 68_571, 3: 320_000}
LARGE_PG_COUNT: Final = 720_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table.

    Attributes:
        table: "mapping", "balance", "movement", "recovery" or "policy".
        case: Which line.
        values: Figures by name, units last.
        target: What the figures should be, in words; "" where none was set.
        is_reached: Whether they are.
    """

    table: str
    case: str
    values: dict[str, float]
    target: str = ""
    is_reached: bool = True


def as_json(figure: Figure) -> dict[str, Any]:
    """For a line of results."""
    return asdict(figure)


def steps(tool: str | None, rounds: int) -> list[tuple[str, Callable[[], Iterator[Figure]]]]:
    """What there is to measure, by name; without `tool` nothing is compared with crushtool."""
    found: list[tuple[str, Callable[[], Iterator[Figure]]]] = []
    if tool is not None:
        found.append(("mapping", lambda: mapping(tool, rounds)))
    return [
        *found,
        ("balance", balance),
        ("movement", movement),
        ("recovery", recovery),
        ("policy", policies),
    ]


def mapping(tool: str, rounds: int) -> Iterator[Figure]:
    """Mappings per second, 3 wide and 14 wide."""
    columns = columns_like_crush(TREE, RULE)
    with tempfile.TemporaryDirectory() as folder:
        crush = Crushtool(tool, Path(folder), TREE, RULE)
        for width, few, many in ((3, 5_000, 45_000), (14, 1_000, 11_000)):
            count = 4 * many
            ours, theirs = place_with_columns(columns, 500, width), crush.rows(0, 500, width)
            same = float((ours == theirs).mean())
            our_rates: list[float] = []
            their_rates: list[float] = []
            for _ in range(rounds):
                our_s = _timed(partial(place_with_columns, columns, count, width))
                few_s = _timed(partial(crush.map_inputs, few, width))
                many_s = _timed(partial(crush.map_inputs, many, width))
                our_rates.append(count / our_s)
                their_rates.append((many - few) / (many_s - few_s))
            ratio = median(o / t for o, t in zip(our_rates, their_rates, strict=True))
            yield Figure(
                "mapping",
                f"{width} wide",
                {
                    "ours_per_s": median(our_rates),
                    "crushtool_per_s": median(their_rates),
                    "ratio": ratio,
                    "same_devices": same,
                },
                "ratio >= 20",
                ratio >= 20,
            )


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _balanced(topology: Topology, width: int, pg_count: int) -> tuple[Int32Array, Int32Array]:
    """(as hashed, balanced)."""
    columns = placement_columns(topology, RULE)
    rows = place_with_columns(columns, pg_count, width)
    return rows, apply_balance_to_rows(rows, plan_balance_of_rows(columns, rows))


def balance() -> Iterator[Figure]:
    """What the balancer makes of what hashing gives, and how long it takes."""
    for name, topology, width, pg_count in (
        ("9,600 devices, 3 wide", TREE, 3, PG_COUNTS[3]),
        ("9,600 devices, 14 wide", TREE, 14, PG_COUNTS[14]),
        ("100,000 devices, 14 wide", LARGE, 14, LARGE_PG_COUNT),
    ):
        columns = placement_columns(topology, RULE)
        rows = place_with_columns(columns, pg_count, width)
        plan_balance_of_rows(columns, rows[:100])  # compiles
        begin = time.perf_counter()
        plan = plan_balance_of_rows(columns, rows)
        plan_s = time.perf_counter() - begin
        after = apply_balance_to_rows(rows, plan)
        before, now = (balance_of(table, topology.device_weight) for table in (rows, after))
        violations = int(rule_violations(topology, RULE, after).sum())
        reached = now.maximum / now.mean
        yield Figure(
            "balance",
            name,
            {
                "straw2_max_over_mean": before.maximum / before.mean,
                "max_over_mean": reached,
                "moves": len(plan),
                "moves_over_minimum": len(plan) / plan.minimum_moves,
                "violations": violations,
                "plan_s": plan_s,
            },
            "max/mean <= 1.01, plan <= 60 s",
            reached <= 1.01 + 1e-9 and plan_s <= 60 and not violations,
        )


def _changes() -> Iterator[tuple[str, Topology]]:
    node, rack = TREE.domain_of_device(DomainLevel.NODE), TREE.domain_of_device(DomainLevel.RACK)
    chosen = {
        "device": np.arange(TREE.device_count) == 0,
        "node": node == 0,
        "rack": rack == 0,
    }
    ones = [1.0] * 20
    grown = topology_with_node(TREE, rack=24, device_weights=ones)
    for _ in range(19):
        grown = topology_with_node(grown, rack=24, device_weights=ones)
    yield "add a device", topology_with_devices(TREE, 0, [1.0])
    yield "add a node", topology_with_node(TREE, rack=0, device_weights=ones)
    yield "add a rack", grown
    for verb, factor in (("remove", 0.0), ("reweight", 1.25)):
        for what, devices in chosen.items():
            weight = np.where(devices, factor, TREE.device_weight)
            yield f"{verb} a {what}", replace(TREE, device_weight=frozen(weight))


def movement() -> Iterator[Figure]:
    """What moves when the topology changes, 14 wide, from a balanced table."""
    width, pg_count = 14, PG_COUNTS[14]
    hashed, rows = _balanced(TREE, width, pg_count)
    for name, topology in _changes():
        columns = placement_columns(topology, RULE)
        plan = plan_balance_of_rows(columns, rows)
        after = apply_balance_to_rows(rows, plan)
        state = all_up(topology.device_count)
        old_ideal = np.zeros(topology.device_count)
        old_ideal[: TREE.device_count] = ideal_slots(
            placement_columns(TREE, RULE), rows, all_up(TREE.device_count)
        )
        share = float(np.maximum(ideal_slots(columns, rows, state) - old_ideal, 0).sum())
        crush_moves = int((place_with_columns(columns, pg_count, width) != hashed).sum())
        violations = int(rule_violations(topology, RULE, after).sum())
        ratio = len(plan) / plan.minimum_moves
        yield Figure(
            "movement",
            name,
            {
                "moves": len(plan),
                "minimum_moves": plan.minimum_moves,
                "moves_over_minimum": ratio,
                "change_of_shares": share,
                "moves_over_change": len(plan) / share,
                "crush_over_change": crush_moves / share,
                "violations": violations,
                "outside": plan.outside_count,
            },
            "moves/minimum <= 1.05, 0 violations",
            ratio <= 1.05 and violations == 0 and plan.outside_count == 0,
        )


def recovery() -> Iterator[Figure]:
    """Who reads for whom, before and after it is evened out; all 9,600 devices are looked at."""
    columns = placement_columns(TREE, RULE)
    for width, pg_count in PG_COUNTS.items():
        hashed, balanced = _balanced(TREE, width, pg_count)
        plan_even_recovery(columns, balanced[:100])  # compiles
        begin = time.perf_counter()
        plan = plan_even_recovery(columns, balanced)
        plan_s = time.perf_counter() - begin
        even = apply_balance_to_rows(balanced, plan)
        for name, rows, moves, seconds in (
            ("straw2", hashed, 0, 0.0),
            ("balanced", balanced, 0, 0.0),
            ("balanced and evened", even, len(plan), plan_s),
        ):
            spread = recovery_spread(rows, TREE.device_count, sample_count=TREE.device_count)
            load = balance_of(rows, TREE.device_weight)
            yield Figure(
                "recovery",
                f"{width} wide, {name}",
                {
                    "peers": spread.peer_count_mean,
                    "shared_mean": spread.shared_mean,
                    "shared_max": spread.shared_max,
                    "max_over_mean": spread.max_over_mean,
                    "balance_max_over_mean": load.maximum / load.mean,
                    "moves": moves,
                    "plan_s": seconds,
                },
            )


def policies() -> Iterator[Figure]:
    """Copysets against fan-out, 3 copies and 10+4, when 1 % and 5 % of the nodes fail at once."""
    columns = placement_columns(TREE, RULE)
    node = TREE.domain_of_device(DomainLevel.NODE)
    for width, bearable in ((3, 2), (14, 4)):
        chosen: list[PlacementPolicy] = [
            Straw2(),
            RandomDeclustered(),
            *(Copysets(peers) for peers in (200, 52, 26, width - 1)),
        ]
        for policy in chosen:
            rows = place_by_policy(policy, columns, PG_COUNTS[width], width)
            spread = recovery_spread(rows, TREE.device_count)
            load = balance_of(rows, TREE.device_weight)
            losses = [
                loss_probability(
                    rows,
                    node,
                    failed,
                    bearable,
                    trials=1_000,
                    rng=np.random.Generator(np.random.PCG64(7)),
                )
                for failed in (5, 24)
            ]
            yield Figure(
                "policy",
                f"{width} wide, {policy.name}",
                {
                    "copysets": distinct_copysets(rows),
                    "peers": spread.peer_count_mean,
                    "max_over_mean": load.maximum / load.mean,
                    "loss_1_percent": losses[0],
                    "loss_5_percent": losses[1],
                },
            )

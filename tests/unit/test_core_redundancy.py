"""Remaining redundancy and the reads of a repair, for every family of codes."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from exastore.erasure import Codec, TooFewChunks, UnknownCode, codec
from exastore.metadata.core.cluster_map import new_map, with_device_state
from exastore.metadata.core.redundancy import (
    redundancy_of,
    remaining_of_rows,
    repair_plan_for,
    survives,
)
from exastore.metadata.core.redundancy_kernels import (
    code_columns,
    pattern_row,
    plan_slot_repair,
    remaining_redundancy,
)
from exastore.metadata.core.repair import classify, plan_repair
from exastore.metadata.core.topology import DeviceState, PlacementRule, Topology, frozen

CODES = ["rs-4-2", "rs-3-0", "rep-3", "clay-4-2-5", "lrc-6-2-2", "lrc-6-3-1", "lrc-4-4-2"]
WIDE = "lrc-48-4-3"


def by_trying(code: Codec, lost: frozenset[int]) -> int:
    """The definition, step by step."""
    others = set(range(code.n)) - lost
    if code.decodable(lost):
        sizes = range(len(others) + 1)
        return next(s - 1 for s in sizes if not survives_all(code, lost, sorted(others), s))
    return -next(
        s
        for s in range(code.n + 1)
        if any(code.decodable(lost - set(back)) for back in combinations(sorted(lost), s))
    )


def survives_all(code: Codec, lost: frozenset[int], others: list[int], count: int) -> bool:
    return all(code.decodable(lost | set(more)) for more in combinations(others, count))


def flags(n: int, lost: frozenset[int]) -> np.ndarray:
    row = np.zeros(n, np.bool_)
    row[list(lost)] = True
    return row


def losses(rng: np.random.Generator, n: int, count: int, most: int) -> list[frozenset[int]]:
    sizes = rng.integers(0, most + 1, count)
    return [frozenset(rng.choice(n, size, replace=False).tolist()) for size in sizes]


@pytest.mark.parametrize("name", CODES)
def test_redundancy_is_the_least_further_loss_that_kills_minus_one(name: str) -> None:
    code, redundancy, columns = codec(name), redundancy_of(name), code_columns(name)
    for size in range(code.n):
        for lost in map(frozenset, combinations(range(code.n), size)):
            value = by_trying(code, lost)
            assert redundancy.of(lost) == value, lost
            assert remaining_redundancy(columns, flags(code.n, lost)) == value, lost
            for further in range(3):
                assert survives(code, lost, further) == (value >= further), lost


def test_an_lrc_has_as_many_lost_patterns_of_four_as_its_paper_says() -> None:
    redundancy, columns = redundancy_of("lrc-12-2-2"), code_columns("lrc-12-2-2")
    patterns = [frozenset(lost) for lost in combinations(range(16), 4)]
    lost = [pattern for pattern in patterns if redundancy.of(pattern) < 0]
    assert len(lost) == 252 and len(patterns) == 1820
    assert all(remaining_redundancy(columns, flags(16, pattern)) < 0 for pattern in lost)
    assert redundancy.sure == redundancy.of([]) == 3


def test_losses_in_different_groups_of_an_lrc_are_less_urgent() -> None:
    redundancy = redundancy_of("lrc-12-2-2")
    assert redundancy.of([0, 6]) == 2
    assert redundancy.of([0, 1]) == 1
    assert redundancy.of([0]) == redundancy.of([12]) == redundancy.of([15]) == 2


def test_a_wide_lrc_is_judged_by_the_code_and_bounded_by_its_distance() -> None:
    code, redundancy, columns = codec(WIDE), redundancy_of(WIDE), code_columns(WIDE)
    assert len(redundancy.table) == 0 and redundancy.sure == 4
    rng = np.random.Generator(np.random.PCG64(7))
    values: set[int] = set()
    for lost in losses(rng, code.n, 400, 8):
        value = redundancy.of(lost)
        values.add(value)
        assert (value >= 0) == code.decodable(lost)
        assert remaining_redundancy(columns, flags(code.n, lost)) == value
        if value >= 1:
            assert survives(code, lost, 1)
    assert values == {-1, 0, 1, 2, 3, 4}
    # Of five losses that the shape allows these are among the few that this code cannot decode.
    five = next(
        lost for lost in map(frozenset, combinations(range(14), 5)) if not code.decodable(lost)
    )
    assert remaining_redundancy(columns, flags(code.n, five)) == -1


@pytest.mark.parametrize("name", ["rs-4-2", "lrc-6-2-2", WIDE])
def test_rows_of_a_map_have_the_redundancy_of_each_row(name: str) -> None:
    code = codec(name)
    rng = np.random.Generator(np.random.PCG64(1))
    rows = np.array([flags(code.n, lost) for lost in losses(rng, code.n, 60, code.m + 1)])
    expected = [redundancy_of(name).of(np.flatnonzero(row).tolist()) for row in rows]
    assert remaining_of_rows(name, rows, code.m).tolist() == expected


def test_a_map_without_a_code_counts_losses() -> None:
    assert remaining_of_rows("", np.array([[True, False, True]]), 1).tolist() == [-1]
    with pytest.raises(UnknownCode):
        redundancy_of("rs-x")


def test_patterns_are_numbered_without_gaps() -> None:
    rows = [
        pattern_row(flags(6, frozenset(lost)))
        for size in range(1, 4)
        for lost in combinations(range(6), size)
    ]
    assert sorted(rows) == list(range(6 + 15 + 20))


@pytest.mark.parametrize("name", [*CODES, "lrc-12-2-2", "clay-10-4-13"])
def test_compiled_plans_are_the_plans_of_the_code(name: str) -> None:
    code, columns = codec(name), code_columns(name)
    rng = np.random.Generator(np.random.PCG64(3))
    reads = np.zeros(code.n, np.bool_)
    for lost in losses(rng, code.n, 300, min(code.n, code.m + 1)):
        slot = int(rng.integers(code.n))
        share = plan_slot_repair(columns, slot, flags(code.n, lost), reads)
        try:
            plan = repair_plan_for(code, [slot], lost)
        except TooFewChunks:
            assert share == 0.0 and not reads.any()
            continue
        assert share == pytest.approx(plan.bytes_fraction / len(plan.reads))
        assert np.flatnonzero(reads).tolist() == list(plan.reads), (slot, lost)
        assert not (set(plan.reads) & (lost | {slot}))


def test_a_group_repairs_its_chunk_whatever_is_lost_elsewhere() -> None:
    code = codec("lrc-12-2-2")
    assert list(repair_plan_for(code, [0], [6, 14]).reads) == [1, 2, 3, 4, 5, 12]
    assert len(repair_plan_for(code, [0], [1]).reads) == 12
    # Both groups are asked if the loss in the other one hides data from the global parity.
    assert repair_plan_for(code, [0], [1, 6]).lost == (0, 1, 6)


def test_a_clay_repair_with_another_loss_reads_k_chunks_or_the_part_for_both() -> None:
    code = codec("clay-4-2-5")
    assert repair_plan_for(code, [0], []).bytes_fraction == 2.5
    assert repair_plan_for(code, [0], [2]).bytes_fraction == 4.0


def test_a_wide_code_beyond_its_plans_reads_k_chunks() -> None:
    columns, reads = code_columns(WIDE), np.zeros(55, np.bool_)
    assert columns.plan_losses == 2
    assert plan_slot_repair(columns, 0, flags(55, frozenset({20, 40})), reads) == 1.0
    assert np.flatnonzero(reads).tolist() == [*range(1, 12), 48]
    assert plan_slot_repair(columns, 0, flags(55, frozenset({1, 2})), reads) == 1.0
    assert reads.sum() == 48 and not reads[:3].any()


def test_the_planner_repairs_the_worse_pattern_of_an_lrc_first() -> None:
    topology = Topology.uniform(nodes_per_rack=20)
    rows = np.stack([np.arange(16), np.arange(16), np.arange(16)]).astype(np.int32)
    rows[0, [0, 6]] = [16, 17]
    rows[1, [0, 1]] = [16, 17]
    rows[2, [0, 1, 2, 3]] = [16, 17, 18, 19]
    base = new_map(topology, PlacementRule(), "lrc-12-2-2", 16, 3)
    state = dict.fromkeys(range(16, 20), DeviceState.OUT)
    cluster_map = with_device_state(replace(base, pg_devices=frozen(rows)), state)
    health = classify(cluster_map)
    assert health.remaining_redundancy.tolist() == [2, 1, -1]
    plan = plan_repair(cluster_map)
    assert plan.pg.tolist() == [1, 1, 0, 0]
    assert plan.blocked.tolist() == [2]

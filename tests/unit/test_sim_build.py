"""Lists of slots, and the decks they come from, against plain Python."""

import numpy as np
import pytest

from exastore.metadata.core import policy
from exastore.metadata.core.straw2 import hash2
from exastore.sim import build


def test_lists_hold_the_slots_of_each_device_in_order_whatever_is_sorted_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "_SORT_SLOTS_MIN", 0)
    monkeypatch.setattr(build, "_SORTED_PER_DEVICE", 1)
    devices, shift = 9_000, 3  # three ranges, the last one short
    table = np.random.default_rng(1).integers(-1, devices, (5_000, 5), dtype=np.int32)
    expected: list[list[int]] = [[] for _ in range(devices)]
    for (pg, index), device in np.ndenumerate(table):
        if device >= 0:
            expected[device].append(pg << shift | index)

    slots, count = build.device_lists(table, devices, shift)

    assert len(table) * table.shape[1] > 2 * devices  # in several rounds
    assert [slots[at, :its].tolist() for at, its in enumerate(count)] == expected
    assert slots.shape[1] >= count.max() * 3 // 2


@pytest.mark.parametrize("size", [0, 1, 2, 500, 2_047, 2_048, 9_001])
def test_a_shuffled_deck_is_in_the_order_of_the_hashes_of_places(size: int) -> None:
    seed = np.uint32(0xFFFFFFFF)
    deck = (np.arange(size) // 3).astype(np.int32)
    hashes = [int(hash2(np.uint32(place), seed)) for place in range(size)]
    expected = deck[np.argsort(np.array(hashes, np.int64), kind="stable")]

    policy.shuffle(seed, deck)

    assert deck.tolist() == expected.tolist()


def test_equal_remainders_get_one_more_in_the_order_of_hashes() -> None:
    below = np.repeat([-0.5, -0.25, -0.75], 40)
    hashes = np.array([int(hash2(np.uint32(at), np.uint32(7))) for at in range(len(below))])
    order = np.lexsort((hashes, below))
    for most in (1, 40, 55, 120):
        chosen = np.flatnonzero(policy.largest_remainders(below, most, 7))
        assert sorted(order[:most].tolist()) == chosen.tolist()

"""Placement policies: values behind one interface, from columns to a table of rows.

| policy | peers of a device | distinct copysets | what it is for |
|---|---|---|---|
| `Straw2` | all it may have | one for each PG | CRUSH's choices, stable in changes |
| `RandomDeclustered` | all it may have | one for each PG | even without a balancer |
| `Copysets` | about `scatter_width` | few | fewer ways to lose data, slower recovery |
| `Custom` | as you like | as you like | your own function, in Python or compiled by numba |

A copyset is the set of devices of a row. Data is lost when more devices of one copyset than the
code bears fail together, so fewer copysets mean fewer combinations that lose data, and more data
lost at once; a smaller scatter width means fewer devices that read for one that died. (Cidon et
al., Copysets, USENIX ATC 2013, section 4.1: with permutations, every device is in
scatter_width / (n - 1) copysets.)

Whatever a policy makes is checked: a row that breaks the rule is an error, also of a user's own.
A policy makes first tables. Replacements are chosen by straw2 whatever the policy, so copysets grow
in number as devices fail; `distinct_copysets` tells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from exastore.erasure.jit import njit
from exastore.metadata.core.balance import SEEN_BITS, row_violations
from exastore.metadata.core.columns import BoolArray, PlacementColumns
from exastore.metadata.core.errors import ImpossibleRule, PolicyBrokeRule
from exastore.metadata.core.placement import all_up, choose_replacement, place_with_columns
from exastore.metadata.core.straw2 import Uint32Array, mix, wide_vectors
from exastore.metadata.core.topology import (
    NO_DEVICE,
    DeviceState,
    Float64Array,
    Int32Array,
    Int64Array,
    Uint8Array,
)
from exastore.metadata.core.trial import keeps_other_limits, keeps_rule

#: Devices of the deck that are tried for a slot before it is left to straw2.
DEAL_ATTEMPTS = 256
#: Rows that are asked to change places for a card that fits nowhere.
EXCHANGE_ROWS = 512
#: A shuffle makes parts of about 2**_PART_BITS cards, which a first-level cache holds, and sorts
#: each by so many bits.
_PART_BITS = 11
#: Below the hash of a pair.
_CARD_BITS = 31
#: Places that are hashed at a time.
_HASH_BLOCK = 1024


class PlacementPolicy(Protocol):
    """Makes rows."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def fill(
        self, columns: PlacementColumns, device_state: Uint8Array, seed: int, rows: Int32Array
    ) -> None:
        """Fills `rows`, shape (P, n), all NO_DEVICE; the same arguments give the same rows."""
        ...


def place_by_policy(
    policy: PlacementPolicy,
    columns: PlacementColumns,
    pg_count: int,
    n: int,
    *,
    seed: int = 0,
    device_state: Uint8Array | None = None,
) -> Int32Array:
    """Shape (pg_count, n): rows made by the policy, which keep the rule.

    Raises:
        PolicyBrokeRule: A row breaks the rule, or names a device that may not take data.
    """
    device_count = len(columns.device_weight)
    state = all_up(device_count) if device_state is None else np.array(device_state, np.uint8)
    rows = np.full((pg_count, n), NO_DEVICE, dtype=np.int32)
    policy.fill(columns, state, seed & 0xFFFFFFFF, rows)
    may = np.append((state == DeviceState.UP) & (columns.device_weight > 0), True)
    is_known = (rows >= NO_DEVICE) & (rows < device_count)
    broken = np.asarray(~(is_known & may[np.where(is_known, rows, NO_DEVICE)]).all(axis=1))
    known = np.flatnonzero(~broken)
    broken[known] = row_violations(rows[known], columns)
    if broken.any():
        pg = int(np.flatnonzero(broken)[0])
        raise PolicyBrokeRule(policy.name, pg, rows[pg].tolist(), int(broken.sum()))
    return rows


@dataclass(frozen=True, slots=True)
class Straw2:
    """CRUSH's draws, each group by itself; see `placement`."""

    name: str = "straw2"

    def fill(
        self, columns: PlacementColumns, device_state: Uint8Array, seed: int, rows: Int32Array
    ) -> None:
        """See `PlacementPolicy.fill`."""
        count, n = rows.shape
        rows[:] = place_with_columns(columns, count, n, seed=seed, device_state=device_state)


@dataclass(frozen=True, slots=True)
class RandomDeclustered:
    """Rows dealt from a shuffled deck in which every device is as often as its share."""

    name: str = "random-declustered"

    def fill(
        self, columns: PlacementColumns, device_state: Uint8Array, seed: int, rows: Int32Array
    ) -> None:
        """See `PlacementPolicy.fill`."""
        deck = _deck(columns, device_state, rows.size, seed)
        if len(deck):
            _deal(columns, device_state, np.uint32(seed), deck, rows)


@dataclass(frozen=True, slots=True)
class Copysets:
    """Few copysets, dealt like rows of `RandomDeclustered` and used by many groups each.

    Attributes:
        scatter_width: Peers that share data with a device, at least n - 1; reached from above as
            far as copysets that overlap in few devices can be found.
    """

    scatter_width: int

    @property
    def name(self) -> str:
        """With the parameter."""
        return f"copyset-{self.scatter_width}"

    def fill(
        self, columns: PlacementColumns, device_state: Uint8Array, seed: int, rows: Int32Array
    ) -> None:
        """See `PlacementPolicy.fill`."""
        pg_count, n = rows.shape
        if self.scatter_width < n - 1:
            raise ImpossibleRule(
                "scatter_width",
                self.scatter_width,
                f"a device shares groups of {n} with at least {n - 1} others",
                f"choose at least {n - 1}",
            )
        usable = int(((device_state == DeviceState.UP) & (columns.device_weight > 0)).sum())
        per_device = -(-self.scatter_width // max(n - 1, 1))
        # Rounded down: rather some devices hold less than a few hold more than all others.
        count = min(max(per_device * usable // n, 1), pg_count)
        sets = np.full((count, n), NO_DEVICE, dtype=np.int32)
        RandomDeclustered().fill(columns, device_state, seed, sets)
        # Turned by one place each time, so that no device holds parity for all of its groups.
        group = np.arange(pg_count)
        turn = (np.arange(n)[None, :] + (group // max(count, 1))[:, None]) % n
        rows[:] = sets[(group % max(count, 1))[:, None], turn]


@dataclass(frozen=True, slots=True)
class Custom:
    """A user's own policy.

    Attributes:
        name: What reports call it.
        function: (columns, device_state, seed, rows) -> None: fills `rows`, as
            `PlacementPolicy.fill` says. A plain function, or one compiled by `numba.njit`.
    """

    name: str
    function: Callable[[PlacementColumns, Uint8Array, int, Int32Array], None]

    def fill(
        self, columns: PlacementColumns, device_state: Uint8Array, seed: int, rows: Int32Array
    ) -> None:
        """See `PlacementPolicy.fill`."""
        self.function(columns, device_state, seed, rows)


def _deck(columns: PlacementColumns, device_state: Uint8Array, size: int, seed: int) -> Int32Array:
    """Shape (size,): every device as often as its share by weight, to within 1, shuffled."""
    weight: Float64Array = np.where(device_state == DeviceState.UP, columns.device_weight, 0.0)
    total = weight.sum()
    if total == 0:
        return np.zeros(0, dtype=np.int32)
    share = weight * (size / total)
    count = np.floor(share).astype(np.int64)
    left = size - int(count.sum())
    if left == len(weight):
        count += 1
    elif left:
        count[largest_remainders(count - share, left, seed)] += 1
    deck = np.repeat(np.arange(len(weight), dtype=np.int32), count)
    shuffle(np.uint32((seed ^ 0x5EED) & 0xFFFFFFFF), deck)
    return deck


def largest_remainders(below: Float64Array, most: int, seed: int) -> BoolArray:
    """The `most` lowest of `below`; equal ones in the order of hashes of their places."""
    last = np.partition(below, most - 1)[most - 1]
    chosen: BoolArray = below < last
    equal = np.flatnonzero(below == last)
    words = np.empty(len(below), np.uint32)
    _hash_places(np.uint32(seed & 0xFFFFFFFF), 0, words)
    order = (words[equal].astype(np.int64) << _CARD_BITS) | equal
    still = most - int(chosen.sum())
    chosen[equal[order <= np.partition(order, still - 1)[still - 1]]] = True
    return chosen


@njit
def _hash_places(seed: np.uint32, first: int, out: Uint32Array) -> None:
    """out[j] = hash2(first + j, seed): its body, for vector code, which takes a fifteenth."""
    wide_vectors()
    for j in range(len(out)):
        a, b = np.uint32(first + j), seed
        h = np.uint32(np.uint32(1315423911) ^ a ^ b)
        y, z = np.uint32(231232), np.uint32(1232)
        a, b, h = mix(a, b, h)
        y, a, h = mix(y, a, h)
        b, z, h = mix(b, z, h)
        out[j] = h


@njit
def begin_after_each_other(counts: Int64Array) -> None:
    """In place, how many of each there are becomes where the first of each goes."""
    before = np.int64(0)
    for value in range(len(counts)):
        count = counts[value]
        counts[value] = before
        before += count


@njit
def _part(
    seed: np.uint32, shift: int, deck: Int32Array, ends: Int64Array, pairs: Int64Array
) -> None:
    """Pairs of hash and card by the high bits of the hash; ends[v]: of those with the bits v."""
    words = np.empty(_HASH_BLOCK, np.uint32)
    for begin in range(0, len(deck), _HASH_BLOCK):
        count = min(_HASH_BLOCK, len(deck) - begin)
        _hash_places(seed, begin, words[:count])
        for j in range(count):
            ends[np.int64(words[j]) >> shift] += 1
    begin_after_each_other(ends)
    for begin in range(0, len(deck), _HASH_BLOCK):
        count = min(_HASH_BLOCK, len(deck) - begin)
        _hash_places(seed, begin, words[:count])
        for j in range(count):
            part = np.int64(words[j]) >> shift
            pairs[ends[part]] = (np.int64(words[j]) << _CARD_BITS) | deck[begin + j]
            ends[part] += 1


@njit
def _sort_part(
    shift: int, pairs: Int64Array, room: Int64Array, places: Int64Array, deck: Int32Array
) -> None:
    """The cards of one part in the order of their hashes, equal ones as they were."""
    mask = len(places) - 1
    places[:] = 0
    for pair in pairs:
        places[(pair >> shift) & mask] += 1
    begin_after_each_other(places)
    for pair in pairs:
        value = (pair >> shift) & mask
        room[places[value]] = pair
        places[value] += 1
    for i in range(len(pairs)):  # what is left to do is among a few neighbours
        pair, at = room[i], i
        while at > 0 and (room[at - 1] >> _CARD_BITS) > (pair >> _CARD_BITS):
            room[at] = room[at - 1]
            at -= 1
        room[at] = pair
    for i in range(len(pairs)):
        deck[i] = np.int32(room[i] & ((1 << _CARD_BITS) - 1))


@njit
def _sort_parts(shift: int, ends: Int64Array, pairs: Int64Array, deck: Int32Array) -> None:
    begin, most = 0, 0
    for end in ends:
        begin, most = end, max(most, end - begin)
    room = np.empty(most, np.int64)
    places = np.empty(1 << _PART_BITS, np.int64)
    begin = 0
    for end in ends:
        _sort_part(shift, pairs[begin:end], room, places, deck[begin:end])
        begin = end


def shuffle(seed: np.uint32, deck: Int32Array) -> None:
    """Puts the cards into the order of the hashes of their places; equal ones keep theirs.

    Decks do not fit the caches, so they are parted once into parts that do: 13 ns for each of
    10 million cards, where sorting all by one digit after the other takes 44.
    """
    part_bits = max(len(deck).bit_length() - _PART_BITS, 0)
    pairs = np.empty(len(deck), np.int64)  # of numpy, which asks for huge pages
    ends = np.zeros(1 << part_bits, np.int64)
    _part(seed, 32 - part_bits, deck, ends, pairs)
    # Of a pair, the bits of the hash right below those that the part has in common.
    _sort_parts(_CARD_BITS + 32 - part_bits - _PART_BITS, ends, pairs, deck)


@njit
def _deal(
    columns: PlacementColumns,
    device_state: Uint8Array,
    seed: np.uint32,
    deck: Int32Array,
    rows: Int32Array,
) -> None:
    """Deals the deck from its end; a card that fits nowhere near is passed over.

    At the end, cards that fit in no slot that is left change places with those of other rows; where
    even that fails, straw2 decides.
    """
    left, width = len(deck), rows.shape[1]
    domain_of_device, most = columns.domain_of_device, columns.max_per_domain
    limit_max, limit_domain = columns.limit_max, columns.limit_domain
    last_row = np.full(1 << SEEN_BITS, -1, np.int32)
    for p in range(rows.shape[0]):
        row = rows[p]
        for slot in range(width):
            for back in range(min(DEAL_ATTEMPTS, left)):
                device = deck[left - 1 - back]
                domain = domain_of_device[device]
                seen = domain & ((1 << SEEN_BITS) - 1)
                fits = last_row[seen] != p
                if not fits:
                    used, is_new = 0, True
                    for i in range(slot):  # as `keeps_rule`, whose call costs more than all of it
                        used += row[i] >= 0 and domain_of_device[row[i]] == domain
                        is_new &= row[i] != device
                    fits = is_new and used < most
                if fits and (
                    len(limit_max) == 0
                    or keeps_other_limits(limit_max, limit_domain, row, slot, int(device))
                ):
                    row[slot], last_row[seen] = device, p
                    deck[left - 1 - back] = deck[left - 1]
                    left -= 1
                    break
    for p in range(rows.shape[0]):
        for slot in range(rows.shape[1]):
            if rows[p, slot] < 0:
                left = _exchange(columns, deck, left, rows, p, slot)
                if rows[p, slot] < 0:
                    rows[p, slot] = choose_replacement(
                        columns, device_state, rows[p], slot, p, int(seed)
                    )


@njit
def _exchange(
    columns: PlacementColumns, deck: Int32Array, left: int, rows: Int32Array, p: int, slot: int
) -> int:
    """Gives a card that fits nowhere to another row, whose device comes here; the cards left."""
    if left == 0:
        return 0
    card, width = int(deck[left - 1]), rows.shape[1]
    for back in range(1, min(EXCHANGE_ROWS, rows.shape[0])):
        q = (p - back) % rows.shape[0]
        for j in range(width):
            device = int(rows[q, j])
            if (
                device >= 0
                and keeps_rule(columns, rows[p], slot, device)
                and keeps_rule(columns, rows[q], j, card)
            ):
                rows[p, slot], rows[q, j] = device, card
                return left - 1
    return left


def distinct_copysets(rows: Int32Array) -> int:
    """How many different sets of devices the rows are."""
    return len(np.unique(np.sort(rows, axis=1), axis=0)) if rows.size else 0


def loss_probability(
    rows: Int32Array,
    domain_of_device: Int32Array,
    failed_count: int,
    bearable: int,
    *,
    trials: int,
    rng: np.random.Generator,
) -> float:
    """Probability that data is lost when some domains fail for good at the same moment.

    Args:
        rows: Shape (P, n). The PG table.
        domain_of_device: Shape (D,). Domain of each device, for example its node.
        failed_count: Domains that fail together, drawn at random.
        bearable: Chunks of a stripe that may be lost: m.
        trials: Draws; the standard error is sqrt(p (1 - p) / trials).
        rng: Where draws come from.
    """
    domains = domain_of_device[np.unique(np.sort(rows, axis=1), axis=0)]
    domain_count = int(domain_of_device.max(initial=-1)) + 1
    failed = np.zeros((trials, domain_count), dtype=np.bool_)
    for trial in range(trials):
        failed[trial, rng.choice(domain_count, failed_count, replace=False)] = True
    return _count_losses(domains.astype(np.int32), failed, bearable) / trials


@njit
def _count_losses(domains: Int32Array, failed: BoolArray, bearable: int) -> int:
    """In how many trials some row loses more than it bears."""
    losses = 0
    for trial in range(failed.shape[0]):
        for p in range(domains.shape[0]):
            lost = 0
            for slot in range(domains.shape[1]):
                lost += failed[trial, domains[p, slot]]
            if lost > bearable:
                losses += 1
                break
    return losses

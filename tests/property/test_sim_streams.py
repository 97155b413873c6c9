"""Addressed random numbers: equal to the twin, in range, and of the right law."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.sim._reference import mix64 as plain_mix64
from exastore.sim.streams import bits64, mix64, trial_key, uniform, weibull

words = st.integers(0, 2**64 - 1)
small = st.integers(0, 2**31 - 1)


@settings(deadline=None)
@given(words)
def test_the_hash_equals_its_plain_twin(word: int) -> None:
    assert int(mix64(np.uint64(word))) == plain_mix64(word)


def test_the_hash_gives_the_published_sequence_of_splitmix64() -> None:
    # First outputs of splitmix64 with seed 1234567, as in its reference implementation.
    state, found = 1234567, []
    for _ in range(3):
        found.append(plain_mix64(state))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


# The first call compiles.
@settings(deadline=None)
@given(small, small, st.integers(0, 255), st.integers(0, 2**40), small)
def test_addresses_give_numbers_inside_the_unit_interval(
    seed: int, trial: int, stream: int, entity: int, draw: int
) -> None:
    key = np.uint64(trial_key(seed, trial))
    plain = plain_mix64(plain_mix64(seed) ^ trial)
    assert int(key) == plain
    bits = int(bits64(key, stream, entity, draw))
    assert bits == plain_mix64(plain_mix64(plain ^ (stream << 56 | entity)) ^ draw)
    assert 0 < uniform(key, stream, entity, draw) < 1


def test_lives_have_the_mean_of_their_law() -> None:
    key = np.uint64(trial_key(1, 2))
    lives = [weibull(key, 1, device, 0, 10.0, 1.0) for device in range(20_000)]
    assert abs(np.mean(lives) - 10.0) < 4 * 10.0 / np.sqrt(20_000)
    worn = [weibull(key, 1, device, 0, 10.0, 2.0) for device in range(20_000)]
    assert abs(np.mean(worn) - 10.0 * np.sqrt(np.pi) / 2) < 0.15

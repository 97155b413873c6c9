"""Addressed random numbers: equal to the twin, in range, and of the right law."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.sim._reference_draws import mix64 as plain_mix64
from exastore.sim.physics import LAW, PIECE, build_physics, life_s
from exastore.sim.scenario import load_scenario
from exastore.sim.streams import bits64, mix64, trial_key, uniform

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
    laws = np.zeros(3, LAW)
    laws["scale_s"], laws["shape"] = [10.0, 10.0, 0.0], [1.0, 2.0, 0.0]
    laws["end_piece"][2] = 2
    # A hazard of 1 up to age 1, then of 0.1: mean 1 - exp(-1) + 10 exp(-1).
    pieces = np.array([(0.0, 1.0, 0.0), (1.0, 0.1, 1.0)], PIECE)
    tables = build_physics(load_scenario("tiny"))._replace(laws=laws, pieces=pieces)

    def mean(law: int, age_s: float) -> float:
        return float(np.mean([life_s(tables, key, law, i, 0, age_s) for i in range(20_000)]))

    assert abs(mean(0, 0.0) - 10.0) < 4 * 10.0 / np.sqrt(20_000)
    assert abs(mean(0, 25.0) - 10.0) < 4 * 10.0 / np.sqrt(20_000)
    assert abs(mean(1, 0.0) - 10.0 * np.sqrt(np.pi) / 2) < 0.15
    assert mean(1, 20.0) < 3.0
    assert abs(mean(2, 0.0) - (1 - np.exp(-1) + 10 * np.exp(-1))) < 0.2
    assert abs(mean(2, 1.0) - 10.0) < 0.3

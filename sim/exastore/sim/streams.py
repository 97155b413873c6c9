"""Random numbers by address: a pure function of (seed, trial, stream, entity, draw).

No state is kept, so the numbers that a device sees depend on nothing but its address: not on the
number of workers, the order of trials, or what other devices do. The hash is the finaliser of
splitmix64 (Steele, Lea, Flood, OOPSLA 2014), applied once per word of the address.
"""

from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.jit import inline_njit, njit

#: Which random quantity a draw belongs to.
STREAM_DEVICE_LIFE = 1
STREAM_GAP = 2
STREAM_DURATION = 3
STREAM_REPLACEMENT = 4
STREAM_DURATION_ROW = 5
STREAM_AGE = 6
STREAM_LAW = 7
STREAM_HIT = 8
STREAM_DEATH = 9
STREAM_BURST_SIZE = 10
STREAM_BURST_PLACE = 11
STREAM_LATENT_ONSET = 12
STREAM_LATENT_RATE = 13
STREAM_LATENT_ERRORS = 14
STREAM_LATENT_PLACE = 15
STREAM_SCRUB = 16

Uint16Array = NDArray[np.uint16]


#: An integer as 64 bits: numba compiles a kernel anew for each width, and for each constant. The
#: type itself, not a function that is put into each caller: that took numba 1.5 s in all.
wide: Any = np.int64


@njit
def mix64(x: np.uint64) -> np.uint64:
    """splitmix64's next output for the state x."""
    x = np.uint64(x + np.uint64(0x9E3779B97F4A7C15))
    x = np.uint64((x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    x = np.uint64((x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64(x ^ (x >> np.uint64(31)))


@njit
def trial_key(seed: int, trial: int) -> np.uint64:
    """The first two words of an address."""
    return mix64(mix64(np.uint64(seed)) ^ np.uint64(trial))


@njit
def bits64(key: np.uint64, stream: int, entity: int, draw: int) -> np.uint64:
    """64 random bits at an address."""
    word = np.uint64((np.uint64(stream) << np.uint64(56)) | np.uint64(entity))
    return mix64(mix64(key ^ word) ^ np.uint64(draw))


@inline_njit
def uniform(key: np.uint64, stream: int, entity: int, draw: int) -> float:
    """A number strictly between 0 and 1, with 53 bits."""
    return (
        float(bits64(key, wide(stream), wide(entity), wide(draw)) >> np.uint64(11)) + 0.5
    ) * 2.0**-53


@inline_njit
def exponential(key: np.uint64, stream: int, entity: int, draw: int) -> float:
    """An exponential variate of mean 1 by inversion."""
    return -log(uniform(key, stream, entity, draw))

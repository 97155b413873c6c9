"""How contestants are timed: pinned to one core, taking turns, medians and ratios by round.

A contestant does its work `count` times when told to. Where its work is one function of machine
code, a loop of machine code calls it, so that neither Python nor ctypes is in its time; what those
cost is measured apart (`ctypes_call_s`).
"""

import ctypes
import gc
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import median, quantiles
from typing import Any, Final, TypeVar

import numpy as np

from exastore.erasure.kernels import native

#: Does its work so many times.
Repeat = Callable[[int], object]
Key = TypeVar("Key")

#: A contestant's turn lasts at least this long, or one call.
TURN_S: Final = 0.002
#: In a cell a contestant is timed for about this long at most: the slow take part in fewer rounds.
SHARE_S: Final = 0.6
#: Rounds of the slowest.
MIN_ROUNDS: Final = 3
#: Before the timed calls come others, to be at full speed. Behind somebody who writes past the
#: caches, who does not needs several calls until his outputs are in the last cache again: so many,
#: for so long at least, and of long calls fewer, for so long at most, but never less than the last.
WARM_CALLS: Final = 10
WARM_S: Final = 0.0001
MAX_WARM_S: Final = 0.04
MIN_WARM_CALLS: Final = 4
#: A longer call needs none.
LONG_CALL_S: Final = 0.05

#: Calls a function of up to six integers or pointers `count` times, by the System V convention,
#: where a function of fewer arguments does not look at the others.
_ARGUMENTS: Final = 6
_REPEAT_IR: Final = """
define void @repeat(ptr %function, i64 %count, i64 %a, i64 %b, i64 %c, i64 %d, i64 %e, i64 %f) {
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i1, %loop]
  call void %function(i64 %a, i64 %b, i64 %c, i64 %d, i64 %e, i64 %f)
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %count
  br i1 %more, label %loop, label %done
done:
  ret void
}
define void @nothing(i64 %a, i64 %b, i64 %c, i64 %d, i64 %e, i64 %f) {
  ret void
}
"""


@cache
def _code() -> native.Code:
    code = native.load(_REPEAT_IR, "x86-64", "", lambda: _REPEAT_IR)
    assert code is not None
    return code


def native_repeat(address: int, arguments: Sequence[int], kept: object) -> Repeat:
    """Calls of a function of machine code, repeated by machine code.

    Args:
        address: where it starts.
        arguments: at most six integers or addresses.
        kept: what must live as long as it may be called.
    """
    words = [ctypes.c_int64] * _ARGUMENTS
    function: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, *words)
    repeat = function(_code().address("repeat"))
    padded = (*arguments, *[0] * (_ARGUMENTS - len(arguments)))

    def run(count: int, _kept: object = (kept, _code())) -> None:
        repeat(address, count, *padded)

    return run


def python_repeat(work: Callable[[], object]) -> Repeat:
    """Calls of something in Python."""

    def run(count: int) -> None:
        for _ in range(count):
            work()

    return run


def ctypes_call_s(rounds: int) -> float:
    """Seconds that ctypes takes to call a function with ISA-L's arguments that does nothing."""
    integers, pointers = [ctypes.c_int] * 3, [ctypes.c_void_p] * 3
    nothing: Any = ctypes.CFUNCTYPE(None, *integers, *pointers)(_code().address("nothing"))
    array = (ctypes.c_void_p * 14)()

    def work() -> None:
        nothing(65536, 10, 4, 0, array, array)

    return median(take_turns({"nothing": python_repeat(work)}, rounds)["nothing"].values())


def take_turns(
    contestants: Mapping[Key, Repeat], rounds: int, *, turn_s: float = TURN_S
) -> dict[Key, dict[int, float]]:
    """Seconds per call of each contestant, by the number of the round.

    In every round all take their turns one after the other, so that a busy machine slows all alike,
    in an order drawn anew, so that nobody always follows the same one. Who is so slow that it would
    need more than its share takes part in every so-manyth round only.
    """
    once = {key: _once(repeat) for key, repeat in contestants.items()}
    times: dict[Key, dict[int, float]] = {key: {} for key in contestants}
    keys = list(contestants)
    rng = np.random.Generator(np.random.Philox(0))
    with _no_collector():
        for number in range(rounds):
            for key in (keys[position] for position in rng.permutation(len(keys))):
                if number % _stride(once[key], rounds):
                    continue
                repeat = contestants[key]
                count = max(1, int(turn_s / once[key]))
                if warm_calls := _warm_calls(once[key]):
                    repeat(warm_calls)
                begin = time.perf_counter()
                repeat(count)
                times[key][number] = (time.perf_counter() - begin) / count
    return times


def _once(repeat: Repeat) -> float:
    """About the seconds of one call, when it is warm."""
    count = 1
    while True:
        begin = time.perf_counter()
        repeat(count)
        passed = time.perf_counter() - begin
        if passed > 50e-6 or count >= 4096:
            return max(passed / count, 1e-9)
        count *= 8


def _warm_calls(once_s: float) -> int:
    if once_s > LONG_CALL_S:
        return 0
    wanted = max(WARM_CALLS, int(WARM_S / once_s))
    return max(MIN_WARM_CALLS, min(wanted, int(MAX_WARM_S / once_s)))


def _stride(once_s: float, rounds: int) -> int:
    turn_s = max(TURN_S, once_s) + _warm_calls(once_s) * once_s
    return max(1, rounds // max(MIN_ROUNDS, int(SHARE_S / turn_s)))


@contextmanager
def _no_collector() -> Generator[None]:
    """Nobody pays for the garbage of another."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long one took as another, over the rounds in which both took part."""

    median: float
    #: A quarter of the rounds is below `low`, a quarter above `high`.
    low: float
    high: float


def ratio_of(theirs: Mapping[int, float], ours: Mapping[int, float]) -> Ratio:
    """Their time over our time in the same round."""
    found = [theirs[number] / ours[number] for number in theirs if number in ours]
    if len(found) < 2:
        return Ratio(found[0], found[0], found[0])
    low, middle, high = quantiles(found, n=4, method="inclusive")
    return Ratio(middle, low, high)


@contextmanager
def pinned(cpu: int | None = None) -> Generator[int | None]:
    """This thread, and processes that it starts, on one core; by default the last one it may use.

    Yields:
        The core; None on a system that has no way to say so.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    chosen = max(before) if cpu is None else cpu
    os.sched_setaffinity(0, {chosen})
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)

"""Erasure coding side by side: ours, other coders, and the limit of this machine.

One core, one process. In each cell the contestants take turns, round by round, so that a busy
machine slows all alike; a ratio is the median over the rounds of the ratio within a round. Bytes
counted are data bytes (k chunks). Before it is timed, everybody's result is checked.

What is compared with what, see `peers`:

- `kernel`: machine code against machine code, called by machine code. The strictest: no Python.
- `call`: from Python, NumPy arrays on both sides. Ours checks all its arguments.
- `pointers`: our `call`, against a ctypes call whose pointers were made ahead.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from exastore.deploy.bench import first_use, repair
from exastore.deploy.bench.peers import (
    CALL,
    KERNEL,
    POINTERS,
    Peer,
    Work,
    WrongResult,
    find_peers,
)
from exastore.deploy.bench.results import OURS, PRODUCTS, ROOFLINE, Overhead, Record, Speed
from exastore.deploy.bench.roofline import products, rooflines
from exastore.deploy.bench.stripes import (
    ENCODE,
    KIB,
    OPERATIONS,
    Case,
    make_stripe,
    our_works,
)
from exastore.deploy.bench.timing import ctypes_call_s, ratio_of, take_turns
from exastore.erasure import codec
from exastore.erasure.kernels import available_kernels

CODES: Final = ("rs-4-2", "rs-6-3", "rs-8-3", "rs-10-4", "rs-12-4", "rs-17-3", "rs-20-4")
CHUNK_SIZES: Final = tuple(KIB << shift for shift in (2, 4, 6, 7, 8, 10, 12, 14))
QUICK_CODES: Final = ("rs-4-2", "rs-10-4", "rs-20-4")
QUICK_CHUNK_SIZES: Final = (4 * KIB, 64 * KIB, KIB * KIB)
#: Local codes, and the Reed-Solomon code with as many parity chunks.
LRC_PAIRS: Final = (
    ("lrc-6-2-2", "rs-6-4"),
    ("lrc-12-2-2", "rs-12-4"),
    ("lrc-48-4-3", "rs-48-7"),
)
#: The kernels of a full run: the fastest, and those that the issue sets targets for.
SECOND_KERNELS: Final = ("avx2", "portable")
#: What of the portable kernel a full run measures.
PORTABLE_CODES: Final = ("rs-10-4",)
TABLES: Final = ("speed", "lrc", "repair", "first-use")
FIRST_USE_ROUNDS: Final = 7
#: The counterpart, on our side, of a way to call.
_OUR_WAY: Final = {KERNEL: KERNEL, CALL: CALL, POINTERS: CALL}


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    #: The first is the fastest there is, or the one that was asked for.
    kernels: tuple[str, ...]
    families: tuple[str, ...]
    codes: tuple[str, ...] = CODES
    chunk_sizes: tuple[int, ...] = CHUNK_SIZES
    operations: tuple[str, ...] = OPERATIONS
    tables: tuple[str, ...] = TABLES
    rounds: int = 11
    isal_functions: str = "auto"
    isal_library: Path | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of the work: a cell or a table."""

    label: str
    #: About how long it takes: for the time that is left.
    weight_s: float
    run: Callable[[], list[Record]]


def measure(
    case: Case, kernel: str, peers: Sequence[Peer], rounds: int, *, with_roofline: bool = True
) -> list[Record]:
    """All contestants in one cell, taking turns.

    Raises:
        WrongResult: a contestant's result is wrong.
    """
    stripe = make_stripe(case)
    works: dict[tuple[str, str], Work] = {}
    for way, work in our_works(case, stripe, kernel).items():
        works[OURS, way] = work
    for peer in peers:
        for way, work in peer.works(stripe).items():
            works[peer.name, way] = work
    for (name, way), work in works.items():
        if not work.is_right():
            raise WrongResult(name, way, case.geometry)
    contestants = {key: work.repeat for key, work in works.items()}
    limits = list(rooflines(stripe).values()) if with_roofline else []
    for number, repeat in enumerate(limits):
        contestants[f"{ROOFLINE}{number}", KERNEL] = repeat
    own = products(stripe, kernel) if with_roofline else None
    if own is not None:
        contestants[PRODUCTS, KERNEL] = own
    checksum = 0
    for index in stripe.lost:
        checksum = zlib.crc32(stripe.chunks[index].data, checksum)
    times = take_turns(contestants, rounds)
    finals = [times.pop((f"{ROOFLINE}{number}", KERNEL)) for number in range(len(limits))]
    if finals:
        times[ROOFLINE, KERNEL] = min(finals, key=lambda taken: median(taken.values()))
    return [
        _speed("speed", case, kernel, key, taken, times[OURS, _OUR_WAY[key[1]]], checksum)
        for key, taken in times.items()
    ]


def _speed(
    table: str,
    case: Case,
    kernel: str,
    key: tuple[str, str],
    taken: dict[int, float],
    ours: dict[int, float],
    checksum: int,
) -> Speed:
    call_s, ratio = median(taken.values()), ratio_of(taken, ours)
    return Speed(
        table=table,
        code=case.code,
        operation=case.operation,
        chunk_bytes=case.chunk_bytes,
        kernel=kernel,
        peer=key[0],
        way=key[1],
        call_s=call_s,
        data_bytes_per_s=case.data_bytes / call_s,
        ratio=ratio.median,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        rounds=len(taken),
        checksum_crc32=checksum,
    )


def measure_local(
    pair: tuple[str, str], chunk_bytes: int, kernel: str, rounds: int
) -> list[Record]:
    """Encoding with a local code, and with Reed-Solomon of as many parity chunks, by turns."""
    made: dict[str, tuple[Case, dict[str, Work]]] = {}
    for code in pair:
        case = Case(code, chunk_bytes, ENCODE)
        made[code] = case, our_works(case, make_stripe(case), kernel)
    works = {(code, way): work for code, (_, own) in made.items() for way, work in own.items()}
    for (code, way), work in works.items():
        if not work.is_right():
            raise WrongResult(code, way, made[code][0].geometry)
    times = take_turns({key: work.repeat for key, work in works.items()}, rounds)
    case = made[pair[0]][0]
    return [
        _speed("lrc", case, kernel, (_peer_of(code, pair), way), taken, times[pair[0], way], 0)
        for (code, way), taken in times.items()
    ]


def _peer_of(code: str, pair: tuple[str, str]) -> str:
    return OURS if code == pair[0] else code


def overheads(kernel: str, peers: Sequence[Peer], rounds: int) -> list[Record]:
    """What a call costs: for rs-10-4 with chunks of 64 bytes, and what ctypes takes by itself."""
    found: list[Record] = [Overhead("ctypes", POINTERS, kernel, ctypes_call_s(rounds))]
    case = Case("rs-10-4", 64, ENCODE)
    for record in measure(case, kernel, peers, rounds, with_roofline=False):
        assert isinstance(record, Speed)
        found.append(Overhead(record.peer, record.way, kernel, record.call_s))
    return found


def plan(options: Options) -> tuple[list[Step], list[Peer], dict[str, str]]:
    """All that is to be done, the peers of the first kernel, and who is missing, with the reason.

    Raises:
        BadInput: see `find_peers`.
    """
    steps: list[Step] = []
    first: list[Peer] = []
    missing: dict[str, str] = {}
    for kernel in options.kernels:
        families = options.families
        if kernel != options.kernels[0]:
            # The others do not depend on our kernel.
            families = tuple(name for name in families if name == "isal")
        peers, absent = find_peers(
            families,
            kernel,
            isal_functions=options.isal_functions,
            isal_library=options.isal_library,
        )
        missing |= absent
        first = first or peers
        if "speed" in options.tables:
            steps += _speed_steps(options, kernel, peers)
    best = options.kernels[0]
    if "lrc" in options.tables:
        steps += [
            _local_step(pair, size, best, options.rounds)
            for pair in LRC_PAIRS
            for size in options.chunk_sizes
        ]
    if "repair" in options.tables:
        steps += [
            _repair_step(code, size, best, options.rounds)
            for code in repair.CODES
            for size in repair.CHUNK_SIZES
        ]
    if "first-use" in options.tables:
        steps.append(
            Step(
                "first use",
                FIRST_USE_ROUNDS * len(first_use.CODES) * 1.5,
                lambda: [*first_use.measure_first_use(first_use.CODES, best, FIRST_USE_ROUNDS)],
            )
        )
    return steps, first, missing


def _speed_steps(options: Options, kernel: str, peers: Sequence[Peer]) -> list[Step]:
    is_second = kernel == "portable" and kernel != options.kernels[0]
    codes = tuple(c for c in options.codes if c in PORTABLE_CODES) if is_second else options.codes
    steps = [Step(f"overheads, {kernel}", 0.3, lambda: overheads(kernel, peers, options.rounds))]
    for operation in options.operations:
        for code in codes:
            for size in options.chunk_sizes:
                steps.append(_speed_step(Case(code, size, operation), kernel, peers, options))
    return steps


def _speed_step(case: Case, kernel: str, peers: Sequence[Peer], options: Options) -> Step:
    def run() -> list[Record]:
        return measure(case, kernel, peers, options.rounds)

    slow = sum(not peer.name.startswith("isal") for peer in peers) + (kernel == "portable")
    fast = 3 + 3 * (len(peers) - slow)
    turns_s = fast * min(1.0, options.rounds * max(0.003, 8 * case.data_bytes / 20e9))
    slow_s = slow * max(0.5, 8 * case.data_bytes / 1e9)
    return Step(f"{case.geometry}, {kernel}", 0.1 + turns_s + slow_s, run)


def _local_step(pair: tuple[str, str], size: int, kernel: str, rounds: int) -> Step:
    data_bytes = codec(pair[0]).k * size
    return Step(
        f"{pair[0]} and {pair[1]}, {size // KIB} KiB",
        0.1 + rounds * 4 * max(0.004, 2 * data_bytes / 10e9),
        lambda: measure_local(pair, size, kernel, rounds),
    )


def _repair_step(code: str, size: int, kernel: str, rounds: int) -> Step:
    return Step(
        f"repair, {code}, {size // KIB} KiB",
        0.3 + rounds * 4 * max(0.004, 10 * size / 2e9),
        lambda: [*repair.measure_repair(code, size, kernel, rounds)],
    )


def default_kernels(fastest: str) -> tuple[str, ...]:
    """Those of a full run."""
    available = available_kernels()
    return (fastest, *(k for k in SECOND_KERNELS if k in available and k != fastest))

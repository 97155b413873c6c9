"""What goes into which stripe: pure arithmetic over objects that wait to be packed.

Laws:
1. An object lies within one data chunk, so that one read of one device returns it.
2. A stripe is written only if it takes less room than its objects do now.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exastore.erasure import Codec
from exastore.metadata.core.redundancy import log_copies
from exastore.metadata.namespace.packing import Candidate
from exastore.proto.v1 import upkeep_pb2

#: A stripe counts as full when this share of its room is taken.
FULL_FRACTION = 0.9
#: Chunk sizes are multiples of what one step of the widest kernel takes.
_STEP_BYTES = 64
#: Objects that did not fit before a stripe is closed: smaller ones behind them might.
_MISFIT_COUNT_MAX = 64


@dataclass(frozen=True, slots=True)
class Waiting:
    """An object that could be packed, what packing it would free, and since when it waits."""

    candidate: Candidate
    stored_bytes: float
    since_s: float


@dataclass(frozen=True, slots=True)
class StripePlan:
    """Objects of one bucket in one stripe.

    Attributes:
        placed: Each object, and where its bytes begin in the data of the stripe.
        chunk_bytes: No longer than it needs to be.
        is_full: Waiting for more objects would not make it denser.
        pays: It takes less room than its objects do now.
        oldest_s: Since when the first of them waits; those of sparse stripes have done so for ever.
    """

    placed: Sequence[tuple[Candidate, int]]
    chunk_bytes: int
    is_full: bool
    pays: bool
    oldest_s: float


def of_logs(code: Codec, candidates: Iterable[Candidate]) -> list[Waiting]:
    """Objects that are copies."""
    copies = log_copies(code)
    return [Waiting(item, copies * item.extent.data_bytes, item.written_s) for item in candidates]


def of_sparse(
    code: Codec, stripes: Iterable[tuple[upkeep_pb2.PackedStripe, Sequence[Candidate]]]
) -> list[Waiting]:
    """The objects of sparse stripes: with the last of them the whole stripe goes."""
    found: list[Waiting] = []
    for stripe, candidates in stripes:
        per_byte = code.n * stripe.extent.chunk_bytes / max(1, stripe.live_bytes)
        found += [Waiting(item, per_byte * item.extent.data_bytes, 0.0) for item in candidates]
    return found


def plan_stripe(
    code: Codec, chunk_bytes_max: int, waiting: Sequence[Waiting]
) -> tuple[StripePlan | None, list[Waiting]]:
    """Fill one stripe, each object in the emptiest chunk; the stripe, and what is left over."""
    step = _STEP_BYTES * code.alignment_bytes
    capacity = max(1, chunk_bytes_max // step) * step
    fill = [0] * code.k
    taken: list[tuple[Waiting, int, int]] = []
    left: list[Waiting] = []
    for number, item in enumerate(waiting):
        size_bytes = item.candidate.extent.data_bytes
        chunk = min(range(code.k), key=fill.__getitem__)
        if fill[chunk] + size_bytes <= capacity:
            taken.append((item, chunk, fill[chunk]))
            fill[chunk] += size_bytes
            continue
        left.append(item)
        if len(left) == _MISFIT_COUNT_MAX:
            left += waiting[number + 1 :]
            break
    if not taken:
        return None, left
    chunk_bytes = -(-max(fill) // step) * step
    freed_bytes = sum(item.stored_bytes for item, _, _ in taken)
    plan = StripePlan(
        placed=[(item.candidate, chunk * chunk_bytes + begin) for item, chunk, begin in taken],
        chunk_bytes=chunk_bytes,
        is_full=sum(fill) >= FULL_FRACTION * capacity * code.k or len(left) >= _MISFIT_COUNT_MAX,
        pays=code.n * chunk_bytes < freed_bytes,
        oldest_s=min(item.since_s for item, _, _ in taken),
    )
    return plan, left

"""MD5 of many bodies at once: sixteen lanes of AVX-512 take as long as one.

S3 wants the MD5 of every body. Its steps wait for one another, so a core computes 0.8 GB/s of one
body and has most of its width idle. Here the bodies that are being received are hashed side by
side: lane l of each vector belongs to body l (RFC 1321 gives the steps).

Theory of operation: `update` blocks its thread. Whoever finds nobody at work takes what others have
queued, after a short wait for company if more bodies are under way, and computes for all of them;
the others wait to be told. A body's own pieces come one after the other.

Fault model: without AVX-512 `new_md5` gives hashlib's. A unit test compares both.
"""

import ctypes
import hashlib
import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.chunks import address_of
from exastore.erasure.kernels.native import host_features, load
from exastore.gateway.store import Hash

LANE_COUNT: Final = 16
BLOCK_BYTES: Final = 64
#: Shorter bodies are hashed alone: they are done before company comes.
LEAST_BYTES: Final = 1 << 20
#: How long one who could have company waits for it, in seconds.
_PATIENCE_S: Final = 0.03
#: Blocks between two looks at who has come: 16 lanes of 256 KiB take 1 ms.
_SLICE_BLOCKS: Final = 4096

_PREFETCH_BYTES: Final = 1024

_START: Final = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_SHIFTS: Final = ((7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21))
_SINES: Final = tuple(int(abs(math.sin(i + 1)) * 2**32) & 0xFFFFFFFF for i in range(64))
_FUNCTION: Final = "md5_lanes"
_VECTOR: Final = "<16 x i32>"

Words = NDArray[np.uint32]


def _ir() -> str:
    """`void md5_lanes(u32 state[4][16], u8 *data[16], u64 block_count)`."""
    lines: list[str] = []
    names = iter(range(1 << 20))

    def put(expression: str) -> str:
        name = f"%v{next(names)}"
        lines.append(f"  {name} = {expression}")
        return name

    rows: list[str] = []
    for lane in range(LANE_COUNT):
        slot = put(f"getelementptr ptr, ptr %data, i64 {lane}")
        base = put(f"load ptr, ptr {slot}")
        rows.append(put(f"getelementptr i8, ptr {base}, i64 %offset"))
    for row in rows:  # sixteen streams are more than the processor foresees
        ahead = put(f"getelementptr i8, ptr {row}, i64 {_PREFETCH_BYTES}")
        lines.append(f"  call void @llvm.prefetch.p0(ptr {ahead}, i32 0, i32 3, i32 1)")
    rows = [put(f"load {_VECTOR}, ptr {row}, align 1") for row in rows]
    for step in (1, 2, 4, 8):  # transposed: row w holds word w of all lanes
        new = list(rows)
        for first in range(LANE_COUNT):
            if first & step:
                continue
            second = first | step
            low = [j if not j & step else LANE_COUNT + j - step for j in range(LANE_COUNT)]
            high = [j + step if not j & step else LANE_COUNT + j for j in range(LANE_COUNT)]
            for target, mask in ((first, low), (second, high)):
                indexes = ", ".join(f"i32 {index}" for index in mask)
                new[target] = put(
                    f"shufflevector {_VECTOR} {rows[first]}, {_VECTOR} {rows[second]}, "
                    f"<16 x i32> <{indexes}>"
                )
        rows = new
    ones = _splat(0xFFFFFFFF)
    a, b, c, d = "%a", "%b", "%c", "%d"
    for step in range(64):
        kind = step // 16
        if kind == 0:
            mixed = put(f"xor {_VECTOR} {c}, {d}")
            mixed = put(f"and {_VECTOR} {b}, {mixed}")
            mixed = put(f"xor {_VECTOR} {d}, {mixed}")
            word = step
        elif kind == 1:
            mixed = put(f"xor {_VECTOR} {b}, {c}")
            mixed = put(f"and {_VECTOR} {d}, {mixed}")
            mixed = put(f"xor {_VECTOR} {c}, {mixed}")
            word = (5 * step + 1) % 16
        elif kind == 2:
            mixed = put(f"xor {_VECTOR} {b}, {c}")
            mixed = put(f"xor {_VECTOR} {mixed}, {d}")
            word = (3 * step + 5) % 16
        else:
            mixed = put(f"xor {_VECTOR} {d}, {ones}")
            mixed = put(f"or {_VECTOR} {b}, {mixed}")
            mixed = put(f"xor {_VECTOR} {c}, {mixed}")
            word = (7 * step) % 16
        # What does not depend on the step before is added first.
        added = put(f"add {_VECTOR} {rows[word]}, {_splat(_SINES[step])}")
        added = put(f"add {_VECTOR} {a}, {added}")
        added = put(f"add {_VECTOR} {added}, {mixed}")
        shift = _splat(_SHIFTS[kind][step % 4])
        turned = put(
            f"call {_VECTOR} @llvm.fshl.v16i32({_VECTOR} {added}, {_VECTOR} {added}, "
            f"{_VECTOR} {shift})"
        )
        a, d, c, b = d, c, b, put(f"add {_VECTOR} {b}, {turned}")
    after = [put(f"add {_VECTOR} %{n}, {v}") for n, v in zip("abcd", (a, b, c, d), strict=True)]
    body = "\n".join(lines)
    loads = "\n".join(
        f"  %p{n} = getelementptr i8, ptr %state, i64 {64 * i}\n"
        f"  %{n}0 = load {_VECTOR}, ptr %p{n}, align 4"
        for i, n in enumerate("abcd")
    )
    phis = "\n".join(
        f"  %{n} = phi {_VECTOR} [ %{n}0, %entry ], [ {value}, %loop ]"
        for n, value in zip("abcd", after, strict=True)
    )
    stores = "\n".join(
        f"  store {_VECTOR} {value}, ptr %p{n}, align 4"
        for n, value in zip("abcd", after, strict=True)
    )
    return f"""
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare {_VECTOR} @llvm.fshl.v16i32({_VECTOR}, {_VECTOR}, {_VECTOR})
define void @{_FUNCTION}(ptr %state, ptr %data, i64 %count) {{
entry:
{loads}
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
{phis}
  %offset = shl i64 %i, 6
{body}
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %count
  br i1 %more, label %loop, label %done
done:
{stores}
  ret void
}}
"""


def _splat(value: int) -> str:
    return "<" + ", ".join([f"i32 {value}"] * LANE_COUNT) + ">"


@lru_cache(maxsize=1)
def _kernel() -> Any:
    """The compiled function, or None where the processor has no AVX-512."""
    features = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
    if not host_features().issuperset(features):
        return None
    wanted = ",".join(f"+{name}" for name in (*features, "evex512"))
    code = load("md5-lanes-2", "skylake-avx512", wanted, _ir)
    assert code is not None
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    function: Any = prototype(code.address(_FUNCTION))
    function.keeps = code  # the code lives as long as the function
    return function


@dataclass(slots=True)
class _Job:
    """Whole blocks of one body."""

    #: Shape: [4]. Changed in place.
    state: Words
    address: int
    block_count: int
    done: bool = False
    failure: BaseException | None = None


class Lanes:
    """Where the bodies of a process meet."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._change = threading.Condition()
        self._queue: list[_Job] = []
        self._is_busy = False
        #: Bodies under way: so much company may come.
        self.body_count = 0

    def run(self, job: _Job) -> None:
        """Return when the job's state is that after its blocks."""
        with self._change:
            self._queue.append(job)
            self._change.notify_all()
            while not job.done and self._is_busy:
                self._change.wait()
            if not job.done:
                self._is_busy = True
        while not job.done:
            with self._change:
                self._change.wait_for(self._is_full, _PATIENCE_S)
                batch = self._queue[:LANE_COUNT]
                del self._queue[:LANE_COUNT]
            failure: BaseException | None = None
            try:
                self.compute(batch)
            except BaseException as error:  # whoever waits must be told
                failure = error
            with self._change:
                for each in batch:
                    each.done, each.failure = True, failure
                self._is_busy = not job.done
                self._change.notify_all()
        if job.failure is not None:
            raise job.failure

    def _is_full(self) -> bool:
        """Whether nobody else is to be waited for."""
        return len(self._queue) >= min(LANE_COUNT, self.body_count)

    def compute(self, batch: list[_Job]) -> None:
        """Compute these now, without the others."""
        left = [job for job in batch if job.block_count]
        while left:
            count = min(min(job.block_count for job in left), _SLICE_BLOCKS)
            # Lanes without a body of their own repeat the first one's.
            used = [left[lane] if lane < len(left) else left[0] for lane in range(LANE_COUNT)]
            state = np.ascontiguousarray(np.stack([job.state for job in used], axis=1))
            pointers = np.array([job.address for job in used], dtype=np.uint64)
            self._kernel(address_of_words(state), address_of_words(pointers), count)
            for lane, job in enumerate(left):
                job.state[:] = state[:, lane]
                job.address += count * BLOCK_BYTES
                job.block_count -= count
            left = [job for job in left if job.block_count]


def address_of_words(array: NDArray[Any]) -> int:
    """Where an array's numbers lie."""
    return address_of(array.view(np.uint8).reshape(-1))


class LaneMd5:
    """MD5 of one body; `update` may block for company."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._state: Words = np.array(_START, dtype=np.uint32)
        self._tail = b""
        self._size_bytes = 0
        lanes.body_count += 1
        self._is_counted = True

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self._lanes.body_count -= 1

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""
        self._size_bytes += len(data)
        view = memoryview(data)
        if self._tail:
            missing = BLOCK_BYTES - len(self._tail)
            self._tail += bytes(view[:missing])
            view = view[missing:]
            if len(self._tail) < BLOCK_BYTES:
                return
            self._blocks(self._tail)
        whole = len(view) // BLOCK_BYTES * BLOCK_BYTES
        self._blocks(view[:whole])
        self._tail = bytes(view[whole:])

    def digest(self) -> bytes:
        """The MD5 of what was taken."""
        self._leave()
        end = self._tail + b"\x80"
        end += bytes(-(len(end) + 8) % BLOCK_BYTES)
        end += (8 * self._size_bytes % 2**64).to_bytes(8, "little")
        job = _job(self._state.copy(), end)
        self._lanes.compute([job])  # called on the event loop, where nobody may wait
        return job.state.astype("<u4").tobytes()

    def _blocks(self, data: bytes | memoryview) -> None:
        if len(data):
            self._lanes.run(_job(self._state, data))


def _job(state: Words, data: bytes | memoryview) -> _Job:
    array = np.frombuffer(data, dtype=np.uint8)
    return _Job(state, address_of(array), len(data) // BLOCK_BYTES)


@lru_cache(maxsize=1)
def _lanes() -> Lanes | None:
    kernel = _kernel()
    return None if kernel is None else Lanes(kernel)


def new_md5(length_bytes: int = 0) -> Hash:
    """A fresh MD5, for ETags and Content-MD5 alone: S3 asks for it, nothing trusts it.

    Args:
        length_bytes: Of the body, if it is known.
    """
    lanes = _lanes() if length_bytes >= LEAST_BYTES else None
    return hashlib.md5(usedforsecurity=False) if lanes is None else LaneMd5(lanes)

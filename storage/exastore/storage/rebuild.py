"""Rebuilding the chunks of one slot on a device of this node, reading what the code's plan reads.

Laws:
1. A chunk counts as rebuilt only after it was read back from the device and compared.
2. What is there already and verifies is not written again.
3. A stripe that fails stops no other; it is counted, and the first failure is told in words.
4. The end is never reported clean if the list of stripes may have holes.

Theory of operation: the chunks that no source holds are lost, and `repair_plan_for` says what to
read for the slot without them: its local group of an LRC, parts of all other chunks of a Clay code,
any k chunks of the others. When a source fails, its chunk is lost for this stripe, too, and the
plan is made anew; what was read already is not read again. Where any k chunks will do they rotate
from stripe to stripe, so that all source devices share the reading. Of a slot that moves, the
device that it leaves is a source under the slot's own index: its chunks are copied, and computed
from the others only where it fails.

Memory: at most `parallelism` stripes are worked on at once, each with what its plan reads.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from exastore.erasure import Codec, ErasureError, RepairPlan, TooFewChunks
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.core.redundancy import log_copies, repair_plan_for
from exastore.proto.v1 import storage_pb2
from exastore.storage.budget import BackgroundBudget
from exastore.storage.crc import Buffer, crc32c
from exastore.storage.errors import (
    ChunkCorrupt,
    ChunkNotFound,
    DeviceReadFailed,
    PeerFailure,
    StorageError,
)
from exastore.storage.lane import ChunkWrite, DeviceLane
from exastore.storage.log import Purpose
from exastore.storage.metrics import StorageMetrics
from exastore.storage.pacing import Pacer
from exastore.storage.record import ChunkKey
from exastore.storage.runs import ByteRun
from exastore.storage.status import ChunkStatus, id_of, status_label
from exastore.storage.transfers import Transfers

_log = logging.getLogger(__name__)
_REPORT_S = 0.25


class StripeFailure(StorageError):
    """One stripe could not be rebuilt now."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A chunk of the stripe that a source says it holds."""

    source: storage_pb2.RebuildSource
    generation: int
    chunk_bytes: int
    crc32c: int
    code: str


@dataclass(slots=True)
class _Task:
    """One running rebuild."""

    lane: DeviceLane
    request: storage_pb2.RebuildRequest
    codec: Codec
    pacer: Pacer
    progress: storage_pb2.RebuildProgress
    #: Stripe id -> what the sources hold of it.
    copies: dict[bytes, list[_Copy]]
    #: By name, of the stripes in `copies` that have another code than the cluster.
    codecs: dict[str, Codec] = field(default_factory=dict[str, Codec])

    def codec_of(self, stripe_id: bytes) -> Codec:
        """The code of a stripe: that of the cluster, or of log extents."""
        copies = self.copies.get(stripe_id)
        return self.codecs.get(copies[0].code, self.codec) if copies else self.codec

    def fail(self, message: str) -> None:
        self.progress.failed_chunk_count += 1
        if not self.progress.message:
            self.progress.message = message


class Rebuilder:
    """Runs rebuild tasks; one per node."""

    def __init__(
        self,
        transfers: Transfers,
        codec_of: Callable[[str], Codec],
        budget: BackgroundBudget,
        *,
        parallelism: int,
        clock: Clock,
        metrics: StorageMetrics,
    ) -> None:
        self._transfers = transfers
        self._codec_of = codec_of
        self._budget = budget
        self._parallelism = parallelism
        self._clock = clock
        self._metrics = metrics

    async def run(
        self, lane: DeviceLane, request: storage_pb2.RebuildRequest
    ) -> AsyncIterator[storage_pb2.RebuildProgress]:
        """Work through the stripes; progress at most four times a second, the last is `done`."""
        progress = storage_pb2.RebuildProgress()
        try:
            # In a thread: the first call loads the erasure room, which takes longer than a
            # heartbeat may be late.
            codec = await asyncio.to_thread(self._codec_of, request.code)
        except Exception as error:  # whatever the erasure room says about an unknown name
            yield storage_pb2.RebuildProgress(
                failed_chunk_count=1, message=f"code {request.code!r}: {error}", done=True
            )
            return
        pacer = Pacer(request.bandwidth_bytes_per_s, self._clock)
        task = _Task(lane, request, codec, pacer, progress, {})
        await self._list_sources(task)
        await self._load_codes(task)
        stripe_ids = [
            stripe_id
            for stripe_id in sorted(set(request.stripe_ids) or task.copies)
            if request.index < task.codec_of(stripe_id).n
        ]
        progress.total_chunk_count = len(stripe_ids)
        queue = iter(stripe_ids)
        workers = [
            asyncio.create_task(self._work(task, queue))
            for _ in range(min(self._parallelism, len(stripe_ids)))
        ]
        try:
            pending = set(workers)
            while pending:
                yield progress
                _, pending = await asyncio.wait(pending, timeout=_REPORT_S)
            for worker in workers:
                worker.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        progress.done = True
        if progress.failed_chunk_count:
            _log.warning(
                "rebuild of slot %d of PG %d: %d chunks failed, first: %s",
                request.index, request.pg, progress.failed_chunk_count, progress.message,
            )  # fmt: skip
        yield progress

    async def _list_sources(self, task: _Task) -> None:
        """Fill `task.copies`; count a failure if a stripe may have been overlooked."""
        target = task.request.device_index
        sources = [source for source in task.request.sources if source.device_index != target]
        answers = await asyncio.gather(
            *(self._transfers.list_chunks(source, task.request.pg) for source in sources),
            return_exceptions=True,
        )
        failures: list[str] = []
        silent: set[int] = set()
        for source, answer in zip(sources, answers, strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, PeerFailure):
                    raise answer
                failures.append(str(answer))
                silent.add(source.index)
                continue
            for info in answer:
                if info.chunk.index == source.index:
                    task.copies.setdefault(info.chunk.stripe_id, []).append(_copy(source, info))
        # The chunks of a readable stripe suffice to decode it: it shows up unless so many can be on
        # silent sources alone.
        others = set(range(task.codec.n)) - silent
        is_all_silent = silent == {source.index for source in sources}
        # One copy of a log extent is enough to read it, so any silent source may hide one.
        copies = range(log_copies(task.codec))
        may_hide = task.request.index in copies and any(index in copies for index in silent)
        missed = is_all_silent or may_hide or task.codec.decodable(others)
        if missed and not task.request.stripe_ids:
            task.fail("cannot list the stripes of the PG: " + "; ".join(failures or ["no source"]))

    async def _load_codes(self, task: _Task) -> None:
        """The codes of stripes that are not the cluster's: those of log extents."""
        names = {copies[0].code for copies in task.copies.values()} - {task.request.code}
        for name in sorted(names):
            try:
                task.codecs[name] = await asyncio.to_thread(self._codec_of, name)
            except ErasureError as error:
                task.fail(f"code {name!r}: {error}")

    async def _work(self, task: _Task, queue: Iterable[bytes]) -> None:
        for stripe_id in queue:
            try:
                await self._rebuild_stripe(task, stripe_id)
            except StorageError as error:
                self._metrics.rebuild_failures.inc()
                task.fail(f"stripe {stripe_id.hex()}: {error}")

    async def _rebuild_stripe(self, task: _Task, stripe_id: bytes) -> None:
        request, progress = task.request, task.progress
        key = ChunkKey(request.pg, stripe_id, request.index)
        copies = _consistent(task.copies.get(stripe_id, []))
        if await _is_present(task.lane, key, copies):
            progress.chunk_count += 1
            return
        if not copies:
            raise StripeFailure("no source holds a chunk of it")
        chunk_bytes, generation = copies[0].chunk_bytes, copies[0].generation
        await task.pacer.take(chunk_bytes)
        held = next((copy for copy in copies if copy.source.index == request.index), None)
        data = None if held is None else await self._copied(task, key, held)
        if data is None:
            others = [copy for copy in copies if copy is not held]
            plan, parts = await self._pull(task, key, others)
            data = await asyncio.to_thread(
                _rebuilt, task.codec_of(stripe_id), plan, parts, request.index
            )
            del parts
        reach(Phase.REBUILD_PULLED)
        crc = crc32c(data)
        await self._budget.write(request.device_index, chunk_bytes)
        write = ChunkWrite(key, generation, copies[0].code, data, crc, Purpose.REPAIR)
        await task.lane.write(write)
        reach(Phase.REBUILD_WRITTEN)
        stored = await task.lane.read(key)
        # As bytes: views are compared item by item, thirty times as slowly.
        if bytes(stored.data) != data or stored.generation != generation:
            raise ChunkCorrupt("what was read back is not what was written")
        reach(Phase.REBUILD_VERIFIED)
        progress.chunk_count += 1
        progress.chunk_bytes += chunk_bytes
        self._metrics.rebuilt_chunks.inc()
        self._metrics.rebuilt_bytes.inc(chunk_bytes)

    async def _copied(self, task: _Task, key: ChunkKey, held: _Copy) -> bytes | None:
        """The chunk itself, from the device that the slot leaves; None if it cannot be had."""
        answer = await self._pull_one(task, key, held, None)
        if isinstance(answer, str):
            _log.info("stripe %s is computed, not copied: %s", key.stripe_id.hex(), answer)
            return None
        return bytes(answer)  # it is compared with what is read back

    async def _pull(
        self, task: _Task, key: ChunkKey, copies: list[_Copy]
    ) -> tuple[RepairPlan, dict[int, Buffer]]:
        """A plan for the chunk, and what it reads."""
        available = {copy.source.index: copy for copy in copies}
        codec = task.codec_of(key.stripe_id)
        turn = int.from_bytes(key.stripe_id[-4:], "little")
        parts: dict[int, Buffer] = {}
        failures: list[str] = []
        runs = None
        while True:
            try:
                plan = _plan(codec, key.chunk_index, available, parts, turn)
            except TooFewChunks as error:
                raise StripeFailure("; ".join([str(error), *failures])) from error
            if runs != plan.runs:
                runs, parts = plan.runs, {}
            wanted = [available[index] for index in plan.reads if index not in parts]
            if not wanted:
                return plan, parts
            answers = await asyncio.gather(
                *(self._pull_one(task, key, copy, plan) for copy in wanted)
            )
            for copy, answer in zip(wanted, answers, strict=True):
                if isinstance(answer, str):
                    failures.append(answer)
                    del available[copy.source.index]
                else:
                    parts[copy.source.index] = answer

    async def _pull_one(
        self, task: _Task, key: ChunkKey, copy: _Copy, plan: RepairPlan | None
    ) -> Buffer | str:
        """What the plan reads of this chunk (None: all of it), or why there is none."""
        source = copy.source
        chunk_id = id_of(key._replace(chunk_index=source.index), copy.generation)
        runs: list[ByteRun] = []
        if plan is not None and not plan.reads_whole_chunks:
            runs = [ByteRun(*run) for run in plan.byte_runs(source.index, copy.chunk_bytes)]
        expected_bytes = sum(run.length_bytes for run in runs) if runs else copy.chunk_bytes
        try:
            # The checksum of the list is another copy than the one beside the data.
            response = await self._transfers.read(
                source, chunk_id, runs, expected_bytes, None if runs else copy.crc32c
            )
        except PeerFailure as error:
            return str(error)
        if response.status != ChunkStatus.CHUNK_STATUS_OK:
            return f"slot {source.index}: {status_label(response.status)} {response.message}"
        data = response.data
        task.progress.read_bytes += len(data)
        self._metrics.rebuild_read_bytes.inc(len(data))
        return data


def _plan(
    codec: Codec, index: int, available: Iterable[int], held: Iterable[int], turn: int
) -> RepairPlan:
    """What to read for chunk `index` if only the `available` ones are there.

    Raises:
        TooFewChunks: the chunk cannot be rebuilt from them.
    """
    sources = sorted(available)
    plan = repair_plan_for(codec, [index], set(range(codec.n)).difference(sources))
    if not codec.is_mds or not plan.reads_whole_chunks:
        return plan
    first = turn % len(sources)
    order = [*held, *sources[first:], *sources[:first]]
    chosen = sorted(list(dict.fromkeys(order))[: codec.k])
    return RepairPlan((index,), dict.fromkeys(chosen, 1.0), plan.sub_chunk_count, plan.runs)


def _copy(source: storage_pb2.RebuildSource, info: storage_pb2.ChunkInfo) -> _Copy:
    return _Copy(source, info.chunk.generation, info.chunk_bytes, info.crc32c, info.code)


def _consistent(copies: list[_Copy]) -> list[_Copy]:
    """Those of the newest generation, one per slot. Raises if they contradict each other."""
    if not copies:
        return copies
    newest = max(copy.generation for copy in copies)
    unique = {copy.source.index: copy for copy in copies if copy.generation == newest}
    shapes = {(copy.chunk_bytes, copy.code) for copy in unique.values()}
    if len(shapes) > 1:
        raise StripeFailure(f"sources disagree about size and code: {sorted(shapes)}")
    return [unique[index] for index in sorted(unique)]


async def _is_present(lane: DeviceLane, key: ChunkKey, copies: list[_Copy]) -> bool:
    entry = lane.store.get(key)
    if entry is None or (copies and entry.generation < copies[0].generation):
        return False
    with contextlib.suppress(ChunkCorrupt, ChunkNotFound, DeviceReadFailed):
        await lane.read(key)
        return True
    return False


def _rebuilt(codec: Codec, plan: RepairPlan, parts: Mapping[int, Buffer], index: int) -> bytes:
    """Chunk `index` from what its plan reads. Raises StripeFailure if the parts do not fit."""
    reads = {number: np.frombuffer(parts[number], dtype=np.uint8) for number in plan.reads}
    try:
        if plan.reads_whole_chunks:
            return codec.decode(reads, [index])[index].tobytes()
        return codec.repair(plan.lost, reads)[index].tobytes()
    except ErasureError as error:
        raise StripeFailure(str(error)) from error

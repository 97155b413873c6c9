"""Moves buckets between partitions, one after the other, while they are served.

What is to be done and how far it is stands in the first engine (`Move`), the copy's cursor in the
target. So a move goes on wherever it was when its server died: the next holder of the lease takes
it over under a new token and repeats the step. `namespace.moving` has the laws.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace import moving
from exastore.metadata.namespace.errors import MoverReplaced
from exastore.metadata.namespace.space import open_to_read
from exastore.metadata.service.partitions import Partition, Partitions
from exastore.proto.v1 import metadata_pb2

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Batches written at the same time, so that the target can commit them at once.
_BATCH_COUNT = 8
#: A bucket that changes faster than it is caught up with is frozen all the same.
_ROUND_COUNT_MAX = 50
#: Rows left to copy while writes are refused: some ten milliseconds.
_FEW_ROWS = 40
_COPIED = b"\xff"

_PREPARING = metadata_pb2.MOVE_PHASE_PREPARING
_COPYING = metadata_pb2.MOVE_PHASE_COPYING
_CATCHING_UP = metadata_pb2.MOVE_PHASE_CATCHING_UP
_SWITCHING = metadata_pb2.MOVE_PHASE_SWITCHING
_CLEANING = metadata_pb2.MOVE_PHASE_CLEANING
_CANCELLING = metadata_pb2.MOVE_PHASE_CANCELLING
_DONE = metadata_pb2.MOVE_PHASE_DONE

Move = metadata_pb2.Move
Bucket = metadata_pb2.Bucket


class Mover:
    """The calls about moves, and their execution in rounds."""

    def __init__(self, partitions: Partitions, clock: Clock, switching: asyncio.Lock) -> None:
        self._partitions = partitions
        #: Held while a bucket is between two engines: its tenant's quota is not given out then.
        self._switching = switching
        self._clock = clock

    # ---- calls ----

    async def move_bucket(self, request: metadata_pb2.MoveBucketRequest) -> Move:
        """Begin a move. Raises NoSuchBucket, InvalidArgument, MoveConflict."""
        target = self._partitions.named(request.target).name
        now_s = self._clock.now_s()
        return await self._partitions.first.transact(
            lambda txn: moving.begin(txn, request.bucket, target, now_s)
        )

    async def cancel_move(self, request: metadata_pb2.CancelMoveRequest) -> Move:
        """Undo a move. Raises MoveConflict."""
        return await self._partitions.first.transact(lambda txn: moving.cancel(txn, request.bucket))

    async def list_moves(
        self, request: metadata_pb2.ListMovesRequest
    ) -> metadata_pb2.ListMovesResponse:
        """Moves that are under way."""
        del request
        found = await self._partitions.first.read(moving.list_moves)
        return metadata_pb2.ListMovesResponse(moves=found)

    # ---- rounds ----

    async def run_round(self) -> None:
        """Carry out all moves, if this server does the background work."""
        if not self._partitions.all[0].lease.is_held:
            return
        for move in await self._partitions.first.read(moving.list_moves):
            try:
                await self.carry_out(move.bucket)
            except MoverReplaced:
                log.info("the move of bucket %s was taken over", move.bucket)

    async def carry_out(self, bucket: str) -> None:
        """Bring a move to its end, from wherever it is. Raises MoverReplaced, EngineError."""
        move = await self._first(lambda txn: moving.take(txn, bucket))
        while move is not None and move.phase != _DONE:
            move = await self._step(move)

    async def _step(self, move: Move) -> Move | None:
        source = self._partitions.named(move.source)
        target = self._partitions.named(move.target)
        if move.phase == _PREPARING:
            await self._clean(target, move.bucket_id)
            return await self._advance(move, _COPYING)
        if move.phase == _COPYING:
            return await self._copy(move, source, target)
        if move.phase == _CATCHING_UP:
            return await self._catch_up(move, source, target)
        if move.phase == _SWITCHING:
            async with self._switching:
                return await self._switch(move, source, target)
        if move.phase == _CANCELLING:
            await self._undo(move, source, target)
        elif move.phase == _CLEANING:
            await self._clean(source, move.bucket_id)
        await self._first(lambda txn: moving.finish(txn, move))
        return None

    async def _copy(self, move: Move, source: Partition, target: Partition) -> Move:
        """Copy all rows in the order of their keys, from the cursor on."""
        name, bucket_id = move.bucket, move.bucket_id
        await self._on(source, lambda txn: moving.begin_copy(txn, name, bucket_id))
        bucket = await self._settings(move, source)
        cursor = await target.engine.transact(lambda txn: moving.prepare(txn, bucket, move.token))
        while cursor is not None and cursor != _COPIED:
            batches: list[moving.CopyBatch] = []
            at: bytes | None = cursor
            while at is not None and len(batches) < _BATCH_COUNT:
                batches.append(await self._rows_from(source, bucket_id, at))
                at = batches[-1].next_cursor
            await asyncio.gather(
                *(self._write(target, bucket, move, batch.pairs) for batch in batches)
            )
            # Behind the rows: after a crash some are copied again, none is left out.
            cursor = _COPIED if at is None else at
            await self._write(target, bucket, move, (), cursor)
            move.copied_row_count += sum(len(batch.pairs) for batch in batches)
            move = await self._advance(move, _COPYING)
            if move.phase != _COPYING:
                return move
        return await self._advance(move, _CATCHING_UP)

    async def _catch_up(self, move: Move, source: Partition, target: Partition) -> Move:
        """Copy rows that changed meanwhile, until few are left."""
        bucket = await self._settings(move, source)
        await target.engine.transact(lambda txn: moving.prepare(txn, bucket, move.token))
        for _ in range(_ROUND_COUNT_MAX):
            if await self._copy_marked(move, bucket, source, target) < _FEW_ROWS:
                break
        return await self._advance(move, _SWITCHING)

    async def _switch(self, move: Move, source: Partition, target: Partition) -> Move:
        """Refuse writes, copy the last rows, and serve the bucket from the target."""
        name, bucket_id = move.bucket, move.bucket_id
        frozen = await self._on(source, lambda txn: moving.freeze(txn, name, bucket_id))
        if frozen is not None:
            bucket = frozen
            await target.engine.transact(lambda txn: moving.prepare(txn, bucket, move.token))
            while await self._copy_marked(move, bucket, source, target):
                pass
            await self._on(source, lambda txn: moving.detach(txn, name, bucket_id))
        else:
            bucket = await target.engine.transact(
                lambda txn: moving.take_copy(txn, name, move.token)
            )
        await target.engine.transact(
            lambda txn: moving.attach(txn, bucket, move.token, target.name)
        )
        await self._first(lambda txn: moving.settle_place(txn, move, target.name))
        self._partitions.forget(name)
        return await self._advance(move, _CLEANING)

    async def _undo(self, move: Move, source: Partition, target: Partition) -> None:
        name, bucket_id = move.bucket, move.bucket_id
        await self._on(source, lambda txn: moving.thaw(txn, name, bucket_id))
        bucket = Bucket(name=name, id=bucket_id)
        await target.engine.transact(lambda txn: moving.abandon(txn, bucket))
        await self._clean(target, bucket_id)
        while await self._on(source, lambda txn: moving.drop_marks(txn, bucket_id)):
            pass
        await self._first(lambda txn: moving.settle_place(txn, move, source.name))

    async def _copy_marked(
        self, move: Move, bucket: Bucket, source: Partition, target: Partition
    ) -> int:
        """Copy some rows that changed; how many."""
        pairs = await source.engine.read(lambda txn: moving.read_marked(txn, move.bucket_id))
        if pairs:
            await self._write(target, bucket, move, pairs)
            await self._on(source, lambda txn: moving.clear_marks(txn, move.bucket_id, pairs))
        return len(pairs)

    async def _clean(self, partition: Partition, bucket_id: int) -> None:
        """Delete the bucket's rows from an engine that does not serve it."""
        cursor: bytes | None = b""
        while cursor is not None:
            keys, cursor = await self._leftovers(partition, bucket_id, cursor)
            if keys:
                await self._delete(partition, keys)

    # ---- transactions ----

    async def _settings(self, move: Move, source: Partition) -> Bucket:
        return await source.engine.read(lambda txn: open_to_read(txn, move.bucket).bucket)

    async def _rows_from(
        self, source: Partition, bucket_id: int, cursor: bytes
    ) -> moving.CopyBatch:
        return await source.engine.read(lambda txn: moving.read_rows(txn, bucket_id, cursor))

    async def _write(
        self,
        target: Partition,
        bucket: Bucket,
        move: Move,
        pairs: moving.Pairs,
        cursor: bytes | None = None,
    ) -> None:
        await target.engine.transact(
            lambda txn: moving.write_copied(txn, bucket, move.token, pairs, cursor)
        )

    async def _leftovers(
        self, partition: Partition, bucket_id: int, cursor: bytes
    ) -> tuple[list[bytes], bytes | None]:
        return await partition.engine.read(lambda txn: moving.rows_to_clean(txn, bucket_id, cursor))

    async def _delete(self, partition: Partition, keys: list[bytes]) -> None:
        def delete(txn: Transaction) -> None:
            for key in keys:
                txn.delete(key)

        await self._on(partition, delete)

    async def _advance(self, move: Move, phase: metadata_pb2.MovePhase.ValueType) -> Move:
        return await self._first(lambda txn: moving.advance(txn, move, phase))

    async def _first(self, fn: Callable[[Transaction], T]) -> T:
        return await self._on(self._partitions.all[0], fn)

    async def _on(self, partition: Partition, fn: Callable[[Transaction], T]) -> T:
        """A transaction that only the holder of the lease may commit."""
        guard = partition.lease.guard()

        def guarded(txn: Transaction) -> T:
            guard(txn)
            return fn(txn)

        return await partition.engine.transact(guarded)

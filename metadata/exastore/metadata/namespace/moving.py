"""Moving a bucket to another engine: the steps, as functions over a transaction of either engine.

Laws:
1. At every moment at most one engine serves the bucket: it is detached from the source before it is
   attached to the target, and in between requests get `BucketMoving`.
2. From `begin_copy` on every changed row leaves a mark in the transaction that changes it. The copy
   takes rows in the order of their keys while requests go on, then marked ones until few are left.
   A mark goes only when its row still has the value that was copied.
3. Nothing changes between `freeze` and `detach`, and `detach` demands that no mark is left: so the
   target has every row, and no row that the source has not.
4. Every write into the target checks the mover's token, so one that was paused and replaced cannot
   write any more.
5. Every step may be repeated: those that are not naturally so look at what is stored first.

The rows of a bucket are those behind its base and those in the engine's indexes that name its id.
When the source is cleaned the trash goes first: an entry must not outlive the manifest that it is
read with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace import rows, usage
from exastore.metadata.namespace.buckets import find_place
from exastore.metadata.namespace.errors import MoveConflict, MoverReplaced, NoSuchBucket
from exastore.proto.v1 import metadata_pb2

Bucket = metadata_pb2.Bucket
Pair = tuple[bytes, bytes | None]
Pairs = Sequence[Pair]

_ACTIVE = metadata_pb2.BUCKET_STATE_ACTIVE
_COPYING = metadata_pb2.BUCKET_STATE_COPYING
_FROZEN = metadata_pb2.BUCKET_STATE_FROZEN
_IMPORTING = metadata_pb2.BUCKET_STATE_IMPORTING

#: Indexes ordered by time, in which the rows of many buckets are mixed.
_TIMED = ("t", "x", "e")
#: Rows of an index looked at in one transaction: those of other buckets are passed over.
_PASSED_COUNT = 2000
_ROW_COUNT = 80
_BATCH_BYTES = 512 * 1024
_MARK_COUNT = 40


@dataclass(frozen=True, slots=True)
class CopyBatch:
    """Rows of the source, and where the next batch begins; None: this is the last."""

    pairs: Pairs
    next_cursor: bytes | None


# ---- source ----


def begin_copy(txn: Transaction, name: str, bucket_id: int) -> None:
    """From now on changed rows leave marks. Raises MoveConflict when the bucket is gone."""
    bucket = _stored(txn, name, bucket_id)
    if bucket is None:
        raise MoveConflict(f"bucket {name!r} is not in the partition that it should move from")
    if bucket.state == _ACTIVE:
        _set_state(txn, bucket, _COPYING)


def freeze(txn: Transaction, name: str, bucket_id: int) -> Bucket | None:
    """From now on writes are refused; the settings to copy. None: it is detached already."""
    bucket = _stored(txn, name, bucket_id)
    if bucket is not None and bucket.state == _COPYING:
        _set_state(txn, bucket, _FROZEN)
    return bucket


def thaw(txn: Transaction, name: str, bucket_id: int) -> None:
    """Serve as before: the move is cancelled. Raises MoveConflict when the bucket is detached."""
    bucket = _stored(txn, name, bucket_id)
    if bucket is None:
        raise MoveConflict(f"bucket {name!r} has left its partition: the move cannot be cancelled")
    _set_state(txn, bucket, _ACTIVE)


def read_rows(txn: Transaction, bucket_id: int, cursor: bytes) -> CopyBatch:
    """Some rows of the bucket, in a snapshot.

    Args:
        cursor: Empty at first, then `next_cursor` of the batch before.
    """
    sections = _sections(bucket_id)
    number, begin = (cursor[0], cursor[1:]) if cursor else (0, b"")
    first, end, is_timed = sections[number]
    limit = _PASSED_COUNT if is_timed else _ROW_COUNT
    found = txn.scan(max(first, begin), end, limit=limit)
    pairs: list[Pair] = []
    batch_bytes = 0
    for key, value in found:
        if (is_timed and not _names(key, bucket_id)) or key == rows.base(bucket_id) + rows.NAME:
            continue
        if len(pairs) == _ROW_COUNT or batch_bytes > _BATCH_BYTES:
            return CopyBatch(pairs, bytes((number,)) + key)
        pairs.append((key, value))
        batch_bytes += len(key) + len(value)
    if len(found) == limit:
        return CopyBatch(pairs, bytes((number,)) + found[-1][0] + b"\x00")
    is_last = number == len(sections) - 1
    return CopyBatch(pairs, None if is_last else bytes((number + 1,)))


def read_marked(txn: Transaction, bucket_id: int) -> list[Pair]:
    """Some rows that changed, with what they hold now; None: nothing any more."""
    marks = txn.scan(*prefix_range(rows.marks(bucket_id)), limit=_MARK_COUNT, keys_only=True)
    pairs: list[Pair] = []
    batch_bytes = 0
    for mark, _ in marks:
        if batch_bytes > _BATCH_BYTES:
            break
        key = rows.marked_row(mark)
        value = txn.get(key)
        pairs.append((key, value))
        batch_bytes += len(key) + len(value or b"")
    return pairs


def clear_marks(txn: Transaction, bucket_id: int, pairs: Pairs) -> None:
    """Take the marks off rows that still hold what was copied."""
    values = txn.multi_get([key for key, _ in pairs])
    for (key, copied), value in zip(pairs, values, strict=True):
        if copied == value:
            txn.delete(rows.marks(bucket_id) + key)


def detach(txn: Transaction, name: str, bucket_id: int) -> None:
    """Serve the bucket no more; again is harmless. Its tenant's usage goes with it."""
    bucket = _stored(txn, name, bucket_id)
    if bucket is None:
        return
    assert bucket.state == _FROZEN, "a bucket is frozen before it is detached"
    marks = txn.scan(*prefix_range(rows.marks(bucket_id)), limit=1, keys_only=True)
    assert not marks, "every marked row was copied"
    txn.delete(rows.bucket(name))
    txn.delete(rows.base(bucket_id) + rows.NAME)
    _move_tenant_usage(txn, bucket, -1)


def rows_to_clean(
    txn: Transaction, bucket_id: int, cursor: bytes
) -> tuple[list[bytes], bytes | None]:
    """Keys of some rows that a bucket left behind, and where to go on; None: there are no more."""
    sections = _sections(bucket_id)
    base, others = sections[0], sections[1:]
    marks = prefix_range(rows.marks(bucket_id))
    ordered = [*others, (*marks, False), base]
    number, begin = (cursor[0], cursor[1:]) if cursor else (0, b"")
    first, end, is_timed = ordered[number]
    found = txn.scan(max(first, begin), end, limit=_PASSED_COUNT if is_timed else _ROW_COUNT)
    keys: list[bytes] = []
    for key, _ in found:
        if not is_timed or _names(key, bucket_id):
            if len(keys) == _ROW_COUNT:
                return keys, bytes((number,)) + key
            keys.append(key)
    if found and len(found) == (_PASSED_COUNT if is_timed else _ROW_COUNT):
        return keys, bytes((number,)) + found[-1][0] + b"\x00"
    return keys, None if number == len(ordered) - 1 else bytes((number + 1,))


def drop_marks(txn: Transaction, bucket_id: int) -> bool:
    """Delete some marks of a move that was cancelled; false when there are none."""
    found = txn.scan(*prefix_range(rows.marks(bucket_id)), limit=_MARK_COUNT, keys_only=True)
    for mark, _ in found:
        txn.delete(mark)
    return bool(found)


# ---- target ----


def prepare(txn: Transaction, bucket: Bucket, token: int) -> bytes | None:
    """Begin a copy, or take one over; the cursor to go on from, None: the copy was complete.

    Raises MoveConflict, MoverReplaced.
    """
    known = txn.get(rows.bucket(bucket.name))
    if known is not None:
        stored = Bucket.FromString(known)
        if stored.id != bucket.id:
            raise MoveConflict(f"the target has another bucket {bucket.name!r}")
        if stored.state != _IMPORTING:
            return None
        if stored.move_token > token:
            raise MoverReplaced(bucket.name)
    copy = Bucket()
    copy.CopyFrom(bucket)
    copy.state = _IMPORTING
    copy.move_token = token
    txn.put(rows.bucket(bucket.name), copy.SerializeToString())
    txn.put(rows.base(bucket.id) + rows.NAME, bucket.name.encode())
    return txn.get(rows.copied(bucket.id)) or b""


def write_copied(
    txn: Transaction,
    bucket: Bucket,
    token: int,
    pairs: Pairs,
    cursor: bytes | None = None,
) -> None:
    """Write rows of the source, and how far the copy is. Raises MoverReplaced."""
    _require_token(txn, bucket, token)
    for key, value in pairs:
        if value is None:
            txn.delete(key)
        else:
            txn.put(key, value)
    if cursor is not None:
        txn.put(rows.copied(bucket.id), cursor)


def take_copy(txn: Transaction, name: str, token: int) -> Bucket:
    """Take a complete copy over, the source being detached; the bucket as it is stored.

    Raises MoverReplaced.
    """
    value = txn.get(rows.bucket(name))
    bucket = Bucket() if value is None else Bucket.FromString(value)
    if value is None or bucket.move_token > token:
        raise MoverReplaced(name)
    if bucket.state == _IMPORTING:
        bucket.move_token = token
        txn.put(rows.bucket(name), bucket.SerializeToString())
    return bucket


def attach(txn: Transaction, bucket: Bucket, token: int, partition: str) -> None:
    """Serve the bucket, with the settings it was frozen with; again is harmless.

    Raises MoverReplaced.
    """
    known = txn.get(rows.bucket(bucket.name))
    if known is not None and Bucket.FromString(known).state == _ACTIVE:
        return
    _require_token(txn, bucket, token)
    served = Bucket()
    served.CopyFrom(bucket)
    served.state = _ACTIVE
    served.partition = partition
    served.move_token = 0
    txn.put(rows.bucket(bucket.name), served.SerializeToString())
    txn.delete(rows.copied(bucket.id))
    _move_tenant_usage(txn, served, 1)


def abandon(txn: Transaction, bucket: Bucket) -> None:
    """Give a copy up, so that its rows can be deleted; again is harmless."""
    known = txn.get(rows.bucket(bucket.name))
    if known is not None:
        stored = Bucket.FromString(known)
        if stored.id == bucket.id and stored.state == _IMPORTING:
            txn.delete(rows.bucket(bucket.name))
            txn.delete(rows.copied(bucket.id))


# ---- the record of a move, in the first engine ----


def begin(txn: Transaction, name: str, target: str, now_s: float) -> metadata_pb2.Move:
    """Note that a bucket shall move. Raises NoSuchBucket, MoveConflict."""
    place = find_place(txn, name)
    if place is None:
        raise NoSuchBucket(name)
    if find_move(txn, name) is not None or place.state != _ACTIVE:
        raise MoveConflict(f"bucket {name!r} is moving already")
    if place.partition == target:
        raise MoveConflict(f"bucket {name!r} is in partition {target!r} already")
    move = metadata_pb2.Move(
        bucket=name,
        bucket_id=place.id,
        source=place.partition,
        target=target,
        phase=metadata_pb2.MOVE_PHASE_PREPARING,
        begun_s=now_s,
    )
    put_move(txn, move)
    place.state = _COPYING
    txn.put(rows.place(name), place.SerializeToString())
    return move


def cancel(txn: Transaction, name: str) -> metadata_pb2.Move:
    """Note that a move shall be undone. Raises MoveConflict when it is too late for that."""
    move = find_move(txn, name)
    if move is None:
        raise MoveConflict(f"bucket {name!r} is not moving")
    if move.phase in (metadata_pb2.MOVE_PHASE_SWITCHING, metadata_pb2.MOVE_PHASE_CLEANING):
        raise MoveConflict(f"bucket {name!r} has nearly moved: the move cannot be cancelled")
    move.phase = metadata_pb2.MOVE_PHASE_CANCELLING
    put_move(txn, move)
    return move


def take(txn: Transaction, name: str) -> metadata_pb2.Move | None:
    """Take a move over: a new token shuts out who carried it out before. None: it is done."""
    move = find_move(txn, name)
    if move is not None:
        move.token += 1
        put_move(txn, move)
    return move


def advance(
    txn: Transaction, move: metadata_pb2.Move, phase: metadata_pb2.MovePhase.ValueType
) -> metadata_pb2.Move:
    """Note a move's next phase; what is stored now, which differs when it was cancelled.

    Raises MoverReplaced.
    """
    stored = find_move(txn, move.bucket)
    if stored is None or stored.token != move.token:
        raise MoverReplaced(move.bucket)
    if stored.phase != move.phase:
        return stored
    stored.phase = phase
    stored.copied_row_count = move.copied_row_count
    put_move(txn, stored)
    return stored


def settle_place(txn: Transaction, move: metadata_pb2.Move, partition: str) -> None:
    """Say where the bucket is served from now on. Raises MoverReplaced."""
    stored = find_move(txn, move.bucket)
    if stored is None or stored.token != move.token:
        raise MoverReplaced(move.bucket)
    place = find_place(txn, move.bucket)
    if place is not None and place.id == move.bucket_id:
        place.partition = partition
        place.state = _ACTIVE
        txn.put(rows.place(move.bucket), place.SerializeToString())


def finish(txn: Transaction, move: metadata_pb2.Move) -> None:
    """Forget a move that is done. Raises MoverReplaced."""
    stored = find_move(txn, move.bucket)
    if stored is None or stored.token != move.token:
        raise MoverReplaced(move.bucket)
    txn.delete(rows.move(move.bucket))


def find_move(txn: Transaction, name: str) -> metadata_pb2.Move | None:
    value = txn.get(rows.move(name))
    return None if value is None else metadata_pb2.Move.FromString(value)


def put_move(txn: Transaction, move: metadata_pb2.Move) -> None:
    txn.put(rows.move(move.bucket), move.SerializeToString())


def list_moves(txn: Transaction) -> list[metadata_pb2.Move]:
    """Moves that are under way."""
    found = txn.scan(*prefix_range(pack("V")))
    return [metadata_pb2.Move.FromString(value) for _, value in found]


def _stored(txn: Transaction, name: str, bucket_id: int) -> Bucket | None:
    value = txn.get(rows.bucket(name))
    bucket = None if value is None else Bucket.FromString(value)
    return bucket if bucket is not None and bucket.id == bucket_id else None


def _set_state(txn: Transaction, bucket: Bucket, state: metadata_pb2.BucketState.ValueType) -> None:
    bucket.state = state
    txn.put(rows.bucket(bucket.name), bucket.SerializeToString())


def _require_token(txn: Transaction, bucket: Bucket, token: int) -> None:
    known = _stored(txn, bucket.name, bucket.id)
    if known is None or known.state != _IMPORTING or known.move_token != token:
        raise MoverReplaced(bucket.name)


def _move_tenant_usage(txn: Transaction, bucket: Bucket, sign: int) -> None:
    if bucket.owner:
        base = rows.base(bucket.id)
        usage.add_all(
            txn,
            lambda slot: base + rows.usage(slot),
            bucket.owner,
            sign,
        )


def _sections(bucket_id: int) -> list[tuple[bytes, bytes, bool]]:
    """Ranges of keys that hold the bucket's rows, and whether rows of others are among them."""
    return [
        (*prefix_range(rows.base(bucket_id)), False),
        *((*prefix_range(pack(kind)), True) for kind in _TIMED),
        *((*prefix_range(pack(kind, bucket_id)), False) for kind in ("g", "j", "J")),
        (rows.reindex(bucket_id), rows.reindex(bucket_id) + b"\x00", False),
    ]


def _names(key: bytes, bucket_id: int) -> bool:
    """Whether a row of an index ordered by time speaks of the bucket."""
    return rows.timed_place(key)[1] == bucket_id

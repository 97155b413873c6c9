"""The one place that turns this room's errors into what goes over the wire."""

from functools import cache
from typing import TypeAlias

from exastore.proto.v1 import common_pb2, storage_pb2
from exastore.storage.errors import (
    ChunkCorrupt,
    ChunkNotFound,
    DeviceFenced,
    LocalMisuse,
    NoSpace,
    StaleEpoch,
    StorageError,
    TransferCorrupt,
    WrongDevice,
)
from exastore.storage.record import ChunkKey

ChunkStatus = storage_pb2.ChunkStatus
Status: TypeAlias = storage_pb2.ChunkStatus.ValueType

_STATUS_OF: tuple[tuple[type[StorageError], Status], ...] = (
    (ChunkNotFound, ChunkStatus.CHUNK_STATUS_NOT_FOUND),
    (ChunkCorrupt, ChunkStatus.CHUNK_STATUS_CORRUPT),
    (TransferCorrupt, ChunkStatus.CHUNK_STATUS_CORRUPT),
    (StaleEpoch, ChunkStatus.CHUNK_STATUS_STALE_EPOCH),
    (WrongDevice, ChunkStatus.CHUNK_STATUS_WRONG_DEVICE),
    (NoSpace, ChunkStatus.CHUNK_STATUS_NO_SPACE),
    (DeviceFenced, ChunkStatus.CHUNK_STATUS_FENCED),
    (LocalMisuse, ChunkStatus.CHUNK_STATUS_INVALID),
)


def status_of(error: StorageError) -> Status:
    """The status that tells the sender what to do."""
    for kind, status in _STATUS_OF:
        if isinstance(error, kind):
            return status
    return ChunkStatus.CHUNK_STATUS_IO_ERROR


@cache
def status_label(status: Status) -> str:
    """As metrics show it: "ok", "not_found", ..."""
    return ChunkStatus.Name(status).removeprefix("CHUNK_STATUS_").lower()


def key_of(chunk: common_pb2.ChunkId) -> ChunkKey:
    return ChunkKey(chunk.pg, chunk.stripe_id, chunk.index)


def id_of(key: ChunkKey, generation: int) -> common_pb2.ChunkId:
    return common_pb2.ChunkId(
        pg=key.pg, stripe_id=key.stripe_id, index=key.chunk_index, generation=generation
    )

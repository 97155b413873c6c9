"""The rows of the namespace: their keys, and how extents are cut into them.

    b, bucket               Bucket               a bucket
    o, bucket + raw key     Object, bare         the current object: no bytes, extents, parts
    d, owner, part, batch   Part                 inline bytes or extents of a part (0: plain)
    g, owner, part, batch   ListExtentsResponse  extents of that `d` row that miss chunks
    m, owner, batch         Object with parts    the parts a completed upload consists of
    u, bucket, key, upload  Upload               an upload in progress
    v, upload               counter              changes of the upload's parts
    r, upload               Object, bare         the answer of a completed upload
    t, ms, kind, owner, ..  by kind              trash, oldest first
    k, owner                empty                the owner is in the trash as a whole

The *owner* of data is a version id; an upload's id becomes the version id of its object, so that
completing 10,000 parts moves none of them. Object rows stay small, so that a listing reads little.

The `d` rows of a version live until its trash is collected: they are the proof that a commit with
this version id has been done, even if the object was replaced since.
"""

from collections.abc import Iterable, Iterator

from exastore.metadata.kv.keys import pack, unpack
from exastore.proto.v1 import common_pb2, metadata_pb2

#: Extents of a row are cut here; the engine's limit of 64 KiB keeps room for the rest of a Part.
ROW_EXTENT_BYTES = 48 * 1024
#: A plain object has the one part 0; the parts of an upload are 1 to PART_COUNT_MAX.
PLAIN = 0
PART_COUNT_MAX = 10_000
OBJECT_KEY_BYTES_MAX = 1024


def bucket_key(bucket: str) -> bytes:
    return pack("b", bucket)


def objects_prefix(bucket: str) -> bytes:
    return pack("o", bucket)


def object_key(bucket: str, key: str) -> bytes:
    return pack("o", bucket) + key.encode()


def data_prefix(owner: str) -> bytes:
    return pack("d", owner)


def part_prefix(owner: str, number: int) -> bytes:
    return pack("d", owner, number)


def data_key(owner: str, number: int, batch: int) -> bytes:
    return pack("d", owner, number, batch)


def degraded_key(owner: str, number: int, batch: int) -> bytes:
    return pack("g", owner, number, batch)


def manifest_prefix(owner: str) -> bytes:
    return pack("m", owner)


def manifest_key(owner: str, batch: int) -> bytes:
    return pack("m", owner, batch)


def uploads_prefix(bucket: str) -> bytes:
    return pack("u", bucket)


def upload_key(bucket: str, key: str, upload_id: str) -> bytes:
    return pack("u", bucket, key, upload_id)


def revision_key(upload_id: str) -> bytes:
    return pack("v", upload_id)


def result_key(upload_id: str) -> bytes:
    return pack("r", upload_id)


def trash_key(trashed_s: float, kind: str, owner: str, number: int, batch: int) -> bytes:
    return pack("t", int(trashed_s * 1000), kind, owner, number, batch)


def dead_key(owner: str) -> bytes:
    return pack("k", owner)


def data_place(key: bytes) -> tuple[str, int, int]:
    """(owner, part, batch) of a `d` or `g` row."""
    _, owner, number, batch = unpack(key)
    assert isinstance(owner, str) and isinstance(number, int) and isinstance(batch, int)
    return owner, number, batch


def extent_batches(extents: Iterable[common_pb2.Extent]) -> Iterator[list[common_pb2.Extent]]:
    """Cut `extents` into runs that fit a row; one empty run when there are none."""
    batch: list[common_pb2.Extent] = []
    batch_bytes = 0
    for extent in extents:
        extent_bytes = extent.ByteSize() + 4
        if batch and batch_bytes + extent_bytes > ROW_EXTENT_BYTES:
            yield batch
            batch, batch_bytes = [], 0
        batch.append(extent)
        batch_bytes += extent_bytes
    yield batch


def bare_object(source: metadata_pb2.Object) -> metadata_pb2.Object:
    """A copy without bytes, extents and parts, as object rows and listings hold it."""
    bare = metadata_pb2.Object(
        bucket=source.bucket,
        key=source.key,
        version_id=source.version_id,
        size_bytes=source.size_bytes,
        etag=source.etag,
        modified_s=source.modified_s,
        content_type=source.content_type,
    )
    bare.headers.update(source.headers)
    bare.user_metadata.update(source.user_metadata)
    bare.checksums.update(source.checksums)
    return bare

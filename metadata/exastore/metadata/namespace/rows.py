"""The rows of the namespace: their keys, and how extents are cut into them.

Rows of a bucket lie side by side behind its base, (n, bucket id), so that a bucket can be copied to
another engine in the order of its keys. One byte tells the kind:

    s                        text                name of the bucket
    o  key                   Object              the current version, if it is no delete marker
    v  key' order'           Object              the other versions, newest first
    0  key'                  order'              which of the `v` rows is the null version
    d  owner part batch      Part                bytes or extents that do not fit the record
    k  owner                 empty               all `d` rows of the owner are in the trash
    m  owner batch           Object with parts   the parts a completed upload consists of
    u  key' upload           Upload              an upload in progress
    w  upload slot           numbers             changes, count and bytes of the upload's parts
    c  slot                  numbers             usage of the bucket
    f  name                  bytes               a document of the bucket
    q  request id            StoredResult        answer of a request that was done
    p  stripe id             PackedStripe        a stripe that slices of small objects refer to
    r  stripe id  batch      PackedMembers       which versions were packed into it
    i                        counter             how often an older version became current again

Rows of the engine, which background work walks through; they name the bucket's id:

    (b, name)                    Bucket          a bucket that this engine holds, with its settings
    (t, ms, id, kind, owner, ..) by kind         trash, oldest first
    (g, id) holder               extents         which of the extents in that row miss chunks
    (j, id) holder               UnpackedObject  a small object that waits to be packed
    (J, id) stripe id            empty           a packed stripe of which less than half is live
    (x, ms, id) holder           empty           when lifecycle has to look at that row
    (e, ms, id) request id       empty           when that `q` row expires
    (y, id)                      cursor          how far a bucket is indexed after its rules changed
    (a, tenant, slot)            numbers         usage of the tenant's buckets in this engine
    (A, tenant)                  Quota           what the tenant may use
    (l, id) row                  empty           a row changed while the bucket is being copied
    (h, id)                      section, key    how far the copy of a bucket to this engine is
    (f)                          number          map epoch below which commits are refused
    (o)                          number          ms: commits of stripes begun before are refused

Rows of the first engine only:

    (p, name)                    Bucket, bare    which partition holds the bucket
    (n)                          counter         the last bucket id
    (V, name)                    Move            a move of a bucket between partitions
    (T, tenant)                  Quota           what the tenant may use in all engines together
    (user, ..) (key, ..)                         users and their access keys: `users`
    (traffic, ..) (batches, ..)                  requests and bytes of tenants: `traffic`

*holder* is the part of a row's key behind the base. *key'* is the object key with every byte raised
by one, and a 0x00 behind: UTF-8 has no byte above 0xF4, so order and length stay and no key is the
beginning of another. *order'* is the version's order, subtracted from the largest number.

The *owner* of data is the version id that the gateway chose; an upload's id becomes the version id
of its object, so that completing 10,000 parts moves none of them.
"""

import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache

from exastore.metadata.kv.keys import pack, unpack
from exastore.proto.v1 import common_pb2, metadata_pb2

#: Extents of a row are cut here; the engine's limit of 64 KiB keeps room for the rest of a Part.
ROW_EXTENT_BYTES = 48 * 1024
#: Bytes and extents up to this size stay in the object's record: one stripe of a wide code fits.
RECORD_DATA_BYTES = 512
#: A plain object has the one part 0; the parts of an upload are 1 to PART_COUNT_MAX.
PLAIN = 0
PART_COUNT_MAX = 10_000
OBJECT_KEY_BYTES_MAX = 1024
ORDER_MAX = (1 << 64) - 1

#: Kinds of a bucket's rows.
NAME = b"s"
CURRENT = b"o"
OTHER = b"v"
NULL = b"0"
DATA = b"d"
DEAD = b"k"
MANIFEST = b"m"
UPLOAD = b"u"
TOTALS = b"w"
USAGE = b"c"
RESULT = b"q"
DOCUMENT = b"f"
STRIPE = b"p"
MEMBERS = b"r"
PROMOTIONS = b"i"

_RAISED = bytes(range(1, 256)) + b"\x00"
_LOWERED = b"\xff" + bytes(range(255))
_PLACE = struct.Struct(">HI")
_ORDER = struct.Struct(">Q")
_BASE_BYTES = len(pack("n", 0))


def raised(key: bytes) -> bytes:
    """Every byte of a key, or of the beginning of one, one higher."""
    return key.translate(_RAISED)


def lowered(key: bytes) -> bytes:
    """What `raised` was given."""
    return key.translate(_LOWERED)


# ---- rows of a bucket, relative to its base ----


@lru_cache(maxsize=4096)
def base(bucket_id: int) -> bytes:
    return pack("n", bucket_id)


def bucket_id_of(row_key: bytes) -> int:
    """The bucket of a row behind a base."""
    return int.from_bytes(row_key[_BASE_BYTES - 8 : _BASE_BYTES], "big")


def holder_of(row_key: bytes) -> bytes:
    """What follows the base."""
    return row_key[_BASE_BYTES:]


def current(key: str) -> bytes:
    return CURRENT + key.encode()


def versions_of(key: str) -> bytes:
    return OTHER + raised(key.encode()) + b"\x00"


def version(key: str, order: int) -> bytes:
    return versions_of(key) + _ORDER.pack(ORDER_MAX - order)


def version_place(holder: bytes) -> tuple[str, int]:
    """(key, order) of a `v` row."""
    (left,) = _ORDER.unpack(holder[-8:])
    return lowered(holder[1:-9]).decode(), ORDER_MAX - left


def null_version(key: str) -> bytes:
    return NULL + raised(key.encode()) + b"\x00"


def data_of(owner: str) -> bytes:
    return DATA + pack(owner)


def part_data(owner: str, number: int) -> bytes:
    """Before the `d` rows of a part; those of the next part begin at `number + 1`."""
    return DATA + pack(owner) + number.to_bytes(2, "big")


def data(owner: str, number: int, batch: int) -> bytes:
    return DATA + pack(owner) + _PLACE.pack(number, batch)


def data_place(holder: bytes) -> tuple[str, int, int]:
    """(owner, part, batch) of a `d` row."""
    number, batch = _PLACE.unpack(holder[-_PLACE.size :])
    (owner,) = unpack(holder[1 : -_PLACE.size])
    assert isinstance(owner, str)
    return owner, number, batch


def dead(owner: str) -> bytes:
    return DEAD + pack(owner)


def manifest_of(owner: str) -> bytes:
    return MANIFEST + pack(owner)


def manifest(owner: str, batch: int) -> bytes:
    return MANIFEST + pack(owner) + batch.to_bytes(4, "big")


def uploads_of(key: str) -> bytes:
    return UPLOAD + raised(key.encode()) + b"\x00"


def upload(key: str, upload_id: str) -> bytes:
    return uploads_of(key) + upload_id.encode()


def upload_place(holder: bytes) -> tuple[str, str]:
    """(key, upload id) of a `u` row."""
    key, _, upload_id = holder[1:].partition(b"\x00")
    return lowered(key).decode(), upload_id.decode()


def totals(upload_id: str, slot: int) -> bytes:
    return TOTALS + pack(upload_id) + bytes((slot,))


def usage(slot: int) -> bytes:
    return USAGE + bytes((slot,))


def document(name: str) -> bytes:
    return DOCUMENT + name.encode()


def result(request_id: str) -> bytes:
    return RESULT + request_id.encode()


def packed_stripe(stripe_id: bytes) -> bytes:
    return STRIPE + stripe_id


def packed_members_of(stripe_id: bytes) -> bytes:
    return MEMBERS + stripe_id


def packed_members(stripe_id: bytes, number: int) -> bytes:
    return MEMBERS + stripe_id + number.to_bytes(2, "big")


# ---- rows of an engine ----


@lru_cache(maxsize=4096)
def bucket(name: str) -> bytes:
    return pack("b", name)


def trash(trashed_s: float, bucket_id: int, kind: str, owner: str, unique: int) -> bytes:
    return pack("t", ms_of(trashed_s), bucket_id, kind, owner, unique)


def degraded(bucket_id: int, holder: bytes) -> bytes:
    return pack("g", bucket_id) + holder


def unpacked(bucket_id: int, holder: bytes) -> bytes:
    return pack("j", bucket_id) + holder


def sparse(bucket_id: int, stripe_id: bytes) -> bytes:
    return pack("J", bucket_id) + stripe_id


def due(due_ms: int, bucket_id: int, holder: bytes) -> bytes:
    return pack("x", due_ms, bucket_id) + holder


def expiry(expires_s: float, bucket_id: int, request_id: str) -> bytes:
    return pack("e", ms_of(expires_s), bucket_id) + request_id.encode()


def reindex(bucket_id: int) -> bytes:
    return pack("y", bucket_id)


@lru_cache(maxsize=4096)
def tenant_usage(tenant: str, slot: int) -> bytes:
    return pack("a", tenant, slot)


@lru_cache(maxsize=4096)
def tenant_quota(tenant: str) -> bytes:
    return pack("A", tenant)


def total_quota(tenant: str) -> bytes:
    return pack("T", tenant)


def marks(bucket_id: int) -> bytes:
    return pack("l", bucket_id)


def copied(bucket_id: int) -> bytes:
    return pack("h", bucket_id)


def place(name: str) -> bytes:
    return pack("p", name)


def move(name: str) -> bytes:
    return pack("V", name)


LAST_BUCKET_ID = pack("n")
MAP_FENCE = pack("f")
ORPHAN_FENCE = pack("o")
_MARKS_BYTES = len(marks(0))
_TIMED_BYTES = len(pack("x", 0, 0))


def marked_row(mark_key: bytes) -> bytes:
    """The row that a mark speaks of."""
    return mark_key[_MARKS_BYTES:]


def timed_place(key: bytes) -> tuple[int, int, bytes]:
    """(ms, bucket id, rest) of an `x` or `e` row."""
    at = _TIMED_BYTES
    return (
        int.from_bytes(key[at - 17 : at - 9], "big"),
        int.from_bytes(key[at - 8 : at], "big"),
        key[at:],
    )


def degraded_place(key: bytes) -> tuple[int, bytes]:
    """(bucket id, holder) of a `g` row."""
    return bucket_id_of(key), holder_of(key)


def stripe_ms(stripe_id: bytes) -> int:
    """When a stripe was begun, by the clock of its writer: ids begin with it."""
    return int.from_bytes(stripe_id[:6], "big")


def ms_of(time_s: float) -> int:
    """Milliseconds, for the keys of rows that are ordered by time."""
    return max(0, int(time_s * 1000))


# ---- extents and records ----


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
    """A copy of what clients said and the server noted: no bytes, extents, parts, bucket, key."""
    bare = metadata_pb2.Object()
    bare.CopyFrom(source)
    bare.ClearField("bucket")
    bare.ClearField("key")
    bare.ClearField("inline_data")
    bare.ClearField("extents")
    bare.ClearField("parts")
    return bare

"""The versions of a key: which is current, in what order, and how they give way to each other.

Laws:
1. A key's current version, if it is no delete marker, is its `o` row; all others are `v` rows. So a
   listing reads current versions only, however many others there are.
2. Orders grow from version to version of a key, whatever the clock does, and the `o` row has the
   highest. The `0` row names the null version if and only if it is among the `v` rows.
3. A record's index rows (`x` by due time, `g` by missing chunks, `j` while it waits to be packed)
   are written and deleted with it.
4. Records move from `o` to `v` as they are replaced. The other way changes the `i` row, so that a
   walk in the order of the rows can tell whether it may have missed one.
"""

from exastore.metadata.kv.contract import counter_bytes, counter_value
from exastore.metadata.namespace import lifecycle, packed, requests, rows, trash, usage
from exastore.metadata.namespace.errors import InvalidArgument, NoObjectLock, NoSuchVersion
from exastore.metadata.namespace.space import Space, Terms
from exastore.proto.v1 import lock_pb2, metadata_pb2

#: How clients name the version that was written without versioning.
NULL_ID = "null"
_NEVER = metadata_pb2.VERSIONING_UNSPECIFIED
_ENABLED = metadata_pb2.VERSIONING_ENABLED
_ORDER_DIGITS = 16
#: Of retention; tests may shorten the day of lifecycle, not this one.
_LOCK_DAY_S = 86_400.0

Record = metadata_pb2.Object


# ---- ids ----


def order_of(record: Record) -> int:
    """The place among the versions of its key."""
    return record.order or int(record.modified_s * 1e6)


def public_id(record: Record) -> str:
    """The version id that clients see; that of the null version is the gateway's own."""
    if not record.versioned:
        return record.version_id
    return marker_id(record)


def marker_id(record: Record) -> str:
    """An id that tells the place of any version, the null version too."""
    return f"{rows.ORDER_MAX - order_of(record):0{_ORDER_DIGITS}x}{record.version_id}"


def order_of_id(version_id: str) -> int | None:
    """The order that a `marker_id` tells; None: it is none."""
    digits = version_id[:_ORDER_DIGITS]
    if len(digits) < _ORDER_DIGITS:
        return None
    try:
        return rows.ORDER_MAX - int(digits, 16)
    except ValueError:
        return None


def answer(bucket: str, key: str, record: Record) -> Record:
    """A bare copy of a record as clients get it."""
    return shown(bucket, key, rows.bare_object(record))


def shown(bucket: str, key: str, record: Record) -> Record:
    """A record that is not needed any more, as clients get it."""
    record.ClearField("extents")
    record.ClearField("inline_data")
    record.bucket = bucket
    record.key = key
    record.version_id = public_id(record)
    return record


def mark_null(space: Space, shown_record: Record) -> Record:
    """Say of an answer whether clients know it as the null version."""
    if not shown_record.versioned:
        shown_record.null_version = space.bucket.versioning != _NEVER
    return shown_record


# ---- locks ----


def is_locked(record: Record, now_s: float, *, bypass: bool = False) -> bool:
    """Whether the version may not be deleted now; governance gives way to who may bypass it."""
    held = record.lock
    if held.legal_hold:
        return True
    is_retained = held.mode != lock_pb2.LOCK_MODE_NONE and held.retain_until_s > now_s
    return is_retained and not (bypass and held.mode == lock_pb2.LOCK_MODE_GOVERNANCE)


def check_retention(held: lock_pb2.ObjectLock, now_s: float) -> None:
    """Raises InvalidArgument for a retention that is over before it begins."""
    if held.mode != lock_pb2.LOCK_MODE_NONE and held.retain_until_s <= now_s:
        raise InvalidArgument("the retain until date must be in the future")


def _lock_by_default(space: Space, record: Record, now_s: float) -> None:
    """Lock a new version as its bucket says, unless it says something itself."""
    default, held = space.bucket.lock, record.lock
    if record.delete_marker or not default.enabled:
        if held.mode or held.legal_hold:
            raise NoObjectLock(space.bucket.name)
        record.ClearField("lock")
    elif default.mode and not held.mode:
        held.mode = default.mode
        held.retain_until_s = now_s + (default.days + 365 * default.years) * _LOCK_DAY_S


# ---- find ----


def find_current(space: Space, key: str) -> Record | None:
    """The current version, if there is one and it is no delete marker."""
    value = space.get(rows.current(key))
    return None if value is None else Record.FromString(value)


def find_newest_other(space: Space, key: str) -> tuple[bytes, Record] | None:
    """The newest of the `v` rows, a delete marker perhaps."""
    if space.bucket.versioning == _NEVER:
        return None
    found = space.scan(rows.versions_of(key), limit=1)
    return (found[0][0], Record.FromString(found[0][1])) if found else None


def find_null_other(space: Space, key: str) -> tuple[bytes, Record] | None:
    """The null version among the `v` rows."""
    if space.bucket.versioning == _NEVER:
        return None
    order = space.get(rows.null_version(key))
    if order is None:
        return None
    holder = rows.versions_of(key) + order
    value = space.get(holder)
    assert value is not None, "a `0` row names a `v` row"
    return holder, Record.FromString(value)


def find_null(space: Space, key: str) -> Record | None:
    """The null version, wherever it is."""
    found = _find_null(space, key, NULL_ID)
    return None if found is None else found[1]


def find_version(space: Space, key: str, version_id: str) -> tuple[bytes, Record]:
    """The row of one version. Raises NoSuchVersion."""
    found = _find_null(space, key, version_id)
    order = order_of_id(version_id)
    if found is None and order is not None and space.bucket.versioning != _NEVER:
        for holder in (rows.current(key), rows.version(key, order)):
            value = space.get(holder)
            record = None if value is None else Record.FromString(value)
            if record is not None and record.versioned and marker_id(record) == version_id:
                return holder, record
    if found is None:
        raise NoSuchVersion(space.bucket.name, key, version_id)
    return found


def _find_null(space: Space, key: str, version_id: str) -> tuple[bytes, Record] | None:
    """The null version, if that is what the id names."""
    known = find_current(space, key)
    found = None
    if known is not None and not known.versioned:
        found = rows.current(key), known
    else:
        found = find_null_other(space, key)
    if found is not None and version_id in (NULL_ID, found[1].version_id):
        return found
    return None


# ---- rows with their index rows ----


def put_record(space: Space, holder: bytes, key: str, record: Record, terms: Terms) -> None:
    """Write a record and its index rows; what was there must be unindexed."""
    rules = space.bucket.lifecycle
    record.due_ms = lifecycle.object_due_ms(rules, key, record, terms) if rules else 0
    space.put(holder, record.SerializeToString())
    lifecycle.index(space, holder, record.due_ms)
    missing = [extent for extent in record.extents if extent.missing_indexes]
    if missing:
        row = metadata_pb2.ListExtentsResponse(extents=missing)
        space.put_row(rows.degraded(space.bucket.id, holder), row.SerializeToString())
    packed.index(space, holder, record)


def unindex(space: Space, holder: bytes, record: Record) -> None:
    """Delete the index rows of a record, which is about to be deleted or replaced."""
    lifecycle.unindex(space, holder, record.due_ms)
    if any(extent.missing_indexes for extent in record.extents):
        space.delete_row(rows.degraded(space.bucket.id, holder))
    packed.unindex(space, holder, record)


def charge(space: Space, key: str, record: Record, sign: int) -> None:
    """Count a version in (1) or out (-1)."""
    seed = key.encode()
    if record.delete_marker:
        space.charge(seed, (usage.MARKERS, sign))
    else:
        space.charge(seed, (usage.OBJECTS, sign), (usage.OBJECT_BYTES, sign * record.size_bytes))


# ---- change ----


def install(
    space: Space, key: str, record: Record, known: Record | None, now_s: float, terms: Terms
) -> None:
    """Make `record` the newest version of its key; `known` is what `find_current` found.

    Depending on the bucket the version before stays, or goes to the trash.
    """
    versioning = space.bucket.versioning
    _lock_by_default(space, record, now_s)
    if versioning == _NEVER:
        if known is not None:
            _discard(space, rows.current(key), key, known, now_s, terms)
    else:
        record.versioned = versioning == _ENABLED
        other = find_newest_other(space, key) if known is None else None
        record.order = max(1, int(now_s * 1e6))
        for older in (known, None if other is None else other[1]):
            if older is not None:
                record.order = max(record.order, order_of(older) + 1)
        if not record.versioned:
            _drop_null_other(space, key, now_s, terms)
        if other is not None and (record.versioned or other[1].versioned):
            _retire_marker(space, key, *other, now_s, terms)
        if known is not None and (record.versioned or known.versioned):
            _displace(space, key, known, now_s, terms)
        elif known is not None:
            _discard(space, rows.current(key), key, known, now_s, terms)
    charge(space, key, record, 1)
    if not record.delete_marker:
        put_record(space, rows.current(key), key, record, terms)
        return
    if known is not None:
        space.delete(rows.current(key))
    if versioning != _NEVER:
        put_record(space, rows.version(key, record.order), key, record, terms)
        if not record.versioned:
            space.put(rows.null_version(key), rows.version(key, record.order)[-8:])


def delete_current(
    space: Space, key: str, known: Record | None, marker_id_: str, now_s: float, terms: Terms
) -> Record | None:
    """Delete a key; with versioning a delete marker becomes its newest version, and is returned."""
    if space.bucket.versioning == _NEVER:
        if known is not None:
            _discard(space, rows.current(key), key, known, now_s, terms)
            space.delete(rows.current(key))
        return None
    marker = Record(version_id=marker_id_, delete_marker=True, modified_s=now_s)
    install(space, key, marker, known, now_s, terms)
    return marker


def delete_version(
    space: Space, key: str, holder: bytes, record: Record, now_s: float, terms: Terms
) -> None:
    """Delete one version for good; the newest that is left takes its place if it was current."""
    if record.delete_marker:
        unindex(space, holder, record)
        charge(space, key, record, -1)
    else:
        _discard(space, holder, key, record, now_s, terms)
    space.delete(holder)
    if holder.startswith(rows.OTHER) and not record.versioned:
        space.delete(rows.null_version(key))
    if space.bucket.versioning == _NEVER:
        return
    newest = find_newest_other(space, key)
    if newest is None or order_of(newest[1]) > order_of(record):
        return
    if holder.startswith(rows.OTHER) and find_current(space, key) is not None:
        return
    if newest[1].delete_marker:
        _restart_marker(space, key, *newest, terms)
    else:
        _promote(space, key, *newest, terms)


def drop_lone_marker(space: Space, key: str) -> bool:
    """Delete the delete marker that is all that is left of a key; whether there was one."""
    found = space.scan(rows.versions_of(key), limit=2)
    if len(found) != 1 or space.get(rows.current(key)) is not None:
        return False
    holder, record = found[0][0], Record.FromString(found[0][1])
    if not record.delete_marker:
        return False
    unindex(space, holder, record)
    charge(space, key, record, -1)
    space.delete(holder)
    if not record.versioned:
        space.delete(rows.null_version(key))
    return True


def _discard(
    space: Space, holder: bytes, key: str, record: Record, now_s: float, terms: Terms
) -> None:
    """Move what a version refers to to the trash; the caller deletes or replaces its row."""
    unindex(space, holder, record)
    charge(space, key, record, -1)
    if record.delete_marker:
        return
    if record.in_rows:
        trash.put_owner(space, record.version_id, now_s)
    else:
        trash.put_extents(space, record.version_id, record.extents, now_s)
    requests.remember_commit(space, key, record, now_s, terms)


def _drop_null_other(space: Space, key: str, now_s: float, terms: Terms) -> None:
    found = find_null_other(space, key)
    if found is not None:
        holder, record = found
        _discard(space, holder, key, record, now_s, terms)
        space.delete(holder)
        space.delete(rows.null_version(key))


def _displace(space: Space, key: str, known: Record, now_s: float, terms: Terms) -> None:
    """Move the current version to the `v` rows; the caller deletes or replaces the `o` row."""
    unindex(space, rows.current(key), known)
    requests.remember_commit(space, key, known, now_s, terms)
    known.order = order_of(known)
    known.noncurrent_s = max(now_s, known.modified_s)
    holder = rows.version(key, known.order)
    put_record(space, holder, key, known, terms)
    if not known.versioned:
        space.put(rows.null_version(key), holder[-8:])


def _promote(space: Space, key: str, holder: bytes, record: Record, terms: Terms) -> None:
    """The newest of the `v` rows becomes current again."""
    unindex(space, holder, record)
    space.delete(holder)
    if not record.versioned:
        space.delete(rows.null_version(key))
    record.noncurrent_s = 0.0
    put_record(space, rows.current(key), key, record, terms)
    count = counter_value(space.get(rows.PROMOTIONS))
    space.put(rows.PROMOTIONS, counter_bytes(count + 1))


def _retire_marker(
    space: Space, key: str, holder: bytes, record: Record, now_s: float, terms: Terms
) -> None:
    """The delete marker that was the newest version is replaced."""
    unindex(space, holder, record)
    record.noncurrent_s = max(now_s, record.modified_s)
    put_record(space, holder, key, record, terms)


def _restart_marker(space: Space, key: str, holder: bytes, record: Record, terms: Terms) -> None:
    """A delete marker is the newest version again, so it is not on its way out any more."""
    if record.noncurrent_s:
        unindex(space, holder, record)
        record.noncurrent_s = 0.0
        put_record(space, holder, key, record, terms)

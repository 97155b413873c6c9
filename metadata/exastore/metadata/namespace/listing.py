"""Listing a bucket: forward scans that seek over what a common prefix rolls up.

The cost follows the entries returned, not the objects in the bucket: after the first key of a
common prefix the scan continues behind its last one.
"""

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import after_prefix, prefix_range
from exastore.metadata.namespace import rows, versions
from exastore.metadata.namespace.space import Space, open_to_read
from exastore.proto.v1 import metadata_pb2

MAX_KEYS = 1000
_FIRST_BATCH_COUNT = 32
_AFTER_SKIP_BATCH_COUNT = 8


class Roll:
    """What keys are rolled up to, under a prefix and a delimiter."""

    def __init__(self, prefix: str, delimiter: str) -> None:
        self.prefix = prefix.encode()
        self._delimiter = delimiter.encode()

    def common_prefix(self, key: bytes) -> bytes | None:
        """What rolls up `key`: up to and with the first delimiter after the prefix."""
        if not self._delimiter or not key.startswith(self.prefix):
            return None
        at = key.find(self._delimiter, len(self.prefix))
        return None if at == -1 else key[: at + len(self._delimiter)]

    @property
    def is_flat(self) -> bool:
        """Nothing is rolled up."""
        return not self._delimiter


class Cursor:
    """A forward scan in batches that can seek.

    Attributes:
        head: The pair at the cursor; None: behind the last.
    """

    def __init__(self, txn: Transaction, begin: bytes, end: bytes, batch_count: int) -> None:
        self._txn = txn
        self._end = end
        self._batch_count = batch_count
        #: What was read and not yet passed, the next pair last.
        self._batch: list[tuple[bytes, bytes]] = []
        #: Where the next batch begins; None: there is none.
        self._next: bytes | None = begin
        self.head: tuple[bytes, bytes] | None = None
        self.advance()

    def advance(self) -> None:
        """Go on to the next pair."""
        if not self._batch:
            self._fetch()
        self.head = self._batch.pop() if self._batch else None

    def seek(self, begin: bytes) -> None:
        """Go on to the first pair at or behind `begin`."""
        while self.head is not None and self.head[0] < begin:
            if not self._batch and self._next is not None:
                self._next = max(self._next, begin)
                self._batch_count = _AFTER_SKIP_BATCH_COUNT
            self.advance()

    def _fetch(self) -> None:
        if self._next is None or self._next >= self._end:
            return
        found = self._txn.scan(self._next, self._end, limit=self._batch_count)
        self._next = found[-1][0] + b"\x00" if len(found) == self._batch_count else None
        self._batch_count = min(4 * self._batch_count, MAX_KEYS + 1)
        found.reverse()
        self._batch = found


# ---- current versions ----


def list_objects(
    txn: Transaction, request: metadata_pb2.ListObjectsRequest
) -> metadata_pb2.ListObjectsResponse:
    """A page of objects and common prefixes after `start_after`, in the byte order of keys.

    A common prefix counts as one entry and is returned when it sorts after `start_after`.
    Raises NoSuchBucket, BucketMoving.
    """
    page = _Page(open_to_read(txn, request.bucket), request)
    page.fill()
    return page.response


class _Page:
    def __init__(self, space: Space, request: metadata_pb2.ListObjectsRequest) -> None:
        self._txn = space.txn
        self._bucket = request.bucket
        self._base = space.base + rows.CURRENT
        self._roll = Roll(request.prefix, request.delimiter)
        self._start_after = request.start_after.encode()
        self._room = min(request.max_keys, MAX_KEYS)
        #: Entries so far in `response`; never more than the page may hold.
        self._entry_count = 0
        self.response = metadata_pb2.ListObjectsResponse()

    def fill(self) -> None:
        """Scan until the page is full or the range ends."""
        if self._room == 0:
            return
        begin, end = prefix_range(self._base + self._roll.prefix)
        begin = max(begin, self._after_start())
        batch_count = self._room + 1 if self._roll.is_flat else _FIRST_BATCH_COUNT
        while begin < end:
            batch = self._txn.scan(begin, end, limit=batch_count)
            skipped_to = self._take(batch)
            if self.response.truncated:
                return
            if len(batch) < batch_count:
                break
            last_key = batch[-1][0]
            if last_key < skipped_to:
                begin, batch_count = skipped_to, _AFTER_SKIP_BATCH_COUNT
            else:
                begin = last_key + b"\x00"
                batch_count = min(batch_count * 4, self._room - self._entry_count + 1)
        self.response.next_start_after = ""

    def _take(self, batch: list[tuple[bytes, bytes]]) -> bytes:
        """Add a batch to the page; where the last common prefix ends."""
        response, strip = self.response, len(self._base)
        skipped_to = b""
        for row_key, value in batch:
            if row_key < skipped_to:
                continue
            key = row_key[strip:]
            common = self._roll.common_prefix(key)
            if self._entry_count == self._room:
                response.truncated = True
                break
            self._entry_count += 1
            if common is None:
                self._add(key.decode(), value)
            else:
                response.common_prefixes.append(common.decode())
                response.next_start_after = common.decode()
                skipped_to = after_prefix(self._base + common)
        return skipped_to

    def _add(self, key: str, value: bytes) -> None:
        entry = self.response.objects.add()
        entry.ParseFromString(value)
        entry.bucket = self._bucket
        entry.key = key
        entry.ClearField("extents")
        entry.ClearField("inline_data")
        if entry.versioned:
            entry.version_id = versions.public_id(entry)
        self.response.next_start_after = key

    def _after_start(self) -> bytes:
        """Where keys after `start_after` begin; a common prefix at or before it is over."""
        if not self._start_after:
            return b""
        common = self._roll.common_prefix(self._start_after)
        if common is not None:
            return after_prefix(self._base + common)
        return self._base + self._start_after + b"\x00"


# ---- all versions ----


def list_versions(
    txn: Transaction, request: metadata_pb2.ListVersionsRequest
) -> metadata_pb2.ListVersionsResponse:
    """A page of versions, delete markers among them, and common prefixes: by key, newest first.

    Raises NoSuchBucket, BucketMoving.
    """
    space = open_to_read(txn, request.bucket)
    response = metadata_pb2.ListVersionsResponse()
    room = min(request.max_keys, MAX_KEYS)
    if room == 0:
        return response
    roll = Roll(request.prefix, request.delimiter)
    currents, others = _version_cursors(space, request, roll)
    strip = len(space.base) + 1
    entry_count = 0
    while currents.head is not None or others.head is not None:
        current_key = None if currents.head is None else currents.head[0][strip:]
        other_key = None if others.head is None else rows.lowered(others.head[0][strip:-9])
        is_current = other_key is None or (current_key is not None and current_key <= other_key)
        key = current_key if is_current else other_key
        assert key is not None
        if entry_count == room:
            response.truncated = True
            return response
        entry_count += 1
        common = roll.common_prefix(key)
        if common is not None:
            response.common_prefixes.append(common.decode())
            response.next_key_marker, response.next_version_id_marker = common.decode(), ""
            currents.seek(after_prefix(space.base + rows.CURRENT + common))
            others.seek(after_prefix(space.base + rows.OTHER + rows.raised(common)))
            continue
        cursor = currents if is_current else others
        assert cursor.head is not None
        _add_version(response, request.bucket, key.decode(), cursor.head[1])
        cursor.advance()
    response.next_key_marker = response.next_version_id_marker = ""
    return response


def _add_version(
    response: metadata_pb2.ListVersionsResponse, bucket: str, key: str, value: bytes
) -> None:
    entry = response.versions.add()
    entry.ParseFromString(value)
    entry.bucket = bucket
    entry.key = key
    entry.ClearField("extents")
    entry.ClearField("inline_data")
    # Only a version that was replaced has this: so has every `v` row but a newest delete marker.
    entry.is_latest = not entry.noncurrent_s
    response.next_key_marker = key
    response.next_version_id_marker = versions.marker_id(entry)
    entry.version_id = versions.public_id(entry)


def _version_cursors(
    space: Space, request: metadata_pb2.ListVersionsRequest, roll: Roll
) -> tuple[Cursor, Cursor]:
    """Scans of the `o` and the `v` rows, from behind the markers."""
    current_base, other_base = space.base + rows.CURRENT, space.base + rows.OTHER
    current_begin, current_end = prefix_range(current_base + roll.prefix)
    other_begin, other_end = prefix_range(other_base + rows.raised(roll.prefix))
    if request.key_marker:
        marker = request.key_marker.encode()
        common = roll.common_prefix(marker)
        if common is not None:
            current_from = after_prefix(current_base + common)
            other_from = after_prefix(other_base + rows.raised(common))
        else:
            current_from = current_base + marker + b"\x00"
            other_from = _behind_version(space, request)
        current_begin = max(current_begin, current_from)
        other_begin = max(other_begin, other_from)
    batch_count = _FIRST_BATCH_COUNT if not roll.is_flat else min(request.max_keys, MAX_KEYS) + 1
    return (
        Cursor(space.txn, current_begin, current_end, batch_count),
        Cursor(space.txn, other_begin, other_end, batch_count),
    )


def _behind_version(space: Space, request: metadata_pb2.ListVersionsRequest) -> bytes:
    """Where the `v` rows behind both markers begin."""
    key, version_id = request.key_marker, request.version_id_marker
    order = versions.order_of_id(version_id) if version_id else None
    if version_id == versions.NULL_ID:
        null = versions.find_null(space, key)
        order = None if null is None else versions.order_of(null)
    if order is None:
        return after_prefix(space.base + rows.versions_of(key))
    return space.base + rows.version(key, order) + b"\x00"

"""Listing a bucket: one forward scan that seeks over what a common prefix rolls up.

The cost follows the entries returned, not the objects in the bucket: after the first key of a
common prefix the scan continues behind its last one.
"""

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import after_prefix, prefix_range
from exastore.metadata.namespace import rows
from exastore.metadata.namespace.buckets import require_bucket
from exastore.proto.v1 import metadata_pb2

MAX_KEYS = 1000
_FIRST_BATCH_COUNT = 32
_AFTER_SKIP_BATCH_COUNT = 8


def list_objects(
    txn: Transaction, request: metadata_pb2.ListObjectsRequest
) -> metadata_pb2.ListObjectsResponse:
    """A page of objects and common prefixes after `start_after`, in the byte order of keys.

    A common prefix counts as one entry and is returned when it sorts after `start_after`.
    Raises NoSuchBucket.
    """
    require_bucket(txn, request.bucket)
    page = _Page(txn, request)
    page.fill()
    return page.response


class _Page:
    def __init__(self, txn: Transaction, request: metadata_pb2.ListObjectsRequest) -> None:
        self._txn = txn
        self._base = rows.objects_prefix(request.bucket)
        self._prefix = request.prefix.encode()
        self._delimiter = request.delimiter.encode()
        self._start_after = request.start_after.encode()
        self._room = min(request.max_keys, MAX_KEYS)
        #: Entries so far in `response`; never more than the page may hold.
        self._entry_count = 0
        self.response = metadata_pb2.ListObjectsResponse()

    def fill(self) -> None:
        """Scan until the page is full or the range ends."""
        if self._room == 0:
            return
        begin, end = prefix_range(self._base + self._prefix)
        begin = max(begin, self._after_start())
        batch_count = _FIRST_BATCH_COUNT if self._delimiter else self._room + 1
        while begin < end:
            batch = self._txn.scan(begin, end, limit=batch_count)
            skipped_to = b""
            for row_key, value in batch:
                if row_key < skipped_to:
                    continue
                common = self._common_prefix(row_key[len(self._base) :])
                if self._entry_count == self._room:
                    self.response.truncated = True
                    return
                self._entry_count += 1
                if common is None:
                    entry = self.response.objects.add()
                    entry.ParseFromString(value)
                    self.response.next_start_after = entry.key
                else:
                    self.response.common_prefixes.append(common.decode())
                    self.response.next_start_after = common.decode()
                    skipped_to = after_prefix(self._base + common)
            if len(batch) < batch_count:
                break
            last_key = batch[-1][0]
            if last_key < skipped_to:
                begin, batch_count = skipped_to, _AFTER_SKIP_BATCH_COUNT
            else:
                begin = last_key + b"\x00"
                batch_count = min(batch_count * 4, self._room - self._entry_count + 1)
        self.response.next_start_after = ""

    def _after_start(self) -> bytes:
        """Where keys after `start_after` begin; a common prefix at or before it is over."""
        if not self._start_after:
            return b""
        common = self._common_prefix(self._start_after)
        if common is not None:
            return after_prefix(self._base + common)
        return self._base + self._start_after + b"\x00"

    def _common_prefix(self, key: bytes) -> bytes | None:
        """What rolls up `key`: up to and with the first delimiter after the prefix."""
        if not self._delimiter or not key.startswith(self._prefix):
            return None
        at = key.find(self._delimiter, len(self._prefix))
        return None if at == -1 else key[: at + len(self._delimiter)]

"""Requests that were done: repeated, they get the answer they got.

A commit is recognised by the version id that the gateway chose: while its version is the current
one, by that record; once it was replaced or deleted, by a `q` row that keeps the answer for
`Terms.request_ttl_s`. So the first commit of a key writes no such row. A deletion that carries a
request id leaves a `q` row at once. An index by time lets background work delete what expired, so
that the space is bounded by the replacements and deletions of that time.
"""

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack
from exastore.metadata.namespace import rows
from exastore.metadata.namespace.errors import BucketMoving
from exastore.metadata.namespace.space import Space, Terms, open_by_id
from exastore.proto.v1 import metadata_pb2


def remember(
    space: Space, request_id: str, result: metadata_pb2.StoredResult, now_s: float, terms: Terms
) -> None:
    """Keep the answer of a request; three mutations at most."""
    result.expires_s = now_s + terms.request_ttl_s
    space.put(rows.result(request_id), result.SerializeToString())
    space.put_row(rows.expiry(result.expires_s, space.bucket.id, request_id), b"")


def remember_commit(
    space: Space, key: str, record: metadata_pb2.Object, now_s: float, terms: Terms
) -> None:
    """Keep the answer of the commit that made `record`, which stops being the current version."""
    answer = rows.bare_object(record)
    answer.key = key
    remember(space, record.version_id, metadata_pb2.StoredResult(object=answer), now_s, terms)


def recall(space: Space, request_id: str) -> metadata_pb2.StoredResult | None:
    """The answer of a request, if it was done and is still remembered."""
    value = space.get(rows.result(request_id))
    return None if value is None else metadata_pb2.StoredResult.FromString(value)


def forget_expired(
    txn: Transaction, *, before_s: float, after: bytes = b"", limit: int = 20
) -> bytes | None:
    """Forget some answers that expired before `before_s`, behind the row key `after`.

    Returns:
        What to pass as `after` next; None: there are no more.
    """
    begin, end = max(pack("e"), after + b"\x00"), pack("e", rows.ms_of(before_s))
    found = txn.scan(begin, end, limit=limit, keys_only=True) if begin < end else []
    for key, _ in found:
        expired_ms, bucket_id, request_id = rows.timed_place(key)
        try:
            space = open_by_id(txn, bucket_id)
        except BucketMoving:
            continue
        value = space.get(rows.RESULT + request_id)
        if value is not None:
            result = metadata_pb2.StoredResult.FromString(value)
            # Remembered again since: a later row of the index speaks of it.
            if rows.ms_of(result.expires_s) <= expired_ms:
                space.delete(rows.RESULT + request_id)
        space.delete_row(key)
    return found[-1][0] if len(found) == limit else None

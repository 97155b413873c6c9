"""Documents of a bucket: named bytes that mean something to gateways alone.

They lie in the bucket's space, so that they move with it, and go when it is deleted.
"""

import re
from collections.abc import Mapping

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace import rows
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.namespace.space import Space, open_to_read, open_to_write

#: What the largest document of S3, a bucket's lifecycle aside, needs; a value of the engine.
DOCUMENT_BYTES_MAX = 64 * 1024
#: So many documents of a bucket can be deleted with it in one transaction.
DOCUMENT_COUNT_MAX = 32
_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")


def get_documents(txn: Transaction, bucket: str) -> Mapping[str, bytes]:
    """All documents of a bucket. Raises NoSuchBucket, BucketMoving."""
    found = open_to_read(txn, bucket).scan(rows.DOCUMENT)
    return {holder[1:].decode(): content for holder, content in found}


def put_document(txn: Transaction, bucket: str, name: str, content: bytes) -> None:
    """Write a document, or replace it. Raises InvalidArgument, NoSuchBucket, BucketMoving."""
    _check_name(name)
    if len(content) > DOCUMENT_BYTES_MAX:
        raise InvalidArgument(
            f"document {name!r} has {len(content)} bytes; {DOCUMENT_BYTES_MAX} are allowed"
        )
    space = open_to_write(txn, bucket)
    holder = rows.document(name)
    if space.get(holder) is None and len(_holders(space)) >= DOCUMENT_COUNT_MAX:
        raise InvalidArgument(f"a bucket has at most {DOCUMENT_COUNT_MAX} documents")
    space.put(holder, content)


def delete_document(txn: Transaction, bucket: str, name: str) -> None:
    """Again is harmless. Raises InvalidArgument, NoSuchBucket, BucketMoving."""
    _check_name(name)
    open_to_write(txn, bucket).delete(rows.document(name))


def drop_documents(space: Space) -> None:
    """Delete all documents: their bucket is being deleted."""
    for holder in _holders(space):
        space.delete(holder)


def _holders(space: Space) -> list[bytes]:
    return [holder for holder, _ in space.scan(rows.DOCUMENT)]


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"document name {name!r}: at most 64 lower-case letters, digits and hyphens"
        )

"""The keys of sealed objects, as gateways wrapped them: kept, replaced, never opened here."""

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace import versions
from exastore.metadata.namespace.objects import find_with_bytes
from exastore.metadata.namespace.space import DEFAULT_TERMS, Terms, open_to_write
from exastore.proto.v1 import sealing_pb2


def replace_wrapped_key(
    txn: Transaction, request: sealing_pb2.ReplaceWrappedKeyRequest, terms: Terms = DEFAULT_TERMS
) -> bool:
    """Replace the wrapped key of a version if it is still the one that was seen.

    Raises NoSuchBucket, NoSuchKey, NoSuchVersion, IsDeleteMarker, BucketMoving.
    """
    space = open_to_write(txn, request.bucket)
    holder, record = find_with_bytes(space, request.key, request.version_id)
    if record.encryption.wrapped_key != request.old_wrapped_key:
        return False
    versions.unindex(space, holder, record)
    record.encryption.wrapped_key = request.new_wrapped_key
    versions.put_record(space, holder, request.key, record, terms)
    return True

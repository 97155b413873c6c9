"""Access control lists of objects: kept with their versions. Gateways decide what they allow."""

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace import versions
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.namespace.objects import find_with_bytes
from exastore.metadata.namespace.space import DEFAULT_TERMS, Terms, open_to_write
from exastore.proto.v1 import acl_pb2

#: As in S3.
GRANT_COUNT_MAX = 100
_NAME_CHARACTERS_MAX = 256


def put_acl(txn: Transaction, request: acl_pb2.PutAclRequest, terms: Terms = DEFAULT_TERMS) -> None:
    """Replace the list of a version.

    Raises InvalidArgument, NoSuchBucket, NoSuchKey, NoSuchVersion, IsDeleteMarker, BucketMoving.
    """
    check_acl(request.acl)
    space = open_to_write(txn, request.bucket)
    holder, record = find_with_bytes(space, request.key, request.version_id)
    versions.unindex(space, holder, record)
    record.ClearField("acl")
    if request.HasField("acl"):
        record.acl.CopyFrom(request.acl)
    versions.put_record(space, holder, request.key, record, terms)


def check_acl(acl: acl_pb2.AccessList) -> None:
    """Raises InvalidArgument for a list too large to be kept in a row."""
    names = [acl.owner, *(grant.grantee for grant in acl.grants)]
    if len(acl.grants) > GRANT_COUNT_MAX or max(map(len, names)) > _NAME_CHARACTERS_MAX:
        raise InvalidArgument(
            f"at most {GRANT_COUNT_MAX} grants, to names of {_NAME_CHARACTERS_MAX} characters"
        )

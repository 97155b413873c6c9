"""Wraps the data keys of all objects by the newest master key, without touching their data."""

from dataclasses import dataclass

from exastore.gateway.encryption.envelopes import rewrapped
from exastore.gateway.errors import RequestError
from exastore.gateway.master_key import MasterKey
from exastore.gateway.messages import encryption_of
from exastore.gateway.metadata_client import MetadataClient
from exastore.proto.v1 import metadata_pb2, sealing_pb2

_PAGE_KEYS = 1000


@dataclass(slots=True)
class Rewrapped:
    """What was done."""

    rewrapped: int = 0
    sealed: int = 0
    """Versions that the master key seals, done now or before."""
    uploads: int = 0
    """Uploads in progress whose parts an older key seals; at most a page of each bucket."""


async def rewrap_all(metadata: MetadataClient, master: MasterKey) -> Rewrapped:
    """Every version of every bucket. Interrupted, it is simply begun again.

    Raises:
        MasterKeyError: An object was sealed with a key that is not in the file.
    """
    done = Rewrapped()
    for bucket in await metadata.list_buckets():
        request = metadata_pb2.ListVersionsRequest(bucket=bucket.name, max_keys=_PAGE_KEYS)
        while True:
            page = await metadata.list_versions(request)
            for version in page.versions:
                await _rewrap(metadata, master, bucket.name, version, done)
            if not page.truncated:
                break
            request.key_marker = page.next_key_marker
            request.version_id_marker = page.next_version_id_marker
        uploads = metadata_pb2.ListUploadsRequest(bucket=bucket.name, max_uploads=_PAGE_KEYS)
        for upload in (await metadata.list_uploads(uploads)).uploads:
            sealed = encryption_of(upload.attributes)
            if sealed is not None and not sealed.customer_key_md5:
                done.uploads += not master.is_newest(sealed.wrapped_key)
    return done


async def _rewrap(
    metadata: MetadataClient,
    master: MasterKey,
    bucket: str,
    version: metadata_pb2.Object,
    done: Rewrapped,
) -> None:
    sealed = encryption_of(version)
    if sealed is None or sealed.customer_key_md5:
        return
    done.sealed += 1
    if master.is_newest(sealed.wrapped_key):
        return
    request = sealing_pb2.ReplaceWrappedKeyRequest(
        bucket=bucket,
        key=version.key,
        version_id=version.version_id,
        old_wrapped_key=sealed.wrapped_key,
        new_wrapped_key=rewrapped(master, sealed).wrapped_key,
    )
    try:
        done.rewrapped += await metadata.replace_wrapped_key(request)
    except RequestError as error:
        if error.code not in ("NoSuchKey", "NoSuchVersion", "NoSuchBucket"):
            raise  # Else it was deleted meanwhile.

"""An object store in a dictionary: what `ObjectStore` promises, without a cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count

from exastore.gateway.errors import MarkerFound, RequestError
from exastore.gateway.store import (
    NO_CHECKSUMS,
    NO_LOCK,
    NO_UPLOAD_CHECKSUM,
    NULL_VERSION,
    AccessList,
    Body,
    BucketChange,
    BucketInfo,
    BucketLock,
    Deleted,
    Deletion,
    Listing,
    ObjectAttributes,
    ObjectInfo,
    ObjectLock,
    ObjectPart,
    Precondition,
    UploadChecksum,
    UploadInfo,
    UploadListing,
    VersionListing,
)
from exastore.gateway.testing.memory_rows import (
    HeldBucket,
    HeldUpload,
    MemoryReader,
    common_prefix,
    etag_of,
    is_locked,
    md5_of,
    read_all,
    size_of,
)


class MemoryStore:
    """Implements `ObjectStore`."""

    def __init__(self, now_s: Callable[[], float], *, min_part_bytes: int = 5 << 20) -> None:
        self._now_s = now_s
        self._min_part_bytes = min_part_bytes
        self._ids = count(1)
        self._buckets: dict[str, HeldBucket] = {}

    async def create_bucket(
        self, name: str, *, owner: str, location: str = "", object_lock: bool = False
    ) -> BucketInfo:
        if name in self._buckets and self._buckets[name].info.owner != owner:
            raise RequestError("BucketAlreadyExists", "The bucket belongs to another.")
        if name in self._buckets:
            raise RequestError("BucketAlreadyOwnedByYou", "You own this bucket already.")
        info = BucketInfo(name, self._now_s(), owner, region=location)
        if object_lock:
            info = replace(info, versioning="Enabled", lock=BucketLock())
        self._buckets[name] = HeldBucket(info)
        return info

    async def configure_bucket(self, name: str, change: BucketChange) -> BucketInfo:
        bucket = self._bucket(name)
        info = bucket.info
        if change.versioning is not None:
            if info.lock is not None and change.versioning != "Enabled":
                raise RequestError("InvalidBucketState", "The bucket has object lock.")
            info = replace(info, versioning=change.versioning)
        if change.lock is not None:
            if info.versioning != "Enabled":
                raise RequestError("InvalidBucketState", "Object lock needs versioning.")
            info = replace(info, lock=change.lock)
        if change.lifecycle is not None:
            info = replace(info, lifecycle=change.lifecycle)
        bucket.info = info
        return info

    async def get_bucket(self, name: str) -> BucketInfo:
        return self._bucket(name).info

    async def delete_bucket(self, name: str) -> None:
        bucket = self._bucket(name)
        if bucket.objects or bucket.uploads or any(bucket.others.values()):
            raise RequestError("BucketNotEmpty", "The bucket is not empty.")
        del self._buckets[name]

    async def list_buckets(self) -> Sequence[BucketInfo]:
        return [bucket.info for _, bucket in sorted(self._buckets.items())]

    async def get_bucket_document(self, bucket: str, name: str) -> bytes | None:
        return self._bucket(bucket).documents.get(name)

    async def get_bucket_documents(self, bucket: str) -> Mapping[str, bytes]:
        return dict(self._bucket(bucket).documents)

    async def put_bucket_document(self, bucket: str, name: str, content: bytes) -> None:
        self._bucket(bucket).documents[name] = content

    async def delete_bucket_document(self, bucket: str, name: str) -> None:
        self._bucket(bucket).documents.pop(name, None)

    async def put_object(
        self,
        bucket: str,
        key: str,
        body: Body,
        attributes: ObjectAttributes,
        precondition: Precondition,
    ) -> ObjectInfo:
        self._bucket(bucket)
        data = await read_all(body)
        checksums = body.finish()
        info = ObjectInfo(
            bucket,
            key,
            f"{next(self._ids):032x}",
            size_of(data, body),
            etag_of(data, body),
            self._now_s(),
            attributes,
            checksums,
        )
        return self._commit(info, data, precondition)

    async def open_object(
        self, bucket: str, key: str, version_id: str = "", *, part_checksums: bool = False
    ) -> MemoryReader:
        info, data = self._object(bucket, key, version_id)
        return MemoryReader(self._shown(info), data)

    async def head_object(
        self, bucket: str, key: str, version_id: str = "", *, part_checksums: bool = False
    ) -> ObjectInfo:
        return self._shown(self._object(bucket, key, version_id)[0])

    async def delete_objects(
        self, bucket: str, deletions: Sequence[Deletion], *, bypass_governance: bool = False
    ) -> Sequence[Deleted]:
        return [self._delete(bucket, deletion, bypass_governance) for deletion in deletions]

    def _delete(self, name: str, deletion: Deletion, bypass: bool) -> Deleted:
        bucket, key = self._bucket(name), deletion.key
        present = bucket.objects.get(key)
        if deletion.version_id:
            found = self._find_version(name, key, deletion.version_id)
            if found is None:
                return Deleted(existed=False, version_id=deletion.version_id)
            if self._is_locked(found[0].attributes.lock, bypass=bypass):
                return Deleted(existed=True, refused="AccessDenied")
            if found is present:
                del bucket.objects[key]
            else:
                bucket.others[key].remove(found)
            self._promote(bucket, key)
            return Deleted(True, found[0].delete_marker, deletion.version_id)
        if deletion.if_match and present is None:
            return Deleted(existed=False, refused="NoSuchKey")
        if deletion.if_match and present and deletion.if_match not in ("*", present[0].etag):
            return Deleted(existed=True, refused="PreconditionFailed")
        if not bucket.info.versioning:
            return Deleted(existed=bucket.objects.pop(key, None) is not None)
        marker = ObjectInfo(
            name, key, f"{next(self._ids):032x}", 0, "", self._now_s(), delete_marker=True
        )
        marker = self._install(marker, b"")
        return Deleted(present is not None, True, self._shown(marker).version_id)

    def _is_locked(self, lock: ObjectLock, *, bypass: bool) -> bool:
        return is_locked(lock, self._now_s(), bypass=bypass)

    async def put_tags(
        self, bucket: str, key: str, version_id: str, tags: Mapping[str, str]
    ) -> ObjectInfo:
        info, _ = self._object(bucket, key, version_id)
        return self._change(info, replace(info.attributes, tags=tags))

    async def put_lock(
        self,
        bucket: str,
        key: str,
        version_id: str,
        *,
        retention: ObjectLock | None = None,
        legal_hold: bool | None = None,
        bypass_governance: bool = False,
    ) -> None:
        if self._bucket(bucket).info.lock is None:
            raise RequestError("InvalidRequest", "Bucket is missing Object Lock Configuration")
        info, _ = self._object(bucket, key, version_id)
        known = info.attributes.lock
        if retention is not None:
            weakens = retention.mode not in (known.mode, "COMPLIANCE")
            shrinks = retention.retain_until_s < known.retain_until_s or weakens
            held = replace(known, legal_hold=False)
            if shrinks and self._is_locked(held, bypass=bypass_governance):
                raise RequestError("AccessDenied", "Access Denied")
            known = replace(known, mode=retention.mode, retain_until_s=retention.retain_until_s)
        if legal_hold is not None:
            known = replace(known, legal_hold=legal_hold)
        self._change(info, replace(info.attributes, lock=known))

    async def put_acl(self, bucket: str, key: str, version_id: str, acl: AccessList | None) -> None:
        info, _ = self._object(bucket, key, version_id)
        self._change(info, replace(info.attributes, acl=acl))

    def _change(self, info: ObjectInfo, attributes: ObjectAttributes) -> ObjectInfo:
        """Replace the attributes of a version."""
        bucket, changed = self._bucket(info.bucket), replace(info, attributes=attributes)
        present = bucket.objects.get(info.key)
        if present is not None and present[0] is info:
            bucket.objects[info.key] = (changed, present[1])
        for at, (other, data) in enumerate(bucket.others.get(info.key, ())):
            if other is info:
                bucket.others[info.key][at] = (changed, data)
        return self._shown(changed)

    async def copy_object(
        self,
        source: tuple[str, str],
        target: tuple[str, str],
        attributes: ObjectAttributes | None,
        precondition: Precondition,
        *,
        source_version_id: str = "",
    ) -> ObjectInfo:
        info, data = self._object(*source, source_version_id)
        copy = replace(
            info,
            bucket=target[0],
            key=target[1],
            version_id=f"{next(self._ids):032x}",
            modified_s=self._now_s(),
            attributes=info.attributes if attributes is None else attributes,
        )
        return self._commit(copy, data, precondition)

    async def list_objects(
        self, bucket: str, *, prefix: str, delimiter: str, start_after: str, max_keys: int
    ) -> Listing:
        objects = self._bucket(bucket).objects
        found: list[ObjectInfo] = []
        prefixes: dict[str, None] = {}
        last = ""
        for key in sorted(objects, key=str.encode):
            if not key.startswith(prefix) or key.encode() <= start_after.encode():
                continue
            common = common_prefix(key, prefix, delimiter)
            if common and (common in prefixes or common == start_after):
                continue
            if len(found) + len(prefixes) == max_keys:
                return Listing(found, list(prefixes), True, last)
            last = common or key
            if common:
                prefixes[common] = None
            else:
                found.append(objects[key][0])
        return Listing(found, list(prefixes), False, "")

    async def list_versions(
        self,
        bucket: str,
        *,
        prefix: str,
        delimiter: str,
        key_marker: str,
        version_id_marker: str,
        max_keys: int,
    ) -> VersionListing:
        known = self._bucket(bucket)
        found: list[ObjectInfo] = []
        prefixes: dict[str, None] = {}
        last, is_behind = ("", ""), not version_id_marker
        for key in sorted({*known.objects, *known.others}, key=str.encode):
            common = common_prefix(key, prefix, delimiter)
            if not key.startswith(prefix) or key.encode() < key_marker.encode():
                continue
            if common in prefixes or (common and common == key_marker):
                continue
            for at, (info, _) in enumerate(self._versions(bucket, key)):
                shown = replace(self._shown(info), is_latest=at == 0)
                if not shown.is_versioned:
                    shown = replace(shown, version_id=NULL_VERSION)
                if key == key_marker and not is_behind:
                    is_behind = shown.version_id == version_id_marker
                    continue
                if key == key_marker and not version_id_marker:
                    continue
                if len(found) + len(prefixes) == max_keys:
                    return VersionListing(found, list(prefixes), True, *last)
                if common:
                    prefixes[common], last = None, (common, "")
                    break
                found.append(shown)
                last = key, shown.version_id
        return VersionListing(found, list(prefixes), False, "", "")

    async def create_upload(
        self,
        bucket: str,
        key: str,
        attributes: ObjectAttributes,
        checksum: UploadChecksum = NO_UPLOAD_CHECKSUM,
    ) -> UploadInfo:
        info = UploadInfo(bucket, key, f"u{next(self._ids)}", self._now_s(), attributes, checksum)
        self._bucket(bucket).uploads[info.upload_id] = HeldUpload(info)
        return info

    async def put_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: Body
    ) -> ObjectPart:
        upload = self._upload(bucket, key, upload_id)
        data = await read_all(body)
        checksums = body.finish()
        part = ObjectPart(
            number, size_of(data, body), etag_of(data, body), self._now_s(), checksums
        )
        upload.parts[number] = (part, data)
        return part

    async def complete_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        precondition: Precondition,
        checksums: Mapping[str, str] = NO_CHECKSUMS,
    ) -> ObjectInfo:
        completed = self._bucket(bucket).completed.get(upload_id)
        if completed is not None and completed.key == key:
            return completed
        upload = self._upload(bucket, key, upload_id)
        chosen: list[tuple[ObjectPart, bytes]] = []
        for number, etag in parts:
            stored = upload.parts.get(number)
            if stored is None or stored[0].etag != etag:
                raise RequestError("InvalidPart", f"There is no part {number} with that ETag.")
            chosen.append(stored)
        if any(part.size_bytes < self._min_part_bytes for part, _ in chosen[:-1]):
            raise RequestError("EntityTooSmall", "A part but the last is too small.")
        digests = b"".join(bytes.fromhex(part.etag) for part, _ in chosen)
        data = b"".join(data for _, data in chosen)
        info = ObjectInfo(
            bucket,
            key,
            f"{next(self._ids):032x}",
            sum(part.size_bytes for part, _ in chosen),
            f"{md5_of(digests)}-{len(chosen)}",
            self._now_s(),
            upload.info.attributes,
            checksums,
            parts=[part for part, _ in chosen],
        )
        committed = self._commit(info, data, precondition)
        del self._bucket(bucket).uploads[upload_id]
        self._bucket(bucket).completed[upload_id] = committed
        return committed

    async def abort_upload(self, bucket: str, key: str, upload_id: str) -> None:
        self._upload(bucket, key, upload_id)
        del self._bucket(bucket).uploads[upload_id]

    async def list_parts(
        self, bucket: str, key: str, upload_id: str, *, after_number: int, max_parts: int
    ) -> tuple[UploadInfo, Sequence[ObjectPart], bool]:
        upload = self._upload(bucket, key, upload_id)
        numbers = sorted(number for number in upload.parts if number > after_number)
        parts = [upload.parts[number][0] for number in numbers[:max_parts]]
        return upload.info, parts, len(numbers) > max_parts

    async def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str,
        delimiter: str,
        key_marker: str,
        upload_id_marker: str,
        max_uploads: int,
    ) -> UploadListing:
        found: list[UploadInfo] = []
        prefixes: dict[str, None] = {}
        marker, last = (key_marker.encode(), upload_id_marker), ("", "")
        uploads = [upload.info for upload in self._bucket(bucket).uploads.values()]
        for upload in sorted(uploads, key=lambda it: (it.key.encode(), it.upload_id)):
            position = (upload.key.encode(), upload.upload_id)
            if key_marker and (
                position <= marker if upload_id_marker else position[0] <= marker[0]
            ):
                continue
            common = common_prefix(upload.key, prefix, delimiter)
            if not upload.key.startswith(prefix) or common in prefixes:
                continue
            if common and common == key_marker:
                continue
            if len(found) + len(prefixes) == max_uploads:
                return UploadListing(found, list(prefixes), True, *last)
            if common:
                prefixes[common], last = None, (common, "")
            else:
                found.append(upload)
                last = upload.key, upload.upload_id
        return UploadListing(found, list(prefixes), False, "", "")

    def stored_bytes(self, bucket: str, key: str) -> bytes:
        """What lies in the store: of a sealed object, its frames."""
        return self._object(bucket, key)[1]

    def damage(self, bucket: str, key: str, position: int) -> None:
        """Change one stored byte."""
        info, data = self._object(bucket, key)
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        self._bucket(bucket).objects[key] = (info, changed)

    def _bucket(self, name: str) -> HeldBucket:
        try:
            return self._buckets[name]
        except KeyError:
            raise RequestError("NoSuchBucket", "The specified bucket does not exist") from None

    def _versions(self, bucket: str, key: str) -> list[tuple[ObjectInfo, bytes]]:
        """All versions of a key, newest first."""
        known = self._bucket(bucket)
        current = [known.objects[key]] if key in known.objects else []
        return current + known.others.get(key, [])

    def _find_version(
        self, bucket: str, key: str, version_id: str
    ) -> tuple[ObjectInfo, bytes] | None:
        for found in self._versions(bucket, key):
            named = found[0].version_id if found[0].is_versioned else NULL_VERSION
            if named == version_id:
                return found
        return None

    def _object(self, bucket: str, key: str, version_id: str = "") -> tuple[ObjectInfo, bytes]:
        if version_id:
            found = self._find_version(bucket, key, version_id)
            if found is None:
                raise RequestError("NoSuchVersion", "The specified version does not exist.")
        else:
            versions = self._versions(bucket, key)
            if not versions:
                raise RequestError("NoSuchKey", "The specified key does not exist.")
            found = versions[0]
        if found[0].delete_marker:
            marker = self._shown(found[0])
            raise MarkerFound(marker.version_id, marker.modified_s, is_named=bool(version_id))
        return found

    def _shown(self, info: ObjectInfo) -> ObjectInfo:
        """A version as clients get it."""
        if not self._bucket(info.bucket).info.versioning or info.is_versioned:
            return info
        return replace(info, version_id=NULL_VERSION, is_versioned=True)

    def _install(self, info: ObjectInfo, data: bytes) -> ObjectInfo:
        """Make a version the newest of its key."""
        bucket, key = self._bucket(info.bucket), info.key
        held = info.attributes.lock
        if held.mode and held.retain_until_s <= self._now_s():
            raise RequestError("InvalidArgument", "The retain until date must be in the future!")
        default = bucket.info.lock
        if default is not None and default.mode and not info.attributes.lock.mode:
            until_s = self._now_s() + (default.days + 365 * default.years) * 86_400
            lock = replace(info.attributes.lock, mode=default.mode, retain_until_s=until_s)
            info = replace(info, attributes=replace(info.attributes, lock=lock))
        elif default is None and info.attributes.lock != NO_LOCK:
            raise RequestError("InvalidRequest", "Bucket is missing Object Lock Configuration")
        if bucket.info.versioning:
            info = replace(info, is_versioned=bucket.info.versioning == "Enabled")
            others = bucket.others.setdefault(key, [])
            if key in bucket.objects:
                others.insert(0, bucket.objects.pop(key))
            if not info.is_versioned:
                others[:] = [other for other in others if other[0].is_versioned]
        if info.delete_marker:
            bucket.others.setdefault(key, []).insert(0, (info, data))
        else:
            bucket.objects[key] = (info, data)
        return info

    def _promote(self, bucket: HeldBucket, key: str) -> None:
        """The newest version that is left is current, unless it is a delete marker."""
        others = bucket.others.get(key, [])
        if key not in bucket.objects and others and not others[0][0].delete_marker:
            bucket.objects[key] = others.pop(0)

    def _upload(self, bucket: str, key: str, upload_id: str) -> HeldUpload:
        upload = self._bucket(bucket).uploads.get(upload_id)
        if upload is None or upload.info.key != key:
            raise RequestError("NoSuchUpload", "The specified upload does not exist.")
        return upload

    def _commit(self, info: ObjectInfo, data: bytes, precondition: Precondition) -> ObjectInfo:
        objects = self._bucket(info.bucket).objects
        present = objects.get(info.key)
        if precondition.must_not_exist and present is not None:
            raise RequestError("PreconditionFailed", "The object exists.")
        if precondition.if_match is not None:
            if present is None:
                raise RequestError("NoSuchKey", "The specified key does not exist.")
            if precondition.if_match not in ("*", present[0].etag):
                raise RequestError("PreconditionFailed", "The object has another ETag.")
        return self._shown(self._install(info, data))

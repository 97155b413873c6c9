"""What CompleteMultipartUpload says about the whole object, held against the stored parts."""

import hmac
from collections.abc import Sequence

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.checksums import (
    DEFAULT_ALGORITHM,
    DIGEST_BYTES,
    composite_digest,
    decode_digest,
    encode_digest,
    full_digest,
)
from exastore.gateway.s3.context import Call
from exastore.gateway.s3.xml import CompletedPart
from exastore.gateway.store import ObjectPart, UploadInfo

_PAGE_PARTS = 1000


async def check_whole_object(call: Call, parts: Sequence[CompletedPart]) -> dict[str, str]:
    """Check the size and the checksum of the object to be, if the client gave them.

    The checksum comes out of those of the parts; no data is read. An upload or
    a part that is not stored, or has another ETag, is left to the store.

    Returns:
        The checksums that the object has: those that all its parts have.

    Raises:
        RequestError: BadDigest, InvalidRequest.
    """
    headers = call.request.headers
    promised = {
        algorithm: headers[f"x-amz-checksum-{algorithm}"]
        for algorithm in DIGEST_BYTES
        if f"x-amz-checksum-{algorithm}" in headers
    }
    size = headers.get("x-amz-mp-object-size")
    try:
        upload, stored = await _stored_parts(call)
    except RequestError as error:
        if error.code == "NoSuchUpload":
            return {}  # A retry of a completion that succeeded, perhaps: the store knows.
        raise
    kind = headers.get("x-amz-checksum-type", "").upper() or upload.checksum.type
    if kind not in ("", "COMPOSITE", "FULL_OBJECT"):
        raise RequestError("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    if upload.checksum.type and kind != upload.checksum.type:
        raise RequestError(
            "InvalidRequest",
            f"The upload was created using the {upload.checksum.type} checksum mode. "
            "The complete request must use the same checksum mode.",
        )
    chosen = [stored[part.number] for part in parts if part.number in stored]
    if [part.etag for part in chosen] != [part.etag for part in parts]:
        return {}
    for named, part in zip(parts, chosen, strict=True):
        for algorithm, text in named.checksums.items():
            if algorithm in part.checksums and part.checksums[algorithm] != text:
                raise RequestError(
                    "InvalidPart",
                    "One or more of the specified parts could not be found. The part may not have "
                    "been uploaded, or the specified entity tag may not match the part's.",
                )
    if size is not None and size != str(sum(part.size_bytes for part in chosen)):
        raise RequestError(
            "InvalidRequest", "The provided x-amz-mp-object-size is not the size of the parts."
        )
    for algorithm, text in promised.items():
        _check(algorithm, text, chosen)
    wants_full = kind == "FULL_OBJECT" or any("-" not in text for text in promised.values())
    return _combined(chosen, wants_full=wants_full)


def _combined(parts: Sequence[ObjectPart], *, wants_full: bool) -> dict[str, str]:
    """The checksums of the object, of the type that S3 gives them: CRC64NVME is always full."""
    combined: dict[str, str] = {}
    for algorithm, digest_bytes in DIGEST_BYTES.items():
        digests: list[tuple[bytes, int]] = []
        for part in parts:
            digest = decode_digest(part.checksums.get(algorithm, ""), digest_bytes)
            if digest is None:
                break
            digests.append((digest, part.size_bytes))
        else:
            whole = None
            if wants_full or algorithm == DEFAULT_ALGORITHM:
                whole = full_digest(algorithm, digests)
            if whole is not None:
                combined[algorithm] = encode_digest(whole)
            else:
                composite = encode_digest(composite_digest(algorithm, digests))
                combined[algorithm] = f"{composite}-{len(digests)}"
    return combined


async def _stored_parts(call: Call) -> tuple[UploadInfo, dict[int, ObjectPart]]:
    stored: dict[int, ObjectPart] = {}
    after_number = 0
    while True:
        upload, page, truncated = await call.store.list_parts(
            call.bucket,
            call.key,
            call.parameter("uploadId"),
            after_number=after_number,
            max_parts=_PAGE_PARTS,
        )
        stored |= {part.number: part for part in page}
        if not truncated:
            return upload, stored
        after_number = max(stored, default=0)


def _check(algorithm: str, promised: str, parts: Sequence[ObjectPart]) -> None:
    digests: list[tuple[bytes, int]] = []
    for part in parts:
        digest = decode_digest(part.checksums.get(algorithm, ""), DIGEST_BYTES[algorithm])
        if digest is None:
            raise RequestError(
                "InvalidRequest",
                f"Part {part.number} was uploaded without a {algorithm.upper()} checksum.",
            )
        digests.append((digest, part.size_bytes))
    if "-" in promised:
        expected = f"{encode_digest(composite_digest(algorithm, digests))}-{len(digests)}"
    else:
        whole = full_digest(algorithm, digests)
        if whole is None:
            raise RequestError(
                "InvalidRequest",
                f"{algorithm.upper()} has no checksum of type FULL_OBJECT for multipart uploads.",
            )
        expected = encode_digest(whole)
    if not hmac.compare_digest(expected.encode(), promised.encode("latin-1")):
        raise RequestError(
            "BadDigest",
            f"The {algorithm.upper()} you specified did not match the calculated checksum.",
        )

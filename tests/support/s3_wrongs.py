"""The kinds of wrong headers and parameters, each applied to every example that takes them.

A kind gives cases: a request and the code of S3's documented refusal, "" where S3 takes it.
Sources: S3's list of error responses, and its API reference per operation.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from tests.support.s3_case import Case, Cases, is_signed
from tests.support.s3_examples import (
    CONTENT,
    ETAG,
    FOREIGN,
    LOCKED,
    PLAIN,
    SECRET,
    UNTIL,
    B,
    Example,
    base64_of,
)
from tests.support.s3_signer import Spec

# ---- who and where ----


def owners(example: Example) -> Cases:
    """Buckets that are not there, are another's, or cannot be."""
    spec = example.spec
    _, bucket, key = (spec.path + "/").split("/", 2)
    if not bucket or not is_signed(example):
        return
    key = f"/{key[:-1]}" if key else ""

    def at(name: str) -> Spec:
        return replace(spec, path=f"/{name}{key}")

    for name in ("ab", "a" * 64, "Upper", "a_b", "-a-", "a..b", "192.168.5.4"):
        yield Case(f"a bucket named {name[:12]}", at(name), "InvalidBucketName")
    if "copy" not in example.traits:
        yield Case("not UTF-8", at("%FF"), "InvalidURI")
    if spec.method == "PUT" and not key and not spec.query:
        yield Case("the name is taken", at(FOREIGN), "BucketAlreadyExists")
        yield Case("it is there already", at(PLAIN), "BucketAlreadyOwnedByYou")
        return
    yield Case("no such bucket", at("matrix-none"), "NoSuchBucket")
    if "upload" not in example.traits:
        # A batch is decided key by key.
        is_batch = example.document == "Delete"
        code = "" if is_batch else "AccessDenied"
        yield Case("another tenant's bucket", at(FOREIGN), code, is_harmless=is_batch)
        eve = replace(spec, access_key="EVE")
        yield Case("another tenant's key", eve, code, is_harmless=is_batch)
    else:
        foreign = replace(at(FOREIGN), query={**spec.query, "uploadId": "FOREIGN-UPLOAD"})
        yield Case("another tenant's upload", foreign, "AccessDenied")
        mixed = replace(spec, query={**spec.query, "uploadId": "FOREIGN-UPLOAD"})
        yield Case("another bucket's upload", mixed, "NoSuchUpload")
        unknown = replace(spec, query={**spec.query, "uploadId": "none"})
        yield Case("no such upload", unknown, "NoSuchUpload")
    owner = spec.with_headers(x_amz_expected_bucket_owner="evil")
    yield Case("another owner expected", owner, "AccessDenied")
    if key:
        yield Case(
            "a key too long", replace(spec, path=f"/{PLAIN}/{'k' * 1025}"), "KeyTooLongError"
        )
        yield Case("a key not UTF-8", replace(spec, path=f"/{PLAIN}/%C3"), "InvalidURI")


def versions(example: Example) -> Cases:
    """Versions and keys that are not there."""
    spec = example.spec
    if "version" not in example.traits:
        return
    for name, value in (("no version id", ""), ("a malformed version id", "x y")):
        yield Case(name, spec.with_query(versionId=value), "InvalidArgument")
    is_delete = spec.method == "DELETE" and not spec.query
    unknown = spec.with_query(versionId="f" * 32)
    yield Case("no such version", unknown, "" if is_delete else "NoSuchVersion")
    bucket = spec.path.split("/")[1]
    absent = replace(spec, path=f"/{bucket}/absent")
    yield Case("no such key", absent, "" if is_delete else "NoSuchKey")


# ---- headers of writes ----


def integrity(example: Example) -> Cases:
    """Promises about a body that it does not keep."""
    spec = example.spec
    if "body" not in example.traits and not example.document:
        return
    # A checksum of CompleteMultipartUpload is of the object, not of the document.
    own = example.document != "CompleteMultipartUpload"
    wrong_md5 = base64_of(hashlib.md5(b"other", usedforsecurity=False).digest())
    yield Case("no MD5", spec.with_headers(content_md5="not base64"), "InvalidDigest")
    yield Case("a short MD5", spec.with_headers(content_md5="AAAA"), "InvalidDigest")
    yield Case("another MD5", spec.with_headers(content_md5=wrong_md5), "BadDigest")
    for algorithm, size_bytes in (
        *(("crc32", 4), ("crc32c", 4), ("crc64nvme", 8), ("sha1", 20), ("sha256", 32)),
        *(("sha512", 64), ("md5", 16), ("xxhash64", 8), ("xxhash3", 8), ("xxhash128", 16)),
    ):
        if not own:
            break
        name = f"x-amz-checksum-{algorithm}"
        other = base64_of(b"\x01" * size_bytes)
        yield Case(f"no {algorithm}", spec.with_headers(**{name: "???"}), "InvalidRequest")
        yield Case(f"a short {algorithm}", spec.with_headers(**{name: "AA=="}), "InvalidRequest")
        yield Case(f"another {algorithm}", spec.with_headers(**{name: other}), "BadDigest")
    if own:
        two = {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-crc32c": "AAAAAA=="}
        yield Case("two checksums", spec.with_headers(**two), "InvalidRequest")
        unknown = spec.with_headers(**{"x-amz-checksum-md4": "AAAA"})
        yield Case("an unknown algorithm", unknown, "InvalidRequest")
        sdk = spec.with_headers(x_amz_sdk_checksum_algorithm="CRC32")
        yield Case("an algorithm without a checksum", sdk, "InvalidRequest")
        other_sdk = sdk.with_headers(**{"x-amz-checksum-crc32c": "AAAAAA=="})
        yield Case("a checksum of another algorithm", other_sdk, "InvalidRequest")
    if example.document == "Delete":
        return  # What follows says nothing else of the body, which a batch of deletions has to.
    yield Case(
        "shorter than it says",
        replace(spec, payload_hash="UNSIGNED-PAYLOAD"),
        "IncompleteBody",
        lambda it: it.changed(content_length=str(len(it.body) + 1)),
        is_local=True,
    )
    yield Case(
        "longer than it says",
        replace(spec, payload_hash="UNSIGNED-PAYLOAD"),
        "IncompleteBody",
        lambda it: it.changed(content_length=str(len(it.body) - 1)),
        is_local=True,
    )
    yield Case(
        "no number of bytes",
        spec,
        "InvalidArgument",
        lambda it: it.changed(content_length="ten"),
        is_local=True,
    )
    if "body" in example.traits:
        yield Case(
            "no length",
            spec,
            "MissingContentLength",
            lambda it: it.changed(content_length=None),
            is_local=True,
        )
        yield Case(
            "more than 5 GiB",
            spec,
            "EntityTooLarge",
            lambda it: it.changed(content_length=str((5 << 30) + 1)),
            is_local=True,
        )
    if own:
        yield from _framed(spec)


def _framed(spec: Spec) -> Cases:
    """aws-chunked, wrongly."""
    length = {"x-amz-decoded-content-length": str(len(spec.body))}
    trailing = replace(
        spec.with_headers(**length, x_amz_trailer="x-amz-checksum-crc32"),
        payload_hash="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    )
    frame = b"%x\r\n%s\r\n0\r\n" % (len(spec.body), spec.body)
    for name, trailer, code in (
        ("another trailer", b"x-amz-checksum-crc32:AAAAAA==\r\n\r\n", "BadDigest"),
        ("a malformed trailer", b"x-amz-checksum-crc32:!\r\n\r\n", "InvalidRequest"),
        ("no trailer", b"\r\n", "MalformedTrailerError"),
    ):
        yield Case(name, replace(trailing, body=frame + trailer), code)
    yield Case(
        "an unknown trailer",
        replace(trailing.with_headers(x_amz_trailer="x-amz-checksum-md4"), body=frame + b"\r\n"),
        "InvalidRequest",
    )
    yield Case("cut off", replace(trailing, body=frame[:-6]), "IncompleteBody")
    signed = replace(spec.with_headers(**length), payload_hash="STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
    bad = b"%x;chunk-signature=%s\r\n%s\r\n" % (len(spec.body), b"0" * 64, spec.body)
    yield Case("a frame's signature", replace(signed, body=bad), "SignatureDoesNotMatch")
    bare = replace(spec, payload_hash="STREAMING-UNSIGNED-PAYLOAD-TRAILER", body=frame + b"\r\n")
    yield Case("no decoded length", bare, "MissingContentLength")


def attributes(example: Example) -> Cases:
    """Headers that describe a new object, wrongly."""
    if "attributes" not in example.traits:
        return
    spec = example.spec
    lock, days = "x-amz-object-lock-", "retain-until-date"

    def case(name: str, code: str, **headers: str) -> Case:
        return Case(name, spec.with_headers(**headers), code)

    yield case("metadata too large", "MetadataTooLarge", x_amz_meta_big="x" * 2049)
    yield case("no such list", "InvalidArgument", x_amz_acl="public")
    yield case("a public list", "AccessControlListNotSupported", x_amz_acl="public-read")
    yield case(
        "two ways of a list", "InvalidRequest", x_amz_acl="private", x_amz_grant_read='id="evil"'
    )
    for what in ("read", "read-acp", "write", "write-acp", "full-control"):
        grant = {f"x-amz-grant-{what}": "who=evil"}
        yield case(f"a grant to nobody: {what}", "InvalidArgument", **grant)
    yield case(
        "a grant by e-mail",
        "UnresolvableGrantByEmailAddress",
        x_amz_grant_read='emailAddress="a@b.example"',
    )
    yield case("no such class", "InvalidStorageClass", x_amz_storage_class="FAST")
    yield case("a tag twice", "InvalidArgument", x_amz_tagging="a=1&a=2")
    many = "&".join(f"t{number}=v" for number in range(11))
    yield case("too many tags", "BadRequest", x_amz_tagging=many)
    yield case("a tag too long", "InvalidTag", x_amz_tagging="k" * 129 + "=v")
    yield case("a tag's value too long", "InvalidTag", x_amz_tagging="k=" + "v" * 257)
    yield case("a tag with other characters", "InvalidTag", x_amz_tagging="k=%3C")
    yield case("a tag of AWS", "InvalidTag", x_amz_tagging="aws:k=v")
    yield case("a mode without a date", "InvalidArgument", **{lock + "mode": "GOVERNANCE"})
    yield case("a date without a mode", "InvalidArgument", **{lock + days: UNTIL})
    yield case("no such mode", "InvalidArgument", **{lock + "mode": "MAYBE", lock + days: UNTIL})
    yield case(
        "no date of retention",
        "InvalidArgument",
        **{lock + "mode": "GOVERNANCE", lock + days: "tomorrow"},
    )
    yield case("no such hold", "InvalidArgument", **{lock + "legal-hold": "PERHAPS"})
    for name in ("event-hold", "event-hold-duration-days", "event-hold-duration-years"):
        yield case(f"an {name}", "NotImplemented", **{lock + name: "1"})
    if "uploads" not in spec.query:
        yield case("a lock without locks", "InvalidRequest", **{lock + "legal-hold": "ON"})
        past = spec.with_headers(
            **{lock + "mode": "GOVERNANCE", lock + days: "2001-01-01T00:00:00Z"}
        )
        yield Case("a lock in the past", replace(past, path=f"/{LOCKED}/new"), "InvalidArgument")
    yield case("no such encryption", "InvalidArgument", x_amz_server_side_encryption="ROT13")
    yield case("keys of KMS", "NotImplemented", x_amz_server_side_encryption="aws:kms")
    sse = "x-amz-server-side-encryption-"
    yield case("a key of KMS", "NotImplemented", **{sse + "aws-kms-key-id": "k"})
    yield case("a context of KMS", "NotImplemented", **{sse + "context": "e30="})
    yield case("bytes to append", "NotImplemented", x_amz_write_offset_bytes="0")
    yield case(
        "a redirect to nowhere",
        "InvalidRedirectLocation",
        x_amz_website_redirect_location="example.org",
    )
    if "copy" not in example.traits and "body" not in example.traits:
        yield case("no such checksum", "InvalidRequest", x_amz_checksum_algorithm="CRC9")
        yield case("a type without one", "InvalidRequest", x_amz_checksum_type="FULL_OBJECT")
        for algorithm, kind in (
            ("SHA256", "FULL_OBJECT"),
            ("CRC64NVME", "COMPOSITE"),
            ("XXHASH3", "FULL_OBJECT"),
            ("CRC32", "HALF"),
        ):
            yield case(
                f"{kind} of {algorithm}",
                "InvalidRequest",
                x_amz_checksum_algorithm=algorithm,
                x_amz_checksum_type=kind,
            )


def customer_keys(example: Example) -> Cases:
    """Keys of clients (SSE-C), wrongly."""
    if "sse-c" not in example.traits:
        return
    key = b"c" * 32
    right = {
        "algorithm": "AES256",
        "key": base64_of(key),
        "key-md5": base64_of(hashlib.md5(key, usedforsecurity=False).digest()),
    }
    prefix = "x-amz-server-side-encryption-customer-"
    for name, changes, code in (
        ("another algorithm", {"algorithm": "DES"}, "InvalidEncryptionAlgorithmError"),
        ("no algorithm", {"algorithm": None}, "InvalidArgument"),
        ("no key", {"key": None}, "InvalidArgument"),
        ("no MD5 of the key", {"key-md5": None}, "InvalidArgument"),
        ("a short key", {"key": base64_of(b"c" * 16)}, "InvalidArgument"),
        ("a key that is not base64", {"key": "???"}, "InvalidArgument"),
        ("another MD5 of the key", {"key-md5": base64_of(b"m" * 16)}, "InvalidArgument"),
    ):
        merged: Mapping[str, str | None] = {**right, **changes}
        headers = {prefix + it: text for it, text in merged.items() if text is not None}
        yield Case(name, example.spec.with_headers(**headers), code)
    full = {prefix + it: text for it, text in right.items()}
    if "read" in example.traits:
        wanted = "InvalidRequest"
        yield Case("a key for what is in the clear", example.spec.with_headers(**full), wanted)
    else:
        both = {**full, "x-amz-server-side-encryption": "AES256"}
        yield Case("both kinds", example.spec.with_headers(**both), "InvalidArgument")


def conditions(example: Example) -> Cases:
    """Conditions that do not hold, or cannot be."""
    spec = example.spec
    past, future = "Sat, 01 Jan 2000 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
    if "condition" in example.traits:
        there = replace(spec, path=f"{B}/k")
        for name, request, code in (
            ("it is there", there.with_headers(if_none_match="*"), "PreconditionFailed"),
            ("it is another", there.with_headers(if_match=ETAG), "PreconditionFailed"),
            ("it is not there", spec.with_headers(if_match="*"), "NoSuchKey"),
            ("not this one", spec.with_headers(if_none_match=ETAG), "NotImplemented"),
            ("both", spec.with_headers(if_none_match="*", if_match=ETAG), "NotImplemented"),
            ("since", spec.with_headers(if_modified_since=past), "NotImplemented"),
            ("not since", spec.with_headers(if_unmodified_since=future), "NotImplemented"),
        ):
            yield Case(name, request, code)
    if "read" in example.traits:
        md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
        for name, headers, code in (
            ("another ETag", {"if_match": ETAG}, "PreconditionFailed"),
            ("the same ETag", {"if_none_match": f'"{md5}"'}, "NotModified"),
            ("any ETag", {"if_none_match": "*"}, "NotModified"),
            ("changed since", {"if_unmodified_since": past}, "PreconditionFailed"),
            ("not changed since", {"if_modified_since": future}, "NotModified"),
            ("no date at all", {"if_modified_since": "soon"}, ""),
            ("a date without end", {"if_unmodified_since": "Mon, 99 Foo 99999 99:99:99"}, ""),
        ):
            yield Case(name, spec.with_headers(**headers), code)
    if spec.method == "DELETE" and spec.path == f"{B}/k" and not spec.query:
        yield Case("delete of another", spec.with_headers(if_match=ETAG), "PreconditionFailed")
        yield Case("delete by size", spec.with_headers(x_amz_if_match_size="1"), "NotImplemented")
        yield Case(
            "delete by time",
            spec.with_headers(x_amz_if_match_last_modified_time=past),
            "NotImplemented",
        )


def others(example: Example) -> Cases:
    """Headers of single operations."""
    spec = example.spec
    if spec.method == "DELETE" and "upload" in example.traits:
        wrong = spec.with_headers(x_amz_if_match_initiated_time="Sat, 01 Jan 2000 00:00:00 GMT")
        yield Case("abort by time", wrong, "NotImplemented")
    if "attributes" in spec.query:
        for text in ("", "Smell", "ETag,Smell"):
            wrong = spec.with_headers(x_amz_object_attributes=text)
            yield Case(f"attributes {text}", wrong, "InvalidArgument")
        for name in ("x-amz-max-parts", "x-amz-part-number-marker"):
            wrong = spec.with_headers(**{name: "x", "x-amz-object-attributes": "ObjectParts"})
            # Only objects of several parts have pages of them.
            yield Case(f"{name} is no number", wrong, "InvalidArgument")
    if example.document == "LifecycleConfiguration":
        wrong = spec.with_headers(x_amz_transition_default_minimum_object_size="small")
        yield Case("minimum size of transitions", wrong, "InvalidRequest")
    if example.document == "CreateBucketConfiguration":
        for name, code, text in (
            ("x-amz-object-ownership", "InvalidArgument", "Nobody"),
            ("x-amz-bucket-namespace", "NotImplemented", "account-regional"),
            ("x-amz-acl", "InvalidArgument", "public"),
            ("x-amz-acl", "InvalidBucketAclWithObjectOwnership", "public-read"),
            ("x-amz-bucket-object-lock-enabled", "InvalidArgument", "perhaps"),
        ):
            yield Case(f"{name}: {text}", spec.with_headers(**{name: text}), code)
    if example.document == "CompleteMultipartUpload":
        for name, code, text in (
            ("x-amz-mp-object-size", "InvalidRequest", "1"),
            ("x-amz-mp-object-size", "InvalidRequest", "many"),
            ("x-amz-checksum-crc64nvme", "BadDigest", "AAAAAAAAAAA="),
            ("x-amz-checksum-sha256", "InvalidRequest", "AAAA"),
            ("x-amz-checksum-type", "InvalidRequest", "HALF"),
            ("if-match", "NoSuchKey", ETAG),
            ("if-none-match", "NotImplemented", ETAG),
        ):
            yield Case(f"{name}: {text}", spec.with_headers(**{name: text}), code)
    if "copy" in example.traits:
        key = b"c" * 32
        prefix = "x-amz-copy-source-server-side-encryption-customer-"
        keys = {"algorithm": "AES256", "key": base64_of(key), "key-md5": base64_of(b"m" * 16)}
        wrong = spec.with_headers(**{prefix + name: text for name, text in keys.items()})
        yield Case("another MD5 of the source's key", wrong, "InvalidArgument")
        keys["key-md5"] = base64_of(hashlib.md5(key, usedforsecurity=False).digest())
        wrong = spec.with_headers(**{prefix + name: text for name, text in keys.items()})
        yield Case("a key for a source in the clear", wrong, "InvalidRequest")


# ---- ranges, parts, lists, copies ----


def ranges(example: Example) -> Cases:
    """Ranges and numbers of parts."""
    spec, end = example.spec, len(CONTENT)
    if "range" in example.traits:
        for text in (f"bytes={end}-", f"bytes={end}-{end + 5}", "bytes=-0"):
            yield Case(f"unsatisfiable {text}", spec.with_headers(range=text), "InvalidRange")
        for text in ("bytes=", "bytes=a-b", "bytes=5-2", "lines=1-2", "bytes=0-1,4-5", "0-5"):
            yield Case(f"no range: {text}", spec.with_headers(range=text), "")
        for text in ("0", "10001", "-1", "one", "1.5", "99999999999999999999"):
            yield Case(f"part {text}", spec.with_query(partNumber=text), "InvalidArgument")
        yield Case("part 2 of 1", spec.with_query(partNumber="2"), "InvalidPartNumber")
        both = spec.with_query(partNumber="1").with_headers(range="bytes=0-1")
        yield Case("a part and a range", both, "InvalidRequest")
    if "override" in example.traits:
        broken = spec.with_query(response_content_type="text/plain\r\nx: y")
        yield Case("a header in a parameter", broken, "InvalidArgument")
    if "upload" in example.traits and "partNumber" in spec.query:
        for text in ("0", "10001", "-1", "one", "", "99999999999999999999"):
            yield Case(f"part {text}", spec.with_query(partNumber=text), "InvalidArgument")
    if "upload" in example.traits and "copy" in example.traits:
        for text in ("bytes=0-", "bytes=-5", "0-5", "bytes=5-2", f"bytes=0-{end}", "bytes=0-1,3-4"):
            ranged = spec.with_headers(x_amz_copy_source_range=text)
            yield Case(f"copy {text}", ranged, "InvalidArgument")


#: Parameters of listings, with wrong values.
_LIST_PARAMETERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "": {"max-keys": ("-1", "x", "2147483648"), "encoding-type": ("base64",)},
    "list-type": {
        "max-keys": ("-1", "x", "2147483648"),
        "encoding-type": ("base64",),
        "continuation-token": ("", "*", "%"),
    },
    "versions": {
        "max-keys": ("-1", "x", "2147483648"),
        "encoding-type": ("base64",),
        "version-id-marker": ("x",),
    },
    "uploads": {"max-uploads": ("-1", "x", "2147483648"), "encoding-type": ("base64",)},
    "uploadId": {
        "max-parts": ("-1", "x", "2147483648"),
        "part-number-marker": ("-1", "x"),
        "encoding-type": ("base64",),
    },
    "service": {"max-buckets": ("0", "-1", "x", "10001"), "continuation-token": ("*",)},
}


def lists(example: Example) -> Cases:
    """Parameters of listings."""
    if "list" not in example.traits:
        return
    kind = next(iter(example.spec.query), "") if example.spec.path != "/" else "service"
    for parameter, values in _LIST_PARAMETERS[kind].items():
        for value in values:
            wrong = example.spec.with_query(**{parameter: value})
            yield Case(f"{parameter}={value}", wrong, "InvalidArgument")


def copies(example: Example) -> Cases:
    """Sources of copies."""
    if "copy" not in example.traits:
        return
    spec = example.spec

    def of(source: str) -> Spec:
        return spec.with_headers(x_amz_copy_source=source)

    for source in (
        "nowhere",
        "/",
        "//k",
        f"{PLAIN}/",
        f"{PLAIN}/%FF",
        f"{PLAIN}/k?x=1",
        f"{PLAIN}/k?versionId=",
        f"{PLAIN}/k?versionId=a b",
    ):
        yield Case(f"from {source}", of(source), "InvalidArgument")
    yield Case("from no bucket", of("matrix-none/k"), "NoSuchBucket")
    yield Case("from no key", of(f"{PLAIN}/absent"), "NoSuchKey")
    yield Case("from no version", of(f"{PLAIN}/k?versionId={'f' * 32}"), "NoSuchVersion")
    for key in ("k", SECRET, "absent"):
        yield Case(f"from another tenant's {key}", of(f"{FOREIGN}/{key}"), "AccessDenied")
    expected = spec.with_headers(x_amz_source_expected_bucket_owner="evil")
    yield Case("another owner of the source", expected, "AccessDenied")
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    past, future = "Sat, 01 Jan 2000 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
    for name, value in (
        ("match", ETAG),
        ("none-match", md5),
        ("modified-since", future),
        ("unmodified-since", past),
    ):
        wrong = spec.with_headers(**{f"x-amz-copy-source-if-{name}": value})
        yield Case(f"source if {name}", wrong, "PreconditionFailed")
    yield Case(
        "source if no date", spec.with_headers(**{"x-amz-copy-source-if-modified-since": "x"}), ""
    )
    if "uploadId" not in spec.query:
        for what in ("metadata", "tagging"):
            wrong = spec.with_headers(**{f"x-amz-{what}-directive": "MAYBE"})
            yield Case(f"no such {what} directive", wrong, "InvalidArgument")
        same = replace(spec, path=f"{B}/k").with_headers(x_amz_metadata_directive="COPY")
        yield Case("onto itself", same, "InvalidRequest")
        yield Case(
            "an unknown checksum",
            spec.with_headers(x_amz_checksum_algorithm="CRC9"),
            "InvalidRequest",
        )

"""What clients have come to rely on, case by case: lists, copies, parts, versions, locks, forms."""

import base64
import datetime
import hashlib
import json
from typing import Any

import pytest
from tests.support.s3_front import Front, code_of, put_policy

pytestmark = pytest.mark.integration

MIB = 1 << 20


def keys(page: Any) -> list[str]:
    return [item["Key"] for item in page.get("Contents", ())]


def prefixes(page: Any) -> list[str]:
    return [item["Prefix"] for item in page.get("CommonPrefixes", ())]


def fill(front: Front, bucket: str, *names: str) -> Any:
    """Objects of these names instead of the one that is there; the owner's client."""
    ann = front.client("ANN")
    ann.delete_object(Bucket=bucket, Key="k")
    for name in names:
        ann.put_object(Bucket=bucket, Key=name, Body=name.encode())
    return ann


# ---- lists ----


@pytest.mark.parametrize(
    ("delimiter", "names", "listed", "common"),
    [
        ("/", ("asdf", "boo/bar", "boo/baz/x", "cquux/t"), ["asdf"], ["boo/", "cquux/"]),
        ("a", ("bar", "baz", "cab", "foo"), ["foo"], ["ba", "ca"]),
        (" ", ("b ar", "b az", "c ab", "foo"), ["foo"], ["b ", "c "]),
        ("%", ("b%ar", "b%az", "c%ab", "foo"), ["foo"], ["b%", "c%"]),
        (".", ("b.ar", "b.az", "c.ab", "foo"), ["foo"], ["b.", "c."]),
        ("oo", ("foobar", "foobaz", "moo", "x"), ["x"], ["foo", "moo"]),
        ("none", ("a", "b"), ["a", "b"], []),
        ("", ("a", "b"), ["a", "b"], []),
    ],
)
def test_any_delimiter_cuts_keys(
    front: Front, bucket: str, delimiter: str, names: Any, listed: list[str], common: list[str]
) -> None:
    ann = fill(front, bucket, *names)
    for list_objects in (ann.list_objects, ann.list_objects_v2):
        page = list_objects(Bucket=bucket, Delimiter=delimiter)
        assert (keys(page), prefixes(page)) == (listed, common)
        small = list_objects(Bucket=bucket, Delimiter=delimiter, MaxKeys=1)
        assert small["IsTruncated"] == (len(listed) + len(common) > 1)


def test_pages_go_on_behind_common_prefixes(front: Front, bucket: str) -> None:
    ann = fill(front, bucket, "asdf", "boo/a", "boo/b", "c/x", "d")
    seen: list[str] = []
    more: dict[str, str] = {}
    while True:
        page = ann.list_objects_v2(Bucket=bucket, Delimiter="/", MaxKeys=1, **more)
        seen += keys(page) + prefixes(page)
        assert page["KeyCount"] == 1
        if not page["IsTruncated"]:
            break
        more = {"ContinuationToken": page["NextContinuationToken"]}
    assert seen == ["asdf", "boo/", "c/", "d"]
    page = ann.list_objects(Bucket=bucket, Delimiter="/", Marker="boo/")
    assert (keys(page), prefixes(page)) == (["d"], ["c/"])


@pytest.mark.parametrize("marker", ["", "\x0a", "zzz", "bar", "a"])
def test_a_marker_need_not_be_a_key(front: Front, bucket: str, marker: str) -> None:
    names = ["bar", "baz", "foo"]
    ann = fill(front, bucket, *names)
    wanted = [name for name in names if name > marker]
    assert keys(ann.list_objects(Bucket=bucket, Marker=marker)) == wanted
    assert keys(ann.list_objects_v2(Bucket=bucket, StartAfter=marker)) == wanted


def test_odd_numbers_of_keys_are_refused_and_none_is_none(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    page = ann.list_objects_v2(Bucket=bucket, MaxKeys=0)
    assert (page["KeyCount"], page["IsTruncated"], keys(page)) == (0, False, [])
    assert code_of(ann.list_objects_v2, Bucket=bucket, MaxKeys=-1) == "InvalidArgument"
    assert ann.list_objects_v2(Bucket=bucket, MaxKeys=5000)["MaxKeys"] == 1000


# ---- copies ----


def test_a_copy_onto_itself_must_change_something(front: Front, bucket: str) -> None:
    ann, place = front.client("ANN"), {"Bucket": bucket, "Key": "k"}
    source = {"CopySource": place}
    assert code_of(ann.copy_object, **place, **source) == "InvalidRequest"
    changed = {"MetadataDirective": "REPLACE", "Metadata": {"foo": "bar"}}
    ann.copy_object(**place, **source, **changed)
    found = ann.get_object(**place)
    assert (found["Metadata"], found["Body"].read()) == ({"foo": "bar"}, b"hello")


@pytest.mark.parametrize(
    "key", ["plain", "a b", "100%", "q?x=1&y", "ümlaut", "slash//two", "+plus"]
)
def test_parts_and_objects_are_copied_from_any_name(front: Front, bucket: str, key: str) -> None:
    ann, place = front.client("ANN"), {"Bucket": bucket}
    ann.put_object(**place, Key=key, Body=b"x" * 100, Metadata={"a": "b"}, ContentType="text/x")
    source = {"Bucket": bucket, "Key": key}
    ann.copy_object(**place, Key="copy", CopySource=source)
    copy = ann.head_object(**place, Key="copy")
    assert (copy["Metadata"], copy["ContentType"]) == ({"a": "b"}, "text/x")
    upload = {**place, "Key": "parts"}
    upload["UploadId"] = ann.create_multipart_upload(**upload)["UploadId"]
    part = {**upload, "PartNumber": 1, "CopySource": source}
    answer = ann.upload_part_copy(**part, CopySourceRange="bytes=10-19")
    etag = answer["CopyPartResult"]["ETag"]
    for wrong in (
        "0-2",
        "bytes=0",
        "bytes=hello-world",
        "bytes=0-bar",
        "bytes=hello-",
        "bytes=5-2",
    ):
        assert code_of(ann.upload_part_copy, **part, CopySourceRange=wrong) == "InvalidArgument"
    assert code_of(ann.upload_part_copy, **part, CopySourceRange="bytes=0-100") in (
        *("InvalidRange", "InvalidArgument"),
    )
    done = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    ann.complete_multipart_upload(**upload, MultipartUpload=done)
    assert ann.head_object(**place, Key="parts")["ContentLength"] == 10


# ---- uploads ----


def test_uploads_end_as_they_should(front: Front, bucket: str) -> None:
    ann, upload = front.client("ANN"), {"Bucket": bucket, "Key": "u"}
    upload["UploadId"] = ann.create_multipart_upload(**upload)["UploadId"]
    complete = ann.complete_multipart_upload
    assert code_of(complete, **upload, MultipartUpload={"Parts": []}) == "MalformedXML"
    small = [
        {"PartNumber": n, "ETag": ann.upload_part(**upload, PartNumber=n, Body=b"s")["ETag"]}
        for n in (1, 2)
    ]
    assert code_of(complete, **upload, MultipartUpload={"Parts": small}) == "EntityTooSmall"
    for wrong, code in (
        ([{"PartNumber": 9999, "ETag": small[0]["ETag"]}], "InvalidPart"),
        ([{"PartNumber": 1, "ETag": '"ffffffffffffffffffffffffffffffff"'}], "InvalidPart"),
        (small[::-1], "InvalidPartOrder"),
        ([small[0], small[0]], "InvalidPartOrder"),
    ):
        assert code_of(complete, **upload, MultipartUpload={"Parts": wrong}) == code
    again = ann.upload_part(**upload, PartNumber=1, Body=b"last wins")
    one = {"Parts": [{"PartNumber": 1, "ETag": again["ETag"]}]}
    first = complete(**upload, MultipartUpload=one)
    assert complete(**upload, MultipartUpload=one)["ETag"] == first["ETag"], "again is the same"
    assert ann.get_object(Bucket=bucket, Key="u")["Body"].read() == b"last wins"
    other = {**upload, "UploadId": ann.create_multipart_upload(Bucket=bucket, Key="u")["UploadId"]}
    ann.abort_multipart_upload(**other)
    assert code_of(ann.abort_multipart_upload, **other) == "NoSuchUpload"
    assert code_of(ann.list_parts, **other) == "NoSuchUpload"
    assert "Uploads" not in ann.list_multipart_uploads(Bucket=bucket)


# ---- reading ----


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("bytes=0-0", b"h"),
        ("bytes=3-", b"lo"),
        ("bytes=-2", b"lo"),
        ("bytes=-99", b"hello"),
        ("bytes=1-99", b"ello"),
        ("bytes=5-", "InvalidRange"),
        ("bytes=-0", "InvalidRange"),
        ("bytes=3-1", b"hello"),
        ("lines=1-2", b"hello"),
    ],
)
def test_ranges(front: Front, bucket: str, wanted: str, expected: bytes | str) -> None:
    ann, place = front.client("ANN"), {"Bucket": bucket, "Key": "k"}
    if isinstance(expected, str):
        assert code_of(ann.get_object, **place, Range=wanted) == expected
    else:
        assert ann.get_object(**place, Range=wanted)["Body"].read() == expected


def test_an_empty_object_has_no_ranges(front: Front, bucket: str) -> None:
    ann, place = front.client("ANN"), {"Bucket": bucket, "Key": "empty"}
    ann.put_object(**place, Body=b"")
    assert code_of(ann.get_object, **place, Range="bytes=0-1") == "InvalidRange"
    assert code_of(ann.get_object, **place, Range="bytes=-1") == "InvalidRange"
    assert ann.get_object(**place)["Body"].read() == b""


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("aws-chunked", ""),
        ("gzip", "gzip"),
        ("aws-chunked,gzip", "gzip"),
        ("gzip, aws-chunked", "gzip"),
        ("deflate, gzip", "deflate, gzip"),
    ],
)
def test_the_framing_is_no_encoding_of_the_object(
    front: Front, bucket: str, given: str, kept: str
) -> None:
    ann, place = front.client("ANN"), {"Bucket": bucket, "Key": "e"}
    ann.put_object(**place, Body=b"x", ContentEncoding=given)
    shown = ann.head_object(**place).get("ContentEncoding", "")
    assert shown.replace(" ", "") == kept.replace(" ", "")


# ---- versions ----


def test_versions_are_taken_away_one_by_one(front: Front, bucket: str) -> None:
    ann, place = fill(front, bucket), {"Bucket": bucket, "Key": "v"}
    ann.put_object(**place, Body=b"null")
    ann.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    ids = [ann.put_object(**place, Body=b"%d" % n)["VersionId"] for n in range(3)]
    ann.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    ann.put_object(**place, Body=b"new null")
    listed = ann.list_object_versions(Bucket=bucket, Prefix="v")["Versions"]
    assert [it["VersionId"] for it in listed] == ["null", *ids[::-1]], "one null version replaced"
    marker = ann.delete_object(**place)
    assert (marker["DeleteMarker"], marker["VersionId"]) == (True, "null")
    assert code_of(ann.get_object, **place) == "NoSuchKey"
    ann.delete_object(**place, VersionId="null")
    for version in ids[::-1]:
        assert ann.head_object(**place)["VersionId"] == version
        ann.delete_object(**place, VersionId=version)
    assert code_of(ann.head_object, **place) == "404"
    assert "Versions" not in ann.list_object_versions(Bucket=bucket, Prefix="v")


def test_a_batch_tells_of_markers_and_versions(front: Front, bucket: str) -> None:
    ann = fill(front, bucket)
    ann.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = ann.put_object(Bucket=bucket, Key="a", Body=b"1")["VersionId"]
    items = [{"Key": "a"}, {"Key": "a", "VersionId": first}, {"Key": "never"}]
    deleted = ann.delete_objects(Bucket=bucket, Delete={"Objects": items})["Deleted"]
    assert deleted[0]["DeleteMarker"] and deleted[0]["DeleteMarkerVersionId"]
    assert deleted[1] == {"Key": "a", "VersionId": first}
    assert deleted[2]["DeleteMarker"], "what never was gets a marker, too"
    quiet = {"Objects": [{"Key": "a"}], "Quiet": True}
    answer = ann.delete_objects(Bucket=bucket, Delete=quiet)
    assert "Deleted" not in answer and "Errors" not in answer
    many = {"Objects": [{"Key": f"k{n}"} for n in range(1001)]}
    assert code_of(ann.delete_objects, Bucket=bucket, Delete=many) == "MalformedXML"


# ---- locks ----


def test_the_lock_of_a_bucket_is_well_formed(front: Front, bucket: str) -> None:
    ann, place = front.client("ANN"), {"Bucket": f"{bucket}-lock"}
    ann.create_bucket(**place, ObjectLockEnabledForBucket=True)

    def put(retention: Any, enabled: str = "Enabled") -> str:
        rule = {"ObjectLockEnabled": enabled, "Rule": {"DefaultRetention": retention}}
        return code_of(ann.put_object_lock_configuration, **place, ObjectLockConfiguration=rule)

    assert put({"Mode": "GOVERNANCE", "Days": 0}) in ("InvalidArgument", "InvalidRetentionPeriod")
    assert put({"Mode": "GOVERNANCE", "Years": -1}) in ("InvalidArgument", "InvalidRetentionPeriod")
    assert put({"Mode": "GOVERNANCE", "Days": 1, "Years": 1}) == "MalformedXML"
    assert put({"Mode": "governance", "Days": 1}) == "MalformedXML"
    assert put({"Mode": "GOVERNANCE", "Days": 1}, "Disabled") == "MalformedXML"
    suspended = {"VersioningConfiguration": {"Status": "Suspended"}}
    assert code_of(ann.put_bucket_versioning, **place, **suspended) == "InvalidBucketState"
    until = datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)
    retention = {"Mode": "GOVERNANCE", "RetainUntilDate": until}
    plain = {"Bucket": bucket, "Key": "k"}
    assert code_of(ann.put_object_retention, **plain, Retention=retention) == "InvalidRequest"
    hold = {"Status": "ON"}
    assert code_of(ann.put_object_legal_hold, **plain, LegalHold=hold) == "InvalidRequest"


def test_a_retention_grows_and_shrinks_for_who_may_bypass_it(front: Front, bucket: str) -> None:
    ann, place = front.client("ANN"), {"Bucket": f"{bucket}-lock", "Key": "o"}
    ann.create_bucket(Bucket=place["Bucket"], ObjectLockEnabledForBucket=True)
    times = [datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2090, 2091, 2089)]
    version = ann.put_object(**place, Body=b"x")["VersionId"]

    def retain(until: Any, mode: str = "GOVERNANCE", **more: Any) -> None:
        wanted = {"Mode": mode, "RetainUntilDate": until}
        ann.put_object_retention(**place, VersionId=version, Retention=wanted, **more)

    retain(times[0])
    retain(times[1])
    assert code_of(lambda: retain(times[2])) == "AccessDenied"
    retain(times[2], BypassGovernanceRetention=True)
    one = {**place, "VersionId": version}
    assert code_of(ann.delete_object, **one) == "AccessDenied"
    batch = {"Objects": [{"Key": "o", "VersionId": version}]}
    answer = ann.delete_objects(Bucket=place["Bucket"], Delete=batch)
    assert answer["Errors"][0]["Code"] == "AccessDenied"
    retain(times[1], "COMPLIANCE")
    assert code_of(lambda: retain(times[1], BypassGovernanceRetention=True)) == "AccessDenied"
    assert code_of(ann.delete_object, **one, BypassGovernanceRetention=True) == "AccessDenied"


# ---- tags, metadata, checksums ----


def test_tags_are_bounded(front: Front, bucket: str) -> None:
    ann, place = front.client("ANN"), {"Bucket": bucket, "Key": "k"}

    def put(tags: dict[str, str]) -> None:
        found = [{"Key": name, "Value": value} for name, value in tags.items()]
        ann.put_object_tagging(**place, Tagging={"TagSet": found})

    ten = {f"{n:02d}".ljust(128, "k"): "v" * 256 for n in range(10)}
    put(ten)
    shown = ann.get_object_tagging(**place)["TagSet"]
    assert {it["Key"]: it["Value"] for it in shown} == ten
    assert ann.head_object(**place)["TagCount"] == 10
    for wrong, code in (
        ({**ten, "eleventh": ""}, "BadRequest"),
        ({"k" * 129: ""}, "InvalidTag"),
        ({"k": "v" * 257}, "InvalidTag"),
    ):
        assert code_of(put, tags=wrong) == code
    assert ann.head_object(**place)["TagCount"] == 10


def test_metadata_is_kept_as_given_and_replaced_whole(front: Front, bucket: str) -> None:
    ann, place = front.client("ANN"), {"Bucket": bucket, "Key": "m"}
    for metadata in ({"meta1": "bar"}, {"meta1": ""}, {"meta2": "a b  c"}, {}):
        ann.put_object(**place, Body=b"x", Metadata=metadata)
        assert ann.head_object(**place)["Metadata"] == metadata
    assert code_of(ann.put_object, **place, Body=b"", Metadata={"m": "x" * 2049}) == (
        "MetadataTooLarge"
    )


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
@pytest.mark.parametrize("kind", ["FULL_OBJECT", "COMPOSITE"])
def test_uploads_have_the_checksum_that_they_name(
    front: Front, bucket: str, algorithm: str, kind: str
) -> None:
    ann, upload = front.client("ANN"), {"Bucket": bucket, "Key": "c"}
    begin = {**upload, "ChecksumAlgorithm": algorithm, "ChecksumType": kind}
    if (algorithm == "CRC64NVME" and kind == "COMPOSITE") or (
        algorithm.startswith("SHA") and kind == "FULL_OBJECT"
    ):
        assert code_of(ann.create_multipart_upload, **begin) == "InvalidRequest"
        return
    upload["UploadId"] = ann.create_multipart_upload(**begin)["UploadId"]
    name, bodies, parts = f"Checksum{algorithm}", (b"a" * 5 * MIB, b"b" * 100), []
    for number, body in enumerate(bodies, 1):
        part = ann.upload_part(**upload, PartNumber=number, Body=body, ChecksumAlgorithm=algorithm)
        parts.append({"PartNumber": number, "ETag": part["ETag"], name: part[name]})
    done = ann.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert done["ChecksumType"] == kind
    wanted = {"ObjectAttributes": ["Checksum", "ObjectParts", "ObjectSize", "ETag"]}
    found = ann.get_object_attributes(Bucket=bucket, Key="c", **wanted)
    assert found["Checksum"] == {name: done[name], "ChecksumType": kind}
    assert found["ObjectParts"]["TotalPartsCount"] == 2
    assert [part[name] for part in found["ObjectParts"]["Parts"]] == [it[name] for it in parts]
    if kind == "COMPOSITE":
        assert done[name].endswith("-2")
    else:
        whole = ann.put_object(
            Bucket=bucket, Key="w", Body=b"".join(bodies), ChecksumAlgorithm=algorithm
        )
        assert done[name] == whole[name]
    if algorithm == "SHA256":
        digests = b"".join(hashlib.sha256(body).digest() for body in bodies)
        assert done[name] == base64.b64encode(hashlib.sha256(digests).digest()).decode() + "-2"


# ---- conditions ----


def test_conditions_on_every_call_that_has_them(front: Front, bucket: str) -> None:
    ann, place = front.client("ANN"), {"Bucket": bucket, "Key": "k"}
    etag = ann.head_object(**place)["ETag"]
    other, failed = '"00000000000000000000000000000000"', "PreconditionFailed"
    put = {**place, "Body": b"hello"}
    assert code_of(ann.put_object, **put, IfNoneMatch="*") == failed
    assert code_of(ann.put_object, **put, IfMatch=other) == failed
    ann.put_object(**put, IfMatch=etag)
    missing = {"Bucket": bucket, "Key": "missing"}
    assert code_of(ann.put_object, **missing, Body=b"", IfMatch=etag) == "NoSuchKey"
    copy = {**place, "CopySource": f"{bucket}/k", "Key": "copy"}
    assert code_of(ann.copy_object, **copy, CopySourceIfMatch=other) == failed
    assert code_of(ann.copy_object, **copy, CopySourceIfNoneMatch=etag) == failed
    ann.copy_object(**copy, CopySourceIfMatch=etag, IfNoneMatch="*")
    assert code_of(ann.copy_object, **copy, IfNoneMatch="*") == failed
    assert code_of(ann.copy_object, **copy, IfMatch=other) == failed
    assert code_of(ann.get_object, **place, IfMatch=other) == failed
    assert code_of(ann.get_object, **place, IfNoneMatch=etag) == "304"
    upload = {**place}
    upload["UploadId"] = ann.create_multipart_upload(**place)["UploadId"]
    part = ann.upload_part(**upload, PartNumber=1, Body=b"part")
    done = {"MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}}
    complete = ann.complete_multipart_upload
    assert code_of(complete, **upload, **done, IfNoneMatch="*") == failed
    assert code_of(complete, **upload, **done, IfMatch=other) == failed
    complete(**upload, **done, IfMatch=etag)
    assert code_of(ann.delete_object, **place, IfMatch=etag) == failed
    assert code_of(ann.delete_object, **missing, IfMatch=etag) == "NoSuchKey"
    batch = {"Objects": [{"Key": "k", "ETag": etag}]}
    errors = ann.delete_objects(Bucket=bucket, Delete=batch)["Errors"]
    assert errors[0]["Code"] == failed
    ann.delete_object(**place, IfMatch=ann.head_object(**place)["ETag"])


# ---- policies ----


def test_policies_see_what_a_write_asks_for(front: Front, bucket: str) -> None:
    eve, put = front.client("EVE"), {"Bucket": bucket, "Key": "p", "Body": b"x"}
    everywhere = {"Principal": {"AWS": "evil"}, "Action": ["s3:PutObject", "s3:PutObjectTagging"]}

    def when(**condition: Any) -> None:
        put_policy(front, bucket, {**everywhere, "Condition": condition})

    when(StringEquals={"s3:x-amz-server-side-encryption": "AES256"})
    assert code_of(eve.put_object, **put) == "AccessDenied"
    when(StringEquals={"s3:RequestObjectTag/security": "public"})
    eve.put_object(**put, Tagging="security=public&foo=bar")
    assert code_of(eve.put_object, **put, Tagging="security=private") == "AccessDenied"
    assert code_of(eve.put_object, **put) == "AccessDenied"
    when(StringLike={"s3:x-amz-copy-source": f"{bucket}/public/*"})
    ann = front.client("ANN")
    ann.put_object(Bucket=bucket, Key="public/a", Body=b"x")
    document = json.loads(ann.get_bucket_policy(Bucket=bucket)["Policy"])
    read = {**document["Statement"][0], "Action": "s3:GetObject"}
    del read["Condition"]
    put_policy(front, bucket, document["Statement"][0], read)
    copy = {"Bucket": bucket, "Key": "copied"}
    eve.copy_object(**copy, CopySource=f"{bucket}/public/a")
    assert code_of(eve.copy_object, **copy, CopySource=f"{bucket}/k") == "AccessDenied"

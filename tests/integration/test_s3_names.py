"""Versions, tags, locks and lifecycle rules as boto3 sees them, in memory and in a real cluster."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from urllib.request import Request, urlopen
from zlib import crc32

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from tests.integration.conftest import LiveCluster
from tests.integration.test_s3_front import ACCESS_KEY, SECRET_KEY

from exastore.deploy.clock import SystemClock
from exastore.gateway.config import GatewayConfig
from exastore.gateway.testing.memory_store import MemoryStore
from exastore.gateway.testing.served import ServedStore

pytestmark = pytest.mark.integration

MIB = 1 << 20
_numbers = count(1)


@pytest.fixture(scope="module")
def memory() -> Iterator[Any]:
    config = GatewayConfig(access_key=ACCESS_KEY, secret_key=SECRET_KEY)
    clock = SystemClock()
    with ServedStore(lambda: MemoryStore(clock.now_s), config, clock=clock) as served:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{served.address}",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(
                retries={"max_attempts": 1},
                s3={"addressing_style": "path"},
                proxies={},
                signature_version="s3v4",
            ),
        )
        yield client
        client.close()


@pytest.fixture(scope="module")
def live(cluster: LiveCluster) -> Any:
    return cluster.client()


@pytest.fixture(params=["memory", "live"])
def s3(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"names-{next(_numbers)}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def versioned(s3: Any, bucket: str) -> str:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return bucket


@pytest.fixture
def locked(s3: Any) -> str:
    name = f"names-{next(_numbers)}"
    s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return name


def refusal(call: Callable[..., Any], **arguments: Any) -> tuple[str, int]:
    """The code and the status of a request that fails."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def headers_of_refusal(call: Callable[..., Any], **arguments: Any) -> dict[str, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    headers: dict[str, str] = caught.value.response["ResponseMetadata"]["HTTPHeaders"]
    return headers


def put(s3: Any, bucket: str, key: str, body: bytes, **more: Any) -> Any:
    return s3.put_object(Bucket=bucket, Key=key, Body=body, **more)


def body_of(s3: Any, bucket: str, key: str, **more: Any) -> bytes:
    body: bytes = s3.get_object(Bucket=bucket, Key=key, **more)["Body"].read()
    return body


# ---- versions ----


def test_versioning_is_unset_then_enabled_then_suspended(s3: Any, bucket: str) -> None:
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    assert "VersionId" not in put(s3, bucket, "k", b"x")
    for status in ("Enabled", "Suspended"):
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == status
    wrong = {"Status": "Suspended", "MFADelete": "Enabled"}
    code = refusal(s3.put_bucket_versioning, Bucket=bucket, VersioningConfiguration=wrong)
    assert code == ("NotImplemented", 501)


def test_every_version_stays_readable_by_its_id(s3: Any, versioned: str) -> None:
    first = put(s3, versioned, "k", b"one")["VersionId"]
    second = put(s3, versioned, "k", b"two!")["VersionId"]
    assert first != second
    assert body_of(s3, versioned, "k") == b"two!"
    assert body_of(s3, versioned, "k", VersionId=first) == b"one"
    assert s3.head_object(Bucket=versioned, Key="k", VersionId=first)["ContentLength"] == 3
    assert s3.head_object(Bucket=versioned, Key="k")["VersionId"] == second
    code = refusal(s3.get_object, Bucket=versioned, Key="k", VersionId="0" * 32)
    assert code == ("NoSuchVersion", 404)
    gone = s3.delete_object(Bucket=versioned, Key="k", VersionId=second)
    assert gone["VersionId"] == second
    assert body_of(s3, versioned, "k") == b"one"


def test_a_delete_marker_answers_as_s3s_do(s3: Any, versioned: str) -> None:
    kept = put(s3, versioned, "k", b"one")["VersionId"]
    made = s3.delete_object(Bucket=versioned, Key="k")
    assert made["DeleteMarker"] is True
    marker = made["VersionId"]
    for call in (s3.get_object, s3.head_object):
        headers = headers_of_refusal(call, Bucket=versioned, Key="k")
        assert headers["x-amz-delete-marker"] == "true"
        assert headers["x-amz-version-id"] == marker
        headers = headers_of_refusal(call, Bucket=versioned, Key="k", VersionId=marker)
        assert headers["x-amz-delete-marker"] == "true"
        assert headers["allow"] == "DELETE"
    assert refusal(s3.get_object, Bucket=versioned, Key="k") == ("NoSuchKey", 404)
    code = refusal(s3.get_object, Bucket=versioned, Key="k", VersionId=marker)
    assert code == ("MethodNotAllowed", 405)
    assert "Contents" not in s3.list_objects_v2(Bucket=versioned)
    put(s3, versioned, "k", b"again", IfNoneMatch="*")  # A marker counts as absent.
    undone = s3.delete_object(Bucket=versioned, Key="k", VersionId=marker)
    assert (undone["DeleteMarker"], undone["VersionId"]) == (True, marker)
    assert body_of(s3, versioned, "k", VersionId=kept) == b"one"


def test_the_null_version_is_replaced_while_versioning_is_suspended(s3: Any, bucket: str) -> None:
    put(s3, bucket, "k", b"before")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    named = put(s3, bucket, "k", b"named")["VersionId"]
    assert body_of(s3, bucket, "k", VersionId="null") == b"before"
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert put(s3, bucket, "k", b"null")["VersionId"] == "null"
    assert s3.head_object(Bucket=bucket, Key="k")["VersionId"] == "null"
    listed = s3.list_object_versions(Bucket=bucket)["Versions"]
    assert [(v["VersionId"], v["IsLatest"]) for v in listed] == [("null", True), (named, False)]
    made = s3.delete_object(Bucket=bucket, Key="k")
    assert (made["VersionId"], made["DeleteMarker"]) == ("null", True)
    listing = s3.list_object_versions(Bucket=bucket)
    assert [v["VersionId"] for v in listing["Versions"]] == [named]
    assert [m["VersionId"] for m in listing["DeleteMarkers"]] == ["null"]


def test_versions_are_listed_by_key_newest_first_over_pages(s3: Any, versioned: str) -> None:
    wanted = []
    for key in ("a", "b/1", "b/2", "ü ~"):
        ids = [put(s3, versioned, key, b"x" * n)["VersionId"] for n in range(2)]
        ids.append(s3.delete_object(Bucket=versioned, Key=key)["VersionId"])
        wanted += [(key, version_id) for version_id in reversed(ids)]
    found: list[tuple[str, str, bool]] = []
    markers: dict[str, str] = {}
    while True:
        page = s3.list_object_versions(Bucket=versioned, MaxKeys=5, **markers)
        entries = page.get("Versions", []) + page.get("DeleteMarkers", [])
        assert len(entries) <= 5
        found += [(e["Key"], e["VersionId"], e["IsLatest"]) for e in entries]
        if not page["IsTruncated"]:
            break
        markers = {
            "KeyMarker": page["NextKeyMarker"],
            "VersionIdMarker": page["NextVersionIdMarker"],
        }
    assert sorted(wanted) == sorted((key, version_id) for key, version_id, _ in found)
    assert [e for e in found if e[2]] == [(k, v, True) for k, v in wanted[::3]]
    rolled = s3.list_object_versions(Bucket=versioned, Delimiter="/", Prefix="")
    assert [p["Prefix"] for p in rolled["CommonPrefixes"]] == ["b/"]
    assert {v["Key"] for v in rolled["Versions"]} == {"a", "ü ~"}
    code = refusal(s3.list_object_versions, Bucket=versioned, VersionIdMarker="x")
    assert code == ("InvalidArgument", 400)


def test_a_batch_deletes_versions_and_makes_markers(s3: Any, versioned: str) -> None:
    first = put(s3, versioned, "a", b"x")["VersionId"]
    put(s3, versioned, "b", b"x")
    objects = [{"Key": "a", "VersionId": first}, {"Key": "b"}, {"Key": "none"}]
    answer = s3.delete_objects(Bucket=versioned, Delete={"Objects": objects})
    by_key = {item["Key"]: item for item in answer["Deleted"]}
    assert by_key["a"]["VersionId"] == first
    assert "DeleteMarker" not in by_key["a"]
    assert by_key["b"]["DeleteMarker"] is True
    marker = by_key["b"]["DeleteMarkerVersionId"]
    again = s3.delete_objects(
        Bucket=versioned, Delete={"Objects": [{"Key": "b", "VersionId": marker}], "Quiet": True}
    )
    assert "Deleted" not in again
    assert body_of(s3, versioned, "b") == b"x"
    assert refusal(s3.delete_bucket, Bucket=versioned) == ("BucketNotEmpty", 409)


def test_a_version_is_copied_back(s3: Any, versioned: str) -> None:
    old = put(s3, versioned, "k", b"old")["VersionId"]
    put(s3, versioned, "k", b"new")
    source = {"Bucket": versioned, "Key": "k", "VersionId": old}
    copied = s3.copy_object(Bucket=versioned, Key="k", CopySource=source)
    assert copied["CopySourceVersionId"] == old
    assert copied["VersionId"] != old
    assert body_of(s3, versioned, "k") == b"old"
    marker = s3.delete_object(Bucket=versioned, Key="k")["VersionId"]
    plain = {"Bucket": versioned, "Key": "k"}
    assert refusal(s3.copy_object, Bucket=versioned, Key="l", CopySource=plain)[0] == "NoSuchKey"
    named = plain | {"VersionId": marker}
    code = refusal(s3.copy_object, Bucket=versioned, Key="l", CopySource=named)
    assert code == ("InvalidRequest", 400)


def test_a_completed_upload_is_a_version(s3: Any, versioned: str) -> None:
    upload = s3.create_multipart_upload(Bucket=versioned, Key="k", Tagging="a=b")["UploadId"]
    place = {"Bucket": versioned, "Key": "k", "UploadId": upload}
    etag = s3.upload_part(**place, PartNumber=1, Body=b"part")["ETag"]
    wrong = {"Parts": [{"PartNumber": 1, "ETag": etag, "ChecksumCRC32": "AAAAAA=="}]}
    code = refusal(s3.complete_multipart_upload, **place, MultipartUpload=wrong)
    assert code == ("InvalidPart", 400)
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    done = s3.complete_multipart_upload(**place, MultipartUpload=parts)
    again = s3.complete_multipart_upload(**place, MultipartUpload=parts)
    assert s3.head_object(Bucket=versioned, Key="k")["VersionId"] == done["VersionId"]
    assert (again["ETag"], again["VersionId"]) == (done["ETag"], done["VersionId"])
    assert s3.get_object_tagging(Bucket=versioned, Key="k")["TagSet"] == [
        {"Key": "a", "Value": "b"}
    ]


# ---- conditions ----


def test_deletes_take_an_etag(s3: Any, bucket: str) -> None:
    etag = put(s3, bucket, "k", b"x")["ETag"]
    code = refusal(s3.delete_object, Bucket=bucket, Key="k", IfMatch='"0123"')
    assert code == ("PreconditionFailed", 412)
    assert refusal(s3.delete_object, Bucket=bucket, Key="none", IfMatch=etag)[1] == 404
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k", "ETag": '"0123"'}]})
    assert [e["Code"] for e in answer["Errors"]] == ["PreconditionFailed"]
    s3.delete_object(Bucket=bucket, Key="k", IfMatch=etag)
    assert refusal(s3.head_object, Bucket=bucket, Key="k") == ("404", 404)


def test_copies_and_completions_take_conditions_on_their_target(s3: Any, bucket: str) -> None:
    etag = put(s3, bucket, "k", b"x")["ETag"]
    source = {"Bucket": bucket, "Key": "k"}
    s3.copy_object(Bucket=bucket, Key="l", CopySource=source, IfNoneMatch="*")
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"0"'}):
        code = refusal(s3.copy_object, Bucket=bucket, Key="l", CopySource=source, **condition)
        assert code == ("PreconditionFailed", 412)
    s3.copy_object(Bucket=bucket, Key="l", CopySource=source, IfMatch=etag)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="l")["UploadId"]
    place = {"Bucket": bucket, "Key": "l", "UploadId": upload}
    part = {"PartNumber": 1, "ETag": s3.upload_part(**place, PartNumber=1, Body=b"p")["ETag"]}
    parts = {"Parts": [part]}
    code = refusal(s3.complete_multipart_upload, **place, MultipartUpload=parts, IfNoneMatch="*")
    assert code == ("PreconditionFailed", 412)
    s3.complete_multipart_upload(**place, MultipartUpload=parts, IfMatch=etag)
    ranged = {"Bucket": bucket, "Key": "l", "Range": "bytes=0-0", "PartNumber": 1}
    assert refusal(s3.get_object, **ranged) == ("InvalidRequest", 400)


def test_uploads_are_listed_over_pages(s3: Any, bucket: str) -> None:
    wanted = []
    for key in ("a", "a", "b/1", "b/2", "c"):
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        wanted.append((key, upload))
    pages = s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=bucket, PaginationConfig={"PageSize": 2}
    )
    found = [(u["Key"], u["UploadId"]) for page in pages for u in page.get("Uploads", [])]
    assert found == sorted(wanted)
    rolled = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [p["Prefix"] for p in rolled["CommonPrefixes"]] == ["b/"]
    assert refusal(s3.delete_bucket, Bucket=bucket) == ("BucketNotEmpty", 409)
    for key, upload in wanted:
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)


def test_a_part_that_is_copied_keeps_the_objects_checksum(s3: Any, bucket: str) -> None:
    put(s3, bucket, "k", b"0123456789")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="l")["UploadId"]
    place = {"Bucket": bucket, "Key": "l", "UploadId": upload}
    source = {"CopySource": {"Bucket": bucket, "Key": "k"}, "CopySourceRange": "bytes=2-4"}
    copied = s3.upload_part_copy(**place, PartNumber=1, **source)["CopyPartResult"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": copied["ETag"]}]}
    s3.complete_multipart_upload(**place, MultipartUpload=parts)
    wanted = put(s3, bucket, "m", b"234", ChecksumAlgorithm="CRC64NVME")["ChecksumCRC64NVME"]
    found = s3.head_object(Bucket=bucket, Key="l", ChecksumMode="ENABLED")
    assert (found["ChecksumCRC64NVME"], found["ChecksumType"]) == (wanted, "FULL_OBJECT")
    assert body_of(s3, bucket, "l") == b"234"


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA256"])
def test_parts_come_with_the_checksum_of_their_upload_and_keep_it(
    s3: Any, bucket: str, algorithm: str
) -> None:
    name = f"Checksum{algorithm}"
    begun = s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm=algorithm)
    assert (begun["ChecksumAlgorithm"], begun["ChecksumType"]) == (algorithm, "COMPOSITE")
    place = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}
    wrong = {"Body": b"tail", "ChecksumAlgorithm": "CRC32C"}
    assert refusal(s3.upload_part, **place, PartNumber=1, **wrong) == ("InvalidRequest", 400)
    put(s3, bucket, "source", b"x" * 5 * MIB)
    copied = s3.upload_part_copy(**place, PartNumber=1, CopySource=f"{bucket}/source")
    # Numbers of an upload may have gaps; those of the object count from 1.
    last = s3.upload_part(**place, PartNumber=7, Body=b"tail", ChecksumAlgorithm=algorithm)
    listed = s3.list_parts(**place)
    digests = [copied["CopyPartResult"][name], last[name]]
    assert [part[name] for part in listed["Parts"]] == digests
    assert (listed["ChecksumAlgorithm"], listed["ChecksumType"]) == (algorithm, "COMPOSITE")
    parts = [
        {"PartNumber": part["PartNumber"], "ETag": part["ETag"], name: part[name]}
        for part in listed["Parts"]
    ]
    it = {"MultipartUpload": {"Parts": parts}}
    complete = s3.complete_multipart_upload
    code = refusal(complete, **place, **it, ChecksumType="FULL_OBJECT")
    assert code == ("InvalidRequest", 400)
    assert complete(**place, **it)[name].endswith("-2")
    shown = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectParts"])
    assert [part[name] for part in shown["ObjectParts"]["Parts"]] == digests
    for read in (s3.get_object, s3.head_object):
        part = read(Bucket=bucket, Key="k", PartNumber=2, ChecksumMode="ENABLED")
        assert (part[name], part["PartsCount"], part["ContentLength"]) == (digests[1], 2, 4)


def test_the_checksum_of_a_whole_upload_needs_none_of_its_parts(s3: Any, bucket: str) -> None:
    begun = s3.create_multipart_upload(
        Bucket=bucket, Key="k", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
    )
    place = {"Bucket": bucket, "Key": "k", "UploadId": begun["UploadId"]}
    bare = {"Params": {**place, "PartNumber": 1}}
    url = s3.generate_presigned_url("upload_part", **bare)
    with urlopen(Request(url, b"0123456789", method="PUT")) as answer:
        part = {"PartNumber": 1, "ETag": answer.headers["ETag"]}
    done = s3.complete_multipart_upload(**place, MultipartUpload={"Parts": [part]})
    digest = b64encode(crc32(b"0123456789").to_bytes(4, "big")).decode()
    assert (done["ChecksumCRC32"], done["ChecksumType"]) == (digest, "FULL_OBJECT")


@pytest.mark.parametrize(
    "checksum",
    [
        {"ChecksumAlgorithm": "SHA256", "ChecksumType": "FULL_OBJECT"},
        {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "COMPOSITE"},
        {"ChecksumAlgorithm": "MD4"},
    ],
)
def test_uploads_with_checksums_that_cannot_be_are_refused(
    s3: Any, bucket: str, checksum: dict[str, str]
) -> None:
    begun = refusal(s3.create_multipart_upload, Bucket=bucket, Key="k", **checksum)
    assert begun == ("InvalidRequest", 400)


# ---- tags ----


def test_tags_of_versions_are_put_read_counted_and_dropped(s3: Any, versioned: str) -> None:
    first = put(s3, versioned, "k", b"1", Tagging="a=1&b=%C3%BC%20x")["VersionId"]
    second = put(s3, versioned, "k", b"2")["VersionId"]
    read = s3.get_object_tagging(Bucket=versioned, Key="k", VersionId=first)
    assert read["TagSet"] == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "ü x"}]
    assert read["VersionId"] == first
    assert s3.head_object(Bucket=versioned, Key="k", VersionId=first)["TagCount"] == 2
    tags = {"TagSet": [{"Key": "c", "Value": ""}]}
    assert s3.put_object_tagging(Bucket=versioned, Key="k", Tagging=tags)["VersionId"] == second
    assert s3.get_object_tagging(Bucket=versioned, Key="k")["TagSet"] == tags["TagSet"]
    s3.delete_object_tagging(Bucket=versioned, Key="k")
    assert s3.get_object_tagging(Bucket=versioned, Key="k")["TagSet"] == []
    assert "TagCount" not in s3.head_object(Bucket=versioned, Key="k")


def test_tags_that_s3_refuses_are_refused(s3: Any, bucket: str) -> None:
    put(s3, bucket, "k", b"1")

    def code_of(*tags: tuple[str, str]) -> str:
        tag_set = [{"Key": name, "Value": value} for name, value in tags]
        arguments = {"Bucket": bucket, "Key": "k", "Tagging": {"TagSet": tag_set}}
        return refusal(s3.put_object_tagging, **arguments)[0]

    assert code_of(*[(f"k{n}", "v") for n in range(11)]) == "BadRequest"
    assert code_of(("a", "1"), ("a", "2")) == "InvalidTag"
    assert refusal(put, s3=s3, bucket=bucket, key="k", body=b"", Tagging="a=1&a=2") == (
        "InvalidArgument",
        400,
    )
    assert refusal(s3.get_object_tagging, Bucket=bucket, Key="none") == ("NoSuchKey", 404)


def test_a_copy_takes_the_tags_or_new_ones(s3: Any, bucket: str) -> None:
    put(s3, bucket, "k", b"1", Tagging="a=1", Metadata={"m": "1"})
    source = {"Bucket": bucket, "Key": "k"}
    s3.copy_object(Bucket=bucket, Key="l", CopySource=source)
    assert s3.get_object_tagging(Bucket=bucket, Key="l")["TagSet"][0]["Value"] == "1"
    s3.copy_object(
        Bucket=bucket, Key="l", CopySource=source, TaggingDirective="REPLACE", Tagging="z=9"
    )
    assert s3.get_object_tagging(Bucket=bucket, Key="l")["TagSet"] == [{"Key": "z", "Value": "9"}]
    assert s3.head_object(Bucket=bucket, Key="l")["Metadata"] == {"m": "1"}


def test_a_bucket_has_tags(s3: Any, bucket: str) -> None:
    assert refusal(s3.get_bucket_tagging, Bucket=bucket) == ("NoSuchTagSet", 404)
    tags = {"TagSet": [{"Key": "team", "Value": "blue"}, {"Key": "a", "Value": "b"}]}
    s3.put_bucket_tagging(Bucket=bucket, Tagging=tags)
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == tags["TagSet"]
    s3.delete_bucket_tagging(Bucket=bucket)
    assert refusal(s3.get_bucket_tagging, Bucket=bucket) == ("NoSuchTagSet", 404)


# ---- locks ----


def in_future(**period: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(**period)


def test_governance_yields_to_the_bypass_header_and_compliance_to_nothing(
    s3: Any, locked: str
) -> None:
    until = in_future(hours=1)
    ids = {
        mode: put(s3, locked, mode, b"x", ObjectLockMode=mode, ObjectLockRetainUntilDate=until)[
            "VersionId"
        ]
        for mode in ("GOVERNANCE", "COMPLIANCE")
    }
    shown = s3.head_object(Bucket=locked, Key="GOVERNANCE")
    assert (shown["ObjectLockMode"], shown["ObjectLockRetainUntilDate"]) == ("GOVERNANCE", until)
    for key, version_id in ids.items():
        place = {"Bucket": locked, "Key": key, "VersionId": version_id}
        assert refusal(s3.delete_object, **place) == ("AccessDenied", 403)
        shorter = {"Mode": key, "RetainUntilDate": in_future(minutes=1)}
        assert refusal(s3.put_object_retention, **place, Retention=shorter)[0] == "AccessDenied"
        longer = {"Mode": key, "RetainUntilDate": in_future(hours=2)}
        s3.put_object_retention(**place, Retention=longer)
        assert s3.get_object_retention(**place)["Retention"] == longer
    batch = {"Objects": [{"Key": key, "VersionId": ids[key]} for key in ids]}
    answer = s3.delete_objects(Bucket=locked, Delete=batch, BypassGovernanceRetention=True)
    assert [item["Key"] for item in answer["Deleted"]] == ["GOVERNANCE"]
    assert [(e["Key"], e["Code"]) for e in answer["Errors"]] == [("COMPLIANCE", "AccessDenied")]
    assert s3.delete_object(Bucket=locked, Key="COMPLIANCE")["DeleteMarker"] is True


def test_a_legal_hold_is_put_on_and_taken_off(s3: Any, locked: str) -> None:
    version = put(s3, locked, "k", b"x")["VersionId"]
    place = {"Bucket": locked, "Key": "k", "VersionId": version}
    assert refusal(s3.get_object_retention, **place) == ("NoSuchObjectLockConfiguration", 404)
    s3.put_object_legal_hold(**place, LegalHold={"Status": "ON"})
    assert s3.get_object_legal_hold(**place)["LegalHold"]["Status"] == "ON"
    assert s3.head_object(**place)["ObjectLockLegalHoldStatus"] == "ON"
    code = refusal(s3.delete_object, **place, BypassGovernanceRetention=True)
    assert code == ("AccessDenied", 403)
    s3.put_object_legal_hold(**place, LegalHold={"Status": "OFF"})
    s3.delete_object(**place)


def test_a_bucket_locks_by_default(s3: Any, locked: str) -> None:
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 3}}
    configuration = {"ObjectLockEnabled": "Enabled", "Rule": rule}
    s3.put_object_lock_configuration(Bucket=locked, ObjectLockConfiguration=configuration)
    read = s3.get_object_lock_configuration(Bucket=locked)["ObjectLockConfiguration"]
    assert read == configuration
    put(s3, locked, "k", b"x")
    kept = s3.head_object(Bucket=locked, Key="k")["ObjectLockRetainUntilDate"] - datetime.now(UTC)
    assert timedelta(days=2, hours=23) < kept <= timedelta(days=3)


def test_locks_need_a_bucket_that_has_them(s3: Any, bucket: str, locked: str) -> None:
    assert s3.get_bucket_versioning(Bucket=locked)["Status"] == "Enabled"
    suspended = {"Status": "Suspended"}
    code = refusal(s3.put_bucket_versioning, Bucket=locked, VersioningConfiguration=suspended)
    assert code == ("InvalidBucketState", 409)
    assert refusal(s3.get_object_lock_configuration, Bucket=bucket) == (
        "ObjectLockConfigurationNotFoundError",
        404,
    )
    held = {"ObjectLockLegalHoldStatus": "ON"}
    code = refusal(put, s3=s3, bucket=bucket, key="k", body=b"x", **held)
    assert code == ("InvalidRequest", 400)
    past = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": in_future(days=-1)}
    code = refusal(put, s3=s3, bucket=locked, key="k", body=b"x", **past)
    assert code == ("InvalidArgument", 400)
    configuration = {"ObjectLockEnabled": "Enabled"}
    arguments = {"Bucket": bucket, "ObjectLockConfiguration": configuration}
    assert refusal(s3.put_object_lock_configuration, **arguments)[0] == "InvalidBucketState"


# ---- lifecycle ----


RULES: list[dict[str, Any]] = [
    {"ID": "a", "Filter": {"Prefix": "logs/"}, "Status": "Enabled", "Expiration": {"Days": 3}},
    {
        "ID": "b",
        "Filter": {
            "And": {
                "Prefix": "x",
                "Tags": [{"Key": "t", "Value": "1"}],
                "ObjectSizeGreaterThan": 10,
                "ObjectSizeLessThan": 90,
            }
        },
        "Status": "Disabled",
        "Expiration": {"Date": datetime(2040, 1, 1, tzinfo=UTC)},
    },
    {
        "ID": "c",
        "Prefix": "",
        "Status": "Enabled",
        "Expiration": {"ExpiredObjectDeleteMarker": True},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 5, "NewerNoncurrentVersions": 2},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
    },
]


def test_rules_are_read_as_they_were_written(s3: Any, bucket: str) -> None:
    code = refusal(s3.get_bucket_lifecycle_configuration, Bucket=bucket)
    assert code == ("NoSuchLifecycleConfiguration", 404)
    choice = {"TransitionDefaultMinimumObjectSize": "varies_by_storage_class"}
    for chosen in (choice, {}):
        rules = {"LifecycleConfiguration": {"Rules": RULES}, **chosen}
        s3.put_bucket_lifecycle_configuration(Bucket=bucket, **rules)
        shown = s3.get_bucket_lifecycle_configuration(Bucket=bucket)
        assert shown["Rules"] == RULES
        wanted = chosen.get("TransitionDefaultMinimumObjectSize", "all_storage_classes_128K")
        assert shown["TransitionDefaultMinimumObjectSize"] == wanted
    s3.delete_bucket_lifecycle(Bucket=bucket)
    code = refusal(s3.get_bucket_lifecycle_configuration, Bucket=bucket)
    assert code == ("NoSuchLifecycleConfiguration", 404)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Status": "On"}, "MalformedXML"),
        ({"Expiration": {"Days": 0}}, "InvalidArgument"),
        ({"Expiration": {"Days": 1, "ExpiredObjectDeleteMarker": True}}, "MalformedXML"),
        ({"Expiration": {"Date": datetime(2040, 1, 1, 5, tzinfo=UTC)}}, "InvalidArgument"),
        ({"Expiration": {}}, "MalformedXML"),
        ({"Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]}, "NotImplemented"),
        ({"ID": "x" * 256}, "InvalidArgument"),
        ({"Prefix": "both"}, "MalformedXML"),
    ],
)
def test_rules_that_s3_refuses_are_refused(memory: Any, change: dict[str, Any], code: str) -> None:
    rules = {"Rules": [RULES[0] | change]}
    put_rules = memory.put_bucket_lifecycle_configuration
    assert refusal(put_rules, Bucket="any", LifecycleConfiguration=rules)[0] == code


def test_an_object_tells_when_it_will_expire(live: Any) -> None:
    name = f"names-{next(_numbers)}"
    live.create_bucket(Bucket=name)
    live.put_bucket_lifecycle_configuration(
        Bucket=name, LifecycleConfiguration={"Rules": RULES[:1]}
    )
    assert 'rule-id="a"' in put(live, name, "logs/1", b"x")["Expiration"]
    assert 'rule-id="a"' in live.head_object(Bucket=name, Key="logs/1")["Expiration"]
    assert "Expiration" not in put(live, name, "other", b"x")


# ---- attributes ----


def test_the_parts_of_an_object_are_listed_over_pages(s3: Any, bucket: str) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    place = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    sizes = (5 * MIB, 1000)
    parts = [
        {"PartNumber": n, "ETag": s3.upload_part(**place, PartNumber=n, Body=b"x" * size)["ETag"]}
        for n, size in enumerate(sizes, start=1)
    ]
    s3.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
    wanted = {"Bucket": bucket, "Key": "k", "ObjectAttributes": ["ObjectParts", "ObjectSize"]}
    page = s3.get_object_attributes(**wanted, MaxParts=1)
    assert page["ObjectSize"] == sum(sizes)
    found = page["ObjectParts"]
    assert (found["TotalPartsCount"], found["IsTruncated"]) == (2, True)
    assert [part["Size"] for part in found["Parts"]] == [sizes[0]]
    rest = s3.get_object_attributes(**wanted, PartNumberMarker=found["NextPartNumberMarker"])
    assert [part["Size"] for part in rest["ObjectParts"]["Parts"]] == [sizes[1]]
    assert rest["ObjectParts"]["IsTruncated"] is False

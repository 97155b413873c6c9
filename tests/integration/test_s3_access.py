"""Tenants, policies, lists and signatures: boto3 against the real front."""

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import boto3
import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from tests.support.s3_front import ROOT_KEY, Front, code_of, put_policy

pytestmark = pytest.mark.integration


# ---- tenants ----


def test_nothing_of_another_tenant_is_told(front: Front, bucket: str) -> None:
    eve, nobody = front.client("EVE"), front.client("")
    assert front.client("BOB").get_object(Bucket=bucket, Key="k")["Body"].read() == b"hello"
    assert bucket in [b["Name"] for b in front.client(ROOT_KEY).list_buckets()["Buckets"]]
    assert eve.list_buckets()["Buckets"] == []
    tried: list[tuple[str, dict[str, Any]]] = [
        ("get_object", {"Key": "k"}),
        ("get_object", {"Key": "missing"}),
        ("get_object_attributes", {"Key": "k", "ObjectAttributes": ["ETag"]}),
        ("put_object", {"Key": "new", "Body": b""}),
        ("delete_object", {"Key": "k"}),
        ("list_objects_v2", {}),
        ("list_objects", {}),
        ("list_multipart_uploads", {}),
        ("create_multipart_upload", {"Key": "k"}),
        ("get_bucket_location", {}),
        ("get_bucket_acl", {}),
        ("get_object_acl", {"Key": "k"}),
        ("get_bucket_policy", {}),
        ("delete_bucket_policy", {}),
        ("get_bucket_cors", {}),
        ("get_bucket_website", {}),
        ("get_bucket_versioning", {}),
        ("get_public_access_block", {}),
        ("delete_bucket", {}),
    ]
    for client in (eve, nobody):
        for name, arguments in tried:
            assert code_of(getattr(client, name), Bucket=bucket, **arguments) == "AccessDenied"
        with pytest.raises(ClientError, match="403"):
            client.head_object(Bucket=bucket, Key="missing")
        with pytest.raises(ClientError, match="403"):
            client.head_bucket(Bucket=bucket)
    assert code_of(eve.create_bucket, Bucket=bucket) == "BucketAlreadyExists"
    assert code_of(nobody.list_buckets) == "AccessDenied"
    assert code_of(nobody.create_bucket, Bucket="of-nobody") == "AccessDenied"


def test_a_copy_needs_the_right_to_read_its_source(front: Front, bucket: str) -> None:
    eve = front.client("EVE")
    own = f"{bucket}-eve"
    eve.create_bucket(Bucket=own)
    copy = {"Bucket": own, "Key": "stolen", "CopySource": {"Bucket": bucket, "Key": "k"}}
    assert code_of(eve.copy_object, **copy) == "AccessDenied"
    upload = eve.create_multipart_upload(Bucket=own, Key="m")["UploadId"]
    part = {**copy, "Key": "m", "UploadId": upload, "PartNumber": 1}
    assert code_of(eve.upload_part_copy, **part) == "AccessDenied"
    put_policy(front, bucket, {"Principal": {"AWS": "arn:aws:iam::evil:root"}})
    eve.copy_object(**copy)
    assert eve.get_object(Bucket=own, Key="stolen")["Body"].read() == b"hello"


def test_a_batch_is_decided_key_by_key(front: Front, bucket: str) -> None:
    put_policy(
        front,
        bucket,
        {
            "Principal": {"AWS": "arn:aws:iam::evil:user/eve"},
            "Action": "s3:DeleteObject",
            "Resource": f"arn:aws:s3:::{bucket}/eve/*",
        },
    )
    front.client("ANN").put_object(Bucket=bucket, Key="eve/1", Body=b"")
    batch = {"Objects": [{"Key": "k"}, {"Key": "eve/1"}]}
    done = front.client("EVE").delete_objects(Bucket=bucket, Delete=batch)
    assert [d["Key"] for d in done["Deleted"]] == ["eve/1"]
    assert [(e["Key"], e["Code"]) for e in done["Errors"]] == [("k", "AccessDenied")]
    assert front.client("ANN").get_object(Bucket=bucket, Key="k")


def test_the_tags_of_an_object_decide_and_those_of_a_copys_target_do_not(
    front: Front, bucket: str
) -> None:
    ann, eve = front.client("ANN"), front.client("EVE")
    put_policy(
        front,
        bucket,
        {
            "Principal": {"AWS": "evil"},
            "Action": ["s3:GetObject", "s3:DeleteObject"],
            "Condition": {"StringEquals": {"s3:ExistingObjectTag/class": "open"}},
        },
    )
    assert code_of(eve.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    own = f"{bucket}-eve"
    eve.create_bucket(Bucket=own)
    eve.put_object(Bucket=own, Key="bait", Body=b"", Tagging="class=open")
    copy = {"Bucket": own, "Key": "bait", "CopySource": {"Bucket": bucket, "Key": "k"}}
    assert code_of(eve.copy_object, **copy) == "AccessDenied"
    ann.put_object(Bucket=bucket, Key="open", Body=b"1", Tagging="class=open")
    assert eve.get_object(Bucket=bucket, Key="open")["Body"].read() == b"1"
    eve.copy_object(**{**copy, "CopySource": {"Bucket": bucket, "Key": "open"}})
    batch = {"Objects": [{"Key": "open"}]}
    refused = eve.delete_objects(Bucket=bucket, Delete=batch)["Errors"]
    assert [error["Code"] for error in refused] == ["AccessDenied"]
    eve.delete_object(Bucket=bucket, Key="open")


def test_traffic_is_the_owners_and_acts_are_recorded(front: Front, bucket: str) -> None:
    put_policy(front, bucket, {})
    size = 123_457  # No other request has so many bytes.
    front.client("ANN").put_object(Bucket=bucket, Key="big", Body=b"x" * size)
    front.client("").get_object(Bucket=bucket, Key="big")["Body"].read()
    assert code_of(front.client("EVE").delete_object, Bucket=bucket, Key="k") == "AccessDenied"

    def counted() -> list[tuple[str, str]]:
        return [(tenant, kind) for tenant, kind, *sizes in front.traffic if size in sizes]

    deadline_s = time.monotonic() + 5
    while len(counted()) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert sorted(counted()) == [("acme", "read"), ("acme", "write")]
    assert ("evil", "delete") not in [(tenant, kind) for tenant, kind, *_ in front.traffic]
    ann = "arn:aws:iam::acme:user/ann"
    assert (ann, "CreateBucket", bucket) in front.acts
    assert (ann, "PutBucketPolicy", bucket) in front.acts


# ---- policies ----


def test_an_open_bucket_is_read_by_anybody(front: Front, bucket: str) -> None:
    put_policy(front, bucket, {})
    nobody = front.client("")
    assert nobody.get_object(Bucket=bucket, Key="k", Range="bytes=1-2")["Body"].read() == b"el"
    assert front.request("GET", f"/{bucket}/k")[2] == b"hello"
    assert code_of(nobody.get_object, Bucket=bucket, Key="missing") == "AccessDenied"
    assert code_of(nobody.list_objects_v2, Bucket=bucket) == "AccessDenied"
    assert code_of(nobody.put_object, Bucket=bucket, Key="k", Body=b"") == "AccessDenied"
    ann = front.client("ANN")
    assert ann.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"] is True
    listed = {"Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{bucket}"}
    put_policy(front, bucket, {}, listed)
    assert code_of(nobody.get_object, Bucket=bucket, Key="missing") == "NoSuchKey"
    assert [o["Key"] for o in nobody.list_objects_v2(Bucket=bucket)["Contents"]] == ["k"]
    assert json.loads(ann.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"][1] == {
        "Effect": "Allow",
        "Principal": "*",
        **listed,
    }
    ann.delete_bucket_policy(Bucket=bucket)
    assert code_of(nobody.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    assert code_of(ann.get_bucket_policy, Bucket=bucket) == "NoSuchBucketPolicy"


def test_conditions_see_the_request(front: Front, bucket: str) -> None:
    bob = front.client("BOB")
    deny = {"Effect": "Deny", "Action": "s3:*"}
    far = {**deny, "Condition": {"NotIpAddress": {"aws:SourceIp": "127.0.0.0/8"}}}
    put_policy(front, bucket, far)
    assert bob.get_object(Bucket=bucket, Key="k")
    put_policy(front, bucket, {**deny, "Condition": {"Bool": {"aws:SecureTransport": "false"}}})
    assert code_of(bob.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    prefix = {
        **deny,
        "Action": "s3:ListBucket",
        "Resource": f"arn:aws:s3:::{bucket}",
        "Condition": {"StringNotLike": {"s3:prefix": "home/*"}},
    }
    put_policy(front, bucket, prefix)
    bob.list_objects_v2(Bucket=bucket, Prefix="home/x")
    assert code_of(bob.list_objects_v2, Bucket=bucket, Prefix="etc") == "AccessDenied"
    assert code_of(bob.list_objects_v2, Bucket=bucket) == "AccessDenied"


def test_a_public_access_block_keeps_a_bucket_closed(front: Front, bucket: str) -> None:
    ann, nobody = front.client("ANN"), front.client("")
    block = {
        "BlockPublicAcls": True,
        "IgnorePublicAcls": True,
        "BlockPublicPolicy": True,
        "RestrictPublicBuckets": True,
    }
    assert (
        code_of(ann.get_public_access_block, Bucket=bucket)
        == "NoSuchPublicAccessBlockConfiguration"
    )
    put_policy(front, bucket, {})
    assert nobody.get_object(Bucket=bucket, Key="k")
    ann.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=block)
    assert ann.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"] == block
    assert code_of(nobody.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    with pytest.raises(ClientError, match="BlockPublicPolicy"):
        put_policy(front, bucket, {})
    put_policy(front, bucket, {"Principal": {"AWS": "acme"}})
    ann.delete_public_access_block(Bucket=bucket)
    put_policy(front, bucket, {})
    assert nobody.get_object(Bucket=bucket, Key="k")


def test_lists_are_refused_until_ownership_allows_them(front: Front, bucket: str) -> None:
    ann, nobody = front.client("ANN"), front.client("")
    public = {"Bucket": bucket, "ACL": "public-read"}
    assert code_of(ann.put_bucket_acl, **public) == "AccessControlListNotSupported"
    ann.put_bucket_acl(Bucket=bucket, ACL="private")
    enforced = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    assert ann.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"] == enforced
    rules = {"Rules": [{"ObjectOwnership": "ObjectWriter"}]}
    ann.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=rules)
    assert ann.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"] == rules
    ann.put_bucket_acl(**public)
    assert nobody.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
    assert code_of(nobody.get_object, Bucket=bucket, Key="k") == "AccessDenied"
    acl = ann.get_bucket_acl(Bucket=bucket)
    assert acl["Owner"]["ID"] == "acme"
    assert [grant["Permission"] for grant in acl["Grants"]] == ["FULL_CONTROL", "READ"]
    policy = {"Grants": acl["Grants"], "Owner": acl["Owner"]}
    ann.put_bucket_acl(Bucket=bucket, AccessControlPolicy=policy)
    assert ann.get_bucket_acl(Bucket=bucket)["Grants"] == acl["Grants"]
    assert len(ann.get_object_acl(Bucket=bucket, Key="k")["Grants"]) == 1


# ---- signatures ----


def test_presigned_urls_carry_the_rights_of_who_signed(front: Front, bucket: str) -> None:
    def get(name: str, **changes: Any) -> tuple[int, bytes]:
        arguments = {"Params": {"Bucket": bucket, "Key": "k"}, **changes}
        url = urlsplit(front.client(name).generate_presigned_url("get_object", **arguments))
        status, _, body = front.request("GET", f"{url.path}?{url.query}")
        return status, body

    assert get("ANN") == (200, b"hello")
    assert get("EVE")[0] == 403
    status, body = get("ANN", ExpiresIn=604_801)
    assert status == 400 and b"AuthorizationQueryParametersError" in body


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ({"AWSAccessKeyId": "ANN", "Signature": "x", "Expires": "9"}, {}, 400, b"InvalidRequest"),
        ({}, {"Authorization": "AWS ANN:x"}, 400, b"InvalidRequest"),
        ({}, {"Authorization": "Bearer x"}, 400, b"InvalidArgument"),
        (
            {"X-Amz-Algorithm": "AWS4-HMAC-SHA512"},
            {},
            400,
            b"AuthorizationQueryParametersError",
        ),
        (
            {},
            {"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"},
            403,
            b"AccessDenied",
        ),
    ],
)
def test_what_is_no_signature_is_not_taken_for_one(
    front: Front,
    bucket: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    status: int,
    code: bytes,
) -> None:
    found, _, body = front.request("GET", f"/{bucket}/k?{urlencode(query)}", headers=headers)
    assert found == status and code in body


def signed_put(front: Front, bucket: str, **changes: str) -> dict[str, str]:
    """Headers of a PUT of b"data" by ann, signed now; `changes` replace them before signing."""
    request = AWSRequest(
        "PUT",
        f"http://{front.address}/{bucket}/signed",
        data=b"data",
        headers={"Host": front.address, **changes},
    )
    auth = S3SigV4Auth(Credentials("ANN", "ann-secret"), "s3", "us-east-1")
    auth.add_auth(request)
    return dict(request.headers.items())


@pytest.mark.parametrize(
    ("header", "old", "new", "status", "code"),
    [
        ("Authorization", "Credential=ANN/", "Credential=NOBODY/", 403, b"InvalidAccessKeyId"),
        ("Authorization", "Credential=ANN/", "Credential=EVE/", 403, b"SignatureDoesNotMatch"),
        ("Authorization", "/us-east-1/", "/eu-west-1/", 403, b"SignatureDoesNotMatch"),
        ("Authorization", "/s3/", "/ec2/", 400, b"AuthorizationHeaderMalformed"),
        ("Authorization", "/aws4_request", "/aws3_request", 400, b"AuthorizationHeaderMalformed"),
        ("Authorization", "Signature=", "Signature=0", 403, b"SignatureDoesNotMatch"),
        ("Authorization", "Signature=", "Sig=", 400, b"AuthorizationHeaderMalformed"),
        ("Authorization", "host;", "", 403, b"AccessDenied"),
        ("Authorization", "AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256", 400, b"InvalidRequest"),
        ("X-Amz-Date", "Z", "", 403, b"AccessDenied"),
        ("X-Amz-Date", "20", "19", 400, b"AuthorizationHeaderMalformed"),
        ("x-amz-meta-late", "", "x", 403, b"AccessDenied"),
        ("Content-MD5", "", "AAAA", 400, b"InvalidDigest"),
        ("Content-MD5", "", "1B2M2Y8AsgTpgAmY7PhCfg==", 400, b"BadDigest"),
        ("x-amz-checksum-crc32", "", "AAAAAA==", 400, b"BadDigest"),
    ],
)
def test_every_kind_of_wrong_header_is_refused_by_name(
    front: Front, bucket: str, header: str, old: str, new: str, status: int, code: bytes
) -> None:
    # What is signed is changed before signing, unless the signature itself is the point.
    signs_it = header.lower().startswith(("content-md5", "x-amz-c"))
    headers = signed_put(front, bucket, **({header: new} if signs_it else {}))
    if not signs_it:
        name = next((name for name in headers if name.lower() == header.lower()), header)
        headers[name] = headers.get(name, "").replace(old, new, 1) if old else new
    found, _, body = front.request("PUT", f"/{bucket}/signed", headers=headers, body=b"data")
    assert code in body and found == status, body
    keys = [o["Key"] for o in front.client("ANN").list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["k"]


def test_a_body_other_than_the_signed_one_is_not_stored(front: Front, bucket: str) -> None:
    headers = signed_put(front, bucket)
    status, _, body = front.request("PUT", f"/{bucket}/signed", headers=headers, body=b"DATA")
    assert status == 400 and b"XAmzContentSHA256Mismatch" in body
    assert front.request("PUT", f"/{bucket}/signed", headers=headers, body=b"data")[0] == 200


def test_a_session_token_is_refused(front: Front) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{front.address}",
        aws_access_key_id="ANN",
        aws_secret_access_key="ann-secret",
        aws_session_token="made elsewhere",
        region_name="us-east-1",
        config=Config(proxies={}, retries={"max_attempts": 1}),
    )
    assert code_of(client.list_buckets) == "InvalidToken"
    client.close()


def test_headers_that_a_presigned_url_carries_in_its_query_count(front: Front, bucket: str) -> None:
    # As the SDK for JavaScript makes them.
    request = AWSRequest(
        "PUT",
        f"http://{front.address}/{bucket}/hoisted",
        params={"x-amz-meta-colour": "blue", "x-amz-checksum-crc32": "AAAAAA=="},
    )
    credentials = Credentials("ANN", "ann-secret")
    S3SigV4QueryAuth(credentials, "s3", "us-east-1", expires=60).add_auth(request)
    url = urlsplit(str(request.url))
    assert front.request("PUT", f"{url.path}?{url.query}", body=b"x")[0] == 200
    found = front.client("ANN").head_object(Bucket=bucket, Key="hoisted")
    assert found["Metadata"] == {"colour": "blue"}
    other = url.query.replace("blue", "red")
    assert front.request("PUT", f"{url.path}?{other}", body=b"x")[0] == 403


# ---- creation ----


def test_a_bucket_remembers_where_it_was_asked_to_be(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    there = {"LocationConstraint": "eu-central-1"}
    ann.create_bucket(Bucket=f"{bucket}-eu", CreateBucketConfiguration=there)
    assert ann.get_bucket_location(Bucket=f"{bucket}-eu")["LocationConstraint"] == "eu-central-1"
    assert ann.head_bucket(Bucket=f"{bucket}-eu")["BucketRegion"] == "eu-central-1"
    assert ann.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None


def test_a_list_asked_for_at_creation_counts_or_is_refused(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    listed = {"Bucket": f"{bucket}-open", "ACL": "public-read"}
    assert code_of(ann.create_bucket, **listed) == "InvalidBucketAclWithObjectOwnership"
    ann.create_bucket(**listed, ObjectOwnership="BucketOwnerPreferred")
    assert front.client("").list_objects_v2(Bucket=f"{bucket}-open")["KeyCount"] == 0
    put = {"Key": "k", "Body": b"", "ACL": "public-read"}
    for client in (ann, front.client(ROOT_KEY)):
        code = code_of(client.put_object, Bucket=bucket, **put)
        assert code == "AccessControlListNotSupported"
        client.put_object(Bucket=f"{bucket}-open", **put)
        client.put_object(Bucket=bucket, Key="k2", Body=b"", ACL="bucket-owner-full-control")

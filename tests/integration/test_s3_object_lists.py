"""Lists and owners of objects: boto3 against the real front, and a cluster that keeps them."""

from typing import Any

import pytest
from tests.integration.conftest import LiveCluster
from tests.support.s3_front import ROOT_KEY, Front, code_of, put_policy

from exastore.gateway.s3.acl import ALL_USERS, ANONYMOUS_OWNER, AUTHENTICATED

pytestmark = pytest.mark.integration

FULL = "bucket-owner-full-control"


def own(front: Front, bucket: str, ownership: str) -> Any:
    """Let the owner choose who owns objects; its client."""
    ann = front.client("ANN")
    rules = {"Rules": [{"ObjectOwnership": ownership}]}
    ann.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=rules)
    return ann


def grants(client: Any, bucket: str, key: str = "k", **more: str) -> tuple[str, set[Any]]:
    """The owner of an object, and what its list grants beside its full control."""
    acl = client.get_object_acl(Bucket=bucket, Key=key, **more)
    found = [
        (grant["Grantee"].get("URI") or grant["Grantee"]["ID"], grant["Permission"])
        for grant in acl["Grants"]
    ]
    owner = acl["Owner"]["ID"]
    assert found[0] == (owner, "FULL_CONTROL")
    return owner, set(found[1:])


@pytest.mark.parametrize("method", ["header", "request", "copy", "upload"])
def test_an_object_may_be_public_in_a_bucket_that_is_not(
    front: Front, bucket: str, method: str
) -> None:
    ann, nobody, place = own(front, bucket, "ObjectWriter"), front.client(""), {"Bucket": bucket}
    public = {"Key": "p", "ACL": "public-read"}
    match method:
        case "header":
            ann.put_object(**place, **public, Body=b"hello")
        case "request":
            ann.put_object(**place, Key="p", Body=b"hello")
            assert code_of(nobody.get_object, **place, Key="p") == "AccessDenied"
            ann.put_object_acl(**place, **public)
        case "copy":
            ann.copy_object(**place, **public, CopySource=f"{bucket}/k")
        case _:
            upload = {**place, "Key": "p"}
            started = ann.create_multipart_upload(**upload, ACL="public-read")
            upload["UploadId"] = started["UploadId"]
            part = ann.upload_part(**upload, PartNumber=1, Body=b"hello")
            parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
            ann.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert grants(ann, bucket, "p") == ("acme", {(ALL_USERS, "READ")})
    assert nobody.get_object(**place, Key="p")["Body"].read() == b"hello"
    assert nobody.head_object(**place, Key="p")["ContentLength"] == 5
    for call in (nobody.list_objects_v2, nobody.get_object_acl, nobody.get_object):
        key = {} if call == nobody.list_objects_v2 else {"Key": "k"}
        assert code_of(call, **place, **key) == "AccessDenied"
    ann.copy_object(**place, Key="c", CopySource=f"{bucket}/p")
    assert code_of(nobody.get_object, **place, Key="c") == "AccessDenied", "lists are not copied"
    ann.put_object_acl(**place, Key="p", ACL="private")
    assert code_of(nobody.get_object, **place, Key="p") == "AccessDenied"


@pytest.mark.parametrize(
    ("canned", "expected"),
    [
        ("private", set[Any]()),
        ("public-read", {(ALL_USERS, "READ")}),
        ("public-read-write", {(ALL_USERS, "READ"), (ALL_USERS, "WRITE")}),
        ("authenticated-read", {(AUTHENTICATED, "READ")}),
        ("bucket-owner-read", {("acme", "READ")}),
        (FULL, {("acme", "FULL_CONTROL")}),
    ],
)
def test_who_writes_an_object_owns_it_and_grants_by_a_canned_list(
    front: Front, bucket: str, canned: str, expected: set[Any]
) -> None:
    ann, eve, place = own(front, bucket, "ObjectWriter"), front.client("EVE"), {"Bucket": bucket}
    ann.put_bucket_acl(**place, ACL="public-read-write")
    eve.put_object(**place, Key="e", Body=b"eve's", ACL=canned)
    assert grants(eve, bucket, "e") == ("evil", expected)
    listed = ann.list_objects_v2(**place, FetchOwner=True)["Contents"]
    assert {it["Key"]: it["Owner"]["ID"] for it in listed} == {"e": "evil", "k": "acme"}
    may_read = bool(expected)
    if may_read:
        assert ann.get_object(**place, Key="e")["Body"].read() == b"eve's"
    else:
        assert code_of(ann.get_object, **place, Key="e") == "AccessDenied"
    if canned == FULL:
        ann.put_object_acl(**place, Key="e", ACL="public-read")
        assert front.client("").get_object(**place, Key="e")
    else:
        assert code_of(ann.put_object_acl, **place, Key="e", ACL="private") == "AccessDenied"
    assert front.client(ROOT_KEY).get_object(**place, Key="e"), "the administrator reads all"
    ann.delete_object(**place, Key="e")


def test_a_preferred_owner_is_given_what_is_meant_for_it(front: Front, bucket: str) -> None:
    ann = own(front, bucket, "BucketOwnerPreferred")
    ann.put_bucket_acl(Bucket=bucket, ACL="public-read-write")
    eve, place = front.client("EVE"), {"Bucket": bucket, "Body": b"x"}
    eve.put_object(**place, Key="given", ACL=FULL)
    eve.put_object(**place, Key="kept")
    front.client("").put_object(**place, Key="found")
    assert grants(ann, bucket, "given") == ("acme", set())
    assert code_of(eve.get_object, Bucket=bucket, Key="given") == "AccessDenied"
    assert grants(eve, bucket, "kept") == ("evil", set())
    root = front.client(ROOT_KEY)
    assert grants(root, bucket, "found") == (ANONYMOUS_OWNER, set())
    owners = {
        it["Key"]: it["Owner"]["ID"] for it in ann.list_object_versions(Bucket=bucket)["Versions"]
    }
    assert owners == {"k": "acme", "given": "acme", "kept": "evil", "found": ANONYMOUS_OWNER}


def test_an_enforced_owner_owns_all_and_lists_rest_meanwhile(front: Front, bucket: str) -> None:
    ann, eve, place = own(front, bucket, "ObjectWriter"), front.client("EVE"), {"Bucket": bucket}
    ann.put_bucket_acl(**place, ACL="public-read-write")
    eve.put_object(**place, Key="e", Body=b"x", ACL="public-read")
    ann.put_bucket_acl(**place, ACL="private")
    own(front, bucket, "BucketOwnerEnforced")
    assert grants(ann, bucket, "e") == ("acme", set())
    assert ann.get_object(**place, Key="e")
    for client in (eve, front.client("")):
        assert code_of(client.get_object, **place, Key="e") == "AccessDenied"
    for canned in ("public-read", "authenticated-read", "bucket-owner-read", "public-read-write"):
        for call in (ann.put_object_acl, ann.put_object, ann.create_multipart_upload):
            code = code_of(call, **place, Key="k", ACL=canned)
            assert code == "AccessControlListNotSupported", canned
    document = ann.get_object_acl(**place, Key="k")
    same = {name: document[name] for name in ("Owner", "Grants")}
    ann.put_object_acl(**place, Key="k", AccessControlPolicy=same)
    for call in (ann.put_object_acl, ann.put_object):
        call(**place, Key="k", ACL=FULL)
        call(**place, Key="k", GrantFullControl="id=acme")
    own(front, bucket, "ObjectWriter")
    assert grants(eve, bucket, "e") == ("evil", {(ALL_USERS, "READ")})


def test_controls_that_were_deleted_leave_objects_to_their_writers(
    front: Front, bucket: str
) -> None:
    ann = front.client("ANN")
    ann.delete_bucket_ownership_controls(Bucket=bucket)
    code = code_of(ann.get_bucket_ownership_controls, Bucket=bucket)
    assert code == "OwnershipControlsNotFoundError"
    ann.put_object_acl(Bucket=bucket, Key="k", ACL="public-read")
    assert front.client("").get_object(Bucket=bucket, Key="k")


def test_grants_name_tenants_and_groups_in_headers_and_documents(front: Front, bucket: str) -> None:
    ann, eve, place = own(front, bucket, "ObjectWriter"), front.client("EVE"), {"Bucket": bucket}
    ann.put_object(**place, Key="g", Body=b"x", GrantRead='id="evil"', GrantReadACP="id=evil")
    assert eve.get_object(**place, Key="g")
    assert grants(eve, bucket, "g")[1] == {("evil", "READ"), ("evil", "READ_ACP")}
    assert code_of(eve.put_object_acl, **place, Key="g", ACL="private") == "AccessDenied"
    assert code_of(eve.get_object_tagging, **place, Key="g") == "AccessDenied"
    acl = ann.get_object_acl(**place, Key="g")
    grantee = {"Type": "CanonicalUser", "ID": "evil"}
    policy = {
        "Owner": acl["Owner"],
        "Grants": [acl["Grants"][0], {"Grantee": grantee, "Permission": "WRITE_ACP"}],
    }
    ann.put_object_acl(**place, Key="g", AccessControlPolicy=policy)
    assert code_of(eve.get_object, **place, Key="g") == "AccessDenied"
    eve.put_object_acl(**place, Key="g", GrantRead=f"uri={AUTHENTICATED}")
    assert eve.get_object(**place, Key="g")
    assert code_of(front.client("").get_object, **place, Key="g") == "AccessDenied"
    policy["Owner"] = {"ID": "evil"}
    assert code_of(ann.put_object_acl, **place, Key="g", AccessControlPolicy=policy) == (
        "AccessDenied"
    )


def test_what_is_written_into_anothers_bucket_with_a_list_needs_the_right_to_give_one(
    front: Front, bucket: str
) -> None:
    own(front, bucket, "ObjectWriter")
    eve = front.client("EVE")
    put = {"Bucket": bucket, "Key": "e", "Body": b"x"}
    arn = {"Principal": {"AWS": "evil"}}
    put_policy(front, bucket, {**arn, "Action": "s3:PutObject"})
    eve.put_object(**put)
    assert code_of(eve.put_object, **put, ACL="public-read") == "AccessDenied"
    assert code_of(eve.put_object, **put, GrantRead="id=acme") == "AccessDenied"
    put_policy(front, bucket, {**arn, "Action": ["s3:PutObject", "s3:PutObjectAcl"]})
    eve.put_object(**put, ACL="public-read")


def test_a_policy_of_the_bucket_does_not_open_what_another_owns(front: Front, bucket: str) -> None:
    ann, eve, place = own(front, bucket, "ObjectWriter"), front.client("EVE"), {"Bucket": bucket}
    ann.put_bucket_acl(**place, ACL="public-read-write")
    eve.put_object(**place, Key="e", Body=b"x")
    put_policy(front, bucket, {})
    nobody = front.client("")
    assert nobody.get_object(**place, Key="k")
    assert code_of(nobody.get_object, **place, Key="e") == "AccessDenied"
    put_policy(front, bucket, {"Effect": "Deny"})
    assert code_of(eve.get_object, **place, Key="e") == "AccessDenied", "what it denies counts"


def test_a_block_keeps_objects_from_being_public(front: Front, bucket: str) -> None:
    ann, nobody, place = own(front, bucket, "ObjectWriter"), front.client(""), {"Bucket": bucket}
    ann.put_object(**place, Key="p", Body=b"x", ACL="public-read")
    ignoring = {"IgnorePublicAcls": True, "BlockPublicAcls": False}
    ann.put_public_access_block(**place, PublicAccessBlockConfiguration=ignoring)
    assert code_of(nobody.get_object, **place, Key="p") == "AccessDenied"
    assert grants(ann, bucket, "p")[1] == {(ALL_USERS, "READ")}, "it is still shown"
    blocking = {"IgnorePublicAcls": False, "BlockPublicAcls": True}
    ann.put_public_access_block(**place, PublicAccessBlockConfiguration=blocking)
    assert nobody.get_object(**place, Key="p")
    for canned in ("public-read", "public-read-write", "authenticated-read"):
        for call in (ann.put_object, ann.put_object_acl, ann.create_multipart_upload):
            assert code_of(call, **place, Key="k", ACL=canned) == "AccessDenied"
    ann.put_object_acl(**place, Key="k", ACL=FULL)


def test_lists_belong_to_versions(front: Front, bucket: str) -> None:
    ann, nobody, place = own(front, bucket, "ObjectWriter"), front.client(""), {"Bucket": bucket}
    ann.put_bucket_versioning(**place, VersioningConfiguration={"Status": "Enabled"})
    first = ann.put_object(**place, Key="v", Body=b"1")["VersionId"]
    second = ann.put_object(**place, Key="v", Body=b"2")["VersionId"]
    ann.put_object_acl(**place, Key="v", VersionId=first, ACL="public-read")
    assert nobody.get_object(**place, Key="v", VersionId=first)["Body"].read() == b"1"
    assert code_of(nobody.get_object, **place, Key="v") == "AccessDenied"
    assert grants(ann, bucket, "v", VersionId=second)[1] == set()
    answer = ann.put_object_acl(**place, Key="v", ACL="public-read")
    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-version-id"] == second
    ann.delete_object(**place, Key="v")
    assert code_of(ann.put_object_acl, **place, Key="v", ACL="private") == "NoSuchKey"
    assert nobody.get_object(**place, Key="v", VersionId=second)["Body"].read() == b"2"


def test_wrong_lists_are_refused(front: Front, bucket: str) -> None:
    ann, place = own(front, bucket, "ObjectWriter"), {"Bucket": bucket, "Key": "k"}
    assert code_of(ann.put_object_acl, **place, ACL="log-delivery-write") == "InvalidArgument"
    assert code_of(ann.put_object_acl, **place, GrantRead="id=") == "InvalidArgument"
    many = ", ".join(f"id=t{number}" for number in range(101))
    assert code_of(ann.put_object_acl, **place, GrantRead=many) == "InvalidArgument"
    assert code_of(ann.put_object_acl, **place) == "MissingSecurityHeader"
    both = {"ACL": "private", "GrantRead": "id=evil"}
    assert code_of(ann.put_object, **place, **both) == "InvalidRequest"
    assert code_of(ann.put_object_acl, Bucket=bucket, Key="no", ACL="private") == "NoSuchKey"


def test_a_cluster_keeps_lists(cluster: LiveCluster) -> None:
    client = cluster.client()
    bucket = {"Bucket": "object-lists"}
    client.create_bucket(**bucket, ObjectOwnership="ObjectWriter")
    client.put_object(**bucket, Key="k", Body=b"x" * 100_000, ACL="public-read")
    assert grants(client, "object-lists") == ("exastore", {(ALL_USERS, "READ")})
    client.put_object_acl(**bucket, Key="k", GrantRead="id=someone")
    client.put_object_tagging(**bucket, Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    assert grants(client, "object-lists") == ("exastore", {("someone", "READ")})
    upload = {**bucket, "Key": "u"}
    started = client.create_multipart_upload(**upload, ACL="authenticated-read")
    upload["UploadId"] = started["UploadId"]
    part = client.upload_part(**upload, PartNumber=1, Body=b"1")
    parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert grants(client, "object-lists", "u") == ("exastore", {(AUTHENTICATED, "READ")})

"""Tenants, policies, lists, origins, forms and websites: boto3 against the real front."""

import hashlib
import http.client
import json
import os
import time
from asyncio import sleep
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from exastore.gateway.config import GatewayConfig
from exastore.gateway.s3.identity import Credential, Kind, Principal
from exastore.gateway.testing.memory_store import MemoryStore
from exastore.gateway.testing.served import ServedStore

pytestmark = pytest.mark.integration

ROOT_KEY, ROOT_SECRET = "root", "root-secret"
USERS = {
    "ANN": Credential("ann-secret", Principal(Kind.USER, "acme", "ann")),
    "BOB": Credential("bob-secret", Principal(Kind.USER, "acme", "bob")),
    "EVE": Credential("eve-secret", Principal(Kind.USER, "evil", "eve")),
}
ORIGIN = "https://page.example"


class RealClock:
    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, duration_s: float) -> None:
        await sleep(duration_s)


@dataclass
class Front:
    """The front over a dictionary, and what it told of."""

    address: str = ""
    traffic: list[tuple[str, str, int, int]] = field(default_factory=list)
    acts: list[tuple[str, str, str]] = field(default_factory=list)
    clients: dict[str, Any] = field(default_factory=dict)

    def count(self, tenant: str, kind: str, received_bytes: int, sent_bytes: int) -> None:
        self.traffic.append((tenant, kind, received_bytes, sent_bytes))

    async def record(
        self, actor: str, action: str, target: str, details: Mapping[str, str]
    ) -> None:
        self.acts.append((actor, action, target))

    def client(self, name: str) -> Any:
        """A client of a user, of the administrator ("root"), or of nobody ("")."""
        if name not in self.clients:
            secret = ROOT_SECRET if name == ROOT_KEY else ""
            if name in USERS:
                secret = USERS[name].secret_key
            with pytest.MonkeyPatch.context() as patch:
                for key in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
                    patch.setenv(key, os.devnull)
                patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
                self.clients[name] = boto3.client(
                    "s3",
                    endpoint_url=f"http://{self.address}",
                    aws_access_key_id=name or "x",
                    aws_secret_access_key=secret or "x",
                    region_name="us-east-1",
                    config=Config(
                        proxies={},
                        retries={"max_attempts": 1},
                        signature_version="s3v4" if name else UNSIGNED,
                        s3={"addressing_style": "path"},
                    ),
                )
        return self.clients[name]

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """A request as a browser sends it."""
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request(method, target, body, dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    made = Front()

    async def look_up(access_key: str) -> Credential | None:
        return USERS.get(access_key)

    config = GatewayConfig(
        access_key=ROOT_KEY,
        secret_key=ROOT_SECRET,
        domain="s3.test",
        website_domain="web.test",
    )
    with ServedStore(
        lambda: MemoryStore(time.time),
        config,
        clock=RealClock(),
        look_up=look_up,
        count_traffic=made.count,
        record_act=made.record,
    ) as served:
        made.address = served.address
        yield made
        for client in made.clients.values():
            client.close()


@pytest.fixture
def bucket(front: Front, request: pytest.FixtureRequest) -> str:
    """A bucket of the tenant acme, with one object."""
    name = "b" + hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    ann = front.client("ANN")
    ann.create_bucket(Bucket=name)
    ann.put_object(Bucket=name, Key="k", Body=b"hello", ContentType="text/plain")
    return name


def code_of(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def put_policy(front: Front, bucket: str, *statements: Mapping[str, Any]) -> None:
    base = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    document = {"Version": "2012-10-17", "Statement": [{**base, **one} for one in statements]}
    front.client("ANN").put_bucket_policy(Bucket=bucket, Policy=json.dumps(document))


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


def test_traffic_is_the_owners_and_acts_are_recorded(front: Front, bucket: str) -> None:
    put_policy(front, bucket, {})
    front.traffic.clear()
    front.client("").get_object(Bucket=bucket, Key="k")["Body"].read()
    front.client("ANN").put_object(Bucket=bucket, Key="big", Body=b"x" * 1000)
    assert code_of(front.client("EVE").delete_object, Bucket=bucket, Key="k") == "AccessDenied"
    deadline_s = time.monotonic() + 5
    while len(front.traffic) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    (_, read, _, sent), (_, write, received, _) = front.traffic
    assert (read, sent, write) == ("read", 5, "write") and received >= 1000
    assert {tenant for tenant, *_ in front.traffic} == {"acme"}
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
    assert (
        code_of(ann.get_bucket_ownership_controls, Bucket=bucket)
        == "OwnershipControlsNotFoundError"
    )
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
    ann.put_object_acl(Bucket=bucket, Key="k", ACL="bucket-owner-full-control")
    denied = {"Bucket": bucket, "Key": "k", "ACL": "public-read"}
    assert code_of(ann.put_object_acl, **denied) == "NotImplemented"


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
        ({}, {"Authorization": "Bearer x"}, 400, b"InvalidRequest"),
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


# ---- origins ----

RULES = {
    "CORSRules": [
        {
            "AllowedOrigins": ["https://*.example"],
            "AllowedMethods": ["GET", "PUT"],
            "AllowedHeaders": ["x-amz-*", "content-type"],
            "ExposeHeaders": ["ETag"],
            "MaxAgeSeconds": 600,
        },
        {"AllowedOrigins": ["*"], "AllowedMethods": ["HEAD"]},
    ]
}


def test_pages_of_allowed_origins_may_read(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    assert code_of(ann.get_bucket_cors, Bucket=bucket) == "NoSuchCORSConfiguration"
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"}
    assert front.request("OPTIONS", f"/{bucket}/k", headers=asked)[0] == 403
    ann.put_bucket_cors(Bucket=bucket, CORSConfiguration=RULES)
    assert ann.get_bucket_cors(Bucket=bucket)["CORSRules"] == RULES["CORSRules"]
    asked["Access-Control-Request-Headers"] = "X-Amz-Date, Content-Type"
    status, headers, _ = front.request("OPTIONS", f"/{bucket}/k?uploads", headers=asked)
    assert status == 200
    assert headers["access-control-allow-origin"] == ORIGIN
    assert headers["access-control-allow-methods"] == "GET, PUT"
    assert headers["access-control-allow-headers"] == "x-amz-date, content-type"
    assert headers["access-control-max-age"] == "600"
    assert headers["vary"].startswith("Origin")
    for changes in (
        {"Origin": "https://other.test"},
        {"Access-Control-Request-Method": "DELETE"},
        {"Access-Control-Request-Headers": "x-other"},
    ):
        refused = front.request("OPTIONS", f"/{bucket}/k", headers={**asked, **changes})
        assert refused[0] == 403 and b"AccessForbidden" in refused[2]
    assert front.request("OPTIONS", f"/{bucket}/k")[0] == 400
    put_policy(front, bucket, {})
    status, headers, body = front.request("GET", f"/{bucket}/k", headers={"Origin": ORIGIN})
    assert (status, body) == (200, b"hello")
    assert headers["access-control-allow-origin"] == ORIGIN
    assert headers["access-control-expose-headers"] == "ETag"
    status, headers, _ = front.request("GET", f"/{bucket}/none", headers={"Origin": ORIGIN})
    assert status == 403 and headers["access-control-allow-origin"] == ORIGIN
    _, headers, _ = front.request("HEAD", f"/{bucket}/k", headers={"Origin": "https://x.test"})
    assert headers["access-control-allow-origin"] == "*"
    _, headers, _ = front.request("GET", f"/{bucket}/k", headers={"Origin": "https://x.test"})
    assert "access-control-allow-origin" not in headers and "vary" in headers
    assert "vary" not in front.request("GET", f"/{bucket}/k")[1]
    ann.delete_bucket_cors(Bucket=bucket)
    assert code_of(ann.get_bucket_cors, Bucket=bucket) == "NoSuchCORSConfiguration"


def test_wrong_rules_are_refused(front: Front, bucket: str) -> None:
    ann = front.client("ANN")

    def code(**rule: Any) -> str:
        base = {"AllowedOrigins": ["*"], "AllowedMethods": ["GET"]}
        rules = {"CORSRules": [{**base, **rule}]}
        return code_of(ann.put_bucket_cors, Bucket=bucket, CORSConfiguration=rules)

    assert code(AllowedMethods=["PATCH"]) == "InvalidRequest"
    assert code(AllowedOrigins=["*.*"]) == "InvalidRequest"
    assert code(ExposeHeaders=["x-*"]) == "InvalidRequest"
    assert code(ExposeHeaders=["a\nb: c"]) == "InvalidRequest"
    assert code(AllowedOrigins=[]) == "MalformedXML"


# ---- forms ----


def form(fields: Mapping[str, str], data: bytes, file_name: str = "a.txt") -> tuple[bytes, str]:
    boundary = "----boundary7MA4YWxk"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n'
        "Content-Type: text/plain\r\n\r\n".encode()
    )
    parts.append(data + f"\r\n--{boundary}--\r\n".encode())
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def post(
    front: Front,
    bucket: str,
    data: bytes = b"posted",
    *,
    name: str = "ANN",
    key: str = "up/${filename}",
    conditions: list[Any] | None = None,
    fields: Mapping[str, str] | None = None,
    expires_s: int = 60,
) -> tuple[int, dict[str, str], bytes]:
    extra = dict(fields or {})
    signed = front.client(name).generate_presigned_post(
        bucket,
        key,
        Fields=dict(extra),
        Conditions=[{field: value} for field, value in extra.items()] + (conditions or []),
        ExpiresIn=expires_s,
    )
    body, content_type = form(signed["fields"], data)
    return front.request("POST", f"/{bucket}", body=body, headers={"Content-Type": content_type})


def test_a_form_uploads_what_its_policy_permits(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    data = b"x" * 300_000 + b"\r\n--\r\n"
    status, headers, _ = post(
        front, bucket, data, fields={"Content-Type": "text/css", "x-amz-meta-a": "ü"}
    )
    assert status == 204 and headers["location"] == f"/{bucket}/up/a.txt"
    found = ann.get_object(Bucket=bucket, Key="up/a.txt")
    assert found["Body"].read() == data
    assert found["ContentType"] == "text/css"
    status, _, body = post(front, bucket, fields={"success_action_status": "201"})
    assert status == 201 and b"<PostResponse" in body and b"<Key>up/a.txt</Key>" in body
    status, headers, _ = post(
        front, bucket, key="é", fields={"success_action_redirect": "http://x.test/done?a=b"}
    )
    assert status == 303
    assert headers["location"].startswith(f"http://x.test/done?a=b&bucket={bucket}&key=%C3%A9")
    assert post(front, bucket, fields={"success_action_redirect": "javascript:1"})[0] == 204


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"name": "EVE"}, 403, b"AccessDenied"),
        ({"expires_s": -5}, 403, b"Policy expired"),
        ({"conditions": [["content-length-range", 0, 3]]}, 400, b"EntityTooLarge"),
        ({"conditions": [["content-length-range", 10, 99]]}, 400, b"EntityTooSmall"),
        ({"conditions": [["starts-with", "$x-amz-meta-b", "no"]]}, 403, b"Condition failed"),
        ({"conditions": [["eq", "$acl", "private"]]}, 403, b"Condition failed"),
        ({"conditions": ["nonsense"]}, 400, b"InvalidPolicyDocument"),
    ],
)
def test_a_form_that_breaks_its_policy_stores_nothing(
    front: Front, bucket: str, changes: Mapping[str, Any], status: int, code: bytes
) -> None:
    found, _, body = post(front, bucket, key="never", **changes)
    assert found == status and code in body
    keys = [o["Key"] for o in front.client("ANN").list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["k"]


def test_forms_that_are_tampered_with_are_refused(front: Front, bucket: str) -> None:
    signed = front.client("ANN").generate_presigned_post(bucket, "k2")["fields"]

    def send(fields: Mapping[str, str], cut: int | None = None) -> bytes:
        body, content_type = form(fields, b"data")
        headers = {"Content-Type": content_type}
        return front.request("POST", f"/{bucket}", body=body[:cut], headers=headers)[2]

    assert b"SignatureDoesNotMatch" in send({**signed, "x-amz-signature": "0" * 64})
    assert b"SignatureDoesNotMatch" in send({**signed, "policy": signed["policy"][:-4]})
    assert b"Extra input fields" in send({**signed, "acl": "private"})
    assert b"Condition failed" in send({**signed, "key": "other"})
    assert b"InvalidAccessKeyId" in send(
        {**signed, "x-amz-credential": "NO/20260101/us-east-1/s3/aws4_request"}
    )
    assert b"AuthorizationHeaderMalformed" in send({**signed, "x-amz-credential": "x"})
    assert b"InvalidArgument" in send({k: v for k, v in signed.items() if k != "key"})
    assert b"InvalidArgument" in send({k: v for k, v in signed.items() if k != "x-amz-date"})
    assert b"InvalidRequest" in send({"key": "k", "AWSAccessKeyId": "ANN", "signature": "x"})
    assert b"AccessDenied" in send({"key": "k2"})
    assert b"MaxPostPreDataLengthExceeded" in send({"key": "k", "pad": "x" * 70_000})
    assert b"IncompleteBody" in send(signed, cut=-30)
    status, _, body = front.request(
        "POST", f"/{bucket}", body=b"x", headers={"Content-Type": "multipart/form-data"}
    )
    assert status == 400 and b"MalformedPOSTRequest" in body
    put_policy(front, bucket, {"Action": "s3:PutObject"})
    assert send({"key": "k2"}) == b""
    keys = [o["Key"] for o in front.client("ANN").list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["k", "k2"]


# ---- websites ----


def test_a_bucket_is_a_website(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    assert code_of(ann.get_bucket_website, Bucket=bucket) == "NoSuchWebsiteConfiguration"
    site = {
        "IndexDocument": {"Suffix": "index.html"},
        "ErrorDocument": {"Key": "lost.html"},
        "RoutingRules": [
            {
                "Condition": {"KeyPrefixEquals": "old/"},
                "Redirect": {"ReplaceKeyPrefixWith": "new/", "HttpRedirectCode": "302"},
            }
        ],
    }
    ann.put_bucket_website(Bucket=bucket, WebsiteConfiguration=site)
    found = ann.get_bucket_website(Bucket=bucket)
    assert found["IndexDocument"] == site["IndexDocument"]
    for key in ("index.html", "docs/index.html", "lost.html"):
        ann.put_object(Bucket=bucket, Key=key, Body=key.encode(), ContentType="text/html")
    host = {"Host": f"{bucket}.web.test"}
    assert front.request("GET", "/", headers=host)[0] == 403, "nobody may read yet"
    put_policy(
        front,
        bucket,
        {},
        {"Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{bucket}"},
    )
    status, headers, body = front.request("GET", "/", headers=host)
    assert (status, body, headers["content-type"]) == (200, b"index.html", "text/html")
    assert front.request("GET", "/docs/?x=y", headers=host)[2] == b"docs/index.html"
    status, headers, _ = front.request("GET", "/docs", headers=host)
    assert (status, headers["location"]) == (302, f"http://{bucket}.web.test/docs/")
    assert front.request("GET", "/none", headers=host)[::2] == (404, b"lost.html")
    assert front.request("HEAD", "/none", headers=host)[::2] == (404, b"")
    status, headers, _ = front.request("GET", "/old/a%20b", headers=host)
    assert (status, headers["location"]) == (302, f"http://{bucket}.web.test/new/a%20b")
    assert front.request("PUT", "/x", headers=host, body=b"")[0] == 405
    ann.delete_object(Bucket=bucket, Key="lost.html")
    status, _, body = front.request("GET", "/<b>", headers=host)
    assert status == 404 and b"NoSuchKey" in body and b"<b>" not in body
    everything = {"RedirectAllRequestsTo": {"HostName": "x.test", "Protocol": "https"}}
    ann.put_bucket_website(Bucket=bucket, WebsiteConfiguration=everything)
    status, headers, _ = front.request("GET", "/a", headers=host)
    assert (status, headers["location"]) == (301, "https://x.test/a")
    ann.delete_bucket_website(Bucket=bucket)
    assert front.request("GET", "/", headers=host)[0] == 404
    wrong = {"IndexDocument": {"Suffix": "a/b"}}
    assert (
        code_of(ann.put_bucket_website, Bucket=bucket, WebsiteConfiguration=wrong)
        == "InvalidArgument"
    )


def test_a_bucket_is_a_host_name(front: Front, bucket: str) -> None:
    put_policy(front, bucket, {})
    host = {"Host": f"{bucket}.s3.test"}
    assert front.request("GET", f"/{quote('k')}", headers=host)[2] == b"hello"


# ---- what is off ----


def test_features_that_are_off_are_told_so(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    ann.get_bucket_accelerate_configuration(Bucket=bucket)
    ann.put_bucket_accelerate_configuration(
        Bucket=bucket, AccelerateConfiguration={"Status": "Suspended"}
    )
    assert "LoggingEnabled" not in ann.get_bucket_logging(Bucket=bucket)
    ann.put_bucket_logging(Bucket=bucket, BucketLoggingStatus={})
    ann.get_bucket_notification_configuration(Bucket=bucket)
    ann.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={})
    assert ann.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"
    owner = {"Payer": "BucketOwner"}
    ann.put_bucket_request_payment(Bucket=bucket, RequestPaymentConfiguration=owner)
    for kind in ("analytics", "inventory", "metrics", "intelligent_tiering"):
        listed = getattr(ann, f"list_bucket_{kind}_configurations")(Bucket=bucket)
        assert not listed.get("IsTruncated")
        get = getattr(ann, f"get_bucket_{kind}_configuration")
        assert code_of(get, Bucket=bucket, Id="x") == "NoSuchConfiguration"
    code = code_of(ann.get_bucket_replication, Bucket=bucket)
    assert code == "ReplicationConfigurationNotFoundError"


def test_features_that_are_off_cannot_be_turned_on(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    logging = {"LoggingEnabled": {"TargetBucket": bucket, "TargetPrefix": "l/"}}
    faster = {"Status": "Enabled"}
    tried: list[tuple[Any, dict[str, Any]]] = [
        (ann.put_bucket_logging, {"BucketLoggingStatus": logging}),
        (
            ann.put_bucket_accelerate_configuration,
            {"AccelerateConfiguration": faster},
        ),
        (ann.put_bucket_request_payment, {"RequestPaymentConfiguration": {"Payer": "Requester"}}),
    ]
    for call, arguments in tried:
        assert code_of(call, Bucket=bucket, **arguments) == "NotImplemented"


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
        assert code_of(client.put_object, Bucket=f"{bucket}-open", **put) == "NotImplemented"
        client.put_object(Bucket=bucket, Key="k2", Body=b"", ACL="bucket-owner-full-control")
